from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from manyhands import Folder
from manyhands.data.formats.intensity import Intensity
from manyhands.data.formats.place import Place
from manyhands.data.formats.tiff import open_tiff, pages_of

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (7, 9), dtype=np.uint8)
RGB = RNG.integers(0, 256, (7, 9, 3), dtype=np.uint8)


def opened(path: Path, page: int = 0, intensity: Intensity | None = None) -> np.ndarray:
    return np.asarray(open_tiff(Place(str(path)), page, intensity))


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("values", [GREY, RGB])
def test_eight_bits_are_what_pillow_reads(tmp_path: Path, values: np.ndarray, compression: str | None) -> None:
    tifffile.imwrite(tmp_path / "a.tif", values, compression=compression)
    assert np.array_equal(opened(tmp_path / "a.tif"), np.asarray(Image.open(tmp_path / "a.tif")))


@pytest.mark.parametrize("compression", ["packbits", "tiff_adobe_deflate"])
def test_what_pillow_compresses_is_read(tmp_path: Path, compression: str) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.tif", compression=compression)
    assert np.array_equal(opened(tmp_path / "a.tif"), RGB)


def test_what_needs_another_package_says_so(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.tif", compression="jpeg")
    with pytest.raises(ValueError, match="compressed with JPEG, which needs another package: pip install imagecodecs"):
        opened(tmp_path / "a.tif")


def test_sixteen_bits_signed_bits_and_floats(tmp_path: Path) -> None:
    wide = RNG.integers(0, 65536, (7, 9), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "wide.tif", wide)
    assert np.array_equal(opened(tmp_path / "wide.tif"), wide // 257)
    tifffile.imwrite(tmp_path / "signed.tif", wide.view(np.int16))
    assert np.array_equal(opened(tmp_path / "signed.tif"), (wide.view(np.int16).astype(int) + 32768) // 257)
    floats = RNG.random((7, 9)).astype(np.float32) * 7 - 2
    floats[0, 0] = np.nan
    tifffile.imwrite(tmp_path / "floats.tif", floats)
    with pytest.raises(ValueError, match='floats of an unknown range: set intensity = "range"'):
        opened(tmp_path / "floats.tif")
    shares = (floats - np.nanmin(floats)) / (np.nanmax(floats) - np.nanmin(floats))
    shares[0, 0] = 0
    assert np.array_equal(opened(tmp_path / "floats.tif", intensity="range"), np.rint(shares.astype(float) * 255))


def test_each_page_is_an_image_but_smaller_copies_are_none(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "pages.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(GREY, photometric="minisblack")
        writer.write(GREY[::2, ::2], subfiletype=1, photometric="minisblack")
        writer.write(255 - GREY, photometric="miniswhite")
    assert pages_of(Place(str(path))) == [0, 2]
    assert np.array_equal(opened(path, 2), GREY)
    images = Folder(path=tmp_path).load(7)
    assert images.pixels.shape == (2, 1, 7, 7)
    assert np.array_equal(images.pixels[0], images.pixels[1])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pages_are_turned_upright_as_pillow_turns_them(tmp_path: Path, orientation: int) -> None:
    from PIL import ImageOps

    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    upright = ImageOps.exif_transpose(Image.open(tmp_path / "a.tif"))
    assert np.array_equal(opened(tmp_path / "a.tif"), np.asarray(upright))


def test_palettes_planes_and_transparency(tmp_path: Path) -> None:
    palette = RNG.integers(0, 65536, (3, 256), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "p.tif", GREY, photometric="palette", colormap=palette)
    assert np.array_equal(opened(tmp_path / "p.tif"), palette[:, GREY].transpose(1, 2, 0) // 257)
    tifffile.imwrite(tmp_path / "s.tif", RGB.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    assert np.array_equal(opened(tmp_path / "s.tif"), RGB)
    opaque = np.concatenate([RGB, GREY[..., None]], 2)
    tifffile.imwrite(tmp_path / "t.tif", opaque, photometric="rgb", extrasamples=["unassalpha"])
    assert np.array_equal(opened(tmp_path / "t.tif"), RGB)


def test_damaged_files_raise_nothing_but_a_reason(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY)
    whole = (tmp_path / "a.tif").read_bytes()
    rng = np.random.default_rng(0)
    for number in range(60):
        raw = bytearray(whole)
        for at in rng.integers(0, len(raw), 4):
            raw[at] = rng.integers(256)
        path = tmp_path / f"{number}.tif"
        path.write_bytes(raw[: len(raw) if number % 2 else rng.integers(len(raw))])
        with suppress(ValueError, OSError, RuntimeError):
            opened(path)
