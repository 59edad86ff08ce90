"""Warnings about images that came out as nobody wants them: nearly black, nearly white, of one colour, of one class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from manyhands.formatting import names_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from manyhands.data.images import Images

SAMPLE = 200
"""The most images of a set that are looked at."""
DARK, BRIGHT = 64, 191
"""An image is nearly black if no pixel reaches the first, and nearly white if none is below the second."""
NEARLY_ALL = 0.99
"""The share of images that makes a set nearly black or white."""
MIN_ONE_COLOUR_SHARE = 0.5
"""The share of images of one colour that is worth a warning."""
INTENSITY_HINT = 'set intensity in the source: "range", "percentiles" or [low, high]'


def image_warnings(sets: Mapping[str, Images]) -> list[str]:
    """Return warnings about sets of images.

    Args:
        sets: The images of each silo, by its name.
    """
    kinds: dict[str, list[str]] = {}
    for name, images in sets.items():
        if len(images) and (kind := _kind_of(images)):
            kinds.setdefault(kind, []).append(name)
    lines = [f"the images of {names_text(names)} are {kind}" for kind, names in kinds.items()]
    classes = {images.classes for images in sets.values() if images.labels is not None}
    if len(classes) == 1 and len(only := next(iter(classes))) == 1:
        lines.append(
            f"all images are of the one class {only[0]!r}: set data.classes = 0 for images without labels, or check "
            "the folders or the column of labels"
        )
    return lines


def _kind_of(images: Images) -> str:
    """What is wrong with images, as the end of a sentence; "" for nothing."""
    numbers = torch.linspace(0, len(images) - 1, min(len(images), SAMPLE)).long()
    pixels = images.read(numbers).flatten(1)
    low, high = pixels.min(1).values, pixels.max(1).values
    if (share := _share(low == high)) >= MIN_ONE_COLOUR_SHARE:
        return f"of one colour, at least {share:.0%} of them: check the files, or {INTENSITY_HINT}"
    if _share(high < DARK) >= NEARLY_ALL:
        return f"nearly black: no pixel reaches {DARK} of 255, as of 12 bits that are stored in 16; {INTENSITY_HINT}"
    if _share(low >= BRIGHT) >= NEARLY_ALL:
        return f"nearly white: no pixel is below {BRIGHT} of 255; {INTENSITY_HINT}"
    return ""


def _share(marks: torch.Tensor) -> float:
    return float(marks.float().mean())
