from __future__ import annotations

import gzip
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from manyhands import ById, Digits, Folder, HuggingFace, Idx, Images, Zip
from manyhands.data.images import as_bytes, as_floats, join
from manyhands.errors import DataError

CLASSES = ("a", "b")


def write_idx(path: Path, array: np.ndarray) -> Path:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    raw = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def write_pictures(root: Path, count: int = 3) -> Path:
    rng = np.random.default_rng(0)
    for name, mode, ending in (("a", "L", "png"), ("b", "RGB", "jpg")):
        (root / name).mkdir(parents=True)
        for i in range(count):
            shape = (9, 12) if mode == "L" else (12, 9, 3)
            Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(root / name / f"{i}.{ending}")
    return root


def test_digits_are_there_without_a_download() -> None:
    images = Digits().load(8, 1, Digits().classes())
    assert images.pixels.shape == (1797, 1, 8, 8)
    assert int(images.pixels.max()) == 255
    assert images.labels is not None
    assert images.labels.unique().tolist() == list(range(10))


@pytest.mark.parametrize("ending", ["idx", "gz"])
def test_idx_files_come_back_at_any_size_and_channel_count(tmp_path: Path, ending: str) -> None:
    array = np.random.default_rng(0).integers(0, 256, (5, 6, 6))
    source = Idx(
        images=write_idx(tmp_path / f"i.{ending}", array), labels=write_idx(tmp_path / f"l.{ending}", np.arange(5) % 2)
    )
    assert source.classes() == ("0", "1")
    same = source.load(6, 1, ("0", "1"))
    assert np.array_equal(same.pixels[:, 0].numpy(), array)
    assert same.labels is not None
    assert same.labels.tolist() == [0, 1, 0, 1, 0]
    assert source.load(4, 3, ("0", "1")).pixels.shape == (5, 3, 4, 4)


def test_bad_idx_files_are_named(tmp_path: Path) -> None:
    whole = write_idx(tmp_path / "whole", np.zeros((5, 6, 6))).read_bytes()
    packed = gzip.compress(whole)
    for raw, said in [
        (whole[:-7], "cut short"),
        (whole + b"x", "too long"),
        (whole[:9], "header"),
        (b"GIF89a", "not an idx file"),
        (b"", "not an idx file"),
        (packed[:-20], "cut short"),
    ]:
        path = tmp_path / "bad"
        path.write_bytes(raw)
        with pytest.raises(DataError, match=said) as caught:
            Idx(images=path).load(6, 1, ())
        assert str(path) in str(caught.value)
    with pytest.raises(DataError, match="no such file"):
        Idx(images=tmp_path / "none").load(6, 1, ())


def test_labels_must_fit_the_images_and_the_classes(tmp_path: Path) -> None:
    images = write_idx(tmp_path / "i", np.zeros((3, 4, 4)))
    with pytest.raises(DataError, match="2 labels for the 3 images"):
        Idx(images=images, labels=write_idx(tmp_path / "l2", np.zeros(2))).load(4, 1, ("0",))
    with pytest.raises(DataError, match=r"label 7 is outside the 2 classes \(0 to 1\)"):
        Idx(images=images, labels=write_idx(tmp_path / "l7", np.array([0, 7, 1]))).load(4, 1, ("0", "1"))
    wide = tmp_path / "wide"
    wide.write_bytes(struct.pack(">BBBBI3i", 0, 0, 12, 1, 3, 0, 1, 2**31 - 1))
    with pytest.raises(DataError, match="labels from 0 to 2147483647"):
        Idx(images=images, labels=wide).classes()
    for shape in ((3, 3, 4, 4), (3, 4, 4, 1), (3, 0, 0)):
        with pytest.raises(DataError, match="not grey images as bytes"):
            Idx(images=write_idx(tmp_path / "shaped", np.zeros(shape))).load(4, 1, ())
    with pytest.raises(DataError, match="one label for each image"):
        Idx(images=images, labels=images).classes()


@pytest.mark.parametrize("packed", [False, True])
def test_pictures_of_any_size_and_mode_come_in_one_form(tmp_path: Path, packed: bool) -> None:
    root = write_pictures(tmp_path / "pictures")
    source: Folder | Zip = Folder(path=root)
    if packed:
        with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
            for path in sorted(root.rglob("*.*")):
                archive.write(path, f"train/{path.relative_to(root)}")
        source = Zip(path=tmp_path / "p.zip", under="train")
    assert source.classes() == CLASSES
    images = source.load(8, 3, CLASSES)
    assert images.pixels.shape == (6, 3, 8, 8)
    assert images.labels is not None
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.load(8, 1, ()).labels is None


