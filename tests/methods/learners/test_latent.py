"""A latent model over silos: one frozen autoencoder, one normalization, and only the U-Net on its way in rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from manyhands import Central, DiffusionGenerator, Experiment, FedAvg, Local, Message, Silo, Training
from manyhands.data.images import Images, join
from manyhands.data.latents import MIN_VARIANCE, Latents, Moments, normalization_of
from manyhands.data.rows import Rows, RowsBuffer
from manyhands.errors import CheckpointError, Reason, RecipeError, Refused
from manyhands.links.in_process import InProcess
from manyhands.messages.outgoing import Statistics
from manyhands.methods.baselines import LocalServer
from manyhands.methods.learners.latent import AGREE, FETCH, SCALE, SHIFT, SQUARES, SUMS, LatentServer, encode
from manyhands.models.autoencoder import Autoencoder, TrainedAutoencoder
from manyhands.models.latent import Latent
from manyhands.tensors import sha256
from tests.conftest import tiny_images

AUTOENCODER = Autoencoder(size=8, channels=1, latent=2, widths=(8, 8))
TRAINING = Training(batch=4, steps=2, learning_rate=1e-2)
SIZES = (7, 12, 5)


def silos() -> list[Silo]:
    """The last one has images that are all nearly black, so that its latents differ from the others'."""
    return [Silo(f"s{i}", each) for i, each in enumerate(different_images())]


