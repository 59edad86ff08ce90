"""What the seam costs: rounds of a run against rounds of a bare PyTorch loop, in turn, in one process."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from diffusers import UNet2DModel

from harness import bench
from manyhands import Digits, Experiment, FedAvg, Iid, Schedule, Silo, Training, UNet, split
from manyhands.seed import torch_rng

BARS = {"overhead": "<= 1.05"}


def measure(args: argparse.Namespace) -> bench.Measured:
    """10 silos, the same network, batches and steps; checkpoints, journal and message checks are in the run's time."""
    silos, count = (3, 3) if args.quick else (10, 10)
    training = Training(batch=32, steps=4 if args.quick else 20, learning_rate=2e-3)
    method = FedAvg(model=UNet(size=8, channels=1, classes=10, widths=(16, 32)), training=training, rounds=count)
    digits = Digits().load(size=8)
    dealt = split(digits, Iid(silos=silos))
    run_seconds, bare_seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        rounds = iter(Experiment(method, dealt, folder=Path(folder) / "run", device="cpu"))
        bare = Bare(method, dealt)
        for number in range(count):
            began = time.perf_counter()
            next(rounds)
            run_seconds.append(time.perf_counter() - began)
            began = time.perf_counter()
            bare.round(number)
            bare_seconds.append(time.perf_counter() - began)
    ratios = [run / plain for run, plain in zip(run_seconds[1:], bare_seconds[1:], strict=True)]  # the first warms up
    return {
        "figures": {"overhead": round(statistics.median(ratios), 4)},
        "cases": {"silos": silos, "steps": training.steps, "ratios": [round(ratio, 4) for ratio in ratios]},
        "seeds": [0],
    }


class Bare:
    """The loop that a researcher would write."""

    def __init__(self, method: FedAvg, silos: list[Silo]) -> None:
        self.method, self.silos = method, silos
        assert isinstance(method.model, UNet)
        self.net = UNet2DModel(**method.model.settings())
        self.weights = {name: tensor.clone() for name, tensor in self.net.state_dict().items()}
        self.alpha, self.sigma = (x.float()[:, None, None, None] for x in _levels())

    def round(self, number: int) -> None:
        """One round of federated averaging."""
        total = {name: torch.zeros_like(tensor) for name, tensor in self.weights.items()}
        for silo in self.silos:
            self.net.load_state_dict(self.weights)
            rng, images = torch_rng(0, silo.name, number), silo.images
            optimiser = torch.optim.Adam(self.net.parameters(), 2e-3, fused=True)
            for at in list(self.method.training.batches(len(images), rng)):
                x, y = images.batch(at)
                assert y is not None
                t, eps = torch.randint(1, 1001, (len(x),), generator=rng), torch.randn(x.shape, generator=rng)
                y = torch.where(torch.rand(len(x), generator=rng) < 0.1, 10, y)
                out = self.net(self.alpha[t] * x + self.sigma[t] * eps, t - 1, class_labels=y).sample
                loss = (out - (self.alpha[t] * eps - self.sigma[t] * x)).square().mean()
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
                optimiser.step()
            for name, tensor in self.net.state_dict().items():
                total[name] += tensor * (len(images) / sum(len(each.images) for each in self.silos))
        self.weights = total


def _levels() -> tuple[torch.Tensor, torch.Tensor]:
    alpha_bar = Schedule().alpha_bar()
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


if __name__ == "__main__":
    bench.main("overhead", measure, BARS)
