"""TIFF files: each page is an image."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from manyhands.data.formats.intensity import Intensity, to_bytes
from manyhands.data.formats.place import MAX_PIXELS

if TYPE_CHECKING:
    from manyhands.data.formats.place import Place

REDUCED, MASK = 1, 4
"""Bits of a page's subfile type: it is a smaller copy of another page, or the mask of one."""
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2), 8: np.rot90,
}  # fmt: skip
"""What turns a picture upright, by the tag Orientation."""
ORIENTATION = 274


def pages_of(place: Place) -> list[int]:
    """Return the numbers of the pages that are images: smaller copies and masks are none."""
    import tifffile

    with place.open() as file, tifffile.TiffFile(file) as tiff:
        return [number for number, page in enumerate(tiff.pages) if not _subfile_type(page) & (REDUCED | MASK)]


def open_tiff(place: Place, page: int, intensity: Intensity | None) -> Image.Image:
    """Decode a page to bytes of grey or RGB.

    Args:
        place: The file.
        page: The number of the page, counted from 0.
        intensity: Which values are black and white; None for the bits stored.
    """
    import tifffile

    try:
        with place.open() as file, tifffile.TiffFile(file) as tiff:
            return Image.fromarray(np.ascontiguousarray(_bytes_of(tiff.pages[page], intensity or "bits")))
    except tifffile.TiffFileError as error:
        raise ValueError(f"is not a TIFF file: {error}") from None
    except (OSError, ValueError):
        raise
    except Exception as error:  # whatever damaged tags make tifffile raise
        raise ValueError(f"is a damaged TIFF file: {type(error).__name__}: {error}") from None


def _subfile_type(page: Any) -> int:
    tag = getattr(page, "keyframe", page).tags.get(254) if not hasattr(page, "tags") else page.tags.get(254)
    return int(tag.value) if tag is not None else 0


def _bytes_of(page: Any, intensity: Intensity) -> np.ndarray:
    page = page.aspage() if hasattr(page, "aspage") else page
    if page.imagelength * page.imagewidth > MAX_PIXELS:
        raise ValueError(f"has {page.imagelength} x {page.imagewidth} pixels, more than {MAX_PIXELS:,}")
    meaning, values = page.photometric.name, _decoded(page)
    if meaning == "PALETTE":
        values = np.moveaxis(page.colormap[:, values], 0, -1)  # 16 bits each
    elif meaning not in ("MINISBLACK", "MINISWHITE", "RGB"):
        raise ValueError(f"its colours are {meaning}, which is not read; grey, RGB and palettes are")
    if values.dtype == bool:
        values = values.astype(np.uint8) * 255
    grey = to_bytes(values, intensity, _possible(values, page))
    turn = TURNS.get(int(page.tags[ORIENTATION].value) if ORIENTATION in page.tags else 1, np.asarray)
    upright: np.ndarray = turn(grey)
    return 255 - upright if meaning == "MINISWHITE" else upright


def _decoded(page: Any) -> np.ndarray:
    """The values of a page, (H, W) or (H, W, 3)."""
    try:
        values = np.asarray(page.asarray())
    except ValueError as error:
        lacks = "imagecodecs" in str(error)
        raise ValueError(
            f"it is compressed with {page.compression.name}, which needs another package: pip install imagecodecs"
            if lacks
            else f"its pixels cannot be decoded: {error}"
        ) from None
    if page.axes == "SYX":
        values = np.moveaxis(values, 0, -1)
    elif page.axes not in ("YX", "YXS"):
        raise ValueError(f"its axes are {page.axes}, a plane of grey or RGB is expected")
    if values.ndim == 3:  # further samples are transparency
        values = values[..., :3] if values.shape[2] >= 3 else values[..., 0]
    return values


def _possible(values: np.ndarray, page: Any) -> tuple[int, int] | None:
    """The least and the largest value that can be stored."""
    if values.dtype.kind not in "iu":
        return None
    stored = page.bitspersample if page.photometric.name != "PALETTE" else 16
    if values.dtype == np.uint8 or stored >= 8 * values.dtype.itemsize or values.dtype.kind == "i":
        return int(np.iinfo(values.dtype).min), int(np.iinfo(values.dtype).max)
    return 0, int(2**stored - 1)
