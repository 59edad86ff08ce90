"""Every error that a user can meet: each has a name, an exit code and a page: ``manyhands explain NAME``."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class ManyhandsError(Exception):
    """The base class: a message says where the error is, what is there, and what should be."""

    exit_code: ClassVar[int] = 1
    page: ClassVar[str] = "error"


class RecipeError(ManyhandsError):
    """A recipe, or an experiment built in Python, asks for something that does not exist or is not allowed."""

    exit_code, page = 2, "recipe"


class DataError(ManyhandsError):
    """Images or labels are missing, unreadable or not as declared."""

    exit_code, page = 3, "data"


class RunFolderError(ManyhandsError):
    """The run folder holds another run, or lacks what was asked for."""

    exit_code, page = 4, "run-folder"


class CheckpointError(ManyhandsError):
    """A checkpoint is incomplete, damaged or missing."""

    exit_code, page = 5, "checkpoint"


class QuorumLost(ManyhandsError):  # noqa: N818 - the name of the event, as the journal calls it
    """Fewer silos are left than the recipe requires."""

    exit_code, page = 6, "quorum"


class DiskError(ManyhandsError):
    """A file could not be written: the disk is full, a quota is used up, or the folder is read-only."""

    exit_code, page = 7, "disk"


class MessageError(ManyhandsError):
    """Bytes that are not a valid message."""

    exit_code, page = 8, "message"


class ProtocolError(ManyhandsError):
    """Results that were measured in different ways cannot be compared."""

    exit_code, page = 10, "protocol"


class KitError(ManyhandsError):
    """A kit is missing, expired, altered or of another party, or the peer is not who it should be."""

    exit_code, page = 11, "kit"


class BudgetError(ManyhandsError):
    """A site has used up its privacy budget, or the ledger of its releases cannot be read."""

    exit_code, page = 12, "budget"


MAX_DETAIL_LENGTH = 1000
"""The most characters of another party's text that are passed on."""


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
    OTHER_WEIGHTS = "other frozen weights"
    RELEASED = "released already"
    BELOW_CUT = "below its cut"
    FOREIGN_LABEL = "label of others"
    NOT_NOW = "not now"


def printable(text: str, limit: int = MAX_DETAIL_LENGTH) -> str:
    """Text of another party, made safe for a terminal, a log and a message.

    Characters that cannot be printed become "?"; at most ``limit`` characters are kept.
    """
    return "".join(character if character.isprintable() else "?" for character in text[:limit])


class Refused(ManyhandsError):  # noqa: N818 - raised inside the silo's half as the answer it gets
    """A message that is not allowed.

    Args:
        reason: Why, from a closed list.
        detail: What exactly, in one sentence.
    """

    exit_code, page = 9, "refused"

    def __init__(self, reason: Reason, detail: str) -> None:
        self.reason, self.detail = reason, printable(detail)
        super().__init__(f"{reason}: {self.detail}")
