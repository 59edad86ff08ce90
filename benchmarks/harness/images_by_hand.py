"""An independent reading of image files: from their bytes and tags by the formulas of the standards, without decoders.

pydicom gives the tags and the undecoded bytes of a DICOM file alone. JPEG and JPEG 2000 are decoded by Pillow.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.encaps import generate_frames
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

Intensity = str | tuple[float, float] | None


def dicom(path: str, frame: int, intensity: Intensity = None) -> np.ndarray:
    """The bytes that a frame is shown as."""
    dataset = dcmread(path)
    values, kind = _stored(dataset, frame), dataset.PhotometricInterpretation
    if kind == "PALETTE COLOR":
        return _palette(dataset, values)
    if values.ndim == 3:
        rgb = _rgb(values) if kind in ("YBR_FULL", "YBR_FULL_422") else values
        return np.asarray(rgb.astype(object) * 255 // (2**dataset.BitsStored - 1), np.uint8)
    shown = _grey(dataset, values, intensity)
    return np.asarray(255 - shown if kind == "MONOCHROME1" else shown, np.uint8)


def _stored(dataset: Dataset, frame: int) -> np.ndarray:
    """The stored values of a frame."""
    syntax, signed = dataset.file_meta.TransferSyntaxUID, dataset.PixelRepresentation
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    dtype = np.dtype(f"{order}{'i' if signed else 'u'}{max(dataset.BitsAllocated // 8, 1)}")
    rows, columns, samples = dataset.Rows, dataset.Columns, dataset.SamplesPerPixel
    count = int(dataset.get("NumberOfFrames") or 1)
    if syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian) or "Deflated" in syntax.name:
        return _native(dataset, dtype, frame)
    encoded = list(generate_frames(dataset.PixelData, number_of_frames=count))[frame]
    if syntax == RLELossless:
        planes = _run_lengths(encoded, rows * columns)
        of_sample = np.array(planes).reshape(samples, dtype.itemsize, rows * columns).transpose(0, 2, 1)
        values = np.ascontiguousarray(of_sample).view(dtype.newbyteorder(">"))[..., 0].reshape(samples, rows, columns)
        return values[0] if samples == 1 else values.transpose(1, 2, 0)
    picture = Image.open(io.BytesIO(encoded))
    if picture.format == "JPEG" and dataset.PhotometricInterpretation.startswith("YBR"):
        picture.draft("YCbCr", None)  # as stored
    values = np.asarray(picture).astype(np.int64)
    return _of_jpeg2000(values, encoded, picture, signed=bool(signed)) if picture.format == "JPEG2000" else values


def _of_jpeg2000(values: np.ndarray, encoded: bytes, picture: Image.Image, *, signed: bool) -> np.ndarray:
    """Undo what Pillow does: it moves the bits of a grey picture to the top of 8 or 16, and makes them unsigned."""
    about = encoded[encoded.index(b"\xff\x51") + 40]  # Ssiz of the first component, ISO 15444-1, A.5.1
    bits, is_signed = (about & 127) + 1, about >> 7
    values = values >> ((16 if picture.mode.startswith("I") else 8) - bits)
    if is_signed:
        return values - (1 << (bits - 1))
    return values - (1 << bits) * (values >> (bits - 1)) if signed else values


def _native(dataset: Dataset, dtype: np.dtype[Any], frame: int) -> np.ndarray:
    rows, columns, samples = dataset.Rows, dataset.Columns, dataset.SamplesPerPixel
    raw = dataset.PixelData
    if dataset.BitsAllocated == 1:
        bits = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")
        return bits[frame * rows * columns :][: rows * columns].reshape(rows, columns)
    big = dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian
    if big and dataset.BitsAllocated == 8 and dataset["PixelData"].VR == "OW":
        raw = np.frombuffer(raw, "<u2").byteswap().tobytes()  # words, whose bytes are exchanged
    if dataset.PhotometricInterpretation == "YBR_FULL_422":
        pairs = np.frombuffer(raw, np.uint8)[frame * rows * columns * 2 :][: rows * columns * 2].reshape(-1, 4)
        luma, chroma = pairs[:, :2].reshape(-1), np.repeat(pairs[:, 2:], 2, axis=0)
        return np.column_stack([luma, chroma]).reshape(rows, columns, 3)
    size = rows * columns * samples
    values = np.frombuffer(raw, dtype, count=size, offset=frame * size * dtype.itemsize)
    if samples == 1:
        return values.reshape(rows, columns)
    if dataset.PlanarConfiguration:
        return values.reshape(samples, rows, columns).transpose(1, 2, 0)
    return values.reshape(rows, columns, samples)


def _run_lengths(encoded: bytes, length: int) -> list[np.ndarray]:
    """PackBits, a segment for each byte of each sample. References: DICOM PS3.5, annex G."""
    count, *offsets = struct.unpack("<16L", encoded[:64])
    ends = [*offsets[1:count], len(encoded)]
    return [
        np.frombuffer(_unpacked(encoded[start:end], length), np.uint8)
        for start, end in zip(offsets[:count], ends, strict=True)
    ]


def _unpacked(segment: bytes, length: int) -> bytes:
    out, at = bytearray(), 0
    while len(out) < length:
        head = segment[at]
        if head < 128:
            out += segment[at + 1 : at + 2 + head]
            at += 2 + head
        else:
            out += segment[at + 1 : at + 2] * (257 - head if head > 128 else 0)
            at += 2 if head > 128 else 1
    return bytes(out[:length])


def _rgb(values: np.ndarray) -> np.ndarray:
    """Of ITU-R BT.601, as PS3.3, C.7.6.3.1.2, has it."""
    luma, blue, red = (values[..., i].astype(np.float64) - (0, 128, 128)[i] for i in range(3))
    rgb = np.stack(
        [luma + 1.402 * red, luma - (0.114 * 1.772 * blue + 0.299 * 1.402 * red) / 0.587, luma + 1.772 * blue], -1
    )
    return np.asarray(np.floor(rgb.clip(0, 255) + 0.5).clip(0, 255), np.uint8)


def _palette(dataset: Dataset, values: np.ndarray) -> np.ndarray:
    planes = []
    for colour in ("Red", "Green", "Blue"):
        count, first, bits = getattr(dataset, f"{colour}PaletteColorLookupTableDescriptor")
        table = np.frombuffer(getattr(dataset, f"{colour}PaletteColorLookupTableData"), "<u2" if bits == 16 else "u1")
        planes.append(table[(values.astype(int) - first).clip(0, (count or 65536) - 1)].astype(int))
    return np.asarray(np.stack(planes, -1) * 255 // (2**bits - 1), np.uint8)


def _grey(dataset: Dataset, values: np.ndarray, intensity: Intensity) -> np.ndarray:
    bits, signed = dataset.BitsStored, dataset.PixelRepresentation
    stored = [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed else [0, 2**bits - 1]
    if intensity == "bits":
        return np.asarray((values.astype(int) - stored[0]) * 255 // (stored[1] - stored[0]))
    measured = values * float(dataset.get("RescaleSlope", 1)) + float(dataset.get("RescaleIntercept", 0))
    if isinstance(intensity, tuple):
        return _line(measured, *intensity)
    if intensity == "percentiles":
        ordered = np.sort(measured.reshape(-1))
        places = (len(ordered) - 1) * np.array([0.01, 0.99])
        below, share = places.astype(int), places % 1
        low, high = ordered[below] * (1 - share) + ordered[below + 1] * share
        return _line(measured, low, high)
    if intensity is None and "WindowCenter" in dataset and dataset.WindowCenter not in (None, ""):
        centre, width = (float(np.atleast_1d(dataset[name].value)[0]) for name in ("WindowCenter", "WindowWidth"))
        return _window(measured, centre, width)
    if intensity is None and stored[1] - stored[0] < 256:
        return np.asarray((values.astype(int) - stored[0]) * 255 // (stored[1] - stored[0]))
    return _line(measured, measured.min(), measured.max())


def _window(measured: np.ndarray, centre: float, width: float) -> np.ndarray:
    """The function LINEAR of PS3.3, C.11.2.1.2, in its three cases."""
    out = ((measured - (centre - 0.5)) / (width - 1) + 0.5) * 255
    out[measured <= centre - 0.5 - (width - 1) / 2] = 0
    out[measured > centre - 0.5 + (width - 1) / 2] = 255
    return np.asarray(np.rint(out))


def _line(measured: np.ndarray, low: float, high: float) -> np.ndarray:
    if high == low:
        return np.zeros(measured.shape)
    return np.asarray(np.rint(np.minimum(np.maximum((measured - low) / (high - low), 0), 1) * 255))


def png16(values: np.ndarray) -> bytes:
    """A grey PNG of 16 bits, written byte by byte."""
    height, width = values.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    header = struct.pack(">2I5B", width, height, 16, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def tiff(values: np.ndarray, *, deflate: bool = False, inverted: bool = False) -> bytes:
    """A TIFF of one page in one strip, written byte by byte: (H, W), or (H, W, 3)."""
    samples = values.shape[2] if values.ndim == 3 else 1
    form = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    raw = values.astype(values.dtype.newbyteorder("<")).tobytes()
    data = zlib.compress(raw) if deflate else raw
    data += b"\0" * (len(data) % 2)
    extra = struct.pack(f"<{samples}H", *[8 * values.dtype.itemsize] * samples)
    forms = struct.pack(f"<{samples}H", *[form] * samples)
    at = 8 + len(data)
    meaning = 2 if samples == 3 else 0 if inverted else 1
    tags = [
        (256, 4, 1, values.shape[1]), (257, 4, 1, values.shape[0]),
        (258, 3, samples, at if samples > 2 else 8 * values.dtype.itemsize),
        (259, 3, 1, 8 if deflate else 1), (262, 3, 1, meaning), (273, 4, 1, 8), (277, 3, 1, samples),
        (278, 4, 1, values.shape[0]), (279, 4, 1, len(data)),
        (339, 3, samples, at + len(extra) if samples > 2 else form),
    ]  # fmt: skip
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + b"\0" * 4
    return b"II*\0" + struct.pack("<I", at + len(extra) + len(forms)) + data + extra + forms + directory
