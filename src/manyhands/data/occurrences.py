"""Tells equal images apart, by their order in the source."""

from __future__ import annotations

import hashlib
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from manyhands.data.images import Images


@lru_cache(maxsize=1)
def occurrences(images: Images, held_out: Images | None = None) -> Tensor:
    """Number the equal images of both sets (0, 1, ...), in the order of their source.

    Args:
        images: N images.
        held_out: More images of the same source, or None.

    Returns:
        The number of each of ``images`` among the images that equal it, (N,).
    """
    sets = [part for part in (images, held_out) if part is not None]
    pixels = [_digest(image) for part in sets for chunk in part.chunks() for image in chunk]
    rows = [part.rows if part.rows is not None else torch.arange(len(part)) for part in sets]
    seen: Counter[bytes] = Counter()
    numbers = torch.zeros(len(pixels), dtype=torch.long)
    for i in torch.cat(rows).argsort(stable=True).tolist():
        numbers[i] = seen[pixels[i]]
        seen[pixels[i]] += 1
    return numbers[: len(images)]


def _digest(image: Tensor) -> bytes:
    return hashlib.sha256(image.numpy().tobytes()).digest()
