"""Silos with skewed classes, from a folder of pictures of your own: one folder for each class."""

import sys
from pathlib import Path

from manyhands import Dirichlet, Experiment, FedAvg, Folder, Training, UNet, split


def main(pictures: Path, run: Path, size: int = 32, rounds: int = 50) -> None:
    # Setup
    images = Folder(path=pictures).load(size=size, channels=3).hold_out(0.2)
    model = UNet(size=size, channels=3, classes=len(images.classes), widths=(32, 64, 128))
    method = FedAvg(model=model, training=Training(batch=32, epochs=1), rounds=rounds, ema=0.9)
    silos = split(images, Dirichlet(silos=4, alpha=0.5, minimum=2))

    # Train: the run folder keeps a checkpoint of every round, and resume goes on from the last
    for closed_round in Experiment(method, silos, folder=run, resume=True):
        print(
            f"round {closed_round.number + 1}: loss {closed_round.loss:.3f}, missing {closed_round.missing or 'none'}"
        )

    # Sample: the run folder has a grid, a report, and a model that diffusers loads
    print(run / "figures" / "samples.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
