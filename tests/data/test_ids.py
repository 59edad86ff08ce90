from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhands import ById, Images
from manyhands.data.ids import check_sides, hash_ids, number_ids
from manyhands.data.images import join, pooled
from manyhands.errors import DataError
from manyhands.runs.data import Data


def images_of(ids: list[str], labels: list[int]) -> Images:
    pixels = torch.arange(len(ids), dtype=torch.uint8).reshape(-1, 1, 1, 1)
    return Images(pixels, torch.tensor(labels), ("a", "b"), ids=hash_ids(ids))


def held_of(images: Images) -> list[bool]:
    assert images.held is not None
    held: list[bool] = images.held.tolist()
    return held


PATIENTS = [f"patient-{i // 5}" for i in range(200)]
LABELS = [int(i // 5 % 4 == 0) for i in range(200)]


def test_whole_ids_are_held_out_and_about_the_share_of_each_class() -> None:
    images = images_of(PATIENTS, LABELS).hold_out(0.2)
    held = np.array(held_of(images))
    assert not set(np.array(PATIENTS)[held]) & set(np.array(PATIENTS)[~held])
    for label in (0, 1):
        assert abs(held[np.array(LABELS) == label].mean() - 0.2) <= 0.05


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 1)), min_size=2, max_size=40), st.floats(0.01, 0.99))
def test_no_id_is_on_both_sides_whatever_ids_there_are(pairs: list[tuple[int, int]], share: float) -> None:
    images = images_of([str(i) for i, _ in pairs], [label for _, label in pairs])
    if len({i for i, _ in pairs}) < 2:
        with pytest.raises(DataError, match="all images have one id"):
            images.hold_out(share)
        return
    held = held_of(images.hold_out(share))
    sides = {(i, side) for (i, _), side in zip(pairs, held, strict=True)}
    assert len(sides) == len({i for i, _ in pairs})
    assert True in held
    assert False in held


def test_the_choice_does_not_depend_on_the_hashes_which_differ_in_every_process() -> None:
    script = (
        "from manyhands.data.ids import hash_ids\nfrom tests.data.test_ids import *\n"
        "print(hash_ids(['p'])[0].item(), sum(2**i * h for i, h in enumerate(held_of("
        "images_of(PATIENTS, LABELS).hold_out(.2)))))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    other, choice = map(int, done.stdout.split())
    assert other != hash_ids(["p"]).item()
    assert choice == sum(2**i * h for i, h in enumerate(held_of(images_of(PATIENTS, LABELS).hold_out(0.2))))


def test_a_share_of_nothing_and_of_all() -> None:
    images = images_of(PATIENTS, LABELS)
    assert not any(held_of(images.hold_out(0)))
    assert all(held_of(images.hold_out(1)))


def test_ids_follow_their_images() -> None:
    images = images_of(["x", "y", "x", "z"], [0, 1, 0, 1])
    assert images.ids is not None
    part = images.subset([2, 3])
    for whole in (pooled([images, part]), join([images, part])):
        assert whole.ids is not None
        assert number_ids(whole.ids.numpy()).tolist() == [0, 1, 0, 2, 0, 2]
    assert pooled([images, replace(part, ids=None)]).ids is None
    with pytest.raises(DataError, match="4 images have 2 ids"):
        replace(images, ids=images.ids[:2])


def test_by_id_takes_the_ids_of_the_images_where_no_file_is_named() -> None:
    images = images_of(PATIENTS, LABELS)
    parts = ById(silos=3).parts(images, np.random.default_rng(0))
    owners = {(PATIENTS[i], silo) for silo, part in enumerate(parts) for i in part}
    assert len(owners) == len(set(PATIENTS))
    with pytest.raises(DataError, match="these images have no ids"):
        ById(silos=3).parts(replace(images, ids=None), np.random.default_rng(0))


def test_ids_on_both_sides_of_a_split_are_refused_without_naming_one() -> None:
    with pytest.raises(DataError, match=r"1 ids .*image 1 \(training\) and image 3 \(test\)") as caught:
        check_sides(hash_ids(["anna", "bob", "anna"]), torch.tensor([False, False, True]), "t.csv")
    assert "anna" not in str(caught.value)


def test_a_recipe_names_a_file_of_ids(tmp_path: Path) -> None:
    (tmp_path / "ids.csv").write_text("".join(f"{i},p{i % 60}\n" for i in range(1797)))
    fields = {"size": 8, "source": "digits", "ids": str(tmp_path / "ids.csv"), "ids_column": 1}
    images = Data.model_validate(fields).load()
    held = np.array(held_of(images))
    patients = np.arange(1797) % 60
    assert not set(patients[held]) & set(patients[~held])
    assert abs(held.mean() - 0.2) < 0.02
    with pytest.raises(DataError, match=r"ids\.csv: has no column 2"):
        Data.model_validate(fields | {"ids_column": 2}).load()
    with pytest.raises(ValueError, match="ids is for a single source"):
        Data.model_validate({"size": 8, "domains": {"a": "digits"}, "ids": "x"})
