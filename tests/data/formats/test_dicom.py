from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.pixels.processing import apply_modality_lut, apply_windowing
from pydicom.sequence import Sequence
from pydicom.uid import JPEGLSLossless

from manyhands import Folder
from manyhands.data.formats.dicom import NotAnImage, open_dicom, read_header, windowed
from manyhands.data.formats.intensity import Intensity
from manyhands.data.formats.place import Place
from manyhands.errors import DataError
from tests.data.formats.made import dicom

RAMP = np.arange(64, dtype=np.int16).reshape(8, 8) * 64 - 1024


def opened(path: Path, frame: int = 0, intensity: Intensity | None = None) -> np.ndarray:
    return np.asarray(open_dicom(Place(str(path)), frame, intensity))


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_a_window_shows_what_pydicom_shows(tmp_path: Path, function: str) -> None:
    fields = {"WindowCenter": 40, "WindowWidth": 400, "RescaleSlope": 2, "RescaleIntercept": -1024}
    path = dicom(tmp_path / "a.dcm", RAMP, VOILUTFunction=function, **fields)
    dataset = dcmread(path)
    shown = apply_windowing(apply_modality_lut(RAMP, dataset), dataset)
    low, high = (2 * edge - 1024 for edge in (-32768, 32767))
    assert np.array_equal(opened(path), np.rint((shown - low) / (high - low) * 255).astype(np.uint8))


def test_monochrome1_is_inverted_and_the_first_of_several_windows_is_taken(tmp_path: Path) -> None:
    fields = {"WindowCenter": [40, 999], "WindowWidth": [400, 1]}
    plain = opened(dicom(tmp_path / "a.dcm", RAMP, **fields))
    assert np.array_equal(
        opened(dicom(tmp_path / "b.dcm", RAMP, PhotometricInterpretation="MONOCHROME1", **fields)), 255 - plain
    )
    assert np.array_equal(plain, windowed(RAMP, 40, 400, "LINEAR"))


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_the_bits_stored_reach_from_black_to_white(tmp_path: Path, bits: int, signed: bool) -> None:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    values = np.array([[low, high], [(low + high) // 2, low]]).astype(np.int16 if signed else np.uint16)
    path = dicom(tmp_path / "a.dcm", values, BitsStored=bits, RescaleSlope=3, RescaleIntercept=7)
    assert opened(path, intensity="bits").tolist() == [[0, 255], [127, 0]]


def test_without_a_window_an_image_is_shown_by_its_range_and_by_what_is_set(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a.dcm", RAMP, RescaleSlope=2, RescaleIntercept=0)
    measured = RAMP.astype(float) * 2
    whole = np.rint((measured - measured.min()) / np.ptp(measured) * 255)
    assert np.array_equal(opened(path), whole)
    assert np.array_equal(opened(path, intensity="range"), whole)
    falling = dicom(tmp_path / "b.dcm", RAMP, RescaleSlope=-2, RescaleIntercept=0)
    assert np.array_equal(opened(falling), 255 - whole)
    expected = np.rint(((measured + 160) / 400).clip(0, 1) * 255)
    assert np.array_equal(opened(path, intensity=(-160.0, 240.0)), expected)
    low, high = np.percentile(measured, (1, 99))
    assert np.array_equal(
        opened(path, intensity="percentiles"), np.rint(((measured - low) / (high - low)).clip(0, 1) * 255)
    )
    with pytest.raises(ValueError, match='no window, which intensity = "dicom" takes'):
        opened(path, intensity="dicom")


def test_each_frame_is_an_image_with_its_own_window(tmp_path: Path) -> None:
    def group(centre: int) -> Dataset:
        window, item = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = centre, 400
        item.FrameVOILUTSequence = Sequence([window])
        return item

    shared, transform = Dataset(), Dataset()
    transform.RescaleSlope, transform.RescaleIntercept = 2, 5
    shared.PixelValueTransformationSequence = Sequence([transform])
    frames = np.stack([RAMP, RAMP[::-1], RAMP.T])
    groups = {"PerFrameFunctionalGroupsSequence": Sequence([group(40 * i) for i in range(3)])}
    path = dicom(tmp_path / "a" / "a.dcm", frames, SharedFunctionalGroupsSequence=Sequence([shared]), **groups)
    for i, frame in enumerate(frames):
        assert np.array_equal(opened(path, i), windowed(frame * 2.0 + 5, 40 * i, 400, "LINEAR"))
    images = Folder(path=tmp_path).load(8)
    assert np.array_equal(images.pixels[2, 0], opened(path, 2))
    assert len(images) == 3


def test_a_table_of_values_is_applied(tmp_path: Path) -> None:
    table = Dataset()
    shown = (np.arange(256, dtype="<u2") * 7) % 1024
    table.LUTDescriptor, table.LUTData = [256, 0, 10], shown.tobytes()
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    path = dicom(tmp_path / "a.dcm", values, VOILUTSequence=Sequence([table]), WindowCenter=1, WindowWidth=2)
    assert np.array_equal(opened(path), shown[values].astype(int) * 255 // 1023)


def test_colours_come_as_rgb_in_either_order_of_planes(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    assert np.array_equal(opened(dicom(tmp_path / "a.dcm", values)), values)
    planes = dicom(tmp_path / "b.dcm", values, PlanarConfiguration=1, PixelData=values.transpose(2, 0, 1).tobytes())
    assert np.array_equal(opened(planes), values)


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"WindowCenter": 4, "WindowWidth": 0}, "its window is empty: it has the width 0"),
        ({"WindowCenter": 4}, "its window is empty"),
        ({"syntax": JPEGLSLossless}, r"JPEG-LS Lossless.*pip install pylibjpeg pylibjpeg-libjpeg"),
        ({"syntax": "1.2.3.4"}, r"its transfer syntax 1\.2\.3\.4 is not known to pydicom"),
        ({"PixelData": b"\0\0"}, "its pixels cannot be decoded"),
        ({"Rows": 60_000, "Columns": 60_000}, "60000 x 60000 pixels, more than"),
        ({"BitsAllocated": 7}, "its pixels cannot be decoded"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_cannot_be_shown_says_why_and_is_named(tmp_path: Path, attributes: dict[str, object], said: str) -> None:
    path = dicom(tmp_path / "a" / "bad.dcm", RAMP, **attributes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=said):
        opened(path)
    with pytest.raises(DataError, match=f"1 of 1 pictures cannot be read.*bad.dcm: .*({said})"):
        Folder(path=tmp_path).load(8)


def test_no_file_of_pydicoms_own_raises_anything_but_a_reason() -> None:
    folder = Path(str(get_testdata_file("CT_small.dcm"))).parent
    shown, reasons = 0, list[str]()
    for path in sorted(folder.glob("*.dcm")):
        try:
            read_header(Place(str(path)))
            opened(path)
            shown += 1
        except (NotAnImage, ValueError) as error:
            reasons.append(str(error))
    assert shown >= 45
    assert all(reasons)


def test_a_cut_or_changed_file_raises_nothing_but_a_reason(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
    for number in range(40):
        raw = bytearray(whole)
        for at in rng.integers(132, 3000, 5):
            raw[at] = rng.integers(256)
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(raw[: len(raw) if number % 2 else rng.integers(len(raw))])
        with suppress(ValueError, OSError):
            opened(path)
