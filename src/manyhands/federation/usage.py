"""How many rounds and bytes a site has spent on a recipe, over all its runs, whatever their names."""

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
"""How many of the last rounds are recognised when they are repeated; a site never goes back further."""


class Used(NamedTuple):
    """What was spent on a recipe.

    Args:
        rounds: The rounds that were closed.
        bytes: The bytes that were sent.
        last: The hashes of the messages that closed the last rounds.
    """

    rounds: int = 0
    bytes: int = 0
    last: tuple[str, ...] = ()


class Usage:
    """What a site spends on one recipe.

    Args:
        folder: The folder of the site's ledger.
        recipe_hash: The hash of the recipe.
        rounds: The most rounds in all, or None for no limit.
        sent: The most bytes in all, or None for no limit.
    """

    def __init__(self, folder: Path, recipe_hash: str, rounds: int | None = None, sent: int | None = None) -> None:
        self.path, self.rounds, self.sent = folder / FOLDER / f"{recipe_hash}.json", rounds, sent

    def refusals(self, rounds: int, sent: int) -> list[str]:
        """Return why a new run of this many rounds and bytes may not begin; empty if it may."""
        used, reasons = self.read(), []
        if used.rounds and self.rounds is not None and used.rounds + rounds > self.rounds:
            reasons.append(f"this recipe has had {used.rounds:,} rounds over all runs, and may have {self.rounds:,}")
        if used.bytes and self.sent is not None and used.bytes + sent > self.sent:
            reasons.append(
                f"{size_text(used.bytes)} have left for this recipe over all runs, and {size_text(self.sent)} may leave"
            )
        return reasons

    def charge(self, message: Message, *, closes_round: bool, run: str = "") -> None:
        """Charge a message before it is sent; raise ``BudgetError`` if it would exceed a limit.

        A repeated round of a run counts once if it sends exactly the same.
        """
        with locked_file(self.path) as file:
            used = self._parsed(file.read())
            digest = _digest(message, run) if closes_round and self.rounds is not None else ""
            is_new = closes_round and (not digest or digest not in used.last)
            last = (*used.last, digest)[-REPEATS:] if is_new and digest else used.last
            now = Used(used.rounds + is_new, used.bytes + encoded_size(message), last)
            self._check(now)
            file.seek(0)
            file.write(strict_json(now._asdict()).encode())
            file.truncate()
            file.flush()
            if closes_round:
                os.fsync(file.fileno())

    def read(self) -> Used:
        """Return what was spent so far."""
        return self._parsed(self.path.read_bytes() if self.path.exists() else b"")

    def _check(self, now: Used) -> None:
        if self.rounds is not None and now.rounds > self.rounds:
            raise BudgetError(
                f"this site's policy: this recipe has had its {self.rounds:,} rounds over all runs; "
                "a larger rounds in the policy would allow more"
            )
        if self.sent is not None and now.bytes > self.sent:
            raise BudgetError(
                f"this site's policy: {size_text(now.bytes)} would have left for this recipe over all runs, "
                f"but {size_text(self.sent)} may leave"
            )

    def _parsed(self, raw: bytes) -> Used:
        try:
            record = json.loads(raw) if raw else {}
            return Used(int(record.get("rounds", 0)), int(record.get("bytes", 0)), tuple(record.get("last", ())))
        except (ValueError, TypeError, AttributeError) as error:
            raise BudgetError(
                f"{self.path}: cannot be read ({error}); nothing is sent until it is restored from a copy"
            ) from None


def _digest(message: Message, run: str) -> str:
    content = strict_json([run, message.op, dict(message.facts), sha256(message.tensors)])
    return hashlib.sha256(content.encode()).hexdigest()
