"""Every error that a user can meet: each has a name, an exit code and a page: ``manyhands explain NAME``."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class ManyhandsError(Exception):
    """The base: says where, what came, and what was expected."""

    exit_code: ClassVar[int] = 1
    page: ClassVar[str] = "error"


class RecipeError(ManyhandsError):
    """A recipe, or what was composed from Python, asks for something that is not there or not allowed."""

    exit_code, page = 2, "recipe"


class DataError(ManyhandsError):
    """Images or labels are missing, unreadable or not as declared."""

    exit_code, page = 3, "data"


class RunFolderError(ManyhandsError):
    """The run folder holds another run, or not what was asked for."""

    exit_code, page = 4, "run-folder"


class CheckpointError(ManyhandsError):
    """A checkpoint is torn, changed or missing."""

    exit_code, page = 5, "checkpoint"


class QuorumLost(ManyhandsError):  # noqa: N818 - the name of the event, as the journal has it
    """Fewer silos are left than the recipe asks for."""

    exit_code, page = 6, "quorum"


class DiskError(ManyhandsError):
    """Something could not be written: the disk is full, a limit was met, the folder is read-only."""

    exit_code, page = 7, "disk"


class MessageError(ManyhandsError):
    """Bytes that are no message."""

    exit_code, page = 8, "message"


class ProtocolError(ManyhandsError):
    """Figures that were measured in different ways cannot be held against each other."""

    exit_code, page = 10, "protocol"


class KitError(ManyhandsError):
    """A party's kit is not there, not its own, changed or expired, or the other end is not who it should be."""

    exit_code, page = 11, "kit"


class BudgetError(ManyhandsError):
    """A site has released of its images what it may, or the ledger that says so cannot be read."""

    exit_code, page = 12, "budget"


MAX_DETAIL_LENGTH = 1000
"""So many characters of what another party says are told on."""


class Reason(StrEnum):
    """The closed list of reasons for which a message is refused."""

    MALFORMED = "malformed"
    UNKNOWN_SILO = "unknown silo"
    UNKNOWN_OPERATION = "unknown operation"
    OUT_OF_SEQUENCE = "out of sequence"
    STALE_ROUND = "stale round"
    NOT_ASKED = "not asked"
    MISSING_TENSOR = "missing tensor"
    UNEXPECTED_TENSOR = "unexpected tensor"
    WRONG_SHAPE = "wrong shape"
    WRONG_DTYPE = "wrong dtype"
    NOT_FINITE = "not finite"
    TOO_LONG = "update too long"
    LEFT_OUT = "left out"
    WRONG_FACTS = "wrong facts"
    WRONG_WEIGHT = "wrong weight"
    OTHER_SCHEDULE = "another schedule"
    OTHER_CUT = "another cut"
    RELEASED = "released already"
    BELOW_CUT = "below its cut"
    FOREIGN_LABEL = "label of others"
    NOT_NOW = "not now"


def printable(words: str, most: int = MAX_DETAIL_LENGTH) -> str:
    """Foreign words, at most so many characters of them, as a terminal, a log and a message can bear them."""
    return "".join(each if each.isprintable() else "?" for each in words[:most])


class Refused(ManyhandsError):  # noqa: N818 - thrown into a silo's half as the answer it gets
    """A message that the plan does not allow; ``reason`` is one of a closed list."""

    exit_code, page = 9, "refused"

    def __init__(self, reason: Reason, detail: str) -> None:
        self.reason, self.detail = reason, printable(detail)
        super().__init__(f"{reason}: {self.detail}")
