"""What a recipe can ask of local training: each method does it, or refuses it by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from manyhands import (
    Autoencoder,
    CollaFuse,
    Experiment,
    FedAvg,
    Gan,
    GanTraining,
    HuSCF,
    Local,
    Network,
    Training,
    UNet,
)
from manyhands.diffusion.objective import Diffusion
from manyhands.errors import RecipeError
from manyhands.methods.base import AVERAGE, WEIGHTS, Method
from manyhands.methods.gans.mdgan import MDGan
from manyhands.models.latent import Latent
from manyhands.models.network_cost import saved_bytes
from manyhands.silos.local_training import prepare, steps
from manyhands.silos.silo import Silo
from manyhands.tensors import Tensors, sha256, strip_prefix
from tests.conftest import TINY, tiny_images, tiny_silos

GAN = Gan(size=8, channels=1, classes=0, width=4)
ROUND = {"batch": 4, "steps": 3, "learning_rate": 1e-2}


def run(method: Method, silos: list[Silo], **options: Any) -> Experiment:
    experiment = Experiment(method, silos, device="cpu", **options)
    for _ in experiment:
        pass
    return experiment


def fedavg(**training: Any) -> FedAvg:
    return FedAvg(model=TINY, training=Training(**ROUND, **training), rounds=3)


def weights(experiment: Experiment) -> Tensors:
    return experiment.server.weights  # type: ignore[attr-defined, no-any-return]


def stepped(network: nn.Module, **training: Any) -> Tensors:
    """Train on fixed noise for each image, so that a batch has the same loss however it is divided."""
    spec, x = Training(**ROUND, **training), torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    eps, t = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)), torch.arange(12) * 80 + 1
    diffusion = Diffusion()

    def loss(numbers: Tensor) -> Tensor:
        alpha, sigma = diffusion.schedule.levels(t[numbers], x)
        out = network(alpha * x[numbers] + sigma * eps[numbers], t[numbers], None)
        return (out - eps[numbers]).square().mean()

    prepare(network, spec)
    batches, optimiser = list(torch.arange(12).split(4)), torch.optim.SGD(network.parameters(), 0.1)
    losses = list(steps(network, optimiser, batches, loss, accumulate=spec.accumulate))
    return {"losses": torch.stack(losses), **network.state_dict()}


UNET = UNet(size=8, channels=1, classes=0, widths=(8, 16), attention=True)


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_a_batch_in_parts_has_the_gradient_of_the_whole_batch(parts: int) -> None:
    whole, divided = stepped(UNET.build(0)), stepped(UNET.build(0), accumulate=parts)
    assert all(torch.allclose(whole[name], divided[name], atol=1e-5) for name in whole)
    assert any(not torch.equal(whole[name], divided[name]) for name in whole)


def test_features_that_are_computed_again_change_no_bit_and_are_not_kept() -> None:
    assert sha256(stepped(UNET.build(0))) == sha256(stepped(UNET.build(0), checkpointing=True))
    plain, frugal = UNET.build(0), UNET.build(0)
    prepare(frugal, Training(steps=1, checkpointing=True))
    x, t = torch.randn(4, 1, 8, 8), torch.ones(4)
    kept = [saved_bytes(network.train(), lambda n=network: n(x, t, None))[0] for network in (plain, frugal)]
    assert kept[1] < 0.6 * kept[0]


def test_a_compiled_network_has_the_same_weights_by_the_same_names_and_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compile_network = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda network, **o: compile_network(network, backend="eager", **o))
    runs, model = [], Network(module=Small(), size=4, channels=1, classes=0)
    for compiled in (False, True):
        method = FedAvg(model=model, training=Training(**ROUND, compile=compiled), rounds=2)
        runs.append(run(method, [Silo("s0", tiny_images(9))]))
        assert (runs[-1].silos[0].device_context.network(model)._compiled_call_impl is not None) == compiled
    plain, fast = map(weights, runs)
    assert plain.keys() == fast.keys()
    assert all(torch.allclose(plain[name], fast[name], atol=1e-6) for name in plain)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        out: Tensor = self.inner(x_t)
        return out


def test_the_rate_rises_over_the_first_steps_of_the_run_and_not_of_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: rates.append(self.param_groups[0]["lr"]))
    run(fedavg(warmup=5), [Silo("s0", tiny_images(9))])
    assert rates == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.01, *[0.01] * 4])


def test_what_is_sent_is_the_average_over_the_steps_of_a_round() -> None:
    silo = Silo("s0", tiny_images(9))
    plain, averaged = (weights(run(fedavg(step_ema=decay), [silo])) for decay in (0.0, 0.5))
    assert sha256(plain) != sha256(averaged)
    one = {**ROUND, "steps": 1}
    alike = [run(FedAvg(model=TINY, training=Training(**one, **x), rounds=2), [silo]) for x in ({}, {"step_ema": 0.9})]
    assert sha256(weights(alike[0])) == sha256(weights(alike[1]))  # of a single step


def test_a_network_that_stays_goes_on_from_its_last_weights_and_keeps_the_average_for_sampling() -> None:
    memories = []
    for decay in (0.0, 0.5):
        method = Local(model=TINY, training=Training(**ROUND, step_ema=decay), rounds=3)
        memories.append(run(method, tiny_silos([9])).silos[0].memory)
    last = [strip_prefix(memory, WEIGHTS) for memory in memories]
    assert sha256(last[0]) == sha256(last[1])
    assert sha256(strip_prefix(memories[0], AVERAGE)) == sha256(last[0])
    assert sha256(strip_prefix(memories[1], AVERAGE)) != sha256(last[1])


EVERYTHING = {"flip": True, "warmup": 5, "step_ema": 0.5, "accumulate": 2, "checkpointing": True}


@pytest.mark.parametrize(
    "method",
    [
        FedAvg(model=TINY, training=Training(**ROUND, **EVERYTHING, shift=1), rounds=3, keep_optimiser=True),
        Local(model=TINY, training=Training(**ROUND, **EVERYTHING, shift=1), rounds=3, ema=0.3),
        CollaFuse(model=TINY, training=Training(**ROUND, **EVERYTHING), rounds=3, cut=0.4),
    ],
    ids=lambda method: method.kind,
)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(method: Method, tmp_path: Path) -> None:
    whole = run(method, tiny_silos(), folder=tmp_path / "whole")
    next(iter(Experiment(method, tiny_silos(), folder=tmp_path / "stopped", device="cpu")))
    on = run(method, tiny_silos(), folder=tmp_path / "stopped", resume=True)
    assert sha256(on.server.state_dict()) == sha256(whole.server.state_dict())
    for silo, same in zip(on.silos, whole.silos, strict=True):
        assert sha256(silo.memory) == sha256(same.memory)


@pytest.mark.parametrize("option", [{"flip": True}, {"shift": 2}])
def test_images_are_changed_for_networks_of_every_kind(option: dict[str, Any]) -> None:
    gan = {"batch": 4, "steps": 1, "learning_rate": 1e-2}
    silos = [Silo(f"s{i}", tiny_images(9, i, 2, 8)) for i in range(2)]
    conditional = GAN.model_copy(update={"classes": 2})
    autoencoder = Autoencoder(size=8, channels=1, widths=(8, 8))
    both = [
        [
            FedAvg(model=UNET, training=Training(**gan, **x), rounds=1),
            FedAvg(model=autoencoder, training=Training(**gan, **x), rounds=1),
            FedAvg(model=conditional, training=GanTraining(**gan, **x), rounds=1),
            HuSCF(model=conditional, training=GanTraining(**gan, **x), rounds=1, min_head=0),
            MDGan(model=conditional, training=GanTraining(**gan, **x), rounds=1),
        ]
        for x in ({}, option)
    ]
    for plain, changed in zip(*both, strict=True):
        states = [run(method, silos).server.state_dict() for method in (plain, changed)]
        assert sha256(states[0]) != sha256(states[1]), plain.kind


def test_the_server_of_collafuse_mirrors_the_released_images_with_their_noise() -> None:
    method = CollaFuse(model=TINY, training=Training(**ROUND), rounds=1, cut=0.5)
    flips = method.model_copy(update={"training": Training(**ROUND, flip=True)})
    states = [run(one, tiny_silos()).server.state_dict() for one in (method, flips)]
    assert sha256(strip_prefix(states[0], "server.")) != sha256(strip_prefix(states[1], "server."))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fedavg(accumulate=5), "accumulate is 5, but a batch has 4 images"),
        (lambda: fedavg(shift=4), "training.shift is 4, but images are 4 pixels wide; at most 3"),
        (
            lambda: GanTraining(steps=1, warmup=3),
            "warmup is for a network with a single loss; a GAN is",
        ),
        (lambda: GanTraining(steps=1, accumulate=2), "accumulate is for a network with a single loss"),
        (lambda: GanTraining(steps=1, checkpointing=True), "checkpointing is for a network with a single loss"),
        (lambda: GanTraining(steps=1, compile=True), "compile is for a network with a single loss"),
        (
            lambda: HuSCF(model=GAN, training=GanTraining(steps=1, step_ema=0.9), rounds=1, min_head=0),
            "step_ema is for networks that a silo trains whole, but huscf trains them in parts",
        ),
        (
            lambda: MDGan(model=GAN, training=GanTraining(steps=1, shift=8), rounds=1),
            "training.shift is 8, but images are 8 pixels wide",
        ),
        (
            lambda: FedAvg(
                model=Network(module=Small(), size=4, channels=1, classes=0),
                training=Training(steps=1, checkpointing=True),
                rounds=1,
            ),
            "checkpointing is for networks of diffusers, which a model of kind 'network' is not",
        ),
        (
            lambda: FedAvg(
                model=Autoencoder(size=8, channels=1, widths=(8, 8)), training=Training(steps=1, compile=True), rounds=1
            ),
            "compile is for denoisers, which an autoencoder is not",
        ),
        (
            lambda: FedAvg(
                model=Latent(
                    size=8, channels=1, classes=0, folder="x", autoencoder={"widths": (8, 8)}, unet={"widths": (8,)}
                ),
                training=Training(steps=1, flip=True),
                rounds=1,
            ),
            "change pixels, but a model of kind 'latent' is trained on latents",
        ),
        (
            lambda: CollaFuse(model=TINY, training=Training(steps=1, shift=1), rounds=1, cut=0.5),
            "training.shift repeats pixels at the edges, and the server trains on released images",
        ),
        (
            lambda: CollaFuse(
                model=TINY, training=Training(steps=1), server_training=Training(steps=1, shift=1), rounds=1, cut=0.5
            ),
            "server_training.shift repeats pixels",
        ),
        (
            lambda: run(fedavg(step_ema=0.9), tiny_silos([9])),
            "training.step_ema is 0.9, an average over about 10 steps, but a round of s0 has 3",
        ),
        (lambda: run(fedavg(step_ema=0.67), tiny_silos([9])), "at most 0.6666 is expected"),
    ],
)
def test_what_cannot_be_is_refused_by_name(make: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()
