"""The images that the benchmarks of the metrics look at: MNIST where it is there, else digits at the same size."""

from __future__ import annotations

from pathlib import Path

from manyhands import Digits, Idx, Iid, Silo, split
from manyhands.runs.data import Data


def silos(folder: str, count: int = 5, *, toy: bool = False) -> list[Silo] | None:
    """Silos with MNIST's training images, its test images held out; None where the folder has it not."""
    if toy:
        return split(Digits().load(28).hold_out(0.3), Iid(silos=count))
    where = Path(folder) / "mnist"
    if not where.is_dir():
        return None
    train, test = (
        Idx(images=where / f"{part}-images-idx3-ubyte.gz", labels=where / f"{part}-labels-idx1-ubyte.gz")
        for part in ("train", "t10k")
    )
    images = Data(size=28, source=train, test=test, classes=tuple("0123456789")).load()
    return split(images, Iid(silos=count))
