"""Real images: the formats of hospitals, held against an independent reading, and none ignored in silence."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom.data import get_testdata_file

from harness import bench, images_by_hand, parts
from manyhands import Folder
from manyhands.data.formats.dicom import read_header
from manyhands.data.formats.intensity import Intensity
from manyhands.data.formats.kinds import Opener, readable_format
from manyhands.data.formats.place import Place

Measured = tuple[dict[str, float], dict[str, Any]]
BARS = {"formats": "== 1"}
DICOM = {
    "CT_small.dcm": "explicit little endian, signed, rescaled",
    "MR_small.dcm": "explicit little endian, window",
    "MR_small_implicit.dcm": "implicit little endian",
    "MR_small_bigendian.dcm": "explicit big endian",
    "MR_small_expb.dcm": "explicit big endian, 16 bits",
    "MR_small_padded.dcm": "padded pixels",
    "MR_small_RLE.dcm": "RLE",
    "MR_small_jp2klossless.dcm": "JPEG 2000 lossless",
    "JPEG2000.dcm": "JPEG 2000",
    "693_J2KI.dcm": "JPEG 2000, signed",
    "image_dfl.dcm": "deflated",
    "liver_1frame.dcm": "1 bit",
    "rtdose.dcm": "32 bits, 15 frames",
    "rtdose_rle.dcm": "RLE, 32 bits, 15 frames",
    "rtdose_expb.dcm": "big endian, 32 bits, 15 frames",
    "examples_overlay.dcm": "overlay, two windows",
    "ExplVR_BigEnd.dcm": "big endian, colour",
    "SC_rgb_small_odd.dcm": "RGB of an odd number of bytes",
    "SC_rgb_small_odd_big_endian.dcm": "RGB, big endian words",
    "SC_rgb_rle.dcm": "RGB, RLE",
    "SC_rgb_rle_2frame.dcm": "RGB, RLE, 2 frames",
    "SC_rgb_rle_16bit_2frame.dcm": "RGB of 16 bits, RLE, 2 frames",
    "SC_rgb_rle_32bit.dcm": "RGB of 32 bits, RLE",
    "SC_ybr_full_422_uncompressed.dcm": "YBR 4:2:2",
    "examples_rgb_color.dcm": "RGB",
    "examples_ybr_color.dcm": "YBR, RLE or JPEG, 30 frames",
    "examples_palette.dcm": "palette of 16 bits",
    "examples_jpeg2k.dcm": "RGB, JPEG 2000",
    "SC_rgb_jpeg_dcmtk.dcm": "YBR, JPEG baseline",
    "SC_rgb_dcmtk_+eb+cr.dcm": "RGB, JPEG baseline",
}
"""Files that come with pydicom, and what is told apart by each; those that it would download are left out."""
INTENSITIES: tuple[Intensity | None, ...] = (None, "bits", "range", "percentiles", (-160.0, 240.0))


def formats(args: argparse.Namespace) -> Measured:
    """The share of files read as by hand, or of a mixed folder's files read or named, whichever is less."""
    with tempfile.TemporaryDirectory() as folder:
        equal = {**dict(_dicom(quick=args.quick)), **dict(_written(Path(folder)))}
        read, named, total = _mixed(Path(folder) / "mixed")
    differing = [name for name, same in equal.items() if not same]
    share = min((len(equal) - len(differing)) / len(equal), (read + named) / total)
    kinds = {name.split("[")[0] for name in equal if ".dcm" in name}
    shown = {
        "compared": len(equal), "kinds of DICOM": len(kinds), "differing": differing,
        "mixed folder": {"files": total, "read": read, "named": named},
    }  # fmt: skip
    return {"formats": share}, {"formats": shown}


def _dicom(*, quick: bool) -> Iterator[tuple[str, bool]]:
    for name in list(DICOM)[: 8 if quick else None]:
        path = get_testdata_file(name, download=False)
        if path is None:
            raise SystemExit(f"{name}: does not come with this version of pydicom")
        for frame in {0, read_header(Place(str(path))).frames - 1}:
            grey = _opened(str(path), frame, None).ndim == 2
            for intensity in INTENSITIES if grey else (None,):
                ours, theirs = _opened(str(path), frame, intensity), images_by_hand.dicom(str(path), frame, intensity)
                yield f"{name}[{frame}] {intensity}", np.array_equal(ours, theirs)


