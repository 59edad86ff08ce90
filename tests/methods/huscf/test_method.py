"""A GAN cut into a U over silos: it learns what one process would that has all in one."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from harness.whole_gan import together
from manyhands import Evaluation, Experiment, FedAvg, Images, Sampling, Silo
from manyhands.errors import RecipeError, Refused
from manyhands.generators.base import ImageGenerator
from manyhands.links.coordinator import RoundCoordinator
from manyhands.links.in_process import InProcess
from manyhands.messages.message import Message
from manyhands.methods import clustering
from manyhands.methods.base import Conversation
from manyhands.methods.baselines import Central, Local
from manyhands.methods.huscf.method import HuSCF
from manyhands.methods.huscf.operations import ORDER
from manyhands.methods.huscf.server import HuSCFServer
from manyhands.models.gan import Gan, iteration
from manyhands.models.layer_cut import LayerCut, LayerCuts
from manyhands.runs.finished import loaded_generator
from manyhands.runs.run_folder import RunFolder
from manyhands.silos.training import GanTraining
from manyhands.tensors import strip_prefix

WIRES: tuple[Literal["count", "bytes"], ...] = ("count", "bytes")
SMALL = Gan(size=16, channels=1, classes=2, latent=4, width=4)


def cuts(text: str) -> LayerCuts:
    """Of four digits: head and tail of the generator, head and tail of the discriminator."""
    a, b, c, d = map(int, text)
    return LayerCuts(generator=LayerCut(head=a, tail=b), discriminator=LayerCut(head=c, tail=d))


def gan_silos(count: int = 3, images: int = 9) -> list[Silo]:
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, images, 1, 16, 16), dtype=torch.uint8, generator=rng)
    labels = torch.randint(0, 2, (count, images), generator=rng)
    return [Silo(f"s{i}", Images(pixels[i], labels[i], ("a", "b"))) for i in range(count)]


def tiny(**options: Any) -> HuSCF:
    training = GanTraining(batch=4, steps=5, learning_rate=1e-3)
    return HuSCF.model_validate({"model": SMALL, "training": training, "rounds": 2, "min_head": 0, **options})


def trained(method: HuSCF, silos: list[Silo], **options: Any) -> Experiment:
    experiment = Experiment(method, silos, device="cpu", **options)
    for _ in experiment:
        pass
    return experiment


def pieces(experiment: Experiment, silo: int = 0) -> dict[str, torch.Tensor]:
    assert isinstance(experiment.server, HuSCFServer)
    return experiment.server.network.state_dict() | strip_prefix(experiment.silos[silo].memory, "average.")


@pytest.mark.parametrize("cut", ["0404", "1313", "0314", "1403"])
def test_one_silo_learns_what_the_uncut_gan_does(cut: str) -> None:
    method = tiny(cut=cuts(cut), rounds=1, training=GanTraining(batch=4, steps=20, learning_rate=1e-3))
    silos = gan_silos(1)
    whole = SMALL.build(0)
    optimiser = method.training.optimiser_of(whole, 0)
    rng = silos[0].rng(0)
    for numbers in list(method.training.batches(9, rng)):
        x, labels = silos[0].images.batch(numbers)
        iteration(SMALL, whole, optimiser, x, labels, torch.randn(len(x), 4, generator=rng))
    split = pieces(trained(method, gan_silos(1)))
    assert split.keys() == whole.state_dict().keys()
    for name, tensor in whole.state_dict().items():
        assert torch.allclose(tensor, split[name], atol=1e-6), name


MIXED = {"s0": cuts("0404"), "s1": cuts("1313"), "s2": cuts("0314")}


@pytest.mark.parametrize(("norm", "steps"), [("group", 10), ("batch", 2)])
def test_many_silos_with_cuts_of_their_own_learn_as_in_one_process(norm: str, steps: int) -> None:
    model = SMALL.model_copy(update={"norm": norm, "width": 16})
    method = tiny(model=model, cuts=MIXED, rounds=1, training=GanTraining(batch=4, steps=steps, learning_rate=1e-3))
    whole = together(method, gan_silos())
    expected = {name: sum(each[name] for each in whole.values()) / 3 for name in whole["s0"]}
    experiment = trained(method, gan_silos())
    for i in range(3):
        for name, tensor in pieces(experiment, i).items():
            if norm == "batch" and name.endswith(("bias", "running_mean")):
                continue  # a norm takes biases before it away: their gradient is rounding, and Adam makes steps of it
            assert torch.allclose(tensor, expected[name], atol=1e-6), name  # type: ignore[arg-type]


def test_messages_and_bytes_are_those_of_the_paper() -> None:
    paper = Gan(size=28, channels=1, classes=10)
    method = tiny(model=paper, cut=cuts("0404"))
    megabytes_of = {"0404": 27.46, "0414": 22.64, "1313": 22.48, "1314": 19.43, "0314": 16.22, "1403": 33.72}
    for text, megabytes in megabytes_of.items():
        up = down = 0
        for op in (
            "generator-forward",
            "fake-forward",
            "fake-backward",
            "real-forward",
            "real-backward",
            "adversarial-forward",
            "adversarial-backward",
            "generator-backward",
        ):
            up += 4 * 64 * method.passed_tensor(op, cuts(text), up=True).size
            down += 4 * 64 * method.passed_tensor(op, cuts(text), up=False).size
        assert up / 1e6 == pytest.approx(megabytes, abs=0.005) == down / 1e6


def test_what_went_over_the_wire_is_what_the_cuts_say() -> None:
    experiment = trained(tiny(cuts=MIXED, rounds=1, training=GanTraining(batch=4, steps=3)), gan_silos())
    method = experiment.method
    assert isinstance(method, HuSCF)
    for entry in experiment.ledger.entries():
        if entry["op"] in ("join", "segments"):
            continue
        like = method.passed_tensor(entry["op"], method.cuts_of(entry["silo"]), up=entry["direction"] == "up")
        plain = 4 * 4 * 3 * like.size
        assert plain < entry["bytes"] < plain + 3 * 300


@pytest.mark.parametrize("bits", [32, 8])
def test_a_silo_draws_with_the_servers_middle_and_a_run_that_stopped_goes_on(tmp_path: Path, bits: int) -> None:
    method, sampling = tiny(cuts=MIXED, rounds=4, warm=1, bits=bits), {"evaluation": Evaluation(images=0)}
    whole = trained(method, gan_silos(), **sampling)
    drawn = whole.drawing("s1").sample(labels=[0, 1, 1])
    assert drawn.shape == (3, 1, 16, 16)
    assert drawn.abs().max() <= 1

    stopped = Experiment(method, gan_silos(), device="cpu", folder=tmp_path / "run", **sampling)  # type: ignore[arg-type]
    for done in stopped:
        if done.number == 1:
            break
    again = Experiment(method, gan_silos(), device="cpu", folder=tmp_path / "run", resume=True, **sampling)  # type: ignore[arg-type]
    for _ in again:
        pass
    for i in range(3):
        for name, tensor in pieces(whole, i).items():
            assert torch.equal(tensor, pieces(again, i)[name]), name
    kept = loaded_generator(RunFolder(tmp_path / "run"), "s1")
    assert isinstance(kept, ImageGenerator)
    assert torch.equal(kept.sample(labels=[0, 1, 1]), drawn)


@pytest.mark.parametrize(("bits", "less"), [(32, 1.0), (16, 2.0), (8, 4.0)])
def test_fewer_bits_of_a_number_are_so_many_fewer_bytes(bits: int, less: float) -> None:
    model, training = Gan(size=28, channels=1, classes=2), GanTraining(batch=16, steps=1)
    rng = torch.Generator().manual_seed(0)
    images = Images(
        torch.randint(0, 256, (16, 1, 28, 28), dtype=torch.uint8, generator=rng), torch.arange(16) % 2, ("a", "b")
    )
    method = tiny(model=model, training=training, rounds=1, bits=bits)
    plain = sum(
        4 * 16 * method.passed_tensor(op, method.default_cuts, up=up).size for op in ORDER for up in (True, False)
    )
    entries = trained(method, [Silo("s0", images)]).ledger.entries()
    sent = sum(entry["bytes"] for entry in entries if entry["op"] in ORDER)
    assert 0.97 < plain / sent / less < 1


@pytest.mark.parametrize("bits", [32, 16, 8])
def test_what_is_counted_is_what_is_really_encoded_and_nothing_else_changes(bits: int) -> None:
    counted, encoded = (trained(tiny(cuts=MIXED, bits=bits), gan_silos(), link=InProcess(wire=wire)) for wire in WIRES)
    assert counted.ledger.entries() == encoded.ledger.entries()
    for name, tensor in pieces(counted).items():
        assert torch.equal(tensor, pieces(encoded)[name])


class Broken(Images):
    """Gives what is no number, from the second batch on."""

    def batch(self, numbers: torch.Tensor) -> Any:
        x, labels = super().batch(numbers)
        return x * torch.nan if 0 not in numbers else x, labels

    def to(self, device: Any) -> Any:
        return self


@pytest.mark.parametrize(("count", "bad"), [(2, [0]), (2, [1]), (3, [0]), (3, [0, 2])])
def test_a_silo_that_says_what_is_no_number_is_left_out_of_the_round_and_the_others_go_on(
    count: int, bad: list[int]
) -> None:
    silos = gan_silos(count)
    for i in bad:
        was = silos[i].images
        silos[i].images = Broken(was.pixels, was.labels, was.classes)
    rounds = list(Experiment(tiny(cuts={"s0": MIXED["s0"]}), silos, device="cpu"))
    assert [sorted(done.losses) for done in rounds] == [[f"s{i}" for i in range(count) if i not in bad]] * 2
    assert all("NaN" in done.missing[f"s{i}"] for done in rounds for i in bad)
    assert all(torch.isfinite(torch.tensor(loss)) for done in rounds for loss in done.losses.values())


def blobs(kinds: list[int], seed: int = 0) -> dict[str, torch.Tensor]:
    """What the middle might make of batches of different kinds of images."""
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(max(kinds) + 1, 4, 3, 3, generator=rng)
    return {f"s{i:02}": centres[kind] + 0.5 * torch.randn(8, 4, 3, 3, generator=rng) for i, kind in enumerate(kinds)}


@pytest.mark.parametrize("kinds", [[0] * 10 + [1] * 10, [0, 1, 2] * 5, [0] * 12])
def test_clusters_are_found_without_being_told_how_many(kinds: list[int]) -> None:
    labels = clustering.cluster_labels(blobs(kinds), "auto")
    assert [labels[f"s{i:02}"] for i in range(len(kinds))] == kinds
    assert len(set(clustering.cluster_labels(blobs(kinds), 2).values())) == 2


def test_silos_that_are_alike_are_at_no_distance_and_weigh_what_they_hold() -> None:
    same = dict.fromkeys(["a", "b", "c"], torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0)))
    apart = clustering.distances(same, list(same))
    assert all(abs(each) < 1e-9 for each in apart.values())
    assert clustering.mean_shares({"a": 1, "b": 1, "c": 2}, apart, 5.0) == pytest.approx(
        {"a": 0.25, "b": 0.25, "c": 0.5}
    )
    odd = same | {"c": -3 * same["c"]}
    apart = clustering.distances(odd, list(odd))
    assert apart["c"] > apart["a"] == pytest.approx(apart["b"])
    assert clustering.mean_shares({"a": 1, "b": 1, "c": 2}, apart, 5.0)["c"] < 0.5
    assert clustering.distances(same, ["a"]) == {"a": 0.0}
    assert clustering.mean_shares({"a": 7}, {"a": 3.0}, 1.0) == {"a": 1.0}


def test_the_distance_is_kl_of_the_others_from_each() -> None:
    features = {
        name: torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(i)) for i, name in enumerate("ab")
    }
    p, q = (torch.softmax(features[name].mean(0).reshape(3, 4), 1) for name in "ab")
    expected = torch.nn.functional.kl_div(p.log(), q, reduction="sum") / 3
    assert clustering.distances(features, ["a", "b"])["a"] == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("kind", ["fedavg", "local", "central"])
def test_a_gan_is_averaged_or_trained_alone_by_the_same_loop(kind: str) -> None:
    options = {"model": SMALL, "training": {"batch": 4, "steps": 5}, "rounds": 2}
    method = {"fedavg": FedAvg, "local": Local, "central": Central}[kind].model_validate(options)
    assert method.training.betas == (0.5, 0.999)
    silos = gan_silos(1 if kind == "central" else 3)
    experiment = trained(method, silos)
    assert experiment.drawing(silos[0].name).sample(4).shape == (4, 1, 16, 16)


def test_of_one_silo_the_averaged_gan_is_the_cut_one() -> None:
    training = {"batch": 4, "steps": 10, "learning_rate": 1e-3}
    options = {"model": SMALL, "training": training, "rounds": 2, "keep_optimiser": True}
    whole = trained(FedAvg.model_validate(options), gan_silos(1)).server.state_dict()
    cut = pieces(trained(tiny(training=training), gan_silos(1)))
    weights = {name.partition(".")[2]: tensor for name, tensor in whole.items()}
    for name, tensor in cut.items():
        if not name.endswith(("bias", "running_mean")):
            assert torch.allclose(tensor, weights[name], atol=1e-5), name


def two_domains(count: int = 6, images: int = 40) -> list[Silo]:
    """Silos of two kinds: one has bright images, the other dark ones with stripes."""
    rng = torch.Generator().manual_seed(0)
    silos = []
    for i in range(count):
        pixels = torch.randint(0, 60, (images, 1, 16, 16), generator=rng)
        pixels[:, :, :, :: 1 + i % 2 * 3] += 150
        labels = torch.randint(0, 2, (images,), generator=rng)
        silos.append(Silo(f"s{i}", Images(pixels.to(torch.uint8), labels, ("a", "b"))))
    return silos


def test_domains_are_found_and_each_has_ends_of_its_own_around_one_middle() -> None:
    method = tiny(rounds=3, training=GanTraining(batch=16, steps=5, learning_rate=1e-3))
    rounds = list(experiment := Experiment(method, two_domains(), device="cpu"))
    assigned = [{silo: entry["cluster"] for silo, entry in done.contributions.items()} for done in rounds]
    assert set(assigned[0].values()) == set(assigned[1].values()) == {0}  # the first two rounds are plain
    assert [assigned[2][f"s{i}"] for i in range(6)] == [0, 1, 0, 1, 0, 1]
    for cluster in (0, 1):
        shares = [entry["weight"] for entry in rounds[2].contributions.values() if entry["cluster"] == cluster]
        assert sum(shares) == pytest.approx(1)
    ends = [strip_prefix(silo.memory, "average.") for silo in experiment.silos]
    assert all(torch.equal(ends[0][name], ends[2][name]) for name in ends[0])
    assert not torch.equal(ends[0]["discriminator.0.block.0.weight"], ends[1]["discriminator.0.block.0.weight"])


def test_silos_and_server_together_do_the_work_of_the_uncut_gan() -> None:
    training = {"batch": 4, "steps": 3}
    one = FedAvg.model_validate({"model": SMALL, "training": training, "rounds": 1})
    (whole,) = Experiment(one, gan_silos(1), device="cpu")
    for text in ("0404", "1313"):
        (cut,) = Experiment(tiny(cut=cuts(text), rounds=1, training=training), gan_silos(1), device="cpu")
        together = cut.flops["s0"] + cut.server_flops
        assert cut.server_flops > 0
        assert 0.9 * whole.flops["s0"] < together <= whole.flops["s0"]  # a discriminator that only passes on is cheaper


def test_a_class_that_no_silo_has_is_named_and_the_run_goes_on(tmp_path: Path) -> None:
    silos = gan_silos(2)
    for silo in silos:
        silo.images = Images(silo.images.pixels, torch.zeros_like(silo.images.labels), ("a", "b"))  # type: ignore[arg-type]
    options = {"rounds": 1, "training": GanTraining(batch=4, steps=1)}
    trained(tiny(**options), silos, folder=tmp_path / "run", evaluation=Evaluation(images=0))
    problems = RunFolder(tmp_path / "run").report["problems"]
    assert problems == ["no silo has an image of class b: samples of it mean nothing"]


def test_the_plan_tells_what_each_cut_has_at_home_and_sends() -> None:
    method = tiny(cuts=MIXED)
    all_costs = {silo: method.costs(silo, 9, Sampling()) for silo in MIXED}
    for costs in all_costs.values():
        assert 0 < costs["weights"] < costs["weights_whole"]
        assert 0 < costs["work"] < costs["work_whole"]
        assert 0 < costs["memory"] < costs["memory_whole"]
    assert all_costs["s0"]["work"] < all_costs["s2"]["work"] < all_costs["s1"]["work"]
    eighth = tiny(cuts=MIXED, bits=8).costs("s0", 9, Sampling())
    assert eighth["bytes"] == pytest.approx(all_costs["s0"]["bytes"] / 4, rel=0.1)  # and scales
    lines = method.cost_lines(3, Sampling())
    assert len(lines) == 3
    assert f"{all_costs['s1']['weights']:,.0f} of {all_costs['s1']['weights_whole']:,.0f} weights" in "".join(lines)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [({"s*": "0404", "s1": "1313"}, "000"), ({"s1": "1313", "s[02]": "0314"}, "212"), ({"s2": "1313"}, "001")],
)
def test_cuts_are_told_by_names_or_patterns_and_the_first_that_fits_counts(
    patterns: dict[str, str], expected: str
) -> None:
    method = tiny(cuts={name: cuts(text) for name, text in patterns.items()})
    number = {cuts("0404"): "0", cuts("1313"): "1", cuts("0314"): "2"}
    assert "".join(number[method.cuts_of(f"s{i}")] for i in range(3)) == expected
    with pytest.raises(RecipeError, match="none of the silos"):
        tiny(cuts={"x*": cuts("0404")}).server(0, {"s0": 9})


def a_turn(
    coordinator: RoundCoordinator, talks: dict[str, Conversation], said: dict[str, Message]
) -> dict[str, Message]:
    """All say what they have to say, and are answered; what they say next."""
    for name, message in said.items():
        coordinator.submit(name, message)
    answers = {name: coordinator.collect(name) for name in said}
    assert None not in answers.values(), f"{said} wait for ever"
    following = {}
    for name, talk in talks.items():
        try:
            following[name] = talk.send(answers[name])  # type: ignore[arg-type]
        except StopIteration:
            coordinator.finish(name)
    return following


@pytest.mark.parametrize("calls", range(2, 9))
def test_a_silo_that_goes_in_the_middle_of_an_iteration_is_left_out_and_the_others_end(calls: int) -> None:
    method, silos = tiny(cuts=MIXED), gan_silos()
    roster = {silo.name: 9 for silo in silos}
    coordinator = RoundCoordinator(method.server(0, roster), method.plan(), roster)
    talks = {silo.name: method.silo(silo) for silo in silos}
    said = {name: next(talk) for name, talk in talks.items()}
    for turn in range(200):
        if turn == calls and talks.pop("s1", None):
            coordinator.drop("s1", "its battery is empty")
            said.pop("s1")
        said = a_turn(coordinator, talks, said)
        if not said:
            break
    assert [closed.round for closed in coordinator.closed] == [0, 1]
    assert all(closed.missing == {"s1": "its battery is empty"} for closed in coordinator.closed)
    assert all(isinstance(facts["loss"], float) for closed in coordinator.closed for facts in closed.facts.values())


def test_epochs_are_as_many_steps_whoever_comes_first_and_a_run_that_stopped_goes_on(tmp_path: Path) -> None:
    def silos() -> list[Silo]:
        return [replace(silo, images=silo.images.subset(np.arange(3 + 3 * i))) for i, silo in enumerate(gan_silos())]

    options = {"rounds": 3, "training": GanTraining(batch=4, epochs=1, learning_rate=1e-3)}
    rounds = list(whole := Experiment(tiny(**options), silos(), device="cpu"))
    assert [done.images_seen for done in rounds] == [3 * (3 + 4 + 4)] * 3
    folder: dict[str, Any] = {"device": "cpu", "folder": tmp_path / "run", "evaluation": Evaluation(images=0)}
    for done in Experiment(tiny(**options), silos(), **folder):
        if done.number == 0:
            break
    again = Experiment(tiny(**options), silos(), resume=True, **folder)
    for _ in again:
        pass
    for name, tensor in pieces(whole).items():
        assert torch.equal(tensor, pieces(again)[name]), name


@pytest.mark.parametrize(
    ("training", "allowed"),
    [({"steps": 5}, {4: False, 5: True, 6: False}), ({"epochs": 1}, {0: False, 1: True, 1 << 40: False})],
)
def test_a_server_asks_for_no_more_steps_than_the_recipe_has(
    training: dict[str, int], allowed: dict[int, bool]
) -> None:
    method = tiny(training=GanTraining(batch=4, **training))
    join = method.plan().operations["join"].down
    start = {name: torch.zeros(spec.shape, dtype=spec.dtype) for name, spec in join.tensors.items()}  # type: ignore[arg-type]
    for steps, is_allowed in allowed.items():
        message = Message("join", start, {"round": 0, "done": False, "steps": steps})
        with nullcontext() if is_allowed else pytest.raises(Refused, match="steps is"):
            method.plan().check(message, "down")


def passes(server: HuSCFServer, silos: list[Silo], upto: str, method: HuSCF) -> RoundCoordinator:
    """A coordinator where all silos have done an iteration up to an operation, which is open."""
    coordinator = RoundCoordinator(server, method.plan(), {silo.name: len(silo.images) for silo in silos})
    talks = {silo.name: method.silo(silo) for silo in silos}
    said = {name: next(talk) for name, talk in talks.items()}
    while next(iter(said.values())).op != upto:
        said = a_turn(coordinator, talks, said)
    return coordinator


def maps_of(method: HuSCF, op: str, count: int, value: float = 0.0) -> dict[str, torch.Tensor]:
    return {"x": torch.full((count, *method.passed_tensor(op, method.default_cuts, up=True).shape[1:]), value)}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("at", "op", "count", "value"),
    [
        ("generator-forward", "draw", 2, 0.0),  # before a round has ended
        ("generator-forward", "generator-forward", 5, 0.0),  # more than a batch
        ("generator-forward", "generator-forward", 0, 0.0),
        ("generator-forward", "fake-forward", 4, 0.0),  # out of turn
        ("generator-forward", "generator-forward", 4, 3e38),  # finite, but not for long
        ("fake-backward", "fake-backward", 3, 0.0),  # fewer than went forward
        ("real-forward", "real-forward", 0, 0.0),
    ],
)
def test_what_would_bring_the_server_down_is_refused_and_the_others_go_on(
    at: str, op: str, count: int, value: float
) -> None:
    method, silos = tiny(), gan_silos(2)
    roster = {silo.name: 9 for silo in silos}
    coordinator = passes(method.server(0, roster), silos, at, method)
    like = "generator-forward" if op == "draw" else op
    with pytest.raises(Refused):
        coordinator.submit("s0", Message(op, maps_of(method, like, count, value)))
    coordinator.drop("s0", "it talks nonsense")
    coordinator.submit("s1", Message(at, maps_of(method, at, 4)))
    assert coordinator.collect("s1") is not None


@pytest.mark.parametrize("seen", [False, True])
def test_ends_that_no_weights_are_or_that_come_of_no_batch_are_refused(seen: bool) -> None:
    method, silos = tiny(), gan_silos(2)
    roster = {silo.name: 9 for silo in silos}
    coordinator = passes(method.server(0, roster), silos, "real-backward" if seen else "fake-forward", method)
    ends = {
        name: torch.full(like.shape, 3e38 if seen else 0.1)
        for name, like in method.segment_spec(method.default_cuts).items()
    }  # type: ignore[arg-type]
    facts = {"round": 0, "images": 9, "loss": 0.1, "seen": 4, "flops": 1, "withheld": ""}
    with pytest.raises(Refused, match="reaches beyond" if seen else "no real batch"):
        coordinator.submit("s0", Message("segments", ends, facts))


def test_a_cluster_whose_only_silo_says_nothing_keeps_its_number_and_its_ends() -> None:
    method = tiny(rounds=4, warm=1, clusters=2, training=GanTraining(batch=16, steps=5, learning_rate=1e-3))
    silos = two_domains(3)
    server = method.server(0, {silo.name: 40 for silo in silos})
    coordinator = RoundCoordinator(server, method.plan(), {silo.name: 40 for silo in silos})
    talks = {silo.name: method.silo(silo) for silo in silos}
    said = {name: next(talk) for name, talk in talks.items()}
    kept: dict[str, torch.Tensor] = {}
    while said:
        if coordinator.server.round == 2 and "s1" in talks:
            kept = server._segments_of("s1")
            coordinator.drop("s1", "away")
            del talks["s1"], said["s1"]
        said = a_turn(coordinator, talks, said)
    assert server.round == 4
    assert server.cluster["s0"] != server.cluster["s1"]
    assert all(torch.equal(kept[name], tensor) for name, tensor in server._segments_of("s1").items())


def test_clusters_keep_the_numbers_that_most_of_their_silos_had() -> None:
    before = {"a": 0, "b": 0, "c": 1, "d": 1, "away": 2}
    assert sorted(clustering.number_clusters([["c", "d"], ["a", "b"]], before)) == [(0, ["a", "b"]), (1, ["c", "d"])]
    assert sorted(clustering.number_clusters([["a"], ["b"], ["c", "d"]], before)) == [
        (0, ["a"]),
        (1, ["c", "d"]),
        (3, ["b"]),
    ]
    assert sorted(clustering.number_clusters([["a", "b", "c", "d"]], before)) == [(0, ["a", "b", "c", "d"])]


def test_however_large_alpha_is_somebody_counts() -> None:
    shares = clustering.mean_shares({"a": 1, "b": 1}, {"a": 1.0, "b": 2.0}, 1e6)
    assert shares == {"a": 1.0, "b": 0.0}


def test_silos_whose_names_begin_alike_keep_what_is_their_own(tmp_path: Path) -> None:
    method = tiny(statistics="cluster", rounds=2, warm=0)

    def silos() -> list[Silo]:
        return [replace(silo, name=name) for silo, name in zip(gan_silos(), ("a", "a.b", "a.b.c"), strict=True)]

    whole = trained(method, silos())
    options: dict[str, Any] = {"device": "cpu", "folder": tmp_path / "run", "evaluation": Evaluation(images=0)}
    for _ in Experiment(method, silos(), **options):
        break
    again = Experiment(method, silos(), resume=True, **options)
    for _ in again:
        pass
    assert all(torch.equal(tensor, pieces(again)[name]) for name, tensor in pieces(whole).items())
