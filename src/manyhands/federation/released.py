"""What a run takes from the budget of a site's images, message by message."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from manyhands.files.write import disk_errors
from manyhands.privacy.budget import Cost

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from manyhands.messages.message import Message
    from manyhands.methods.base import Method
    from manyhands.privacy.budget import Budget, Limits
    from manyhands.silos.silo import Silo


class Released:
    """``files`` are those of the site's images; where there are none, the images were dealt by the recipe.

    An image is known by the bytes of its file, whatever size a recipe wants it at; a dealt one by its pixels.
    """

    def __init__(self, budget: Budget, limits: Limits, silo: Silo, method: Method, files: Sequence[Path]) -> None:
        self.budget, self.limits, self.silo, self.method, self.files = budget, limits, silo, method, files
        self._digests: dict[int, bytes] = {}

    def charge(self, message: Message, run: str) -> None:
        """Note what a message releases, before it is sent; raises where that is more than may be."""
        release = self.method.release_in(self.silo, message)
        if release is None:
            return
        records = [self._record(int(number)) for number in release.numbers]
        cost = Cost(release.mu**2, release.snr, 1, release.label_epsilon)
        self.budget.charge(records, release.paths, cost, self.limits, release.label_paths, run=run)

    def _record(self, number: int) -> bytes:
        images = self.silo.images
        if not self.files:
            return images.pixels[number].contiguous().numpy().tobytes()
        row = number if images.rows is None else int(images.rows[number])
        if row not in self._digests:
            with disk_errors(self.files[row]):
                self._digests[row] = hashlib.sha256(self.files[row].read_bytes()).digest()
        return self._digests[row]
