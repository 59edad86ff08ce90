"""The coordinator alone, with a server that sums, and no link."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from manyhands.errors import ManyhandsError, QuorumLost, Reason, Refused
from manyhands.links.coordinator import RoundCoordinator
from manyhands.links.in_process import InProcess
from manyhands.links.late_silos import LateSilos
from manyhands.messages.ledger import Ledger
from manyhands.messages.message import Message
from manyhands.messages.operation import COUNT, Operation, Payload
from manyhands.messages.outgoing import Statistics
from manyhands.messages.plan import Plan
from manyhands.methods.base import Conversation
from manyhands.methods.server import Accumulated, Server
from manyhands.tensors import TensorSpec

FACTS = {"round": COUNT, "images": COUNT}
PLAN = Plan(
    {
        "ask": Operation("asks", "ever", Payload(), Payload(facts={"count": COUNT})),
        "add": Operation(
            "adds",
            "each round",
            Payload({"x": TensorSpec((2, None), torch.float32)}, FACTS),
            Payload(),
            barrier=True,
            closes_round=True,
            outgoing=(Statistics(of=("numbers",)),),
        ),
    }
)


class Summing(Server):
    def __init__(self) -> None:
        self.asked = 0
        self.order: list[str] = []
        self.fired: list[list[str]] = []

    def handle(self, silo: str, message: Message) -> Message:
        self.asked += 1
        return Message("ask", {}, {"count": self.asked})

    def accumulate(self, silo: str, message: Message) -> Accumulated:
        self.order.append(silo)
        return Accumulated(Message(message.op, {}, message.facts), taken=True)

    def handle_barrier(self, op: str, messages: Mapping[str, Message]) -> Mapping[str, Message]:
        self.round += 1
        self.fired.append(list(messages))
        return {silo: Message("add", {}, {}) for silo in messages}

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None: ...


def coordinator_and_server(quorum: int = 1, deadline: float = 10) -> tuple[RoundCoordinator, Summing]:
    server = Summing()
    return RoundCoordinator(server, PLAN, {"a": 1, "b": 2, "c": 3}, quorum=quorum, late=LateSilos(deadline)), server


IMAGES = {"a": 1, "b": 2, "c": 3}


def add(silo: str, number: int = 0, **changed: object) -> Message:
    tensors = {"x": torch.zeros(2, 5)}
    facts = {"round": number, "images": IMAGES[silo]}
    fields = {"op": "add", "tensors": tensors, "facts": facts, **changed}
    return Message(**fields)  # type: ignore[arg-type]


def test_messages_are_folded_in_the_order_of_names_whoever_comes_first() -> None:
    coordinator, server = coordinator_and_server()
    for silo in "cab":
        assert coordinator.collect(silo) is None
        coordinator.submit(silo, add(silo))
    assert server.order == ["a", "b", "c"]
    assert server.fired == [["a", "b", "c"]]
    assert all(coordinator.collect(silo) == Message("add") for silo in "abc")


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        (Reason.UNKNOWN_OPERATION, Message("subtract")),
        (Reason.MISSING_TENSOR, add("a", tensors={})),
        (Reason.UNEXPECTED_TENSOR, add("a", tensors={"x": torch.zeros(2, 5), "y": torch.zeros(1)})),
        (Reason.WRONG_SHAPE, add("a", tensors={"x": torch.zeros(1, 5)})),  # would broadcast
        (Reason.WRONG_SHAPE, add("a", tensors={"x": torch.zeros(5)})),
        (Reason.WRONG_SHAPE, add("a", tensors={"x": torch.zeros(1, 2, 5)})),
        (Reason.WRONG_DTYPE, add("a", tensors={"x": torch.zeros(2, 5, dtype=torch.float64)})),
        (Reason.NOT_FINITE, add("a", tensors={"x": torch.full((2, 5), float("nan"))})),
        (Reason.WRONG_FACTS, add("a", facts={"round": 0})),
        (Reason.WRONG_FACTS, add("a", facts={"round": 0, "images": 1, "more": 1})),
        (Reason.WRONG_FACTS, add("a", facts={"round": 0, "images": "1"})),
        (Reason.WRONG_FACTS, add("a", facts={"round": 0, "images": True})),
        (Reason.WRONG_WEIGHT, add("a", facts={"round": 0, "images": 1_000_000})),
        (Reason.STALE_ROUND, add("a", number=1)),
    ],
)
def test_what_is_not_in_the_plan_is_refused_by_name_and_changes_nothing(reason: Reason, message: Message) -> None:
    coordinator, server = coordinator_and_server()
    coordinator.submit("b", add("b"))
    with pytest.raises(Refused) as refused:
        coordinator.submit("a", message)
    assert refused.value.reason is reason
    assert server.order == []
    for silo in "ac":
        coordinator.submit(silo, add(silo))
    assert server.fired == [["a", "b", "c"]]
    assert coordinator.closed[0].missing == {}  # it mended what it said
    with pytest.raises(Refused) as refused:
        coordinator.submit("a", message if reason is not Reason.STALE_ROUND else add("a", 5))
    coordinator.drop("a", "gone")
    for silo in "bc":
        coordinator.submit(silo, add(silo, 1))
    assert coordinator.closed[1].missing == {"a": str(refused.value)}


def test_a_stranger_is_refused() -> None:
    coordinator, _ = coordinator_and_server()
    with pytest.raises(Refused, match="unknown silo"):
        coordinator.submit("z", add("a"))
    with pytest.raises(Refused, match="unknown silo"):
        coordinator.collect("z")


def test_a_resend_is_answered_and_never_applied_twice() -> None:
    coordinator, server = coordinator_and_server()
    for _ in range(3):
        coordinator.submit("a", Message("ask"), session="s", sequence=1)
    assert server.asked == 1
    assert coordinator.collect("a", "s") == Message("ask", {}, {"count": 1})
    for _ in range(3):  # a resend of a call that still waits at a barrier
        coordinator.submit("a", add("a"), session="s", sequence=2)
    assert coordinator.collect("a", "s") is None
    coordinator.submit("b", add("b"))
    coordinator.submit("c", add("c"))
    coordinator.submit("a", add("a"), session="s", sequence=2)
    assert server.order == ["a", "b", "c"]
    assert coordinator.collect("a", "s") == Message("add")


def test_a_refused_call_counts_and_its_resend_is_refused_again() -> None:
    coordinator, server = coordinator_and_server()
    coordinator.submit("a", Message("ask"), session="s", sequence=1)
    for _ in range(2):
        with pytest.raises(Refused, match="missing tensor"):
            coordinator.submit("a", add("a", tensors={}), session="s", sequence=2)
    coordinator.submit("a", Message("ask"), session="s", sequence=3)
    assert server.asked == 2


def test_a_session_that_was_followed_by_another_has_ended() -> None:
    coordinator, server = coordinator_and_server()
    coordinator.submit("a", Message("ask"), session="old", sequence=1)
    coordinator.submit("a", Message("ask"), session="new", sequence=1)
    for sequence in (1, 2):  # a late packet of the dead session
        with pytest.raises(Refused, match="out of sequence"):
            coordinator.submit("a", Message("ask"), session="old", sequence=sequence)
    with pytest.raises(Refused, match="has ended"):
        coordinator.collect("a", "old")
    assert server.asked == 2


def test_calls_out_of_sequence_are_refused() -> None:
    coordinator, _ = coordinator_and_server()
    coordinator.submit("a", Message("ask"), session="s", sequence=1)
    with pytest.raises(Refused, match="out of sequence"):
        coordinator.submit("a", Message("ask"), session="s", sequence=3)
    coordinator.submit("a", add("a"), session="s", sequence=2)
    with pytest.raises(Refused, match="out of sequence"):
        coordinator.submit("a", add("a"), session="s", sequence=3)


def test_a_silo_that_was_restarted_does_not_count_twice() -> None:
    coordinator, server = coordinator_and_server()
    coordinator.submit("a", add("a"), session="old", sequence=1)
    coordinator.submit("a", Message("ask"), session="new", sequence=1)
    coordinator.submit("a", add("a"), session="new", sequence=2)
    coordinator.submit("b", add("b"))
    coordinator.submit("c", add("c"))
    assert server.order == ["a", "b", "c"]
    assert coordinator.collect("a", "new") == Message("add")


def test_the_silent_are_left_out_at_the_deadline_and_come_back() -> None:
    coordinator, server = coordinator_and_server(deadline=10)
    coordinator.submit("b", add("b"), now=100)
    coordinator.submit("c", add("c"), now=105)
    coordinator.check_deadline(109)
    assert server.fired == []
    coordinator.check_deadline(110)
    coordinator.check_deadline(110)
    assert server.fired == [["b", "c"]]
    assert "a" in coordinator.closed[0].missing
    with pytest.raises(Refused, match="stale round"):
        coordinator.submit("a", add("a", 0))
    for silo in "abc":
        coordinator.submit(silo, add(silo, 1))
    assert server.fired[1] == ["a", "b", "c"]


PASSES = Plan({**PLAN.operations, "pass": Operation("passes", "often", barrier=True)})


def passed(coordinator: RoundCoordinator, start: float, late: float) -> None:
    """A barrier to which a comes so late."""
    for silo in "bc":
        coordinator.submit(silo, Message("pass"), now=start)
    coordinator.check_deadline(start + late)
    if "a" not in coordinator.absent:
        coordinator.submit("a", Message("pass"), now=start + late)


def test_a_silo_has_one_deadline_a_round_however_many_barriers_it_has() -> None:
    coordinator, server = coordinator_and_server(deadline=10)
    coordinator.plan = PASSES
    for start in (0, 4, 8):
        passed(coordinator, start, 3.0)
        assert coordinator.absent == {}
    passed(coordinator, 12, 0.9)
    passed(coordinator, 13, 0.2)
    assert coordinator.absent == {"a": "kept the others waiting for 10 s in this round"}
    for silo in "bc":
        coordinator.submit(silo, add(silo, server.round), now=14)
    assert coordinator.closed[0].missing == {"a": "kept the others waiting for 10 s in this round"}
    for silo in "abc":
        coordinator.submit(silo, Message("pass"), now=14)
    passed(coordinator, 15, 3.0)
    assert coordinator.late.seconds == {"a": 3.0}


def test_a_slow_half_is_not_late_for_a_fast_one_that_is_smaller() -> None:
    coordinator, _ = coordinator_and_server(deadline=10)
    coordinator.plan = PASSES
    coordinator.submit("a", Message("pass"), now=0)
    for silo in "bc":
        coordinator.submit(silo, Message("pass"), now=8)
    assert coordinator.late.seconds == {}


def test_what_a_silo_costs_in_other_ways_is_of_the_same_deadline() -> None:
    coordinator, server = coordinator_and_server(deadline=10)
    for silo in "bc":
        coordinator.submit(silo, add(silo), now=0)
    coordinator.charge_delay("a", 9.0)
    assert server.fired == []
    coordinator.charge_delay("a", 1.0)
    assert server.fired == [["b", "c"]]
    assert coordinator.closed[0].missing == {"a": "delayed the others by 10 s in this round"}


def test_what_cannot_be_taken_in_is_refused_to_whoever_sent_it_and_the_others_go_on() -> None:
    coordinator, server = coordinator_and_server()
    accumulate = server.accumulate

    def broken(silo: str, message: Message) -> Accumulated:
        if silo == "a":
            raise RuntimeError("its codes are too few")
        return accumulate(silo, message)

    server.accumulate = broken  # type: ignore[method-assign]
    for silo in "bca":
        coordinator.submit(silo, add(silo))
    with pytest.raises(Refused, match="malformed: RuntimeError: its codes are too few"):
        coordinator.collect("a")
    coordinator.drop("a", "it has gone")
    assert server.fired == [["b", "c"]]


def test_whatever_foreign_values_do_to_a_server_is_a_refusal() -> None:
    coordinator, server = coordinator_and_server()

    def broken(silo: str, message: Message) -> None:
        raise ZeroDivisionError(f"{silo} said {message.op}")

    server.validate = broken  # type: ignore[method-assign]
    with pytest.raises(Refused, match="malformed: ZeroDivisionError"):
        coordinator.submit("a", add("a"))


def test_below_quorum_the_run_stops_with_a_name() -> None:
    coordinator, server = coordinator_and_server(quorum=2, deadline=10)
    coordinator.submit("b", add("b"), now=0)
    with pytest.raises(QuorumLost, match="a: silent"):
        coordinator.check_deadline(10)
    assert server.fired == []


def test_who_leaves_is_not_awaited_but_what_it_sent_stands() -> None:
    coordinator, server = coordinator_and_server()
    coordinator.submit("a", add("a"))
    coordinator.drop("a", "cable cut")
    coordinator.drop("b", "power cut")
    coordinator.submit("c", add("c"))
    assert server.fired == [["a", "c"]]
    assert server.order == ["a", "c"]
    coordinator.submit("c", add("c", 1))
    assert server.fired[1] == ["c"]


def test_who_has_ended_is_not_awaited() -> None:
    coordinator, server = coordinator_and_server()
    coordinator.submit("a", add("a"))
    coordinator.submit("b", add("b"))
    coordinator.finish("c")
    assert server.fired == [["a", "b"]]


def test_when_everyone_is_silent_the_run_stops() -> None:
    coordinator, _ = coordinator_and_server(deadline=10)
    for silo in "abc":
        coordinator.submit(silo, add(silo), now=5)
    coordinator.check_deadline(14)
    with pytest.raises(QuorumLost, match="0 silos are left"):
        coordinator.check_deadline(15)


def test_when_all_have_finished_nobody_is_late() -> None:
    coordinator, server = coordinator_and_server(deadline=10)
    for silo in "abc":
        coordinator.submit(silo, Message("ask"), now=0)
        coordinator.finish(silo)
    coordinator.check_deadline(100)
    assert coordinator.absent == {}
    assert server.fired == []


def test_a_barrier_is_of_one_operation_and_who_waits_at_another_waits_on() -> None:
    plan = Plan({**PLAN.operations, "other": Operation("x", "y", barrier=True)})
    server = Summing()
    coordinator = RoundCoordinator(server, plan, IMAGES)
    coordinator.submit("a", add("a"))
    coordinator.submit("b", add("b"))
    coordinator.submit("c", Message("other"))
    assert server.fired == [["c"]]  # a round is not closed while one is at work in it
    assert coordinator.collect("a") is coordinator.collect("b") is None
    coordinator.submit("c", Message("other"))
    assert server.fired == [["c"], ["c"]]
    assert not coordinator.closed


def test_silos_that_wait_for_one_who_never_calls_do_not_spin() -> None:
    def calls() -> Conversation:
        yield add("a")

    coordinator, _ = coordinator_and_server()
    with pytest.raises(ManyhandsError, match="a wait at a barrier that cannot be completed"):
        list(InProcess().run(coordinator, {"a": calls()}, Ledger()))


class Keeping(Summing):
    """Takes nothing in before all are there, as where activations pass."""

    def __init__(self) -> None:
        super().__init__()
        self.got: dict[str, float] = {}

    def accumulate(self, silo: str, message: Message) -> Accumulated:
        return Accumulated(Message(message.op, dict(message.tensors), message.facts))

    def handle_barrier(self, op: str, messages: Mapping[str, Message]) -> Mapping[str, Message]:
        self.got = {silo: float(message.tensors["x"].sum()) for silo, message in messages.items()}
        return super().handle_barrier(op, messages)


def test_of_a_silo_that_was_restarted_the_new_call_counts_where_the_old_was_not_taken_in() -> None:
    server = Keeping()
    coordinator = RoundCoordinator(server, PLAN, IMAGES)
    message = add("a")
    old = Message("add", {"x": torch.full_like(message.tensors["x"], 7.0)}, message.facts)
    coordinator.submit("a", old, session="old", sequence=1)
    coordinator.submit("a", message, session="new", sequence=1)
    coordinator.submit("b", add("b"))
    coordinator.submit("c", add("c"))
    assert server.got["a"] == float(message.tensors["x"].sum()) != float(old.tensors["x"].sum())
    assert server.fired == [["a", "b", "c"]]
    assert coordinator.collect("a", "new") == Message("add")


@pytest.mark.parametrize(
    ("rounds", "answered", "why"),
    [(0, 2, "must add 1 to self.round; it added 0"), (2, 2, "it added 2"), (1, 1, "no answer for silo-1; every silo")],
)
def test_a_server_that_forgets_to_count_a_round_or_to_answer_a_silo_is_told(
    rounds: int, answered: int, why: str
) -> None:
    class Forgetful(Summing):
        def handle_barrier(self, op: str, messages: Mapping[str, Message]) -> Mapping[str, Message]:
            self.round += rounds
            return {silo: Message(op) for silo in list(messages)[:answered]}

    coordinator = RoundCoordinator(Forgetful(), PLAN, {"silo-0": 3, "silo-1": 3})
    add = Message("add", {"x": torch.ones(2, 1)}, {"round": 0, "images": 3})
    coordinator.submit("silo-0", add)
    with pytest.raises(ManyhandsError, match=rf"Forgetful\.handle_barrier\('add'\) .*{why}"):
        coordinator.submit("silo-1", add)
