"""DICOM files: what their headers say, and the pixels of a frame as a viewer shows them."""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from manyhands.data.formats.intensity import Intensity, stretched, to_bytes
from manyhands.data.formats.place import MAX_PIXELS

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

    from manyhands.data.formats.place import Place

IN_GROUPS = {
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
    "FrameVOILUTSequence": ("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
}
"""The functional groups of an enhanced multi-frame file that hold what others hold at their top."""
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
MORE_DECODERS = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
"""What decodes more than pydicom and Pillow do."""
HEADER = ["Rows", "Columns", "NumberOfFrames", "PatientID", "SOPClassUID", "DirectoryRecordSequence"]


class NotAnImage(ValueError):  # noqa: N818 - not an error of the file
    """A DICOM file of another kind: a report, a plan, an index."""


class Header(NamedTuple):
    """What the listing of a source needs: the number of ``frames``, and the ``patient`` id, which is never kept."""

    frames: int
    patient: str


def read_header(place: Place) -> Header:
    """Read the header of a file, and not its pixels."""
    with warnings.catch_warnings(), place.open() as file:
        warnings.simplefilter("ignore")  # as below
        header = _parsed(file, stop_before_pixels=True, specific_tags=HEADER)
        if "DirectoryRecordSequence" in header or "Rows" not in header:
            raise NotAnImage("DICOM without pixels (a report, a plan, an index)")
        return Header(max(int(header.get("NumberOfFrames") or 1), 1), str(header.get("PatientID") or "").strip())


def open_dicom(place: Place, frame: int, intensity: Intensity | None) -> Image.Image:
    """Decode a frame to bytes of grey or RGB.

    Args:
        place: The file.
        frame: The number of the frame, counted from 0.
        intensity: Which values are black and white. None: the window of the file, or where it has none its range (of
            up to 8 bits: the bits stored). "dicom": the window, which it must have.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns of values that do not keep to the standard
            dataset = _dataset(place, place.changed())
            values = _decoded(dataset, frame)
            return Image.fromarray(_bytes_of(values, dataset, _frame_attributes(dataset, frame), intensity))
    except (OSError, ValueError):
        raise
    except Exception as error:  # whatever damaged attributes make pydicom raise
        raise ValueError(f"is a damaged DICOM file: {type(error).__name__}: {error}") from None


@lru_cache(maxsize=1)
def _dataset(place: Place, changed: int) -> Dataset:  # noqa: ARG001 - a changed file is another key
    """The file that was read last: its frames are read one after the other."""
    with place.open() as file:
        dataset = _parsed(file)
    if dataset.get("Rows") is None or not any(name in dataset for name in PIXELS):
        raise ValueError("is a DICOM file without pixels")
    if dataset.Rows * dataset.Columns > MAX_PIXELS:
        raise ValueError(f"has {dataset.Rows} x {dataset.Columns} pixels, more than {MAX_PIXELS:,}")
    return dataset


def _parsed(file: Any, **options: Any) -> Dataset:
    """Parse a file, also one from before there was a preamble."""
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    try:
        dataset = dcmread(file, **options)
    except InvalidDicomError:
        file.seek(0)
        dataset = dcmread(file, force=True, **options)
        if "SOPClassUID" not in dataset:
            raise ValueError("is not a DICOM file") from None
    if "TransferSyntaxUID" not in dataset.file_meta:
        is_implicit, is_little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if is_implicit else explicit
    return dataset


def _decoded(dataset: Dataset, frame: int) -> np.ndarray:
    """The stored values of a frame: (H, W), or (H, W, 3) of RGB or of what is not converted."""
    from pydicom.pixels import utils

    _check_syntax(dataset.file_meta.TransferSyntaxUID)
    try:
        return utils.pixel_array(dataset, index=frame)
    except Exception as error:  # whatever a decoder raises for damaged pixels
        hint = f"; {MORE_DECODERS} may decode it" if dataset.file_meta.TransferSyntaxUID.is_compressed else ""
        raise ValueError(f"its pixels cannot be decoded: {' '.join(str(error).split())}{hint}") from None


def _check_syntax(syntax: UID) -> None:
    """Raise ``ValueError`` for a transfer syntax that cannot be decoded here, with what it needs."""
    from pydicom.pixels import decoders

    try:
        decoder = decoders.base.get_decoder(syntax)
    except NotImplementedError:
        named = f"{syntax} ({syntax.name})" if syntax.name != syntax else str(syntax)
        raise ValueError(f"its transfer syntax {named} is not known to pydicom: store it in another one") from None
    if not decoder.is_available:
        raise ValueError(f"it is compressed with {syntax.name}, which needs other packages: {MORE_DECODERS}")


def _frame_attributes(dataset: Dataset, frame: int) -> Dataset:
    """Rescale and window of a frame: of its own functional groups, of the shared ones, or of the whole file."""
    from pydicom import Dataset

    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    groups = [*own[frame : frame + 1], *(dataset.get("SharedFunctionalGroupsSequence") or [])[:1]]
    attributes = Dataset()
    names = ("ModalityLUTSequence", *(name for names in IN_GROUPS.values() for name in names))
    tables = [group[name].value[0] for group in groups for name in IN_GROUPS if group.get(name)]
    for name in names:
        for table in (*tables, dataset):
            if name in table and name not in attributes:
                attributes[name] = table[name]
    attributes.file_meta = dataset.file_meta
    return attributes


def _bytes_of(values: np.ndarray, dataset: Dataset, attributes: Dataset, intensity: Intensity | None) -> np.ndarray:
    from pydicom.pixels import processing

    meaning = str(dataset.get("PhotometricInterpretation", ""))
    if meaning == "PALETTE COLOR":
        values = processing.apply_color_lut(values, dataset)
        return _coloured(values, intensity, (0, 2 ** (8 * values.dtype.itemsize) - 1))
    bits = int(dataset.get("BitsStored") or 8 * values.dtype.itemsize)
    signed = bool(dataset.get("PixelRepresentation"))
    stored_range = (-(2 ** (bits - 1)) * signed, 2 ** (bits - signed) - 1) if values.dtype.kind in "iu" else None
    if values.ndim == 3:
        return _coloured(values, intensity, stored_range)
    grey = _grey(values, attributes, intensity, stored_range)
    return 255 - grey if meaning == "MONOCHROME1" else grey


def _coloured(values: np.ndarray, intensity: Intensity | None, stored_range: tuple[int, int] | None) -> np.ndarray:
    """Colours have no window."""
    return to_bytes(values, "bits" if intensity in (None, "dicom") else intensity, stored_range)


def _grey(
    values: np.ndarray, attributes: Dataset, intensity: Intensity | None, stored_range: tuple[int, int] | None
) -> np.ndarray:
    from pydicom.pixels import processing

    if intensity == "bits":
        return to_bytes(values, intensity, stored_range)
    measured = processing.apply_modality_lut(values, attributes)
    if intensity not in (None, "dicom"):
        return to_bytes(measured, intensity, None)
    if attributes.get("VOILUTSequence"):
        bits = attributes.VOILUTSequence[0].LUTDescriptor[2]
        return to_bytes(processing.apply_voi(measured.astype(np.int64), attributes), "bits", (0, 2**bits - 1))
    if (centre := _first(attributes, "WindowCenter")) is not None:
        width = _first(attributes, "WindowWidth")
        return windowed(measured, centre, width or 0, str(attributes.get("VOILUTFunction") or "LINEAR"))
    if intensity == "dicom":
        raise ValueError('it has no window, which intensity = "dicom" takes: set "range", "percentiles" or [low, high]')
    if stored_range and stored_range[1] - stored_range[0] < 256:
        return to_bytes(values, "bits", stored_range)
    return to_bytes(measured, "range", None)


def _first(attributes: Dataset, name: str) -> float | None:
    """The first of the values of an attribute: a file may have several windows."""
    value = attributes.get(name)
    if value is None or value == "":
        return None
    return float(value[0] if isinstance(value, list | tuple) or hasattr(value, "append") else value)


def windowed(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """Map values to bytes by a window, as a viewer shows them.

    References:
        DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3
    """
    if width < (1 if function == "LINEAR" else 1e-300):
        raise ValueError(f"its window is empty: it has the width {width:g}; set intensity to another value")
    if function == "SIGMOID":
        return np.rint(255 / (1 + np.exp(-4 * (values - centre) / width))).astype(np.uint8)
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    if not width:  # of one value: a threshold
        return np.where(values > centre, 255, 0).astype(np.uint8)
    return stretched(values, centre - width / 2, centre + width / 2)
