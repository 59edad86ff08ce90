"""A small conditional GAN: a generator that is neither good nor bad, for the metrics to rank."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyhands.data.images import Images
from manyhands.seed import seeded_globally

NOISE, CLASSES = 64, 10


class Drawer(nn.Module):
    """Noise and a class in, 28 x 28 out."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(NOISE + CLASSES, 128 * 49), nn.BatchNorm1d(128 * 49), nn.ReLU(),
            nn.Unflatten(1, (128, 7, 7)),
            nn.ConvTranspose2d(128, 64, 4, 2, 1), nn.BatchNorm2d(64), nn.ReLU(),
            nn.ConvTranspose2d(64, 1, 4, 2, 1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Draw."""
        out: Tensor = self.body(torch.cat([noise, F.one_hot(labels, CLASSES).float()], 1))
        return out


class Critic(nn.Module):
    """An image and a class in, real or not out."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1 + CLASSES, 32, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(32, 64, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Flatten(), nn.Linear(64 * 49, 1),
        )  # fmt: skip

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Judge."""
        planes = F.one_hot(labels, CLASSES).float()[:, :, None, None].expand(-1, -1, *images.shape[2:])
        out: Tensor = self.body(torch.cat([images, planes], 1))
        return out


def training(images: Images, steps: int, seed: int = 0, batch: int = 64) -> Iterator[Drawer]:
    """Train, and give the generator after every step."""
    with seeded_globally(seed, "gan"):
        drawer, critic = Drawer(), Critic()
    rng = torch.Generator().manual_seed(seed)
    ours, theirs = (
        torch.optim.Adam(net.parameters(), 2e-4, betas=(0.5, 0.999), fused=True) for net in (drawer, critic)
    )
    for _ in range(steps):
        real, labels = images.batch(torch.randint(len(images), (batch,), generator=rng))
        assert labels is not None
        fake = drawer(torch.randn(batch, NOISE, generator=rng), labels)
        theirs.zero_grad()
        (F.softplus(-critic(real, labels)) + F.softplus(critic(fake.detach(), labels))).mean().backward()
        theirs.step()
        ours.zero_grad()
        F.softplus(-critic(fake, labels)).mean().backward()
        ours.step()
        yield drawer


@torch.no_grad()
def draw(drawer: Drawer, labels: Tensor, seed: int = 0) -> Tensor:
    """An image for each label."""
    rng = torch.Generator().manual_seed(seed)
    out: Tensor = drawer.eval()(torch.randn(len(labels), NOISE, generator=rng), labels)
    drawer.train()
    return out
