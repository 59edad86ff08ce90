"""The memory of this process, in bytes."""

from __future__ import annotations

from manyhands.silos.memory import peak_memory


def test_peak_memory_is_that_of_a_process_with_pytorch() -> None:
    assert 50e6 < peak_memory() < 100e9
