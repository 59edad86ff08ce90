"""The base of all image generators: they sample images of requested classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from manyhands.diffusion.sampling import Sampling
from manyhands.errors import RecipeError, RunFolderError
from manyhands.seed import torch_rng

if TYPE_CHECKING:
    from pathlib import Path

    from manyhands.models.base import Model
    from manyhands.tensors import Tensors


class ImageGenerator(ABC):
    """Samples images in [-1, 1], of the requested classes where the model has classes.

    A subclass says how to ``_sample`` a batch on its ``device``, and how to ``save`` itself for the ``load_generator``
    of its model. Before it is used, a copy is made with the run's ``sampling``, ``classes`` and ``device``.

    Attributes:
        is_diffusion: Whether the settings in ``sampling`` say how it samples.
        sampler: What reports call its way of sampling where it is no diffusion model.
    """

    is_diffusion: ClassVar[bool] = True
    sampler: ClassVar[str] = "a sampler of its own"
    model: Model
    weights: Tensors
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
        """Sample images.

        Args:
            count: How many images, with the classes in turn; None for one of each class, or one for each label.
            labels: The class number of each image; None for the classes in turn.
            seed: The seed of all random numbers.
            sampling: The sampler and its settings; None for those that the generator was trained with.
            batch: How many images are sampled at once; another batch size gives other images.

        Returns:
            Images in [-1, 1], (N, C, H, W), on the CPU.
        """
        chosen = self.labels(count, labels)
        return torch.cat([images for images, _ in self.stream(chosen, seed=seed, sampling=sampling, batch=batch)])

    def labels(self, count: int | None = None, labels: Sequence[int] | None = None) -> list[int]:
        """Return the labels to sample: those given, or the classes in turn. Without classes, the only label is 0.

        Args:
            count: How many labels.
            labels: The class numbers, or None.

        Raises:
            RecipeError: A label is not a class, or the counts disagree.
        """
        known = max(self.model.classes, 1)
        chosen = list(labels) if labels is not None else [i % known for i in range(known if count is None else count)]
        if bad := [label for label in chosen if label not in range(known)]:
            known_labels = f"not in 0 to {known - 1}" if self.model.classes else "given, but this model has no classes"
            raise RecipeError(f"label {bad[0]} is {known_labels}")
        if not chosen:
            raise RecipeError("cannot sample without a label or with a count of 0")
        if labels is not None and count not in (None, len(chosen)):
            raise RecipeError(f"cannot sample {count} images of {len(chosen)} labels")
        return [int(label) for label in chosen]

    def stream(
        self,
        labels: Sequence[int],
        *,
        seed: int = 0,
        sampling: Sampling | None = None,
        batch: int = 256,
        first: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Sample batch by batch, so that memory does not grow with the number of images.

        Args:
            labels: The class number of each image.
            seed: The seed of all random numbers.
            sampling: The sampler and its settings; None for those that the generator was trained with.
            batch: How many images are sampled at once; another batch size gives other images.
            first: The image to begin with, a multiple of ``batch``.

        Yields:
            Images in [-1, 1], (B, C, H, W), and their labels, (B,), on the CPU.
        """
        for start in range(first, len(labels), batch):
            part = torch.tensor(labels[start : start + batch], device=self.device)
            rng = torch_rng(seed, "sample", start, device=self.device)
            yield self._sample(part, rng, sampling or self.sampling).clamp(-1, 1).cpu(), part.cpu()

    def save(self, folder: Path | str) -> None:
        """Write the folder that ``load_generator`` of the model reads.

        Its ``manyhands.json`` holds a JSON object with the fields of the model as "model", by whose kind it is loaded.

        Args:
            folder: The folder; an older one is replaced.
        """
        raise RunFolderError(f"a {type(self).__name__} cannot be stored")

    @abstractmethod
    def _sample(self, labels: Tensor, rng: torch.Generator, sampling: Sampling) -> Tensor:
        """Sample one image for each label: (B,) -> (B, C, H, W)."""
