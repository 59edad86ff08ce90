"""Batches that a thread reads ahead are the batches that were asked for, in whatever order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from manyhands import Images
from manyhands.data.loader import BatchLoader
from manyhands.data.rows import Rows, RowsFile
from manyhands.errors import DataError
from tests.conftest import tiny_images

CPU = torch.device("cpu")


@pytest.fixture
def images(tmp_path: Path) -> Images:
    memory = tiny_images(40)
    (tmp_path / "rows").write_bytes(memory.pixels.numpy().tobytes())
    return replace(memory, stored=Rows([RowsFile(tmp_path / "rows", 40, (1, 4, 4))]))


def assert_same(loader: BatchLoader, images: Images, numbers: torch.Tensor) -> None:
    for got, expected in zip(loader.batch(numbers), images.batch(numbers), strict=True):
        assert got is not None
        assert expected is not None
        assert torch.equal(got, expected)


@pytest.mark.parametrize("threaded", [False, True])
def test_batches_come_in_the_order_in_which_they_are_asked_for(images: Images, threaded: bool) -> None:
    loader = BatchLoader(images, CPU, threaded=threaded)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    batches = list(order.split(7))
    loader.announce([part for numbers in batches for part in numbers.chunk(2)])
    for numbers in batches:
        for part in numbers.chunk(2):  # other objects than those that were announced
            assert_same(loader, images, part)
    for numbers in (batches[3].chunk(2)[0], batches[0].chunk(2)[1], batches[1], torch.tensor([39, 0, 0])):
        assert_same(loader, images, numbers)
    loader.announce(batches)
    for numbers in batches:
        assert_same(loader, images, numbers)


def test_the_next_batch_is_read_while_this_one_is_used(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = BatchLoader(images, CPU, threaded=True)
    batches = list(torch.arange(40).split(10))
    loader.announce(batches)
    loader.batch(batches[0])
    assert loader._next is not None
    assert loader._next[0] == 1
    assert torch.equal(loader._next[1].result().pixels, images.read(batches[1]))


def test_an_error_of_the_thread_reaches_whoever_asks(images: Images) -> None:
    loader = BatchLoader(images, CPU, threaded=True)
    batches = list(torch.arange(40).split(10))
    loader.announce(batches)
    loader.batch(batches[0])
    with images.files[0].path.open("r+b") as file:
        file.truncate(16 * 25)
    loader.batch(batches[1])
    with pytest.raises(DataError, match="is cut short: row 25"):
        loader.batch(batches[2])
