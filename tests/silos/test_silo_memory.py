"""What a silo keeps between rounds, and what of it is undone when a message is refused."""

from __future__ import annotations

from collections.abc import Generator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from manyhands.errors import Reason, Refused
from manyhands.silos.silo_memory import SiloMemory

Change = tuple[str, str, int]
changes = st.lists(
    st.tuples(st.sampled_from(["keep", "forget"]), st.sampled_from(["a", "a.x", "b", "b.x", ""]), st.integers(0, 9))
)


def number(value: int) -> torch.Tensor:
    return torch.tensor(value)


def numbers(memory: SiloMemory) -> dict[str, int]:
    return {name: int(tensor) for name, tensor in memory.items()}


def apply(memory: SiloMemory, made: list[Change]) -> None:
    for kind, name, value in made:
        if kind == "keep":
            memory.keep({name: number(value)})
        else:
            memory.forget(name)


def apply_and_refuse(memory: SiloMemory, made: list[Change]) -> None:
    with memory.transaction():
        apply(memory, made)
        raise Refused(Reason.NOT_FINITE, "no")


@given(changes, changes)
def test_a_refused_transaction_leaves_no_trace_and_another_is_as_if_there_were_none(
    first: list[Change], second: list[Change]
) -> None:
    refused, through, plain = SiloMemory(), SiloMemory(), SiloMemory()
    for memory in (refused, through, plain):
        apply(memory, first)
    before = numbers(refused)
    with pytest.raises(Refused):
        apply_and_refuse(refused, second)
    with through.transaction():
        apply(through, second)
    apply(plain, second)
    assert numbers(refused) == before
    assert numbers(through) == numbers(plain)


def conversation(memory: SiloMemory) -> Generator[None, None, None]:
    with memory.transaction():
        memory.keep({"a": number(1)})
        yield


def test_a_checkpoint_that_is_written_before_the_answer_has_what_was_kept() -> None:
    memory = SiloMemory({"a": number(0)})
    waits = conversation(memory)
    next(waits)
    assert numbers(memory) == {"a": 1}
    with pytest.raises(Refused):
        waits.throw(Refused(Reason.STALE_ROUND, "late"))
    assert numbers(memory) == {"a": 0}


def test_a_conversation_that_is_closed_while_it_waits_keeps_what_its_message_said() -> None:
    memory = SiloMemory()
    waits = conversation(memory)
    next(waits)
    waits.close()
    assert numbers(memory) == {"a": 1}


def test_a_copy_is_not_changed_with_it() -> None:
    tensors = {"a": number(0)}
    memory = SiloMemory(tensors)
    copy = SiloMemory(memory)
    memory.keep({"a": number(1), "b": number(2)})
    memory.forget("a")
    assert (numbers(memory), numbers(copy), tensors) == ({"b": 2}, {"a": 0}, {"a": number(0)})