def _opened(path: str, frame: int, intensity: Intensity | None) -> np.ndarray:
    place = Place(path)
    return np.asarray(Opener(place, readable_format(place, Path(path).name), frame, intensity)())


def _written(folder: Path) -> Iterator[tuple[str, bool]]:
    """TIFF and PNG whose bytes were written by hand, of values that are known."""
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 65536, (40, 50), dtype=np.uint16)
    narrow = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    real = rng.normal(size=(40, 50)).astype(np.float32)
    tiffs: dict[str, tuple[np.ndarray, np.ndarray]] = {
        "grey 8": (narrow[..., 0], narrow[..., 0]), "rgb 8": (narrow, narrow), "grey 16": (wide, wide // 257),
        "signed 16": (wide.view(np.int16), (wide.view(np.int16).astype(int) + 32768) // 257),
    }  # fmt: skip
    for name, (values, expected) in tiffs.items():
        for deflate in (False, True):
            path = _file(folder / "a.tif", images_by_hand.tiff(values, deflate=deflate))
            yield f"tiff {name} {deflate=}", np.array_equal(_opened(path, 0, None), expected)
    path = _file(folder / "a.tif", images_by_hand.tiff(narrow[..., 0], inverted=True))
    yield "tiff inverted", np.array_equal(_opened(path, 0, None), 255 - narrow[..., 0])
    path = _file(folder / "a.tif", images_by_hand.tiff(real))
    for intensity, line in _lines(real.astype(np.float64)).items():
        yield f"tiff float {intensity}", np.array_equal(_opened(path, 0, intensity), line)
    path = _file(folder / "a.png", images_by_hand.png16(wide))
    for intensity, line in _lines(wide.astype(np.float64)).items():
        yield f"png 16 {intensity}", np.array_equal(_opened(path, 0, intensity), line)
    (folder / "one").mkdir()
    _file(folder / "one" / "a.png", images_by_hand.png16(wide[:40, :40]))
    pixels = Folder(path=folder / "one").load(40).pixels[0, 0].numpy()
    yield "png 16 bits", np.array_equal(pixels, wide[:40, :40] // 257)


def _lines(values: np.ndarray) -> dict[Intensity, np.ndarray]:
    ordered = np.sort(values.reshape(-1))
    places = (len(ordered) - 1) * np.array([0.01, 0.99])
    below, share = places.astype(int), places % 1
    low, high = ordered[below] * (1 - share) + ordered[below + 1] * share
    line = partial(_line, values)
    return {"range": line(values.min(), values.max()), "percentiles": line(low, high), (-1.0, 2.0): line(-1, 2)}


def _line(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.asarray(np.rint(np.minimum(np.maximum((values - low) / (high - low), 0), 1) * 255))


def _file(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def _mixed(folder: Path) -> tuple[int, int, int]:
    """Of a folder with all that comes with pydicom, pictures and texts: files read, those named or counted, and all."""
    shutil.copytree(Path(str(get_testdata_file("CT_small.dcm"))).parent, folder)
    (folder / "README").write_text("no picture")
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "c.tif", "without-a-suffix"):
        Image.fromarray(rng.integers(0, 256, (9, 9), dtype=np.uint8)).save(folder / name, format=FORMATS[name[0]])
    source = Folder(path=folder, unreadable=1)
    places = {place for place, _ in source.listing(()).places()}
    images = source.load(16, 1, ())
    listing = source.listing(())
    skipped = [line for line in images.skipped if line not in listing.unread]
    counted = sum(int(line.removeprefix(f"{folder}: ").split()[0].replace(",", "")) for line in listing.unread)
    unreadable = sum(any(line.startswith((f"{place}:", f"{place}[")) for line in skipped) for place in places)
    total = sum(path.is_file() for path in folder.rglob("*"))
    return len(places) - unreadable, unreadable + counted, total


FORMATS = {"a": "PNG", "b": "JPEG", "c": "TIFF", "w": "PNG"}
PARTS: tuple[parts.Part, ...] = (formats,)
QUICK = PARTS


def measure(args: argparse.Namespace) -> bench.Measured:
    """All parts, or those that --only names; with --quick at toy size."""
    return parts.measure("real_images", PARTS, QUICK, BARS, args)


if __name__ == "__main__":
    bench.main("real_images", measure, BARS, only="")