def different_images() -> list[Images]:
    images = [tiny_images(count, seed=i, size=8) for i, count in enumerate(SIZES)]
    images[-1] = replace(images[-1], stored=images[-1].pixels // 64)
    return images


def report(silo: Silo, moments: Moments) -> Message:
    """What a silo sends of its moments."""
    return Message(AGREE, {SUMS: moments.sums, SQUARES: moments.squares}, {"images": len(silo.images)})


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
    return FedAvg(**{"model": latent(folder), "training": TRAINING, "rounds": 3, **options})


def trained(run_method: Any, **more: Any) -> Experiment:
    experiment = Experiment(run_method, silos(), device="cpu", **more)
    for _ in experiment:
        pass
    return experiment


def state(experiment: Experiment) -> Mapping[str, torch.Tensor]:
    return experiment.server.state_dict()


def test_the_latents_of_all_silos_together_have_mean_0_and_deviation_1_in_each_channel(folder: Path) -> None:
    experiment = trained(method(folder, rounds=1))
    latents = [silo.latents for silo in experiment.silos]
    for silo in experiment.silos:
        for name in (SHIFT, SCALE):
            assert torch.equal(silo.memory[name], state(experiment)[name])
    rng, each = torch.Generator().manual_seed(0), [each for each in latents if each]
    whole = torch.cat([(torch.as_tensor(one.mean) - one.shift) * one.scale for one in each])
    noise = torch.cat([torch.as_tensor(one.deviation) * one.scale for one in each])
    total = normalization_of([Latents(whole, noise).moments()])
    assert torch.allclose(total.shift, torch.zeros(2).double(), atol=1e-6)
    assert torch.allclose(total.scale, torch.ones(2).double(), atol=1e-6)
    drawn = torch.cat([one.batch(torch.arange(len(one)), rng)[0] for one in each for _ in range(50)])
    assert torch.allclose(drawn.mean((0, 2, 3)), torch.zeros(2), atol=0.02)
    assert torch.allclose(drawn.std((0, 2, 3)), torch.ones(2), atol=0.02)
    alone = torch.stack([normalization_of([one.moments()]).shift for one in each])
    apart = (alone.amax(0) - alone.amin(0)) * state(experiment)[SCALE]
    assert apart.max() > 0.05  # silos that did so by themselves would not agree


def test_the_agreement_does_not_depend_on_how_images_are_dealt(folder: Path) -> None:
    pooled = join(different_images())
    order = torch.randperm(len(pooled), generator=torch.Generator().manual_seed(0))
    agreed = []
    for parts in ([order], order.split(5), order.flip(0).split([1, 20, 3])):
        holders = [Silo(f"s{i}", pooled.subset(part.numpy())) for i, part in enumerate(parts)]
        agreed.append(normalization_of([encode(silo, latent(folder).load()).moments() for silo in holders]))
    for other in agreed[1:]:
        assert torch.allclose(other.shift, agreed[0].shift, rtol=1e-6, atol=1e-7)
        assert torch.allclose(other.scale, agreed[0].scale, rtol=1e-6)
    server = state(trained(method(folder, rounds=1)))
    assert torch.allclose(server[SHIFT], agreed[0].shift, rtol=1e-6, atol=1e-7)
    assert torch.allclose(server[SCALE], agreed[0].scale, rtol=1e-6)


def test_the_stored_autoencoder_encodes_to_normalized_latents_and_decodes_them_as_before(folder: Path) -> None:
    experiment = trained(method(folder, rounds=1))
    silo, before = experiment.silos[0], latent(folder).load()
    generator = experiment.generator()
    assert isinstance(generator, DiffusionGenerator)
    assert generator.scale == 1
    after, latents = generator.autoencoder, silo.latents
    assert after is not None
    assert latents is not None
    again, plain = encode(silo, after), encode(silo, before)
    mean, deviation = (torch.as_tensor(part) for part in (plain.mean, plain.deviation))
    mean, deviation = (mean - latents.shift) * latents.scale, deviation * latents.scale
    assert torch.allclose(torch.as_tensor(again.mean), mean, atol=1e-5)
    assert torch.allclose(torch.as_tensor(again.deviation), deviation, rtol=1e-5)
    assert torch.allclose(after.decode(mean), before.decode(torch.as_tensor(plain.mean)), atol=1e-5)
    assert latents.autoencoder is not None
    assert sha256(latents.autoencoder.weights) == sha256(after.weights)


def test_a_channel_that_hardly_varies_is_not_blown_up() -> None:
    moments = Moments(10, torch.tensor([50.0, 0.0]).double(), torch.tensor([250.0, 40.0]).double())
    shift, scale = normalization_of([moments])
    assert shift.tolist() == [5, 0]
    assert scale.tolist() == [MIN_VARIANCE**-0.5, 0.5]


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
    before = run_method.model.load().weights  # type: ignore[union-attr]
    experiment = trained(run_method, link=InProcess(wire="bytes"))
    after = experiment.generator().autoencoder.weights  # type: ignore[union-attr]
    changed = {name for name in before if not torch.equal(after[name], before[name])}
    assert {name.rsplit(".", 1)[0] for name in changed} == {"inner.quant_conv", "inner.post_quant_conv"}
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


@pytest.mark.parametrize("share", ["all", "up"])
def test_a_scale_that_is_given_is_not_agreed_on(folder: Path, share: str) -> None:
    run_method = method(folder, rounds=1, model=latent(folder, scale=0.5), share=share)
    assert AGREE not in run_method.plan().operations
    experiment = trained(run_method)
    assert not {SHIFT, SCALE} & set(state(experiment))
    generator = experiment.generator(None if share == "all" else "s0")
    assert generator.scale == 0.5
    assert sha256(generator.autoencoder.weights) == sha256(latent(folder).load().weights)  # type: ignore[union-attr]


def test_the_plan_says_which_sums_leave(folder: Path) -> None:
    (kind,) = method(folder).plan().operations[AGREE].outgoing
    assert isinstance(kind, Statistics)
    assert kind.description == "for each channel the sum of its latents, and the sum of their squares"
    assert not kind.exposed()


def test_one_who_comes_late_gets_the_normalization_of_the_others(folder: Path) -> None:
    server = LatentServer(latent(folder), LocalServer(1, 0))
    holders = silos()
    moments = [encode(silo, server.trained).moments() for silo in holders]
    reports = {silo.name: report(silo, sums) for silo, sums in zip(holders, moments, strict=True)}
    assert SCALE not in server.handle("s0", Message(FETCH)).tensors
    server.validate("s0", reports["s0"])
    server.handle_barrier(AGREE, {name: reports[name] for name in ("s0", "s1")})
    with pytest.raises(Refused) as refused:
        server.validate("s2", reports["s2"])
    assert refused.value.reason is Reason.STALE_ROUND
    resumed = LatentServer(latent(folder), LocalServer(1, 0))
    resumed.load_state_dict(server.state_dict())
    assert torch.equal(resumed.handle("s2", Message(FETCH)).tensors[SCALE], server.agreed[SCALE])

    late = method(folder).silo(holders[2])
    assert next(late).op == FETCH
    assert late.send(Message(FETCH, server.trained.weights)).op == AGREE
    assert late.throw(Refused(Reason.STALE_ROUND, "agreed")).op == FETCH
    assert late.send(server.handle("s2", Message(FETCH))).op == "join"
    assert holders[2].latents is not None
    assert torch.equal(holders[2].memory[SCALE], normalization_of(moments[:2]).scale)
    assert torch.equal(torch.as_tensor(holders[2].latents.shift).flatten(), server.agreed[SHIFT].float())


@pytest.mark.parametrize("channel", [0, 1])
@pytest.mark.parametrize(
    "lie",
    [
        {SUMS: 0.0, SQUARES: 0.0},
        {SQUARES: 0.0},
        {SQUARES: -1.0},
        {SQUARES: 1e12},
        {SUMS: 1e9},
        {SUMS: -1e9},
        {SUMS: 1e300, SQUARES: 1e300},
    ],
)
def test_moments_that_no_latents_have_are_refused(folder: Path, lie: dict[str, float], channel: int) -> None:
    server, silo = LatentServer(latent(folder), LocalServer(1, 0)), silos()[0]
    message = report(silo, encode(silo, server.trained).moments())
    server.validate("s0", message)
    for name, value in lie.items():
        message.tensors[name][channel] = value
    with pytest.raises(Refused, match=f"for channel {channel} of its latents") as refused:
        server.validate("s0", message)
    assert refused.value.reason is Reason.WRONG_WEIGHT


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_moments_that_are_not_finite_or_of_other_channels_do_not_fit_the_plan(folder: Path, value: float) -> None:
    payload = method(folder).plan().operations[AGREE].up
    good = {SUMS: torch.ones(2).double(), SQUARES: torch.ones(2).double()}
    payload.check(Message(AGREE, good, {"images": 7}))
    for bad, reason in [
        (good | {SUMS: torch.tensor([0.0, value]).double()}, Reason.NOT_FINITE),
        (good | {SUMS: torch.ones(3).double()}, Reason.WRONG_SHAPE),
        (good | {SUMS: torch.ones(2)}, Reason.WRONG_DTYPE),
        ({SUMS: good[SUMS]}, Reason.MISSING_TENSOR),
    ]:
        with pytest.raises(Refused) as refused:
            payload.check(Message(AGREE, bad, {"images": 7}))
        assert refused.value.reason is reason


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
    assert all(map(torch.equal, kept.moments()[1:], memory.moments()[1:]))
    assert len(kept) == 30
    assert max_bytes == 10**9 or not list((tmp_path / "cache").iterdir())
