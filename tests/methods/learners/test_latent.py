"""A latent model over silos: one frozen autoencoder, one scale, and only the U-Net on its way in rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from manyhands import Central, Experiment, FedAvg, Local, Message, Silo, Training
from manyhands.data.latents import Latents, latent_scale
from manyhands.data.rows import Rows, RowsBuffer
from manyhands.errors import CheckpointError, Reason, RecipeError, Refused
from manyhands.links.in_process import InProcess
from manyhands.methods.baselines import LocalServer
from manyhands.methods.learners.latent import AGREE, FETCH, SCALE, LatentServer, encode
from manyhands.models.autoencoder import Autoencoder, TrainedAutoencoder
from manyhands.models.latent import Latent
from manyhands.tensors import sha256
from tests.conftest import tiny_images

AUTOENCODER = Autoencoder(size=8, channels=1, latent=2, widths=(8, 8))
TRAINING = Training(batch=4, steps=2, learning_rate=1e-2)
SIZES = (7, 12, 5)


def silos() -> list[Silo]:
    """The last one has images that are all nearly black, so that its latents differ in scale from the others'."""
    images = [tiny_images(count, seed=i, size=8) for i, count in enumerate(SIZES)]
    images[-1] = replace(images[-1], stored=images[-1].pixels // 64)
    return [Silo(f"s{i}", each) for i, each in enumerate(images)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder whose latents say much of an image, and little of the noise."""
    folder = tmp_path_factory.mktemp("first") / "model"
    weights = AUTOENCODER.build(5).state_dict()
    weights["inner.quant_conv.bias"][AUTOENCODER.latent :] -= 6
    TrainedAutoencoder(AUTOENCODER, weights).save(folder)
    return folder


def latent(folder: Path, **options: Any) -> Latent:
    parts = {"autoencoder": AUTOENCODER, "unet": {"widths": [8]}}
    return Latent.model_validate({"size": 8, "channels": 1, "classes": 2, "folder": str(folder), **parts, **options})


def method(folder: Path, **options: Any) -> FedAvg:
    return FedAvg(model=latent(folder), training=TRAINING, **{"rounds": 3, **options})


def trained(run_method: Any, **more: Any) -> Experiment:
    experiment = Experiment(run_method, silos(), device="cpu", **more)
    for _ in experiment:
        pass
    return experiment


def state(experiment: Experiment) -> Mapping[str, torch.Tensor]:
    return experiment.server.state_dict()


def test_the_scale_is_that_of_all_latents_pooled_however_they_are_dealt(folder: Path) -> None:
    model, holders = latent(folder), silos()
    encoded = [encode(silo, model.load()) for silo in holders]
    mean, deviation = (torch.cat([getattr(each, name) for each in encoded]) for name in ("mean", "deviation"))
    pooled = latent_scale([Latents(mean, deviation).moments()])
    assert latent_scale([each.moments() for each in encoded]) == pytest.approx(pooled, rel=1e-12)
    rng = torch.Generator().manual_seed(0)
    drawn = torch.cat([Latents(mean, deviation).batch(torch.arange(len(mean)), rng)[0] for _ in range(50)])
    assert 1 / drawn.std().item() == pytest.approx(pooled, rel=0.02)
    alone = [latent_scale([each.moments()]) for each in encoded]
    assert max(alone) > 1.02 * min(alone)  # a scale for each silo would be another one

    experiment = trained(method(folder, rounds=1))
    assert float(state(experiment)[SCALE]) == pytest.approx(pooled, rel=1e-12)
    assert {float(silo.memory[SCALE]) for silo in experiment.silos} == {float(state(experiment)[SCALE])}
    assert experiment.generator().scale == float(state(experiment)[SCALE])


def test_latents_are_encoded_as_diffusers_encodes_them_and_scaled(folder: Path) -> None:
    silo, model = silos()[0], latent(folder)
    encoded = encode(silo, model.load())
    expected = model.load().network.inner.encode(silo.images.batch(torch.arange(7))[0]).latent_dist
    assert torch.allclose(encoded.mean, expected.mean)
    assert torch.allclose(encoded.deviation, expected.std)
    numbers = torch.tensor([4, 1])
    scaled, labels = replace(encoded, scale=3.0).batch(numbers, torch.Generator().manual_seed(0))
    plain, _ = encoded.batch(numbers, torch.Generator().manual_seed(0))
    assert torch.equal(scaled, 3 * plain)
    assert labels is not None
    assert silo.images.labels is not None
    assert torch.equal(labels, silo.images.labels[numbers])
    assert encoded.flops > 0


def test_rounds_carry_the_unet_alone_and_the_autoencoder_stays_as_it_was(folder: Path) -> None:
    run_method = method(folder)
    before = sha256(run_method.model.load().weights)  # type: ignore[union-attr]
    experiment = trained(run_method, link=InProcess(wire="bytes"))
    assert sha256(experiment.generator().autoencoder.weights) == before  # type: ignore[union-attr]
    entries = {(entry["op"], entry["direction"]): entry for entry in experiment.ledger.entries()}
    unet = 4 * sum(weight.numel() for weight in run_method.model.build(0).state_dict().values())
    first = 4 * sum(weight.numel() for weight in AUTOENCODER.build(0).state_dict().values())
    sent = experiment.ledger.entries()
    update = [entry for entry in sent if (entry["op"], entry["direction"]) == ("update", "up")]
    messages, size = sum(entry["messages"] for entry in update), sum(entry["bytes"] for entry in update)
    assert messages == 9
    assert unet < size / messages < 1.3 * unet
    assert first < entries[FETCH, "down"]["bytes"]
    assert entries[AGREE, "up"]["bytes"] < 1000
    counted = trained(method(folder))
    assert counted.ledger.entries() == sent
    assert sha256(state(counted)) == sha256(state(experiment))


@pytest.mark.parametrize("share", ["all", "up"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path: Path, folder: Path, share: str) -> None:
    whole = trained(method(folder, share=share, ema=0.5), folder=tmp_path / "whole")
    cut = Experiment(method(folder, share=share, ema=0.5), silos(), folder=tmp_path / "cut", device="cpu")
    next(iter(cut))
    on = trained(method(folder, share=share, ema=0.5), folder=tmp_path / "cut", resume=True)
    assert sha256(state(on)) == sha256(state(whole))
    names = [None] if share == "all" else [silo.name for silo in whole.silos]
    for name in names:
        assert torch.equal(on.generator(name).sample(2), whole.generator(name).sample(2))


def test_a_run_does_not_go_on_with_another_autoencoder(tmp_path: Path, folder: Path) -> None:
    folder = tmp_path / "model"
    TrainedAutoencoder(AUTOENCODER, AUTOENCODER.build(5).state_dict()).save(folder)
    next(iter(Experiment(method(folder), silos(), folder=tmp_path / "run", device="cpu")))
    TrainedAutoencoder(AUTOENCODER, AUTOENCODER.build(6).state_dict()).save(folder)
    with pytest.raises(CheckpointError, match="not the one that the run started with"):
        trained(method(folder), folder=tmp_path / "run", resume=True)


def test_a_scale_that_is_told_is_not_asked_for(folder: Path) -> None:
    run_method = FedAvg(model=latent(folder, scale=0.5), training=TRAINING, rounds=1)
    assert AGREE not in run_method.plan().operations
    assert trained(run_method).generator().scale == 0.5


def test_one_who_comes_late_gets_the_scale_of_the_others(folder: Path) -> None:
    server = LatentServer(latent(folder), LocalServer(1, 0))
    holders = silos()
    moments = [encode(silo, server.trained).moments() for silo in holders]
    said = {
        silo.name: Message(AGREE, {}, {"images": len(silo.images), **each._asdict()})
        for silo, each in zip(holders, moments, strict=True)
    }
    assert server.handle("s0", Message(FETCH)).facts == {"scale": 0.0}
    server.validate("s0", said["s0"])
    server.handle_barrier(AGREE, {name: said[name] for name in ("s0", "s1")})
    with pytest.raises(Refused) as refused:
        server.validate("s2", said["s2"])
    assert refused.value.reason is Reason.STALE_ROUND

    late = method(folder).silo(holders[2])
    assert next(late).op == FETCH
    assert late.send(Message(FETCH, server.trained.weights, {"scale": 0.0})).op == AGREE
    assert late.throw(Refused(Reason.STALE_ROUND, "agreed")).op == FETCH
    assert late.send(server.handle("s2", Message(FETCH))).op == "join"
    assert holders[2].latents is not None
    assert holders[2].latents.scale == server.scale


@pytest.mark.parametrize(
    "lie",
    [{"numbers": 31 * 7}, {"squares": 0.0}, {"squares": -1.0}, {"sum": 1e9}, {"sum": 1e300, "squares": 1e300}],
)
def test_moments_that_no_latents_have_are_refused(folder: Path, lie: dict[str, Any]) -> None:
    server, silo = LatentServer(latent(folder), LocalServer(1, 0)), silos()[0]
    moments = encode(silo, server.trained).moments()._asdict()
    server.validate("s0", Message(AGREE, {}, {"images": 7, **moments}))
    with pytest.raises(Refused) as refused:
        server.validate("s0", Message(AGREE, {}, {"images": 7, **moments, **lie}))
    assert refused.value.reason is Reason.WRONG_WEIGHT


@pytest.mark.parametrize("kind", [Local, Central])
def test_the_baselines_train_latent_models_too(folder: Path, kind: type[Local] | type[Central]) -> None:
    run_method = kind(model=latent(folder), training=TRAINING, rounds=1)
    holders = silos() if kind is Local else silos()[:1]
    experiment = Experiment(run_method, holders, device="cpu")
    for _ in experiment:
        pass
    name = "s0" if kind is Local else None
    assert experiment.generator(name).sample(2).shape == (2, 1, 8, 8)


def test_its_work_counts_the_encoding_once(folder: Path) -> None:
    first, second, _ = Experiment(method(folder), silos()[:1], device="cpu")
    assert first.flops["s0"] > second.flops["s0"] > 0


@pytest.mark.parametrize("kind", [FedAvg, Central])
def test_an_autoencoder_is_trained_by_the_same_methods(tmp_path: Path, kind: Any) -> None:
    run_method = kind(model=AUTOENCODER, training=TRAINING, rounds=2)
    holders = silos()[:1] if kind is Central else silos()
    experiment = Experiment(run_method, holders, folder=tmp_path / "run", device="cpu")
    losses = [done.loss for done in experiment]
    assert len(losses) == 2
    loaded = TrainedAutoencoder.from_pretrained(tmp_path / "run" / "model", AUTOENCODER)
    assert sha256(loaded.weights) == sha256(experiment.server.weights)  # type: ignore[attr-defined]
    assert (tmp_path / "run" / "figures" / "samples.png").exists() is (kind is Central)  # else: images of silos
    with pytest.raises(RecipeError, match="cannot sample by itself"):
        experiment.generator()


def test_parts_of_an_autoencoder_do_not_stay_at_home() -> None:
    with pytest.raises(ValueError, match="an autoencoder can only be shared with"):
        FedAvg(model=AUTOENCODER, training=TRAINING, rounds=1, share="up")


@pytest.mark.parametrize("max_bytes", [0, 500, 10**9])
def test_latents_in_a_file_are_those_in_memory(tmp_path: Path, max_bytes: int) -> None:
    rng = torch.Generator().manual_seed(0)
    mean, deviation = torch.randn(30, 4, 2, 2, generator=rng), torch.rand(30, 4, 2, 2, generator=rng)
    buffers = [RowsBuffer(tmp_path / "cache", max_bytes) for _ in range(2)]
    for buffer, values in zip(buffers, (mean, deviation), strict=True):
        for part in values.split(7):
            buffer.add(part)
    memory = Latents(mean, deviation, torch.arange(30))
    kept = Latents(buffers[0].rows(), buffers[1].rows(), torch.arange(30)).to(torch.device("cpu"))
    assert isinstance(kept.mean, Rows) == (max_bytes < 10**6)
    numbers = torch.tensor([29, 0, 7, 7])
    sampled, expected = (which.batch(numbers, torch.Generator().manual_seed(1)) for which in (kept, memory))
    assert torch.equal(sampled[0], expected[0])
    assert kept.moments() == memory.moments()
    assert len(kept) == 30
    assert max_bytes == 10**9 or not list((tmp_path / "cache").iterdir())
