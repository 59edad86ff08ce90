"""One finite update ends nobody's run: what is far too long is refused, and what got through is taken back, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from manyhands import Evaluation, Experiment, Message
from manyhands.errors import QuorumLost, Reason, Refused
from manyhands.methods.gans.hflgan import HFLGan
from manyhands.methods.huscf.operations import GENERATOR_FORWARD
from manyhands.methods.update_length import UpdateLengths
from manyhands.runs.round import Round
from manyhands.runs.run_folder import RunFolder
from manyhands.tensors import Tensors, sha256, strip_prefix
from tests.conftest import tiny_fedavg, tiny_silos
from tests.methods.fedavg.test_method import Bent
from tests.methods.huscf.test_method import SMALL, gan_silos, pieces, tiny

QUIET: dict[str, Any] = {"device": "cpu", "evaluation": Evaluation(images=0), "recipe": {"name": "attacked"}}
CODECS = ("float32", "updates")


def attacked(number: int, **options: Any) -> Bent:
    """Federated averaging in which s1 sends the largest numbers that weights may be, in one round."""

    def bend(message: Message) -> Message:
        if message.facts.get("round") != number or not message.tensors:
            return message
        return Message(message.op, {name: _huge(name, t) for name, t in message.tensors.items()}, message.facts)

    return Bent.model_validate({**tiny_fedavg(rounds=4, **options).model_dump(), "bend": bend})


def _huge(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """As large as may be; in few bits, what all codes of a channel are multiplied by is."""
    return torch.full_like(tensor, 400.0 if name == "scales" else 5.9e4) if tensor.is_floating_point() else tensor


def ran(method: Any, folder: Path | None = None, **options: Any) -> tuple[Experiment, list[Round]]:
    experiment = Experiment(method, tiny_silos(), folder=folder, **QUIET, **options)
    return experiment, list(experiment)


def weights(experiment: Experiment) -> Tensors:
    return strip_prefix(experiment.server.state_dict(), "weights.")


@pytest.mark.parametrize("number", [0, 2])
def test_an_update_that_is_far_too_long_is_refused_by_name_and_the_others_go_on(number: int) -> None:
    experiment, done = ran(attacked(number))
    assert "update too long" in done[number].missing["s1"]
    assert [set(each.losses) for each in done] == [
        {"s0", "s2"} if each.number == number else {"s0", "s1", "s2"} for each in done
    ]
    assert all(float(tensor.abs().max()) < 10 for tensor in weights(experiment).values())


def test_zero_is_no_limit_and_the_limit_changes_no_bit_of_a_healthy_run() -> None:
    assert sha256(weights(ran(tiny_fedavg())[0])) == sha256(weights(ran(tiny_fedavg(max_update_ratio=0.0))[0]))


@pytest.mark.parametrize("up", CODECS)
@pytest.mark.parametrize("number", [0, 1])
def test_what_got_through_is_taken_back_and_who_sent_it_sits_out_a_round(up: str, number: int, tmp_path: Path) -> None:
    options = {"max_update_ratio": 1e9, "up": {"kind": up}, "down": {"kind": up}, "ema": 0.5}
    experiment, done = ran(attacked(number, **options), tmp_path / "run")
    assert [bool(each.note) for each in done] == [each.number == number + 1 for each in done]
    assert "s1, whose update moved that mean most, is left out" in done[number + 1].note
    assert set(done[number + 1].losses) == set()
    if number == 0:
        assert set(done[2].losses) == {"s0", "s2"}
        assert set(done[3].losses) == {"s0", "s1", "s2"}
    largest = max(float(t.abs().max()) for t in experiment.server.state_dict().values() if t.is_floating_point())
    assert largest < 100, "nothing of it is left: weights, average, base"
    assert done[number + 1].note in "\n".join(RunFolder(tmp_path / "run").report["problems"])


def test_after_going_back_the_weights_are_those_before_the_bad_mean(tmp_path: Path) -> None:
    good = Experiment(tiny_fedavg(rounds=4), tiny_silos(), folder=tmp_path / "good", **QUIET)
    bad = Experiment(attacked(1, max_update_ratio=1e9), tiny_silos(), folder=tmp_path / "bad", **QUIET)
    first, back = iter(good), iter(bad)
    next(first)
    for _ in range(3):
        next(back)
    assert sha256(weights(good)) == sha256(weights(bad))


@pytest.mark.parametrize("stops", [1, 2])
def test_a_run_that_stopped_around_it_goes_on_to_the_same_bits(stops: int, tmp_path: Path) -> None:
    method = attacked(0, max_update_ratio=1e9, ema=0.5)
    whole, _ = ran(method, tmp_path / "whole")
    stopped = iter(Experiment(method, tiny_silos(), folder=tmp_path / "stopped", **QUIET))
    for _ in range(stops):
        next(stopped)
    del stopped
    again, _ = ran(method, tmp_path / "stopped", resume=True)
    assert sha256(whole.server.state_dict()) == sha256(again.server.state_dict())


def test_it_goes_back_once_and_not_where_nothing_is_kept(tmp_path: Path) -> None:
    method = attacked(0, max_update_ratio=1e9)
    with pytest.raises(QuorumLost, match="s0: its loss is not finite"):
        ran(method)
    always = Bent.model_validate({**method.model_dump(), "bend": lambda m: Message(m.op, {
        n: _huge(n, t) for n, t in m.tensors.items()}, m.facts)})  # fmt: skip
    experiment = Experiment(always, tiny_silos(), folder=tmp_path / "run", **QUIET)
    assert [bool(each.note) for each in experiment] == [False, True, False, False]


def test_a_silo_cannot_have_the_others_go_back_by_saying_that_it_is_ill(tmp_path: Path) -> None:
    def bend(message: Message) -> Message:
        facts = (
            {**message.facts, "withheld": "its loss is not finite"} if "withheld" in message.facts else message.facts
        )
        return Message(message.op, {} if "withheld" in facts else message.tensors, facts)

    method = Bent.model_validate({**tiny_fedavg().model_dump(), "bend": bend})
    assert not any(each.note for each in ran(method, tmp_path / "run")[1])


def test_ends_of_a_cut_gan_and_models_of_clusters_have_the_same_limit() -> None:
    server = tiny().server(0, {"s0": 9, "s1": 9})
    server._features["s0"] = (torch.zeros(1), 1)
    segments = {name: torch.full_like(t, 5e4) for name, t in server._segments_of("s0").items()}
    with pytest.raises(Refused, match="update too long"):
        server.validate("s0", Message("segments", segments, {"images": 9}))
    options = {"model": SMALL, "training": {"batch": 4, "steps": 3, "learning_rate": 1e-3}, "rounds": 2}
    other = HFLGan.model_validate(options).server(0, {"s0": 9, "s1": 9})
    models = {name: torch.full_like(t, 5e4) for name, t in other.weights[0].items()}
    with pytest.raises(Refused, match="update too long"):
        other.validate("s0", Message("update", models, {"images": 9}))


def test_a_cut_gan_goes_back_with_its_middle_and_leaves_one_silo_out(tmp_path: Path) -> None:
    experiment = Experiment(tiny(), gan_silos(), folder=tmp_path / "run", **QUIET)
    rounds = iter(experiment)
    next(rounds)
    before = {name: t.clone() for name, t in pieces(experiment).items()}
    state = experiment.server.state_dict()
    for middle in experiment.server.network.parameters():
        middle.data.fill_(float("nan"))
    gone = experiment.server.go_back(state)
    assert gone in {"s0", "s1", "s2"}
    assert all(torch.equal(t, before[name]) for name, t in pieces(experiment).items())
    with pytest.raises(Refused, match="left out"):
        experiment.server.validate(gone, Message(GENERATOR_FORWARD, {}))


def test_the_length_of_others_is_the_median_and_whoever_is_longest_by_weight_is_the_mover() -> None:
    lengths, held = UpdateLengths(20.0), {"w": torch.ones(4)}

    def send(silo: str, length: float, weight: float = 1.0) -> None:
        lengths.check(silo, {"w": torch.full((4,), 1 + length)}, held, weight, relative=False)

    for silo, length in (("a", 1e-3), ("b", 2e-3), ("c", 19.0)):
        send(silo, length)  # before anything is known: against the weights
    lengths.close()
    assert lengths.mover == "c"
    send("a", 0.03)
    send("b", 0.015, weight=3)
    with pytest.raises(Refused, match=r"the median of the last round") as refused:
        send("c", 1.05)
    assert refused.value.reason is Reason.TOO_LONG
    lengths.close()
    assert lengths.mover == "b"
    again = UpdateLengths(20.0)
    again.load_state_dict(lengths.state_dict())
    assert again.state_dict().keys() == lengths.state_dict().keys()


@pytest.mark.parametrize("last", [(1e-12, 1e-3), (1e-12, 1e-12, 1e-3), (1e-4, 1e-4, 1e-2)])
def test_silos_that_hardly_move_shut_nobody_out(last: tuple[float, ...]) -> None:
    """One of two says nearly nothing, or two have a batch of images where the third has hundreds."""
    held, lengths = {"w": torch.full((9,), 0.05)}, UpdateLengths(20.0)
    for number in (0, 1):
        for silo, each in enumerate(last):
            lengths.check(f"s{silo}", {"w": torch.full((9,), each)}, held, 1.0, relative=True)
        if number:
            with pytest.raises(Refused, match="times as long as the median of the last round"):
                lengths.check("s0", {"w": torch.full((9,), 5.9e4)}, held, 1.0, relative=True)
        lengths.close()
