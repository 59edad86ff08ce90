"""Images from Python: one silo has NumPy arrays, the other a torch Dataset."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from manyhands import Experiment, FedAvg, Images, Sampling, Silo, Training, UNet, grid

SHAPES = ("square", "cross")


def shapes(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """White squares and crosses at random places of grey images: bytes (N, H, W), and labels (N,)."""
    images, labels = np.zeros((count, 16, 16), np.uint8), rng.integers(0, 2, count)
    for image, label, (y, x) in zip(images, labels, rng.integers(1, 8, (count, 2)), strict=True):
        if label:
            image[y + 3 : y + 5, x : x + 8] = image[y : y + 8, x + 3 : x + 5] = 255
        else:
            image[y : y + 8, x : x + 8] = 255
    return images, labels


class Scanner(Dataset[Any]):
    """Tensors (C, H, W) with values from 0 to 1, and their labels, as torchvision's data sets have them."""

    def __init__(self, count: int, seed: int) -> None:
        self.images, self.labels = shapes(count, np.random.default_rng(seed))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(self.images[number])[None] / 255, int(self.labels[number])


def main(out: Path = Path("shapes.png"), rounds: int = 8, count: int = 200) -> None:
    # Setup: bytes need no range, floats that may be from 0 to 1 do
    pixels, labels = shapes(count, np.random.default_rng(0))
    arrays = Images.from_arrays(pixels, labels, SHAPES).hold_out(0.2)
    dataset = Images.from_dataset(Scanner(count, seed=1), SHAPES, value_range=(0, 1)).hold_out(0.2)
    model = UNet(size=16, channels=1, classes=len(SHAPES), widths=(8, 16))
    method = FedAvg(model=model, training=Training(batch=32, steps=20, learning_rate=2e-3), rounds=rounds, ema=0.6)
    experiment = Experiment(method, [Silo("arrays", arrays), Silo("dataset", dataset)], sampling=Sampling(steps=20))

    # Train
    for closed_round in experiment:
        print(f"round {closed_round.number + 1}: loss {closed_round.loss:.3f}")

    # Sample
    grid(out, experiment.generator().sample(labels=[0, 1] * 5), headings=SHAPES)


if __name__ == "__main__":
    main()
