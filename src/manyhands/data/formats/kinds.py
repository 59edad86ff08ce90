"""Which files are images, of which format, and how many images a file holds. Nothing here imports PyTorch.

A format is known by the suffix. A file without one, or with one of digits as a DICOM UID ends in, is known by its first
bytes.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from manyhands.data.formats.dicom import NotAnImage, open_dicom, read_header
from manyhands.data.formats.intensity import Intensity, to_bytes
from manyhands.data.formats.place import Place
from manyhands.data.formats.tiff import open_tiff, pages_of

PICTURE, TIFF, DICOM, BY_CONTENT = "picture", "tiff", "dicom", "by content"
SUFFIXES = {
    ".png": PICTURE, ".jpg": PICTURE, ".jpeg": PICTURE, ".tif": TIFF, ".tiff": TIFF,
    ".dcm": DICOM, ".dicom": DICOM, ".ima": DICOM,
}  # fmt: skip
NAMES = "PNG, JPEG, TIFF or DICOM"
MAGIC = {
    b"\x89PNG\r\n\x1a\n": PICTURE, b"\xff\xd8\xff": PICTURE,
    b"II*\0": TIFF, b"MM\0*": TIFF, b"II+\0": TIFF, b"MM\0+": TIFF,
}  # fmt: skip
PREAMBLE = 128
"""Where DICM stands in a DICOM file."""
PACKAGES = {TIFF: "tifffile", DICOM: "pydicom"}
DECODERS = ("pydicom", "tifffile", "imagecodecs", "pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "python-gdcm")


class NotRead(ValueError):  # noqa: N818 - not an error of the file
    """Why a file is not read: what is counted and reported."""


class Frames(NamedTuple):
    """The images in a file: their ``numbers``, and the ``patient`` id of a DICOM file."""

    numbers: Sequence[int] = (0,)
    patient: str = ""


def suffix_of(name: str) -> str:
    """Return the suffix of a file name, in small letters, as the much slower ``PurePath.suffix`` does."""
    last = name.rpartition("/")[2]
    at = last.rfind(".")
    return last[at:].lower() if 0 < at < len(last) - 1 else ""


def format_by_name(name: str) -> str | None:
    """Return the format that a name says, ``BY_CONTENT`` where it says none, and None for other files."""
    suffix = suffix_of(name)
    return SUFFIXES.get(suffix) or (BY_CONTENT if not suffix or suffix[1:].isdigit() else None)


def is_hidden(name: str) -> bool:
    """Whether a system hides this file beside others (``._cat.jpg``, ``__MACOSX``): such files are not even counted."""
    below = f"/{name}"
    return "/." in below or "/__MACOSX" in below


def readable_format(place: Place, name: str) -> str:
    """Return the format of a file, which is opened if its name says none.

    Raises:
        NotRead: It is not read, and why.
    """
    named = format_by_name(name)
    kind = _by_content(place) if named == BY_CONTENT else named
    if kind is None:
        raise NotRead(f"files {suffix_of(name) if named is None else 'without a suffix'}: no {NAMES}")
    if (package := PACKAGES.get(kind)) and importlib.util.find_spec(package) is None:
        raise NotRead(f"files {suffix_of(name) or 'of ' + kind.upper()}: need pip install 'manyhands[medical]'")
    return kind


def frames_of(place: Place, kind: str) -> Frames:
    """Return the images in a file; a file that cannot be read counts as one, whose opening says why.

    Raises:
        NotRead: It holds none.
    """
    try:
        if kind == TIFF:
            return Frames(pages_of(place))
        if kind == DICOM:
            header = read_header(place)
            return Frames(range(header.frames), header.patient)
    except NotAnImage as error:
        raise NotRead(f"files {error}") from None
    except Exception:  # whatever a damaged file makes a parser raise; opening it says so by name
        return Frames()
    return Frames()


@dataclass(frozen=True, slots=True)
class Opener:
    """Opens an image of a file, decoded to bytes of grey or RGB where it is of another format than PNG and JPEG.

    Args:
        place: Where the file is.
        kind: Its format.
        frame: The number of the image in the file, counted from 0.
        intensity: Which values become black and white; None for what the format says.
    """

    place: Place
    kind: str
    frame: int
    intensity: Intensity | None

    def __call__(self) -> Image.Image:
        """Open it."""
        if self.kind == DICOM:
            return open_dicom(self.place, self.frame, self.intensity)
        if self.kind == TIFF:
            return open_tiff(self.place, self.frame, self.intensity)
        image = Image.open(io.BytesIO(self.place.read()) if self.place.member else self.place.path)
        return image if self.intensity in (None, "bits") else _stretched(image, self.intensity)


def decoders() -> str:
    """Return the versions of the packages on which the pixels of a file depend."""
    return " ".join(f"{name} {_version(name)}" for name in DECODERS)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "-"


def _by_content(place: Place) -> str | None:
    with place.open() as file:
        head = file.read(PREAMBLE + 4)
    if head[PREAMBLE:] == b"DICM":
        return DICOM
    return next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), None)


def _stretched(image: Image.Image, intensity: Intensity) -> Image.Image:
    """A picture, turned upright, whose values are mapped to bytes."""
    image = ImageOps.exif_transpose(image)
    if image.mode not in ("L", "RGB") and not image.mode.startswith("I"):
        image = image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")
    return Image.fromarray(to_bytes(np.asarray(image), intensity, None))
