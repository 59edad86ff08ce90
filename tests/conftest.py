"""A tiny federation that trains in milliseconds."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence

import hypothesis
import numpy as np
import pytest
import torch

from manyhands import FedAvg, Iid, Images, Local, Silo, Training, UNet, split
from tests import fixed_work

hypothesis.settings.register_profile(
    "suite", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("suite")  # a busy machine fails nothing

FEDAVG_ONLY = {"kind"} | (FedAvg.model_fields.keys() - Local.model_fields.keys())
TINY = UNet(size=4, channels=1, classes=2, widths=(8,))


def tiny_images(count: int, seed: int = 0, classes: int = 2, size: int = 4) -> Images:
    rng = np.random.default_rng(seed)
    pixels = torch.from_numpy(rng.integers(0, 256, (count, 1, size, size), dtype=np.uint8))
    labels = torch.from_numpy(rng.integers(0, classes, count))
    return Images(pixels, labels, tuple(map(str, range(classes))))


def tiny_silos(counts: Sequence[int] = (5, 9, 3)) -> list[Silo]:
    return [Silo(f"s{i}", tiny_images(count, seed=i)) for i, count in enumerate(counts)]


def sharp_images(count: int, seed: int = 0) -> Images:
    """Two classes that can be told apart: bright above, bright below."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    pixels = rng.integers(0, 90, (count, 1, 4, 4), dtype=np.uint8)
    for pixel, label in zip(pixels, labels, strict=True):
        pixel[0, 2 * label : 2 * label + 2] += np.uint8(150)
    return Images(torch.from_numpy(pixels), torch.from_numpy(labels), ("above", "below"))


def holding_silos(count: int = 2, seed: int = 0) -> list[Silo]:
    """Silos that hold out 40 of 100 images each."""
    return split(sharp_images(100 * count).hold_out(0.4), Iid(silos=count), seed)


def tiny_fedavg(**options: object) -> FedAvg:
    fields = {"model": TINY, "training": Training(batch=4, steps=2, learning_rate=1e-2), "rounds": 3, **options}
    return FedAvg.model_validate(fields)


def pytest_configure() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # for all processes that tests start: another worker has the other core


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with most slow tests first: a worker is given whole files, and no long one should be left at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Where all tests are run by several workers, which have ended now: what their minutes may be compared by."""
    if config.getoption("numprocesses"):
        terminalreporter.write_sep(
            "=", f"a fixed piece of work takes {fixed_work.seconds():.2f} s (tests/fixed_work.py)"
        )


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is kept between runs is kept between these tests, and nowhere else."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("XDG_CACHE_HOME")
    if before is not None:
        os.environ["XDG_CACHE_HOME"] = before
