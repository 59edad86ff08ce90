"""A network that is trained on public images to invert a head."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyhands.audit.attacks.heads import Head
from manyhands.data.images import Images, as_floats
from manyhands.models.gan import Gan
from manyhands.seed import seeded_globally

WIDTH, HIDDEN = 64, 128


class Inverter(nn.Module):
    """Estimates the image, and the logits of its label where there are classes, from the activations of a head."""

    def __init__(self, model: Gan, shape: tuple[int, ...], blocks: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(shape[0], WIDTH, 3, 1, 1), nn.ReLU()]
        for _ in range(blocks):
            layers += [nn.ConvTranspose2d(WIDTH, WIDTH, 4, 2, 1), nn.ReLU()]
        self.image = nn.Sequential(*layers, nn.Conv2d(WIDTH, model.channels, 3, 1, 1), nn.Tanh())
        flat = shape[0] * shape[1] * shape[2]
        last = nn.Linear(HIDDEN, max(model.classes, 1))
        self.label = nn.Sequential(nn.Flatten(), nn.Linear(flat, HIDDEN), nn.ReLU(), last)

    def forward(self, sent: Tensor) -> tuple[Tensor, Tensor]:
        """Estimate images (N, C, H, W) and logits (N, K) from activations."""
        return self.image(sent), self.label(sent)


def inverter(head: Head, public: Images, batch: int, steps: int, rng: torch.Generator, rate: float = 2e-3) -> Inverter:
    """Train an inverter on the activations of public images, in batches of the same size as those of silos."""
    known, labels = as_floats(public.pixels), public.labels if head.model.classes else None
    indices = torch.arange(min(2, len(known)))
    shape = tuple(head(known[indices], None if labels is None else labels[indices]).shape[1:])
    with seeded_globally(int(torch.randint(2**31, (), generator=rng)), "inverter"):
        network = Inverter(head.model, shape, head.last + 1)
    optimiser = torch.optim.Adam(network.parameters(), rate, fused=True)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate * (1 - step / steps)
        indices = torch.randint(len(known), (batch,), generator=rng)
        batch_labels = None if labels is None else labels[indices]
        images, logits = network(head.sent(known[indices], batch_labels, rng))
        loss = (images - known[indices]).square().mean()
        optimiser.zero_grad()
        (loss if batch_labels is None else loss + 0.1 * F.cross_entropy(logits, batch_labels)).backward()
        optimiser.step()
    return network.eval()
