"""Charges a site's budget for what each message releases of its images."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from manyhands.files.write import disk_errors
from manyhands.privacy.budget import Cost

if TYPE_CHECKING:
    from collections.abc import Sequence

    from manyhands.data.formats.place import Place
    from manyhands.messages.message import Message
    from manyhands.methods.base import Method
    from manyhands.privacy.budget import Budget, Limits
    from manyhands.silos.silo import Silo


class Released:
    """The releases of one run.

    The budget identifies an image by the bytes of its file, whatever size a recipe scales it to. An image that the
    recipe deals to the site is identified by its pixels.

    Args:
        budget: The site's budget.
        limits: The most that may be released of an image, over all runs.
        silo: The silo whose images they are.
        method: The method of the run.
        files: The file of each image and its number in it; empty if the recipe deals them.
    """

    def __init__(
        self, budget: Budget, limits: Limits, silo: Silo, method: Method, files: Sequence[tuple[Place, int]]
    ) -> None:
        self.budget, self.limits, self.silo, self.method, self.files = budget, limits, silo, method, files
        self._digests: dict[int, bytes] = {}

    def charge(self, message: Message, run: str) -> None:
        """Charge a message before it is sent; raise ``BudgetError`` if it would exceed the limits."""
        release = self.method.release_in(self.silo, message)
        if release is None:
            return
        records = [self._record(int(number)) for number in release.numbers]
        cost = Cost(release.mu**2, release.snr, 1, release.label_epsilon)
        self.budget.charge(records, release.paths, cost, self.limits, release.label_paths, run=run)

    def _record(self, number: int) -> bytes:
        images = self.silo.images
        if not self.files:
            return images.read(torch.tensor([number])).numpy().tobytes()
        row = number if images.rows is None else int(images.rows[number])
        if row not in self._digests:
            self._digests[row] = _digest(*self.files[row])
        return self._digests[row]


def _digest(place: Place, frame: int) -> bytes:
    """The hash of a file, and of the number of the image in it, if that is not the first."""
    with disk_errors(Path(place.path)):
        content = place.read()
    return hashlib.sha256(content + (f"\0{frame}".encode() if frame else b"")).digest()
