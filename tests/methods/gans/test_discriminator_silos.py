"""One generator on the server: it learns what one process would that has all discriminators in it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from manyhands import Experiment, Message
from manyhands.errors import ManyhandsError
from manyhands.links.coordinator import RoundCoordinator
from manyhands.methods.gans.generator_server import GeneratorServer
from manyhands.methods.gans.mdgan import MDGan, ring
from manyhands.methods.gans.splitgan import SplitGan
from manyhands.models.gan import Gan, GanModule, iteration, run_blocks
from manyhands.seed import torch_rng
from manyhands.tensors import Tensors, snapshot, strip_prefix
from tests.methods.huscf.test_method import SMALL, gan_silos, trained

TRAINING = {"batch": 4, "steps": 10, "learning_rate": 1e-3}


def mdgan(**options: Any) -> MDGan:
    return MDGan.model_validate({"model": SMALL, "training": TRAINING, "rounds": 1, "swap": 0, **options})


def splitgan(**options: Any) -> SplitGan:
    return SplitGan.model_validate({"model": SMALL, "training": TRAINING, "rounds": 2, **options})


def pieces(experiment: Experiment, silo: int = 0) -> Tensors:
    """The generator, and the discriminator of a silo."""
    assert isinstance(experiment.server, GeneratorServer)
    return snapshot(experiment.server.network.state_dict()) | strip_prefix(
        experiment.silos[silo].memory, "discriminator."
    )


def test_of_one_silo_it_is_the_plain_gan_to_the_bit() -> None:
    plain = SMALL.model_copy(update={"classes": 0})
    method, (silo,) = mdgan(model=plain, rounds=2), gan_silos(1)
    whole = plain.build(0)
    optimiser = method.training.optimiser_of(whole, 0)
    for number in range(2):
        noise = torch_rng(0, "made", number)
        for numbers in list(method.training.batches(9, silo.rng(number))):
            x, _ = silo.images.batch(numbers)
            iteration(plain, whole, optimiser, x, None, torch.randn(len(x), 4, generator=noise))
    split = pieces(trained(method, gan_silos(1)))
    assert split.keys() == whole.state_dict().keys()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, split[name]), name


def together(method: MDGan) -> tuple[GanModule, dict[str, GanModule]]:
    """One round in one process and one graph: the generator's loss is the mean of what all say."""
    spec, silos = method.model, gan_silos()
    forge, discriminators = spec.build(0), {silo.name: spec.build(0) for silo in silos}
    ours = method.training.optimiser_of(forge, 0)
    theirs = {name: method.training.optimiser_of(each, 0) for name, each in discriminators.items()}
    noise = torch_rng(0, "made", 0)
    batches = [list(method.training.batches(9, silo.rng(0))) for silo in silos]
    for numbers in zip(*batches, strict=True):
        made: list[tuple[Tensor, Tensor]] = []
        for _ in range(method.batches):
            z = torch.randn(4, spec.latent, generator=noise)
            y = torch.randint(spec.classes, (4,), generator=noise)
            made.append((run_blocks(forge.generator, z, y), y))
        losses = []
        for i, silo in enumerate(silos):
            blocks, (x, labels) = discriminators[silo.name].discriminator, silo.images.batch(numbers[i])
            learn, y = made[(i % method.batches + 1) % method.batches]
            theirs[silo.name].zero_grad()
            spec.discriminator_loss(run_blocks(blocks, learn.detach(), y), real=False).backward()
            spec.discriminator_loss(run_blocks(blocks, x, labels), real=True).backward()
            theirs[silo.name].step()
            losses.append(spec.generator_loss(run_blocks(blocks, *made[i % method.batches])))
        ours.zero_grad()
        (sum(losses) / len(losses)).backward()  # type: ignore[union-attr]
        ours.step()
    return forge, discriminators


@pytest.mark.parametrize("batches", [1, 2, 3])
def test_many_silos_learn_as_in_one_process(batches: int) -> None:
    model = SMALL.model_copy(update={"norm": "group", "width": 16})  # under batch norms rounding would grow
    method = mdgan(model=model, batches=batches)
    forge, discriminators = together(method)
    experiment = trained(method, gan_silos())
    for i in range(3):
        tensors, discriminator = pieces(experiment, i), discriminators[f"s{i}"]
        for network, parts in (("generator", forge), ("discriminator", discriminator)):
            for name, tensor in getattr(parts, network).state_dict(prefix=f"{network}.").items():
                assert torch.allclose(tensor, tensors[name], atol=1e-5), name


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_in_a_ring_everyone_gets_another_one_and_none_is_lost(count: int) -> None:
    silos = [f"s{i}" for i in range(count)]
    got = ring(silos, torch.randperm(count, generator=torch.Generator().manual_seed(count)).tolist())
    assert sorted(got) == sorted(got.values()) == silos
    assert count == 1 or all(silo != other for silo, other in got.items())