def test_unreadable_pictures_are_skipped_named_and_counted_up_to_the_declared_share(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "pictures", 5)
    (root / "a" / "broken.png").write_bytes(b"no picture")
    whole = (root / "b" / "0.jpg").read_bytes()
    (root / "b" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    images = Folder(path=root, unreadable=0.2).load(8, 1, CLASSES)
    assert len(images) == 10
    assert [Path(name.split(": ")[0]).name for name in images.skipped] == ["broken.png", "cut.jpg"]
    with pytest.raises(DataError, match=r"2 of 12 pictures cannot be read, more than the 1.0%.*broken.png"):
        Folder(path=root).load(8, 1, CLASSES)


def test_missing_and_empty_places_are_named(tmp_path: Path) -> None:
    for source, said in [
        (Folder(path=tmp_path / "none"), "no such folder"),
        (Folder(path=tmp_path), "holds no PNG"),
        (Zip(path=tmp_path / "none.zip"), "no such file"),
        (Zip(path=tmp_path / "bad.zip"), "not a readable zip"),
        (Zip(path=tmp_path / "empty.zip"), "holds no PNG"),
    ]:
        (tmp_path / "bad.zip").write_bytes(b"PK no")
        zipfile.ZipFile(tmp_path / "empty.zip", "w").close()
        with pytest.raises(DataError, match=said):
            source.load(8, 1, ())


def test_a_picture_beside_the_class_folders_and_what_a_system_hides(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "p")
    (root / "a" / "._0.png").write_bytes(b"hidden")
    (root / ".thumbs").mkdir()
    (root / ".thumbs" / "x.png").write_bytes(b"hidden")
    assert Folder(path=root).classes() == CLASSES
    assert not Folder(path=root).load(4).skipped
    Image.new("L", (4, 4)).save(root / "top.png")
    with pytest.raises(DataError, match="top.png: is in none of the class folders"):
        Folder(path=root).load(4)


def test_decompression_bombs_are_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    root = write_pictures(tmp_path / "p")
    Image.new("L", (2, 2)).save(root / "a" / "small.png")
    images = Folder(path=root, unreadable=0.9).load(4, 1, ())
    assert len(images.skipped) == 6
    assert "bomb" in images.skipped[0]


def test_a_folder_that_is_no_class_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="its folder 'b' is none of the classes"):
        Folder(path=write_pictures(tmp_path / "p")).load(8, 1, ("a",))


def test_hugging_face_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real library, on a folder that it reads as a data set."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    source = HuggingFace(name=str(write_pictures(tmp_path / "pictures")))
    assert source.classes() == CLASSES
    images = source.load(8, 1, CLASSES)
    assert images.labels is not None
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(images.pixels, Folder(path=tmp_path / "pictures").load(8, 1, CLASSES).pixels)
    with pytest.raises(DataError, match="no column 'picture'"):
        HuggingFace(name=source.name, image="picture").load(4, 1, CLASSES)
    with pytest.raises(DataError, match="datasets cannot load it"):
        HuggingFace(name=source.name, split="nothing").classes()


def test_hugging_face_without_its_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'manyhands\[huggingface\]'"):
        HuggingFace(name="some/where").classes()


def test_batches_are_in_the_one_range_and_bytes_come_back() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    floats = as_floats(every)
    assert floats.min() == -1
    assert floats.max() == 1
    assert torch.equal(as_bytes(floats), every)


def test_joined_sources_say_where_an_image_came_from() -> None:
    one = Images(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]), CLASSES, skipped=("x",))
    both = join([one, one])
    assert both.domain is not None
    assert both.domain.tolist() == [0, 0, 1, 1]
    assert both.skipped == ("x", "x")
    with pytest.raises(DataError, match="different classes"):
        join([one, Images(one.pixels, one.labels, ("a", "c"))])
    with pytest.raises(DataError, match="uint8"):
        Images(one.pixels.float())


def test_sixteen_bit_grey_keeps_its_range(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "a" / "ramp.png")
    pixels = Folder(path=tmp_path).load(8, 1).pixels[0, 0]
    assert torch.equal(pixels, torch.from_numpy((ramp // 257).astype(np.uint8)))


def test_a_picture_with_a_corrupt_stream_in_a_zip_is_skipped_like_any_other(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "p")
    path = tmp_path / "p.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/._0.png", "what a system hides")
        archive.writestr("a/broken.png", np.random.default_rng(0).bytes(50) * 20)
        archive.write(root / "a" / "0.png", "a/0.png")
    raw = bytearray(path.read_bytes())
    start = raw.index(b"a/broken.png") + len("a/broken.png")
    raw[start : start + 40] = bytes([255]) * 40
    path.write_bytes(raw)
    images = Zip(path=path, unreadable=0.5).load(8, 1)
    assert len(images) == 1
    assert len(images.skipped) == 1
    assert "a/broken.png" in images.skipped[0]


def test_ids_find_their_images_when_some_were_skipped_or_left_out(tmp_path: Path) -> None:
    images = Images(torch.arange(6, dtype=torch.uint8).reshape(6, 1, 1, 1)).subset(np.array([1, 2, 5]))
    (tmp_path / "ids.txt").write_text("a\na\nb\nb\nc\nc\n")
    parts = ById(silos=3, ids=tmp_path / "ids.txt").parts(images, np.random.default_rng(0))
    assert sorted(part.tolist() for part in parts) == [[0], [1], [2]]
