"""Silos by attributes: who fits whom, what is left out, and that nobody trains on what another holds out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from manyhands import ByAttributes, Images, compose, split
from manyhands.data.attributes import read_attributes
from manyhands.data.partition.base import class_counts
from manyhands.data.partition.by_attributes import by_attributes
from manyhands.errors import DataError, RecipeError
from manyhands.runs.recipe import Recipe
from manyhands.runs.recipe_file import parse_recipe

NAMES = ["Bald", "Bangs", "Eyeglasses", "Young"]
GROUPS = (("Bald", "Bangs"), ("Eyeglasses",))


def table(count: int = 60) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2, (count, len(NAMES)))


def write_csv(path: Path, rows: np.ndarray) -> Path:
    lines = [",".join(["image_id", *NAMES]), *[f"{i:06d}.jpg,{','.join(map(str, row))}" for i, row in enumerate(rows)]]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_celeba(path: Path, rows: np.ndarray) -> Path:
    lines = [f"{i:06d}.jpg " + " ".join(f"{value:2d}" for value in row) for i, row in enumerate(2 * rows - 1)]
    path.write_text("\n".join([str(len(rows)), " ".join(NAMES), *lines]) + "\n")
    return path


def numbered(count: int = 60) -> Images:
    return Images(torch.arange(count, dtype=torch.uint8).reshape(-1, 1, 1, 1))


@given(st.integers(0, 99), st.integers(1, 5), st.booleans(), st.sampled_from([None, 7]))
def test_a_silo_has_what_fits_it_and_no_image_twice_unless_pools_overlap(
    seed: int, silos: int, overlap: bool, max_images: int | None
) -> None:
    fits = np.random.default_rng(seed).random((200, silos)) < 0.4
    options: dict[str, Any] = {"overlap": overlap, "max_images": max_images}
    parts, again = (by_attributes(fits, np.random.default_rng(seed), **options) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    assert all(fits[part, silo].all() for silo, part in enumerate(parts))
    assert all(len(np.unique(part)) == len(part) <= (max_images or 200) for part in parts)
    dealt = np.concatenate(parts)
    if not overlap:
        assert len(np.unique(dealt)) == len(dealt)
    if max_images is None:
        assert set(dealt.tolist()) == set(np.flatnonzero(fits.any(1)).tolist())
        assert not overlap or [len(part) for part in parts] == fits.sum(0).tolist()


def test_an_image_that_fits_two_silos_goes_to_either_as_often() -> None:
    parts = by_attributes(np.ones((4000, 2), bool), np.random.default_rng(0))
    assert abs(len(parts[0]) - 2000) < 150


def test_celebas_list_and_a_csv_say_the_same(tmp_path: Path) -> None:
    csv, celeba = write_csv(tmp_path / "a.csv", table()), write_celeba(tmp_path / "a.txt", table())
    assert read_attributes(csv).names == read_attributes(celeba).names == tuple(NAMES)
    assert np.array_equal(read_attributes(csv).has, read_attributes(celeba).has)
    assert np.array_equal(read_attributes(csv).has, table() == 1)
    marked = tmp_path / "marked.csv"
    marked.write_text("\ufeff" + csv.read_text().replace("\n", "\r\n"), newline="")
    assert np.array_equal(read_attributes(marked).has, table() == 1)


CELEBA = "2\nA B\n1.jpg -1 1\n2.jpg 1 1\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "name each attribute once"),
        ("2\n", "name each attribute once"),
        ("2\nA B\n", "name each attribute once"),
        ("image,A,A\n1.jpg,0,1\n", "name each attribute once"),
        (CELEBA.replace("2\n", "3\n", 1), "its first line says 3 images, but it has 2 lines"),
        (CELEBA.replace("2.jpg 1 1", "2.jpg 1"), "image 2 has 1 values for 2 attributes"),
        (CELEBA.replace("2.jpg 1 1", "2.jpg 1 1 1"), "image 2 has 3 values for 2 attributes"),
        (CELEBA.replace("2.jpg 1 1", "2.jpg 1 yes"), "yes"),
        (CELEBA.replace("2.jpg 1 1", "2.jpg 1 300"), "300"),
        (CELEBA.replace("2.jpg 1 1", "2.jpg 1 0"), "values are -1, 0, 1; -1 and 1, or 0 and 1, are expected"),
        ("image,A\n1.jpg,nan\n", "nan"),
        ("9" * 5000 + "\nA B\n1.jpg 1 1\n", "digits"),
    ],
)
def test_files_that_are_no_table_are_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "{attributes}.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=said) as caught:
        read_attributes(path)
    assert str(path) in str(caught.value)


def test_a_file_that_does_not_fit_the_images_is_named(tmp_path: Path) -> None:
    path, rng = write_csv(tmp_path / "a.csv", table()), np.random.default_rng(0)
    for images, groups, more, said in [
        (numbered(59), GROUPS, {}, r"a.csv: has 60 rows for 59 images"),
        (
            numbered().subset(np.arange(60)),
            (("Bold",),),
            {},
            r"a.csv: has no attribute 'Bold'; did you mean 'Bald'",
        ),
        (numbered(), GROUPS, {"minimum": 59}, "silo 0 would have .* images, fewer than the minimum of 59"),
    ]:
        with pytest.raises(DataError, match=said):
            ByAttributes(file=path, groups=groups, **more).parts(images, rng)
    short = write_csv(tmp_path / "short.csv", table()[:9])
    with pytest.raises(DataError, match="has 9 rows for 12 images"):
        ByAttributes(file=short, groups=GROUPS).parts(numbered().subset(np.array([1, 11])), rng)
    path.write_bytes(b"\xff\xfe\x00")
    for bad, said in ((path, "not a table of attributes"), (tmp_path / "none.csv", "no such file")):
        with pytest.raises(DataError, match=said):
            ByAttributes(file=bad, groups=GROUPS).parts(numbered(), rng)


def test_attributes_find_their_images_when_some_were_left_out_whatever_the_seed(tmp_path: Path) -> None:
    partition = ByAttributes(file=write_csv(tmp_path / "a.csv", table()), groups=GROUPS, overlap=True)
    kept = np.flatnonzero(np.arange(60) % 3)
    for seed in (0, 1):
        parts = partition.parts(numbered().subset(kept), np.random.default_rng(seed))
        wanted = [np.flatnonzero(table()[kept][:, columns].any(1)) for columns in ([0, 1], [2])]
        assert [part.tolist() for part in parts] == [want.tolist() for want in wanted]


@pytest.mark.parametrize("overlap", [False, True])
def test_what_one_silo_holds_out_no_other_trains_on(tmp_path: Path, overlap: bool) -> None:
    path = write_csv(tmp_path / "a.csv", table())
    silos = split(numbered().hold_out(0.4), ByAttributes(file=path, groups=GROUPS, overlap=overlap))
    train = {number for silo in silos for number in silo.images.pixels.flatten().tolist()}
    held = {number for silo in silos for number in (silo.held_out or silo.images).pixels.flatten().tolist()}
    assert not train & held
    assert train | held == set(np.flatnonzero(table()[:, :3].any(1)).tolist())
    assert class_counts([silo.images for silo in silos]).sum() >= len(train)
    assert (sum(len(silo.images) for silo in silos) > len(train)) is overlap


def recipe_fields(where: Path, **partition: object) -> dict[str, Any]:
    return {
        "name": "attributes",
        "device": "cpu",
        "data": {"size": 8, "held_out": 0.4, "classes": 0, "source": {"kind": "folder", "path": str(where / "faces")}},
        "partition": {"kind": "attributes", "file": str(where / "a.csv"), "groups": GROUPS, **partition},
        "method": {"kind": "local", "rounds": 1, "model": {"widths": [8]}, "training": {"steps": 1, "batch": 4}},
        "sampling": {"steps": 2},
        "evaluation": {"images": 20, "bootstrap": 0},
    }


def recipe(fields: dict[str, Any], kind: str) -> Recipe:
    return parse_recipe({**fields, "method": {**fields["method"], "kind": kind}})


@pytest.mark.parametrize("partition", [{}, {"overlap": True}, {"each": 25}, {"overlap": True, "each": 30}])
def test_runs_are_measured_by_the_same_images_whoever_trains_and_whatever_the_seed(
    tmp_path: Path, partition: dict[str, object]
) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "faces").mkdir()
    for i in range(90):
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / "faces" / f"{i:03d}.png")
    write_csv(tmp_path / "a.csv", table(90))
    here = recipe_fields(tmp_path, **partition)
    local, central = (compose(recipe(here, kind), tmp_path / kind) for kind in ("local", "central"))
    assert central.method.silos == 2  # type: ignore[attr-defined]
    assert sum(local.roster.values()) == sum(central.roster.values())
    other = compose(recipe({**here, "seed": 1}, "local"))
    assert local.evaluator.data == central.evaluator.data == other.evaluator.data
    list(local)
    assert set((tmp_path / "local").glob("report.*"))
    assert not local.run_folder.problems  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("partition", "said"),
    [
        ({"silos": 3}, "partition: silos is 3, but there are 2 groups"),
        ({"groups": []}, r"partition.groups: is \[\], but"),
        ({"groups": [[]]}, r"partition.groups.0: is \[\], but"),
        ({"groups": "Bald"}, "partition.groups: is 'Bald', but"),
        ({"groups": ["Bald"]}, "partition.groups.0: is 'Bald', but"),
        ({"groups": [[1]]}, "partition.groups.0: is 1, but"),
        ({"each": 1, "minimum": 2}, "each is 1, fewer than the minimum of 2"),
        ({"each": True}, "partition.each: is True, but"),
    ],
)
@pytest.mark.parametrize("kind", ["local", "central"])
def test_a_wrong_partition_is_refused_before_anything_is_read(
    tmp_path: Path, partition: dict[str, object], said: str, kind: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        recipe(recipe_fields(tmp_path, **partition), kind)
