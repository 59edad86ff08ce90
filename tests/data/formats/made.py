"""Small DICOM and TIFF files for tests, made of what is asked for."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from pydicom import Dataset, FileMetaDataset, dcmwrite
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid


def dicom(path: Path, values: np.ndarray, *, syntax: str = ExplicitVRLittleEndian, **attributes: object) -> Path:
    """A file with these stored values: (H, W), (frames, H, W) or (H, W, 3)."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(path)])
    coloured = values.ndim == 3 and values.shape[-1] == 3
    dataset.Rows, dataset.Columns = values.shape[:2] if coloured else values.shape[-2:]
    if values.ndim == 3 and not coloured:
        dataset.NumberOfFrames = len(values)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = (3, "RGB") if coloured else (1, "MONOCHROME2")
    if coloured:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = 8 * values.dtype.itemsize
    dataset.BitsStored, dataset.PixelRepresentation = dataset.BitsAllocated, int(values.dtype.kind == "i")
    dataset.PixelData = values.tobytes()
    for name, value in attributes.items():
        setattr(dataset, name, value)
    dataset.HighBit = dataset.BitsStored - 1
    dataset["PixelData"].VR = "OW"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_written(dataset))
    return path


def _written(dataset: Dataset) -> bytes:
    """The bytes of a file, whatever transfer syntax it says that it has."""
    syntax, buffer = str(dataset.file_meta.TransferSyntaxUID), BytesIO()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dcmwrite(buffer, dataset, enforce_file_format=True)
    plain, raw = str(ExplicitVRLittleEndian), buffer.getvalue()
    old, new = (_element(value) for value in (plain, syntax))
    length = int.from_bytes(raw[140:144], "little") + len(new) - len(old)
    return raw[:140] + length.to_bytes(4, "little") + raw[144:].replace(old, new, 1)


def _element(syntax: str) -> bytes:
    padded = syntax.encode() + b"\0" * (len(syntax) % 2)
    return b"\x02\0\x10\0UI" + len(padded).to_bytes(2, "little") + padded
