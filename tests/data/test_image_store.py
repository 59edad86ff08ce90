"""Pictures are prepared once: images in a file equal those in memory, and a file is complete or prepared again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from manyhands import Experiment, Folder, Iid, Images, Zip, split
from manyhands.data import image_store
from manyhands.data.images import join, pooled
from manyhands.data.rows import Rows, RowsFile
from manyhands.data.sources import decoding, image_files
from manyhands.errors import DataError, DiskError
from manyhands.tensors import sha256
from tests.conftest import tiny_fedavg

CLASSES, COUNT = ("a", "b"), 24


@pytest.fixture(autouse=True)
def _small_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every set goes to a file, in a cache of its own, and is decoded in this process."""
    monkeypatch.setenv("MANYHANDS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(image_files, "MIN_STORED", 2)
    monkeypatch.setattr(decoding, "usable_cores", lambda: 1)
    monkeypatch.setattr(decoding, "CHUNK", 5)


def write_pictures(root: Path, count: int = COUNT) -> Path:
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for i in range(count // 2):
            Image.fromarray(rng.integers(0, 256, (9, 11), dtype=np.uint8)).save(root / name / f"{i:03}.png")
    return root


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "pictures")


def in_file(pictures: Path, size: int = 4) -> Images:
    images = Folder(path=pictures, unreadable=0.2).load(size, 1, CLASSES)
    assert isinstance(images.stored, Rows)
    return images


def in_memory(images: Images) -> Images:
    return replace(images, stored=images.pixels)


def decoded_again(monkeypatch: pytest.MonkeyPatch, pictures: Path) -> Images:
    with monkeypatch.context() as patch:
        patch.setattr(image_files, "MIN_STORED", 10**9)
        images = Folder(path=pictures, unreadable=0.2).load(4, 1, CLASSES)
    assert isinstance(images.stored, torch.Tensor)
    return images


def assert_equal(one: Images, other: Images) -> None:
    assert one.has_pixels_of(other)
    assert torch.equal(one.pixels, other.pixels)
    for name in ("labels", "domain", "rows", "held"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert (mine is None and theirs is None) or torch.equal(mine, theirs)
    assert (one.classes, one.skipped, len(one), one.shape) == (other.classes, other.skipped, len(other), other.shape)


def files_in_cache() -> list[Path]:
    return sorted(image_store.stores_folder().glob("*.images"))


@pytest.mark.parametrize("broken", [False, True])
def test_images_in_a_file_are_those_in_memory(monkeypatch: pytest.MonkeyPatch, pictures: Path, broken: bool) -> None:
    if broken:
        (pictures / "a" / "005.png").write_bytes(b"no picture")
    file, memory = in_file(pictures), decoded_again(monkeypatch, pictures)
    assert len(file.skipped) == broken
    assert_equal(file, memory)
    assert_equal(in_file(pictures), memory)  # the second start
    numbers = torch.tensor([3, 0, 3, 17])
    for images in (file.hold_out(0.3), file.subset(np.array([5, 1, 2, 9]))):
        other = memory.hold_out(0.3) if images.held is not None else memory.subset(np.array([5, 1, 2, 9]))
        assert_equal(images, other)
        for mine, theirs in zip(images.split_held_out(), other.split_held_out(), strict=True):
            assert_equal(mine, theirs)
    assert all(map(torch.equal, file.batch(numbers), memory.batch(numbers)))  # type: ignore[arg-type]
    assert torch.equal(torch.cat(list(file.chunks())), memory.pixels)
    silos, others = split(file.hold_out(0.3), Iid(silos=3)), split(memory.hold_out(0.3), Iid(silos=3))
    assert_equal(pooled([silo.images for silo in silos]), pooled([silo.images for silo in others]))
    for silo, other_silo in zip(silos, others, strict=True):
        assert isinstance(silo.images.stored, Rows)
        assert_equal(silo.images, other_silo.images)


def test_images_of_several_files_and_of_memory_are_joined_without_a_copy(tmp_path: Path, pictures: Path) -> None:
    parts = [in_file(pictures), in_memory(in_file(pictures)), in_file(write_pictures(tmp_path / "more", 10))]
    parts += [parts[0].subset([4, 2])]
    together, expected = join(parts), join([in_memory(part) for part in parts])
    assert isinstance(together.stored, Rows)
    assert len(together.stored.parts) == 3
    assert_equal(together, expected)
    order = np.random.default_rng(0).permutation(len(together))
    assert_equal(together.subset(order), expected.subset(order))
    assert_equal(pooled([together.subset(order), parts[1]]), pooled([expected.subset(order), in_memory(parts[1])]))


def test_a_run_ends_with_the_same_weights_with_and_without_a_file(pictures: Path, tmp_path: Path) -> None:
    def weights(images: Images, folder: Path | None, *, rounds: int = 3, resume: bool = False) -> str:
        silos = split(images.hold_out(0.2), Iid(silos=2))
        run = Experiment(tiny_fedavg(), silos, device="cpu", folder=folder, resume=resume)
        for closed in run:
            if closed.number + 1 == rounds:
                break
        return sha256(run.server.state_dict())

    file = in_file(pictures)
    expected = weights(in_memory(file), None)
    assert weights(file, None) == expected
    weights(file, tmp_path / "run", rounds=1)
    assert weights(in_file(pictures), tmp_path / "run", resume=True) == expected


def test_a_set_is_decoded_once_and_again_when_it_or_what_is_asked_of_it_changes(
    monkeypatch: pytest.MonkeyPatch, pictures: Path, tmp_path: Path
) -> None:
    decoded: list[int] = []
    chunk = decoding._decode_chunk

    def counted(*arguments: object) -> dict[int, str]:
        decoded.append(1)
        return chunk(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(decoding, "_decode_chunk", counted)
    before = in_file(pictures)
    passes = len(decoded)
    in_file(pictures)
    assert len(decoded) == passes
    changed = pictures / "b" / "003.png"
    Image.fromarray(np.zeros((9, 11), np.uint8)).save(changed)
    assert int(in_file(pictures).pixels.sum()) != int(before.pixels.sum())
    assert len(decoded) == 2 * passes
    os.utime(changed, ns=(1, 1))
    in_file(pictures)
    assert len(decoded) == 3 * passes
    assert in_file(pictures, size=6).pixels.shape[2:] == (6, 6)
    changed.unlink()
    assert len(in_file(pictures)) == COUNT - 1
    assert len(files_in_cache()) == 5


@pytest.mark.parametrize("damage", ["empty", "short", "cut", "no index", "older", "index", "other shape"])
def test_a_damaged_file_is_prepared_again(pictures: Path, damage: str) -> None:
    expected, (path,) = in_file(pictures).pixels, files_in_cache()
    in_file(pictures, size=6)
    (larger,) = (other.read_bytes() for other in files_in_cache() if other != path)
    whole = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "short": whole[:-1],
            "cut": whole[len(whole) // 2 :],
            "no index": whole[: 16 * COUNT],
            "older": whole.replace(image_store.MAGIC, b"MHIMAGE0"),
            "index": whole.replace(b'"shape"', b'"shame"'),
            "other shape": larger,
        }[damage]
    )
    assert torch.equal(in_file(pictures).pixels, expected)
    assert path.read_bytes() == whole


def test_a_file_that_is_cut_while_it_is_open_is_an_error_and_not_other_pixels(pictures: Path) -> None:
    images, (path,) = in_file(pictures), files_in_cache()
    os.truncate(path, 16 * 20 + 3)
    assert len(images.read(torch.arange(20))) == 20
    with pytest.raises(DataError, match="is cut short: row 20 is not there"):
        images.read(torch.tensor([3, 20]))


def test_too_many_unreadable_pictures_are_refused_each_time_and_not_kept(pictures: Path) -> None:
    for i in range(9):
        (pictures / "a" / f"{i:03}.png").write_bytes(b"no picture")
    for _ in range(2):
        with pytest.raises(DataError, match="9 of 24 pictures cannot be read"):
            in_file(pictures)
    assert not files_in_cache()
    assert not list(image_store.stores_folder().glob(".*.tmp"))


def test_a_disk_that_is_too_small_is_named_before_anything_is_decoded(
    monkeypatch: pytest.MonkeyPatch, pictures: Path
) -> None:
    full = os.statvfs_result((4096, 4096, 10, 0, 0, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    with pytest.raises(DiskError, match=r"has 0 B free, prepared images need 384 B: .* set MANYHANDS_CACHE"):
        in_file(pictures)


def test_only_their_owner_can_read_prepared_images(pictures: Path) -> None:
    in_file(pictures)
    assert image_store.stores_folder().stat().st_mode & 0o777 == 0o700
    assert files_in_cache()[0].stat().st_mode & 0o777 == 0o600


def test_clear_frees_what_is_there_and_leaves_open_images_readable(pictures: Path) -> None:
    images = in_file(pictures)
    expected, size = images.pixels, files_in_cache()[0].stat().st_size
    unfinished = image_store.stores_folder() / f".{files_in_cache()[0].stem}.x.tmp"
    unfinished.write_bytes(b"12345")
    assert [(store.name, store.size) for store in image_store.stores()] == [(str(pictures), size)]
    assert image_store.clear() == size + 5
    assert not image_store.stores()
    assert not unfinished.exists()
    assert image_store.clear() == 0
    assert torch.equal(images.pixels, expected)
    assert torch.equal(in_file(pictures).pixels, expected)


PREPARE = """
import sys
from manyhands.data.sources import decoding, image_files
from manyhands import Folder
image_files.MIN_STORED, decoding.CHUNK = 2, 2
decoding.usable_cores = lambda: 1
if "slow" in sys.argv:
    chunk = decoding._decode_chunk
    def slow(*a):
        print("decoding", flush=True)
        sys.stdin.read() if a[1] else None
        return chunk(*a)
    decoding._decode_chunk = slow
print(int(Folder(path=sys.argv[1]).load(4, 1, ("a", "b")).pixels.sum()))
"""


def start(pictures: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PREPARE, str(pictures), *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_two_processes_prepare_a_set_once_and_a_killed_one_leaves_nothing_wrong(pictures: Path) -> None:
    killed = start(pictures, "slow")
    assert killed.stdout is not None
    assert [killed.stdout.readline() for _ in range(2)] == ["decoding\n"] * 2
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not files_in_cache()
    assert len(list(image_store.stores_folder().glob(".*.tmp"))) == 1
    first = start(pictures, "slow")
    assert first.stdout is not None
    first.stdout.readline()  # it has the lock
    second = start(pictures)
    printed = first.communicate("")[0], second.communicate()[0]
    sums = {text.splitlines()[-1] for text in printed}
    assert sums == {str(int(in_file(pictures).pixels.sum()))}
    assert len(files_in_cache()) == 1
    assert not list(image_store.stores_folder().glob(".*.tmp"))


def test_processes_that_decode_give_the_same_pixels_and_do_not_import_torch(
    monkeypatch: pytest.MonkeyPatch, pictures: Path, tmp_path: Path
) -> None:
    expected = in_file(pictures)
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for path in sorted(pictures.rglob("*.png")):
            archive.write(path, path.relative_to(pictures))
    monkeypatch.setattr(decoding, "usable_cores", lambda: 2)
    seen: list[tuple[str, int, int]] = []
    token = decoding.WATCHER.set(lambda *progress: seen.append(progress))
    zipped = Zip(path=tmp_path / "p.zip").load(4, 1, CLASSES)
    decoding.WATCHER.reset(token)
    assert isinstance(zipped.stored, Rows)
    assert_equal(zipped, expected)
    assert seen[-1] == (str(tmp_path / "p.zip"), COUNT, COUNT)
    code = (
        "import sys, manyhands.data.sources.decoding, manyhands.data.formats.kinds; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_rows_of_any_type_are_read_by_number(tmp_path: Path) -> None:
    values = torch.randn(7, 2, 3)
    path = tmp_path / "rows"
    path.write_bytes(values.numpy().tobytes() + b"more")
    rows = Rows([RowsFile(path, 7, (2, 3), torch.float32)])
    for choice in ([0, 1, 2], [6, 6, 0], [], [True, False] * 3 + [True]):
        numbers = torch.tensor(choice, dtype=torch.bool if len(choice) == 7 else torch.long)
        assert torch.equal(rows.read(numbers), values[numbers])
