"""Sources of files: no file is ignored in silence, tables, ids and intensities."""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from manyhands import Folder, Table, Zip
from manyhands.data.formats.intensity import Intensity
from manyhands.data.ids import number_ids
from manyhands.errors import DataError
from manyhands.spec import SpecError
from tests.data.formats.made import dicom

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (8, 8), dtype=np.uint8)
WINDOW = {"WindowCenter": 128, "WindowWidth": 256}


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder as an archive writes it: every format, and what is none."""
    root = tmp_path / "mixed"
    (root / "a").mkdir(parents=True)
    Image.fromarray(PIXELS).save(root / "a" / "0.png")
    tifffile.imwrite(root / "a" / "1.TIF", PIXELS)
    for name, patient in (("2.dcm", "anna"), ("IM0003", "anna"), ("1.2.840.4", "bob")):
        dicom(root / "a" / name, PIXELS, PatientID=patient, **WINDOW)
    Image.fromarray(PIXELS).save(root / "a" / "5", format="PNG")
    (root / "a" / "notes.txt").write_text("x")
    (root / "README").write_text("x")
    (root / "a" / "scan.nii.gz").write_bytes(b"x")
    (root / ".DS_Store").write_bytes(b"x")
    (root / "a" / "broken.dcm").write_bytes(b"no DICOM")
    report = dicom(root / "a" / "report.dcm", PIXELS)
    from pydicom import dcmread

    dataset = dcmread(report)
    del dataset.PixelData, dataset.Rows, dataset.Columns
    dataset.save_as(report)
    return root


def test_every_file_of_a_mixed_folder_is_read_or_counted(mixed: Path) -> None:
    source = Folder(path=mixed, unreadable=0.2)
    assert source.classes() == ("a",)
    images = source.load(8)
    assert len(images) == 6
    assert all(torch.equal(pixels[0], torch.from_numpy(PIXELS)) for pixels in images.pixels)
    assert sorted(line.split(": ", 1)[1] for line in images.skipped[:-1]) == [
        "1 files .gz: no PNG, JPEG, TIFF or DICOM",
        "1 files .txt: no PNG, JPEG, TIFF or DICOM",
        "1 files DICOM without pixels (a report, a plan, an index)",
        "1 files without a suffix: no PNG, JPEG, TIFF or DICOM",
    ]
    assert images.skipped[-1].endswith("broken.dcm: is not a DICOM file")


def test_a_zip_file_holds_the_same(mixed: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        for path in sorted(mixed.rglob("*")):
            archive.write(path, path.relative_to(mixed))
    images = Folder(path=mixed, unreadable=1).load(8)
    packed = Zip(path=tmp_path / "m.zip", unreadable=1).load(8)
    assert torch.equal(images.pixels, packed.pixels)
    assert len(images.skipped) == len(packed.skipped) == 5


def test_without_the_extra_the_files_that_need_it_are_counted(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("pydicom", "tifffile"):
        monkeypatch.setitem(sys.modules, package, None)
    images = Folder(path=mixed).load(8)
    assert len(images) == 2
    needs = [line for line in images.skipped if "need" in line]
    assert [line.split(": ", 1)[1] for line in needs] == [
        "3 files .dcm: need pip install 'manyhands[medical]'",
        "1 files .4: need pip install 'manyhands[medical]'",
        "1 files .tif: need pip install 'manyhands[medical]'",
        "1 files of DICOM: need pip install 'manyhands[medical]'",
    ]
    for path in mixed.rglob("*"):
        if path.name in ("0.png", "5"):
            path.unlink()
    with pytest.raises(DataError, match="holds no PNG, JPEG, TIFF or DICOM files; .*3 files .dcm: need pip install"):
        Folder(path=mixed).load(8, 1, ("a",))


@pytest.mark.parametrize("intensity", ["range", "percentiles", (0.0, 4095.0), "bits"])
def test_a_twelve_bit_picture_in_sixteen_bits(tmp_path: Path, intensity: Intensity) -> None:
    (tmp_path / "a").mkdir()
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 65
    Image.fromarray(values).save(tmp_path / "a" / "0.png")
    pixels = Folder(path=tmp_path, intensity=intensity).load(8).pixels.numpy()[0, 0]
    if intensity == "bits":
        assert pixels.max() == 15
    else:
        low, high = np.percentile(values, (1, 99)) if intensity == "percentiles" else (0, 4095)
        assert np.array_equal(pixels, np.rint(((values - low) / (high - low)).clip(0, 1) * 255))


def test_intensities_of_eight_bits_and_colours(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    colours = RNG.integers(50, 100, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "a" / "0.png")
    stretched = Folder(path=tmp_path, intensity="range").load(8, 3).pixels.numpy()[0].transpose(1, 2, 0)
    assert np.array_equal(stretched, np.rint((colours - 50.0 - (colours.min() - 50)) / np.ptp(colours) * 255))
    with pytest.raises(DataError, match="0.png: it is no DICOM file"):
        Folder(path=tmp_path, intensity="dicom").load(8, 3)
    with pytest.raises(SpecError, match=r"Folder\.intensity.*black must be less than that of white"):
        Folder(path=tmp_path, intensity=(4.0, 4.0))


def test_patients_of_a_folder_are_held_out_whole(tmp_path: Path) -> None:
    for patient in range(8):
        for scan in range(4):
            name = f"p{patient}" if patient else "  p0 "
            dicom(tmp_path / "a" / f"site{patient}" / f"{scan}.dcm", PIXELS, PatientID=name, **WINDOW)
    by_header = Folder(path=tmp_path, ids="patient").load(8, 1, ("a",))
    for other in (Folder(path=tmp_path, ids="folder"), Folder(path=tmp_path, ids=r"site(\d)/")):
        images = other.load(8, 1, ("a",))
        assert images.ids is not None
        assert by_header.ids is not None
        assert np.array_equal(number_ids(images.ids.numpy()), number_ids(by_header.ids.numpy()))
    held = by_header.hold_out(0.25).held
    assert held is not None
    assert held.reshape(8, 4).sum(1).unique().tolist() == [0, 4]
    dicom(tmp_path / "a" / "x.dcm", PIXELS, **WINDOW)
    with pytest.raises(DataError, match="1 images have no id, the first is .*x.dcm"):
        Folder(path=tmp_path, ids="patient").load(8, 1, ("a",))
    with pytest.raises(SpecError, match="a regular expression with one group is expected"):
        Folder(path=tmp_path, ids="site")


def test_the_folder_of_a_class_is_no_id(tmp_path: Path) -> None:
    for name in ("benign/p1/0.png", "gutartig/1.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.fromarray(PIXELS).save(tmp_path / name)
    source = Folder(path=tmp_path, ids="folder", class_names={"gutartig": "benign"})
    with pytest.raises(DataError, match="1 images have no id, the first is .*gutartig/1.png"):
        source.load(8, 1, ("benign",))
    (tmp_path / "gutartig" / "1.png").rename(tmp_path / "benign" / "p1" / "1.png")
    (tmp_path / "malignant").mkdir()
    shutil.copytree(tmp_path / "benign" / "p1", tmp_path / "malignant" / "p1")
    ids = source.load(8, 1, ("benign", "malignant")).ids
    assert ids is not None
    assert len(ids.unique()) == 1  # a patient with images of both classes is one


def test_linked_folders_are_read_once_and_dead_links_are_counted(tmp_path: Path) -> None:
    for name in ("real/a", "set/b"):
        (tmp_path / name).mkdir(parents=True)
        Image.fromarray(PIXELS).save(tmp_path / name / "0.png")
    (tmp_path / "set" / "a").symlink_to(tmp_path / "real" / "a")
    (tmp_path / "set" / "b" / "ring").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "b" / "dead.png").symlink_to(tmp_path / "none.png")
    images = Folder(path=tmp_path / "set").load(8)
    assert images.classes == ("a", "b")
    assert len(images) == 2
    assert images.skipped == (f"{tmp_path / 'set'}: 1 links that lead nowhere",)


def test_a_name_that_is_no_unicode_has_an_id(tmp_path: Path) -> None:
    folder = tmp_path / "a" / os.fsdecode(b"p\xfc")
    folder.mkdir(parents=True)
    Image.fromarray(PIXELS).save(folder / "0.png")
    assert Folder(path=tmp_path, ids="folder").load(8, 1, ("a",)).ids is not None


def test_what_cannot_be_read_needs_no_id(tmp_path: Path) -> None:
    for number in range(3):
        dicom(tmp_path / f"{number}.dcm", PIXELS, PatientID=str(number), **WINDOW)
    (tmp_path / "3.dcm").write_bytes(b"no DICOM")
    images = Folder(path=tmp_path, ids="patient", unreadable=0.5).load(8, 1, ())
    assert images.ids is not None
    assert len(images.ids.unique()) == len(images) == 3
    assert any("3.dcm" in line for line in images.skipped)


def test_a_site_has_other_names_for_the_classes(tmp_path: Path) -> None:
    for name in ("gutartig", "malignant"):
        (tmp_path / name / "deeper").mkdir(parents=True)
        Image.fromarray(PIXELS).save(tmp_path / name / "deeper" / "0.png")
    source = Folder(path=tmp_path, class_names={"gutartig": "benign"})
    images = source.load(8, 1, ("benign", "malignant"))
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1]


TABLE = "file,label,patient,fold\n"


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    (tmp_path / "cells").mkdir()
    rows = []
    for number in range(12):
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(tmp_path / "cells" / f"{number}.png")
        rows.append(f"cells/{number}.png,{number % 2},p{number // 3},{'test' if number >= 9 else 'train'}\n")
    (tmp_path / "t.csv").write_text(TABLE + "".join(rows))
    return tmp_path / "t.csv"


@pytest.mark.parametrize("form", ["csv", "tsv", "parquet", "zip"])
def test_a_table_has_files_labels_ids_and_a_split(cells: Path, form: str) -> None:
    path, files = cells, None
    if form == "tsv":
        path = cells.with_suffix(".tsv")
        path.write_text(cells.read_text().replace(",", "\t"))
    if form == "parquet":
        import pyarrow.csv
        import pyarrow.parquet

        path = cells.with_suffix(".parquet")
        pyarrow.parquet.write_table(pyarrow.csv.read_csv(cells), path)
    if form == "zip":
        files = cells.with_suffix(".zip")
        with zipfile.ZipFile(files, "w") as archive:
            for picture in (cells.parent / "cells").iterdir():
                archive.write(picture, f"cells/{picture.name}")
    source = Table(path=path, files=files, id="patient", split="fold")
    assert source.classes() == ("0", "1")
    assert source.count() == 12
    images = source.load(8)
    assert images.pixels[:, 0, 0, 0].tolist() == list(range(12))
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1] * 6
    assert images.held is not None
    assert images.held.tolist() == [False] * 9 + [True] * 3
    assert images.ids is not None
    assert number_ids(images.ids.numpy()).tolist() == [number // 3 for number in range(12)]


def test_rows_of_a_table_are_chosen_and_those_left_out_are_counted(cells: Path) -> None:
    images = Table(path=cells, where={"patient": "p1"}).load(8)
    assert images.pixels[:, 0, 0, 0].tolist() == [3, 4, 5]
    cells.write_text(cells.read_text().replace("p0,train", "p0,val"))
    images = Table(path=cells, split="fold").load(8)
    assert len(images) == 9
    assert images.skipped == (f"{cells}: 3 rows whose fold is 'val', neither train nor test",)
    assert Table(path=cells, label=None).load(8, 1, ()).labels is None
    assert Table(path=cells, label="none").load(8, 1, ()).labels is None
    for load in (Table(path=cells, label="none").classes, lambda: Table(path=cells, label="none").load(8, 1, ("0",))):
        with pytest.raises(DataError, match="has no column 'none'"):
            load()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("cells/3.png", "cells/none.png", r"1 of 12 files are not in .*: 'cells/none.png' \(line 5\)"),
        ("cells/3.png", "", r"1 of 12 files are not in .*: '' \(line 5\)"),
        ("file,label", "path,label", "has no column 'file'; known: fold, label, path, patient"),
        ("patient,fold", "patients,fold", "has no column 'patient'; did you mean 'patients'"),
        ("cells/3.png,1", "cells/3.png,7", "cells/3.png: its label '7' is none of the classes"),
        ("cells/3.png,1", "cells/3.png", "line 5 has fewer values"),
        ("cells/3.png,1", "cells/3.png,1,1", "line 5 has more values"),
        ("p2,train", "p3,train", r"1 ids are on both sides.*image 7 \(training\) and image 10 \(test\)"),
        ("p0,train", ",train", "3 images have no id, the first is .*0.png"),
        ("train", "x", r"none of its 12 rows is asked for by fold in \('train', 'y'\); fold says 'test', 'x'"),
        ("cells/3.png", "cells/2.png", "line 5 names 'cells/2.png' again, as line 4 does"),
        ("file,label", "file,file", "it has two columns 'file'"),
        (",", ";", "separated by semicolons; commas are expected"),
    ],
)
def test_bad_tables_are_refused_by_name(cells: Path, old: str, new: str, said: str) -> None:
    cells.write_text(cells.read_text().replace(old, new))
    source = Table(path=cells, id="patient", split="fold", test=("y",) if old == "train" else ("test",))
    with pytest.raises(DataError, match=said):
        source.load(8, 1, ("0", "1"))


def test_spaces_around_a_value_are_none_of_it(cells: Path) -> None:
    plain = Table(path=cells, id="patient").load(8)
    cells.write_text(cells.read_text().replace(",1,p1,", ", 1 ,p1 ,"))
    spaced = Table(path=cells, id="patient").load(8)
    assert spaced.classes == plain.classes
    assert spaced.ids is not None
    assert plain.ids is not None
    assert torch.equal(spaced.ids, plain.ids)


def test_tables_as_other_programs_write_them(cells: Path) -> None:
    lines = cells.read_text().replace("p0", '"p\n0"', 1).splitlines(keepends=True)
    cells.write_text("," + "0,".join(lines[:2]) + lines[2] + "".join(f"1,{line}" for line in lines[3:]))
    assert len(Table(path=cells, id="patient").load(8)) == 12  # the index of pandas has no name
    cells.write_text(cells.read_text().replace("cells/1.png", "none.png"))
    with pytest.raises(DataError, match=r"'none.png' \(line 4\)"):  # a quoted value has two lines
        Table(path=cells).load(8)
    cells.write_text("file,patient\ncells/0.png,\n")
    with pytest.raises(DataError, match="1 images have no id"):
        Table(path=cells, label=None, id="patient").load(8, 1, ())
    other = cells.with_suffix(".TSV")
    other.write_text("file\tlabel\ncells/2.png\t0\n")
    assert Table(path=other).classes() == ("0",)


def test_tables_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such table"):
        Table(path=tmp_path / "none.csv").classes()
    for name in ("a.parquet", "a.csv"):
        (tmp_path / name).write_bytes(b"\xff\x00PAR1")
        with pytest.raises(DataError, match="is not a table that can be read"):
            Table(path=tmp_path / name).classes()
    (tmp_path / "a.csv").write_bytes(b"")
    with pytest.raises(DataError, match="has no column 'label'"):
        Table(path=tmp_path / "a.csv").classes()
    with pytest.raises(SpecError, match="one of them is expected"):
        Table(path=tmp_path / "a.csv", id="x", ids="folder")


def test_another_process_opens_a_file_without_pytorch() -> None:
    import subprocess

    script = "import sys, manyhands.data.formats.kinds; assert not {'torch', 'pydicom', 'tifffile'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
