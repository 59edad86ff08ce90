"""The quorum of a run: the fewest silos with which it goes on."""

from __future__ import annotations

from collections.abc import Mapping

from manyhands.errors import QuorumLost


def can_reach_quorum(quorum: int, silos: int) -> bool:
    """Return whether a run of so many silos can ever have its quorum."""
    return 1 <= quorum <= silos


def has_quorum(quorum: int, present: int, silos: int) -> bool:
    """Return whether enough silos are present for a run to go on.

    If fewer silos than the quorum are left, all of them are enough. At least one must be present.

    Args:
        quorum: The fewest silos that the recipe asks for.
        present: How many silos are there.
        silos: How many could be: all but those that have finished.
    """
    return present >= max(1, min(quorum, silos))


def check_present(
    quorum: int, present: int, silos: int, absent: Mapping[str, str], state: str = "silos are left"
) -> None:
    """Raise ``QuorumLost`` where too few silos are present.

    Args:
        quorum: The fewest silos that the recipe asks for.
        present: How many silos are there.
        silos: How many could be: all but those that have finished.
        absent: The silos that are not there, and why.
        state: What those present are, in the words of the error.
    """
    if not has_quorum(quorum, present, silos):
        raise QuorumLost(f"{present} {state}, the recipe asks for {quorum}{_reasons(absent)}")


def check_senders(quorum: int, senders: int, number: int, missing: Mapping[str, str]) -> None:
    """Raise ``QuorumLost`` where too few silos sent something in a round.

    Args:
        quorum: The fewest silos that the recipe asks for.
        senders: How many silos sent something.
        number: The number of the round, from 0.
        missing: The silos that sent nothing, and why.
    """
    if senders < quorum:
        raise QuorumLost(f"round {number + 1}: fewer than {quorum} silos could send anything{_reasons(missing)}")


def _reasons(silos: Mapping[str, str]) -> str:
    reasons = "; ".join(f"{silo}: {reason}" for silo, reason in sorted(silos.items()))
    return f" ({reasons})" if reasons else ""
