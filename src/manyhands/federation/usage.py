"""How much a recipe has had of a site, over all runs of it, whatever they are called."""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING, NamedTuple

from manyhands.errors import BudgetError
from manyhands.files.strict_json import strict_json
from manyhands.files.write import locked_file
from manyhands.formatting import size_text
from manyhands.messages.message import encoded_size
from manyhands.tensors import sha256

if TYPE_CHECKING:
    from pathlib import Path

    from manyhands.messages.message import Message

FOLDER = "used"
REPEATS = 4
"""So many of the last rounds are known again: a site goes back by fewer."""


class Used(NamedTuple):
    """Rounds that were closed, bytes that were sent, and hashes of what closed the last rounds."""

    rounds: int = 0
    bytes: int = 0
    last: tuple[str, ...] = ()


class Usage:
    """What was had under one recipe; ``rounds`` and ``sent``, in bytes, are the most that may be, in all."""

    def __init__(self, folder: Path, recipe_hash: str, rounds: int | None = None, sent: int | None = None) -> None:
        self.path, self.rounds, self.sent = folder / FOLDER / f"{recipe_hash}.json", rounds, sent

    def refusals(self, rounds: int, sent: int) -> list[str]:
        """Why no further run of so many rounds, that sends so much, may begin; nothing where one may."""
        used, reasons = self.read(), []
        if used.rounds and self.rounds is not None and used.rounds + rounds > self.rounds:
            reasons.append(f"this recipe has had {used.rounds:,} rounds, and {self.rounds:,} are the most in all")
        if used.bytes and self.sent is not None and used.bytes + sent > self.sent:
            reasons.append(
                f"{size_text(used.bytes)} have left for this recipe, and {size_text(self.sent)} are the most"
            )
        return reasons

    def charge(self, message: Message, *, closes_round: bool, run: str = "") -> None:
        """Note what is about to be sent, or raise ``BudgetError`` where that is more than may be.

        A round of a run that is done again, and tells the very same, is no further one.
        """
        with locked_file(self.path) as file:
            used = self._parsed(file.read())
            digest = _digest(message, run) if closes_round and self.rounds is not None else ""
            fresh = closes_round and (not digest or digest not in used.last)
            last = (*used.last, digest)[-REPEATS:] if fresh and digest else used.last
            now = Used(used.rounds + fresh, used.bytes + encoded_size(message), last)
            self._check(now)
            file.seek(0)
            file.write(strict_json(now._asdict()).encode())
            file.truncate()
            file.flush()
            if closes_round:
                os.fsync(file.fileno())

    def read(self) -> Used:
        """What was had so far."""
        return self._parsed(self.path.read_bytes() if self.path.exists() else b"")

    def _check(self, now: Used) -> None:
        if self.rounds is not None and now.rounds > self.rounds:
            raise BudgetError(f"this site's policy: this recipe has had its {self.rounds:,} rounds, over all runs")
        if self.sent is not None and now.bytes > self.sent:
            raise BudgetError(
                f"this site's policy: {size_text(now.bytes)} would have left for this recipe, over all runs; "
                f"{size_text(self.sent)} are the most"
            )

    def _parsed(self, raw: bytes) -> Used:
        try:
            record = json.loads(raw) if raw else {}
            return Used(int(record.get("rounds", 0)), int(record.get("bytes", 0)), tuple(record.get("last", ())))
        except (ValueError, TypeError, AttributeError) as error:
            raise BudgetError(f"{self.path}: cannot be read ({error}): nothing is sent until it is put right") from None


def _digest(message: Message, run: str) -> str:
    content = strict_json([run, message.op, dict(message.facts), sha256(message.tensors)])
    return hashlib.sha256(content.encode()).hexdigest()
