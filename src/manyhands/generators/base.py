"""What every image generator does: it draws images of the asked classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from manyhands.diffusion.sample import Sampling
from manyhands.errors import RecipeError
from manyhands.seed import torch_rng

if TYPE_CHECKING:
    from manyhands.models.gan import Gan
    from manyhands.models.latent import Latent
    from manyhands.models.unet import UNet


class ImageGenerator(ABC):
    """Draws images in [-1, 1], of the asked classes where it knows any; it ``walks`` down a chain, or is a GAN."""

    is_diffusion: ClassVar[bool] = True
    model: UNet | Latent | Gan
    classes: tuple[str, ...]
    sampling: Sampling
    device: str
    ema: float

    def sample(
        self,
        count: int | None = None,
        *,
        labels: Sequence[int] | None = None,
        seed: int = 0,
        sampling: Sampling | None = None,
        batch: int = 256,
    ) -> Tensor:
        """``count`` images with the classes in turn, or one image for each label: N x C x H x W."""
        wanted = self.labels(count, labels)
        return torch.cat([images for images, _ in self.stream(wanted, seed=seed, sampling=sampling, batch=batch)])

    def labels(self, count: int | None = None, labels: Sequence[int] | None = None) -> list[int]:
        """The labels to draw: as asked, or the classes in turn; a generator without classes has only 0."""
        known = max(self.model.classes, 1)
        wanted = list(labels) if labels is not None else [i % known for i in range(known if count is None else count)]
        if bad := [label for label in wanted if label not in range(known)]:
            raise RecipeError(f"label {bad[0]} is not in 0 to {known - 1}")
        if not wanted or (labels is not None and count not in (None, len(wanted))):
            raise RecipeError(f"{count} images of {len(wanted)} labels cannot be drawn")
        return [int(label) for label in wanted]

    def stream(
        self,
        labels: Sequence[int],
        *,
        seed: int = 0,
        sampling: Sampling | None = None,
        batch: int = 256,
        first: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of images and their labels, from image ``first`` on; memory does not grow with their number."""
        for start in range(first, len(labels), batch):
            part = torch.tensor(labels[start : start + batch], device=self.device)
            rng = torch_rng(seed, "sample", start, device=self.device)
            yield self._sample(part, rng, sampling or self.sampling).clamp(-1, 1).cpu(), part.cpu()

    @abstractmethod
    def _sample(self, labels: Tensor, rng: torch.Generator, sampling: Sampling) -> Tensor:
        """One image for each label."""
