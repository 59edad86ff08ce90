"""A network of one's own: any PyTorch module that is called with (x_t, t, labels) can be the denoiser."""

from pathlib import Path

import torch
from torch import Tensor, nn

import manyhands as mh


class Plain(nn.Module):
    """A few convolutions without levels; time and label shift the features of each.

    Args:
        width: The number of features.
        depth: The number of blocks.
    """

    def __init__(self, width: int = 32, depth: int = 4) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(torch.logspace(-3, 0, width // 2), requires_grad=False)
        self.labels = nn.Embedding(11, width)  # ten digits, and no label
        self.first, self.last = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 1, 3, padding=1)
        self.shifts = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(4, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(depth)
        )

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Predict the target, (B, 1, H, W), for x_t of that shape, t from 1 on and labels from 0 to 10, both (B,)."""
        angles = t[:, None] * self.frequencies
        condition = self.labels(labels) + torch.cat([angles.sin(), angles.cos()], dim=1)
        h = self.first(x_t)
        for shift, block in zip(self.shifts, self.blocks, strict=True):
            h = h + block(h + shift(condition)[:, :, None, None])
        out: Tensor = self.last(h)
        return out


def main(out: Path = Path("plain.png"), rounds: int = 10) -> None:
    digits = mh.Digits().load(size=8).hold_out(0.2)  # Setup: the class makes the network, by the run's seed
    model = mh.Network(module=Plain, size=8, channels=1, classes=10)
    method = mh.FedAvg(model=model, training=mh.Training(steps=60, learning_rate=3e-3), rounds=rounds, ema=0.8)
    experiment = mh.Experiment(method, mh.split(digits, mh.Iid(silos=5)))

    for closed_round in experiment:  # Train
        print(f"round {closed_round.number + 1}: loss {closed_round.loss:.3f}")

    print(f"FID {experiment.evaluate()['metrics']['fid']:.2f}")  # Sample
    mh.grid(out, experiment.generator().sample(labels=list(range(10))), headings=digits.classes)


if __name__ == "__main__":
    main()
