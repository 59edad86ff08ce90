"""The fields of federated averaging: zero or none is the parent bit for bit, and each has its law."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from manyhands import Experiment, Sampling, Silo, Training, UNet
from manyhands.errors import Reason, Refused
from manyhands.messages.message import Message
from manyhands.methods.base import AVERAGE
from manyhands.methods.fedavg.method import FedAvg
from manyhands.methods.fedavg.server_optimizer import Momentum, ServerAdam
from manyhands.methods.fedavg.sharing import ALL, assigned_parts
from manyhands.methods.fedavg.silo import HELD, RESIDUAL
from manyhands.methods.proximal import Proximal
from manyhands.models.state_spec import state_spec_of
from manyhands.seed import numpy_rng
from manyhands.tensors import Tensors, round_to_float16, sha256, strip_prefix
from tests.conftest import TINY, tiny_fedavg, tiny_silos

UPDATES = {"kind": "updates", "bits": 4}
BOTH = {"up": UPDATES, "down": UPDATES}


def trained(method: FedAvg, silos: list[Silo] | None = None, **options: Any) -> Experiment:
    experiment = Experiment(method, silos or tiny_silos(), device="cpu", **options)
    for _ in experiment:
        pass
    return experiment


def weights(experiment: Experiment) -> Tensors:
    return experiment.server.weights  # type: ignore[attr-defined, no-any-return]


def distance(one: Tensors, other: Tensors) -> float:
    return sum(float((one[name] - other[name]).square().sum()) for name in one) ** 0.5


@pytest.fixture(scope="module")
def parent() -> Tensors:
    torch.set_num_threads(1)
    return weights(trained(tiny_fedavg()))


@pytest.mark.parametrize(
    "options",
    [
        {"proximal": 0.0, "proximal_mode": "decoupled"},
        {"server_optimizer": {"kind": "momentum", "momentum": 0.0, "rate": 1.0}},
        {"proximal": 0.0, "participants": 3},
    ],
)
def test_nought_is_the_parent_bit_for_bit(parent: Tensors, options: dict[str, Any]) -> None:
    assert sha256(weights(trained(tiny_fedavg(**options)))) == sha256(parent)


def test_a_proximal_term_is_half_mu_times_the_square_of_the_way_from_the_start() -> None:
    network = torch.nn.Linear(3, 2)
    pull = Proximal(network, mu=0.6, mode="coupled")
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.5
    loss = pull.added_to(torch.tensor(2.0))
    assert loss.item() == pytest.approx(2.0 + 0.6 / 2 * 8 * 0.25)
    loss.backward()
    for weight in network.parameters():
        assert weight.grad is not None
        assert torch.allclose(weight.grad, torch.full_like(weight, 0.6 * 0.5))


@pytest.mark.parametrize(("mu", "left"), [(0.0, 1.0), (1.0, 1 / 1.1), (1e3, 1 / 101), (1e30, 0.0)])
def test_the_decoupled_step_is_that_of_the_formula_for_every_mu(mu: float, left: float) -> None:
    network = torch.nn.Linear(3, 2)
    start = [weight.detach().clone() for weight in network.parameters()]
    pull = Proximal(network, mu, "decoupled")
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.5
    loss = pull.added_to(torch.tensor(1.0))
    assert not loss.requires_grad
    pull.after_step(rate=0.1)
    for weight, before in zip(network.parameters(), start, strict=True):
        assert torch.allclose(weight - before, torch.full_like(weight, 0.5 * left), atol=1e-6)
    if left == 0:
        assert all(torch.equal(weight, before) for weight, before in zip(network.parameters(), start, strict=True))


def test_an_endless_mu_brings_back_what_came_and_the_coupled_one_stays_within_some_rates_of_it() -> None:
    start = tiny_fedavg().server(0, ["s0"]).weights
    held = weights(trained(tiny_fedavg(proximal=1e30, proximal_mode="decoupled")))
    assert sha256(held) == sha256(start)
    moves = [distance(weights(trained(tiny_fedavg(proximal=mu))), start) for mu in (0.0, 0.3, 3.0, 30.0)]
    assert moves == sorted(moves, reverse=True)


def test_the_reported_loss_has_the_term_in_it() -> None:
    losses = {}
    for mode in ("coupled", "decoupled"):
        plain, pulled = (
            next(iter(Experiment(tiny_fedavg(rounds=1, proximal=mu, proximal_mode=mode), tiny_silos(), device="cpu")))
            for mu in (0.0, 5.0)
        )
        losses[mode] = pulled.losses["s0"] - plain.losses["s0"]
    assert losses["coupled"] > 1e-4
    assert losses["decoupled"] > 1e-4


def test_the_anchor_is_what_came_over_the_wire() -> None:
    method = tiny_fedavg(rounds=1, proximal=1e30, proximal_mode="decoupled", down={"kind": "weights", "bits": 4})
    server = method.server(0, ["s0", "s1", "s2"])
    received = method.down.decode(method.down.encode(server.weights, {}, {}, torch.Generator()).wire, server.weights)
    assert sha256(weights(trained(method))) == sha256(received)
    assert sha256(received) != sha256(server.weights)


@pytest.mark.parametrize("kind", ["weights", "updates"])
def test_what_is_drawn_from_is_what_silos_receive(kind: str) -> None:
    codec = {"kind": kind, "bits": 4}
    experiment = trained(tiny_fedavg(up=codec, down=codec))
    server = experiment.server
    assert sha256(experiment.generator().weights) == sha256(server.broadcast.silo_weights)  # type: ignore[attr-defined]
    assert sha256(server.broadcast.silo_weights) != sha256(server.weights)  # type: ignore[attr-defined]


def test_a_silo_holds_what_the_server_takes_it_to_hold() -> None:
    for options in (BOTH, {**BOTH, "participants": 2}, {"down": UPDATES}):
        experiment = trained(tiny_fedavg(rounds=6, **options), tiny_silos([5, 9, 3, 7]))
        held = [strip_prefix(silo.memory, HELD) for silo in experiment.silos if int(silo.memory.get("holds", -1)) == 5]
        assert held
        assert {sha256(each) for each in held} == {sha256(experiment.server.broadcast.base)}  # type: ignore[attr-defined]


ABSOLUTE = ["float32", "float16", {"kind": "weights", "bits": 4}]


@pytest.mark.parametrize("optimizer", [None, "momentum", "adam"])
@pytest.mark.parametrize("down", ["float32", UPDATES, {**UPDATES, "bits": 2}, *ABSOLUTE[1:]])
@pytest.mark.parametrize("up", ["float32", UPDATES])
def test_silos_that_learn_nothing_leave_the_server_as_it_was(up: Any, down: Any, optimizer: str | None) -> None:
    frozen = {"proximal": 1e30, "proximal_mode": "decoupled", "rounds": 6}
    start = tiny_fedavg().server(0, ["s0"]).weights  # type: ignore[attr-defined]
    end = weights(trained(tiny_fedavg(up=up, down=down, server_optimizer=optimizer, **frozen)))
    rounds_itself = down in ABSOLUTE[1:] and up == "float32" and optimizer is None
    assert distance(end, start) < (2.0 if rounds_itself else 1e-4)


@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize("up", ["float32", UPDATES])
def test_small_steps_arrive_however_coarse_the_way_down_is(up: Any, feedback: bool) -> None:
    """Norms move by less than float16 can say of them in a round, and are said in 16 bits."""
    method = tiny_fedavg(up=up, down={**UPDATES, "feedback": feedback}, rounds=40)
    server = method.server(0, ["s0"])
    start = server.weights  # type: ignore[attr-defined]
    held: Tensors = {}
    answer = server.handle("s0", Message("join", facts={"images": 5, "holds": -1}))
    for number in range(40):
        held = method.downlink.received(answer.facts["kind"], answer.tensors, held)
        moved = {name: tensor + 1e-4 for name, tensor in held.items()}
        wire = method.up.encode(moved, held, {}, torch.Generator()).wire
        facts = {"images": 5, "round": number, "holds": number}
        server.accumulate("s0", Message("update", wire, facts))
        answer = server.handle_barrier("update", {"s0": Message("update", {}, facts)})["s0"]
        server.round = number + 1
    (name,) = [name for name in start if name.endswith("conv_norm_out.weight")]
    far = float((server.weights[name] - start[name]).mean())  # type: ignore[attr-defined]
    assert (far > 3.8e-3) == feedback


def test_what_rounding_left_is_kept_at_the_silo_and_said_later(parent: Tensors) -> None:
    experiment = trained(tiny_fedavg(up=UPDATES))
    for silo in experiment.silos:
        left = strip_prefix(silo.memory, RESIDUAL)
        assert set(left) == set(parent)
        assert any(bool(tensor.any()) for tensor in left.values())
    assert not strip_prefix(trained(tiny_fedavg(up={**UPDATES, "feedback": False})).silos[0].memory, RESIDUAL)


def test_a_silo_that_missed_a_round_is_sent_the_whole_and_a_resting_one_nothing(parent: Tensors) -> None:
    method = tiny_fedavg(rounds=8, participants=2, **BOTH)
    server = method.server(0, ["s0", "s1", "s2", "s3"])
    taking = set(server._assigned)
    resting = sorted({"s0", "s1", "s2", "s3"} - taking)[0]
    ready, away, new = sorted(taking)[0], sorted(taking)[1], sorted(taking)[1]
    server.round = 3
    server.broadcast.number, server.broadcast.base = 3, server.broadcast.silo_weights
    says = {ready: 2, away: 1}
    kinds = {}
    for silo, holds in says.items():
        answer = server.handle(silo, Message("join", facts={"images": 5, "holds": holds}))
        kinds[silo] = answer.facts["kind"]
    assert kinds == {ready: "step", away: "shared"}
    whole = server.handle(new, Message("join", facts={"images": 5, "holds": -1}))
    assert whole.facts["kind"] == "whole"
    assert set(whole.tensors) == set(parent)
    assert not server.handle(resting, Message("join", facts={"images": 5, "holds": 2})).tensors


def test_a_refused_update_leaves_no_trace_at_its_silo() -> None:
    method, silo = tiny_fedavg(up=UPDATES), tiny_silos()[0]
    conversation = method.silo(silo)
    next(conversation)
    server = method.server(0, ["s0"])
    answer = server.handle("s0", Message("join", facts={"images": 5}))
    conversation.send(answer)
    before = dict(silo.memory)
    assert strip_prefix(before, RESIDUAL)
    again = conversation.throw(Refused(Reason.WRONG_SHAPE, "no"))
    assert not again.tensors
    assert not strip_prefix(silo.memory, RESIDUAL)


@pytest.mark.parametrize("options", [BOTH, {"share": "up"}, {"share": "usplit", **BOTH, "server_optimizer": "adam"}])
@pytest.mark.parametrize("last", [0, 2, 4])
def test_a_run_that_was_cut_off_ends_in_the_same_bits(options: dict[str, Any], last: int, tmp_path: Path) -> None:
    method = tiny_fedavg(rounds=5, participants=2, ema=0.5, **options)
    whole = trained(method)
    begun = Experiment(method, tiny_silos(), device="cpu", folder=tmp_path / "run")
    for done in begun:
        if done.number == last:
            break
    resumed = trained(method, folder=tmp_path / "run", resume=True)
    assert sha256(weights(resumed)) == sha256(weights(whole))
    assert sha256(resumed.server.average) == sha256(whole.server.average)  # type: ignore[attr-defined]
    for one, other in zip(resumed.silos, whole.silos, strict=True):
        assert sha256(one.memory) == sha256(other.memory)
        if method.personal:
            assert sha256(resumed.generator(one.name).weights) == sha256(whole.generator(one.name).weights)
    if last < 4:
        assert resumed.ledger.bytes("down") == pytest.approx(whole.ledger.bytes("down"), rel=0.2)


@pytest.mark.parametrize(("share", "parts"), [("up", {"up"}), ("up+mid", {"up", "mid"})])
def test_private_parts_never_leave_and_each_silo_ends_with_a_net_of_its_own(share: str, parts: set[str]) -> None:
    method = tiny_fedavg(share=share)
    experiment = trained(method)
    start = method.server(0, ["s0"]).weights
    for name, tensor in weights(experiment).items():
        assert torch.equal(tensor, start[name]) == (TINY.part_of(name) not in parts), name
    own = {silo.name: experiment.generator(silo.name).weights for silo in experiment.silos}
    for name in start:
        alike = torch.equal(own["s0"][name], own["s1"][name])
        assert alike == (TINY.part_of(name) in parts), name
        if alike:
            assert torch.equal(own["s0"][name], weights(experiment)[name])
    assert experiment.server.generator() is None


def test_sharing_less_sends_less_by_the_share_of_the_weights() -> None:
    size = {share: trained(tiny_fedavg(share=share)).ledger.bytes("up") for share in ("all", "up+mid", "up")}
    layout = state_spec_of(TINY)
    for share in ("up+mid", "up"):
        part = sum(like.size for name, like in layout.items() if TINY.part_of(name) in share.split("+"))
        assert size[share] / size["all"] == pytest.approx(part / sum(like.size for like in layout.values()), abs=0.03)


@pytest.mark.parametrize("participants", [None, 2])
@pytest.mark.parametrize("options", [{}, BOTH, {**BOTH, "share": "up"}, {"share": "up"}, {"share": "usplit", **BOTH}])
def test_planned_sizes_are_those_of_the_ledger(options: dict[str, Any], participants: int | None) -> None:
    model = UNet(size=4, channels=1, classes=2, widths=(16,))  # so that what stands around its weights matters less
    short = {"rounds": 15, "training": Training(batch=4, steps=1)}
    method = tiny_fedavg(model=model, participants=participants, **short, **options)
    experiment = trained(method, tiny_silos([5, 9, 3, 7]))
    updates = [each for each in experiment.ledger.entries() if each["op"] == "update"]
    really = sum(each["bytes"] for each in updates) / 15
    (line,) = [line for line in method.cost_lines(4, Sampling()) if line.startswith("a round")]
    amounts = re.findall(r"([\d.]+) (kB|MB) (?:sent|received)", line)
    planned = sum(float(number) * {"kB": 1e3, "MB": 1e6}[unit] for number, unit in amounts)
    assert really == pytest.approx(planned, rel=0.25)


def test_usplit_pairs_silos_so_that_every_part_comes_from_half_of_them() -> None:
    for count in (1, 2, 5, 10):
        names = [f"s{i}" for i in range(count)]
        sent = assigned_parts("usplit", names, numpy_rng(count, "pairs"))
        assert set(sent) == set(names)
        of = {part: sum(part in each.split("+") for each in sent.values()) for part in ALL.split("+")}
        assert of["up"] == of["down"] == of["mid"] == (count + 1) // 2


def test_usplit_averages_each_part_over_those_who_sent_it() -> None:
    silos = tiny_silos([5, 9])
    method = tiny_fedavg(rounds=1, share="usplit")
    server = method.server(0, ["s0", "s1"])
    alone = {silo.name: weights(trained(tiny_fedavg(rounds=1), [silo])) for silo in silos}
    averaged = weights(trained(method, silos))
    for name, tensor in averaged.items():
        (sender,) = [silo for silo, parts in server._assigned.items() if TINY.part_of(name) in parts.split("+")]
        assert torch.equal(tensor, alone[sender][name]), name


def test_a_part_that_was_not_asked_for_is_refused() -> None:
    method = tiny_fedavg(share="usplit")
    server = method.server(0, ["s0", "s1"])
    silo = next(silo for silo, parts in server._assigned.items() if "up" in parts)
    other = next(parts for name, parts in server._assigned.items() if name != silo)
    tensors = {name: server.weights[name] for name in method.spec_of(other)}
    with pytest.raises(Refused):
        server.validate(silo, Message("update", tensors, {"holds": 0}))


def test_momentum_is_the_formula_over_three_rounds() -> None:
    optimiser, memory = Momentum(momentum=0.5, rate=0.8), {}
    w, by_hand, m = 1.0, 1.0, 0.0
    for target in (2.0, 3.0, 0.0):
        m = 0.5 * m + (target - by_hand)
        by_hand += 0.8 * m
        step, memory = optimiser.step({"w": torch.tensor([target - w])}, memory)
        w += step["w"].item()
    assert w == pytest.approx(by_hand)


def test_adam_is_the_formula_over_three_rounds() -> None:
    optimiser, memory = ServerAdam(rate=0.1, beta_1=0.9, beta_2=0.99, tau=1e-2), {}
    w, by_hand, m, v = 1.0, 1.0, 0.0, 1e-4
    for target in (2.0, 3.0, 0.0):
        d = target - by_hand
        m = 0.9 * m + 0.1 * d
        v = 0.99 * v + 0.01 * d**2
        by_hand += 0.1 * m / (v**0.5 + 1e-2)
        step, memory = optimiser.step({"w": torch.tensor([target - w])}, memory)
        w += step["w"].item()
    assert w == pytest.approx(by_hand, rel=1e-5)


def test_plans_say_each_set_of_tensors_that_may_come() -> None:
    plan = tiny_fedavg(share="usplit", **BOTH).plan()
    assert len(plan.operations["update"].up.others) == 5
    assert "holds" in plan.operations["join"].up.facts
    (update,) = [line for line in plan.words() if line.startswith("update (")]
    assert " or " in update
    assert plan.operations["update"].down.facts.keys() == {"round", "done", "kind", "send"}


def test_personal_generators_are_averages_over_rounds_where_asked() -> None:
    experiment = trained(tiny_fedavg(share="up", ema=0.9))
    silo = experiment.silos[0]
    assert sha256(strip_prefix(silo.memory, AVERAGE)) != sha256(strip_prefix(silo.memory, HELD))
    assert experiment.generator("s0").ema == 0.9


def test_received_weights_can_be_said_in_16_bits() -> None:
    experiment = trained(tiny_fedavg(**BOTH))
    received = experiment.server.broadcast.silo_weights  # type: ignore[attr-defined]
    assert sha256(received) == sha256(round_to_float16(received))
