"""A tiny federation that trains in milliseconds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from manyhands import FedAvg, Images, Silo, Training, UNet

TINY = UNet(size=4, channels=1, classes=2, widths=(8,))


def tiny_images(count: int, seed: int = 0, classes: int = 2, size: int = 4) -> Images:
    rng = np.random.default_rng(seed)
    pixels = torch.from_numpy(rng.integers(0, 256, (count, 1, size, size), dtype=np.uint8))
    labels = torch.from_numpy(rng.integers(0, classes, count))
    return Images(pixels, labels, tuple(map(str, range(classes))))


def tiny_silos(counts: Sequence[int] = (5, 9, 3)) -> list[Silo]:
    return [Silo(f"s{i}", tiny_images(count, seed=i)) for i, count in enumerate(counts)]


def tiny_fedavg(**told: object) -> FedAvg:
    given = {"model": TINY, "training": Training(batch=4, steps=2, learning_rate=1e-2), "rounds": 3, **told}
    return FedAvg.model_validate(given)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
