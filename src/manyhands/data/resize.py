"""A picture of any mode as square bytes."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps


def resized(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """Turn a picture upright, crop it to the central square and resize it.

    Args:
        image: The picture, of any mode that Pillow reads.
        size: The side of the result in pixels.
        channels: 1 for grey, 3 for RGB.

    Returns:
        The pixels as bytes, (channels, size, size).
    """
    picture = _eight_bits(ImageOps.exif_transpose(image)).convert("L" if channels == 1 else "RGB")
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    if (picture.width, picture.height) != (side, side):
        picture = picture.crop((left, top, left + side, top + side))
    if side != size:
        picture = picture.resize((size, size), Image.Resampling.LANCZOS)
    pixels = np.asarray(picture, dtype=np.uint8)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits; Pillow would clamp it at 255."""
    if image.mode == "F":
        raise ValueError("its pixels are floats of an unknown range")
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
