from __future__ import annotations

import gzip
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from manyhands import ById, Domains, Images, Lacking
from manyhands.data.partition.base import Parts, class_counts
from manyhands.data.partition.by_id import by_id
from manyhands.data.partition.dirichlet import dirichlet
from manyhands.data.partition.domains import domains
from manyhands.data.partition.iid import iid
from manyhands.data.partition.quantity import quantity
from manyhands.data.partition.shards import shards
from manyhands.errors import DataError
from tests.conftest import tiny_images

KINDS = {
    "iid": iid,
    "dirichlet": lambda y, k, r, minimum: dirichlet(y, k, r, alpha=0.1, minimum=minimum),
    "shards": lambda y, k, r, minimum: shards(y, k, r, classes_per_silo=2, minimum=minimum),
    "quantity": lambda y, k, r, minimum: quantity(y, k, r, alpha=0.2, minimum=minimum),
}


def covers(parts: Parts, count: int) -> bool:
    return sorted(np.concatenate(parts).tolist()) == list(range(count))


@pytest.mark.parametrize("kind", KINDS)
@given(count=st.integers(40, 300), silos=st.integers(1, 10), minimum=st.integers(1, 4), seed=st.integers(0, 99))
def test_every_image_once_none_too_small_and_seeded(kind: str, count: int, silos: int, minimum: int, seed: int) -> None:
    labels = np.random.default_rng(1).integers(0, 5, count)
    parts, again = (KINDS[kind](labels, silos, np.random.default_rng(seed), minimum=minimum) for _ in range(2))
    assert len(parts) == silos
    assert covers(parts, count)
    assert min(map(len, parts)) >= minimum
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_too_few_images_are_an_error(kind: str) -> None:
    with pytest.raises(DataError, match="too few to give"):
        KINDS[kind](np.zeros(9, dtype=int), 5, np.random.default_rng(0), minimum=2)


def spread(parts: Parts, labels: np.ndarray) -> float:
    shares = [np.bincount(labels[part], minlength=10) / len(part) for part in parts]
    return float(np.std(shares, axis=0).mean())


def test_a_smaller_alpha_skews_more_and_iid_least() -> None:
    labels, rng = np.repeat(np.arange(10), 500), np.random.default_rng(0)
    order = [spread(dirichlet(labels, 8, rng, alpha), labels) for alpha in (0.1, 1.0, 10.0)]
    assert order == sorted(order, reverse=True)
    assert spread(iid(labels, 8, rng), labels) < order[-1]


def test_shards_give_few_classes_and_quantity_gives_unequal_sizes() -> None:
    labels, rng = np.repeat(np.arange(10), 100), np.random.default_rng(0)
    assert max(len(np.unique(labels[part])) for part in shards(labels, 5, rng, 2)) <= 3
    sizes = [len(part) for part in quantity(labels, 5, rng, 0.3)]
    assert max(sizes) > 3 * min(sizes)


@given(st.lists(st.integers(0, 30), min_size=60, max_size=200), st.integers(1, 5))
def test_an_id_is_never_in_two_silos(ids: list[int], silos: int) -> None:
    if len(set(ids)) < silos:
        with pytest.raises(DataError, match="ids are too few"):
            by_id(np.array(ids), silos, np.random.default_rng(0))
        return
    parts = by_id(np.array(ids), silos, np.random.default_rng(0))
    assert covers(parts, len(ids))
    owners = [set(np.array(ids)[part].tolist()) for part in parts]
    assert sum(map(len, owners)) == len(set().union(*owners))


def test_domains_are_never_mixed_and_must_share_evenly() -> None:
    domain = np.array([0] * 10 + [1] * 20)
    parts = domains(domain, 4, np.random.default_rng(0))
    assert covers(parts, 30)
    assert [len(np.unique(domain[part])) for part in parts] == [1] * 4
    with pytest.raises(DataError, match="evenly"):
        domains(domain, 3, np.random.default_rng(0))
    with pytest.raises(DataError, match="several sources"):
        Domains(silos=2).parts(tiny_images(4), np.random.default_rng(0))


def test_silos_lack_whole_classes_and_have_no_more_than_their_share_but_what_is_held_out_is_of_all() -> None:
    labels, held = torch.arange(4000) % 10, torch.arange(4000) % 100 < 20
    images = Images(torch.zeros(4000, 1, 4, 4, dtype=torch.uint8), labels, tuple("0123456789"), held=held)
    images = replace(images, domain=torch.arange(4000) // 2000, domains=("a", "b"))
    partition = Lacking(silos=10, each=150, lacks=((0, 0.5), (3, 0.5)), sizes=((0.3, 0.5), (0.7, 1.0)))
    parts = partition.parts(images, np.random.default_rng(0))
    again = partition.parts(images, np.random.default_rng(1))
    assert all(np.array_equal(one, other) for one, other in zip(parts, again, strict=True))
    train = [part[~held.numpy()[part]] for part in parts]
    out = [part[held.numpy()[part]] for part in parts]
    assert sorted(map(len, train)) == [75] * 3 + [150] * 7
    assert {len(np.unique(labels.numpy()[part])) for part in train} == {7, 10}
    assert covers([np.searchsorted(np.flatnonzero(held), part) for part in out], int(held.sum()))
    assert [len(np.unique(labels.numpy()[part])) for part in out] == [10] * 10
    assert [np.unique(images.domain.numpy()[part]).tolist() for part in parts] == [[0]] * 5 + [[1]] * 5
    with pytest.raises(DataError, match="lack 10 of 10"):
        Lacking(silos=2, each=5, lacks=((10, 1.0),)).parts(images, np.random.default_rng(0))
    with pytest.raises(DataError, match="fewer than the minimum"):
        Lacking(silos=10, each=10, sizes=((1, 0.04),)).parts(images, np.random.default_rng(0))


def test_ids_come_from_text_or_a_column_of_an_idx_file(tmp_path: Path) -> None:
    images, rng = tiny_images(6), np.random.default_rng(0)
    text = tmp_path / "ids.csv"
    text.write_text("\n".join(f"{i},writer-{i // 2}" for i in range(6)))
    assert [len(part) for part in ById(silos=3, ids=text, column=1).parts(images, rng)] == [2, 2, 2]
    table = np.array([[7, i // 3] for i in range(6)], dtype=">i4")
    packed = tmp_path / "ids.gz"
    packed.write_bytes(gzip.compress(b"\0\0\x0c\x02" + struct.pack(">II", 6, 2) + table.tobytes()))
    assert [len(part) for part in ById(silos=2, ids=packed, column=1).parts(images, rng)] == [3, 3]
    for bad in (ById(silos=2, ids=packed, column=2), ById(silos=2, ids=text, column=5)):
        with pytest.raises(DataError, match="column"):
            bad.parts(images, rng)
    with pytest.raises(DataError, match="6 ids for 5 images"):
        ById(silos=2, ids=packed, column=1).parts(tiny_images(5), rng)


def test_class_counts_are_those_of_the_labels() -> None:
    one = Images(torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 0, 1]), ("a", "b"))
    assert class_counts([one, one]).tolist() == [[2, 1], [2, 1]]
    assert class_counts([Images(one.pixels)]).tolist() == [[3]]