def same(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_discriminators_change_places_when_they_are_told_to() -> None:
    experiment = Experiment(mdgan(rounds=5, swap=2), gan_silos(), device="cpu")
    moves, orders = [], []
    for _ in experiment:
        assert isinstance(experiment.server, GeneratorServer)
        held = [strip_prefix(silo.memory, "discriminator.") for silo in experiment.silos]
        pending = experiment.server.pending
        order = [[same(each, pending[silo.name]) for each in held] for silo in experiment.silos if pending]
        moves.append(bool(pending))
        orders += [order] if order else []
    assert moves == [False, True, False, True, False]
    for order in orders:
        table = torch.tensor(order).int()
        assert table.sum(0).tolist() == table.sum(1).tolist() == [1, 1, 1]
        assert not table.diagonal().any()


def test_the_next_round_goes_on_with_the_discriminator_that_came() -> None:
    training = TRAINING | {"learning_rate_end": 0.0}  # nothing is learnt in the second of two rounds
    before: list[Tensors] = []
    for _ in (experiment := Experiment(mdgan(rounds=2, swap=1, training=training), gan_silos(2), device="cpu")):
        before = before or [strip_prefix(silo.memory, "discriminator.") for silo in experiment.silos]
    after = [strip_prefix(silo.memory, "discriminator.") for silo in experiment.silos]
    name = "discriminator.4.1.weight"
    assert [[torch.equal(a[name], b[name]) for b in before] for a in after] == [[False, True], [True, False]]


@pytest.mark.parametrize("devices", [(1,), (1, 2), (1, 2, 3, 4)])
def test_a_discriminator_on_many_devices_is_that_on_one_to_the_bit(devices: tuple[int, ...]) -> None:
    one, many = (trained(splitgan(devices=boundaries), gan_silos()) for boundaries in ((), devices))
    for i in range(3):
        assert same(pieces(one, i), pieces(many, i))


def test_what_is_passed_on_between_devices_is_told() -> None:
    paper = Gan(size=28, channels=1, classes=10)
    *_, work, passed = splitgan(model=paper, devices=(1, 2)).cost_lines(5, None)  # type: ignore[arg-type]
    assert work.startswith("the 3 devices")
    assert "451.6 kB" in passed  # 3 passes there and back of 64 x 14 x 14 and 128 x 7 x 7 numbers of 4 bytes
    *_, work = splitgan(devices=()).cost_lines(5, None)  # type: ignore[arg-type]
    assert work.startswith("the 1 devices")


@pytest.mark.parametrize("devices", [(0,), (2, 1), (1, 1), (5,)])
def test_devices_out_of_order_are_refused(devices: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="expected rising numbers"):
        splitgan(devices=devices)


def test_discriminators_are_averaged_after_each_round_but_the_last() -> None:
    for done in (experiment := Experiment(splitgan(), gan_silos(), device="cpu")):
        assert isinstance(experiment.server, GeneratorServer)
        held = [strip_prefix(silo.memory, "discriminator.") for silo in experiment.silos]
        if done.number == 0:
            for got in experiment.server.pending.values():
                for name, tensor in got.items():
                    mean = torch.stack([each[name].double() for each in held]).mean(0).float()
                    assert torch.allclose(tensor, mean, atol=1e-7), name
        else:
            assert not experiment.server.pending


def test_bytes_are_those_of_images_and_gradients() -> None:
    line, _ = mdgan(batches=2).cost_lines(3, None)  # type: ignore[arg-type]
    assert "4.1 kB up and 8.3 kB down" in line
    experiment = trained(mdgan(batches=2), gan_silos())
    image, label, steps = 4 * 16 * 16, 8, 10
    for entry in experiment.ledger.entries():
        if (key := (entry["op"], entry["direction"])) in (("feedback", "up"), ("images", "down")):
            plain = steps * 4 * (image if key[0] == "feedback" else 2 * (image + label))
            assert plain < entry["bytes"] < plain + steps * 500
        elif entry["op"] != "join":
            assert entry["bytes"] < steps * 100 + 200


def test_a_silo_sends_gradients_of_what_it_got_and_of_no_more() -> None:
    method = mdgan()
    coordinator = RoundCoordinator(method.server(0, ["s0"]), method.plan(), {"s0": 9})
    image = torch.zeros(4, 1, 16, 16)
    coordinator.submit("s0", Message("join", {}, {"images": 9, "holds": False}))
    for early in (
        Message("feedback", {"x": image}),
        Message("images", {}, {"count": 5}),
        Message("images", {}, {"count": 0}),
    ):
        with pytest.raises(ManyhandsError):
            coordinator.submit("s0", early)
    coordinator.submit("s0", Message("images", {}, {"count": 4}))
    for wrong in (image[:3], image * torch.nan, image.double(), image[:, :, :8]):
        with pytest.raises(ManyhandsError):
            coordinator.submit("s0", Message("feedback", {"x": wrong}))
    coordinator.submit("s0", Message("feedback", {"x": image}))
    with pytest.raises(ManyhandsError, match="has no images left"):
        coordinator.submit("s0", Message("feedback", {"x": image}))
