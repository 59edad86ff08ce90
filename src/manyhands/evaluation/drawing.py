"""What samples are drawn with for an evaluation: the generators of silos, and how they draw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor

from manyhands.data.images import as_bytes
from manyhands.errors import DataError
from manyhands.models.autoencoder import TrainedAutoencoder

if TYPE_CHECKING:
    from manyhands.diffusion.sampling import Sampling
    from manyhands.generators.base import ImageGenerator

ImageSource: TypeAlias = "ImageGenerator | TrainedAutoencoder"
AT_ONCE = {"sampler": "at once"}
"""The entry ``sampling`` of the protocol for a GAN, which draws an image in one step."""


def distinct_generators(generators: Mapping[str, ImageSource]) -> dict[tuple[str, ...], ImageSource]:
    """Each generator once, with the names of the silos that use it."""
    owners: dict[int, list[str]] = {}
    for silo, generator in generators.items():
        owners.setdefault(id(generator), []).append(silo)
    return {tuple(silos): generators[silos[0]] for silos in owners.values()}


def are_conditional(generators: Mapping[str, ImageSource]) -> bool:
    """Whether all generators are class-conditional."""
    return all(generator.model.classes for generator in generators.values())


def sampling_protocol(generators: Mapping[str, ImageSource], sampling: Sampling) -> dict[str, Any]:
    """How samples are drawn: the settings of a diffusion model, or the sampler of others; {} for an autoencoder."""
    samplers = set()
    for generator in generators.values():
        if isinstance(generator, TrainedAutoencoder):
            return {}
        samplers.add("" if generator.is_diffusion else generator.sampler)
    return sampling.model_dump(mode="json") if "" in samplers else {"sampler": ", ".join(sorted(samplers))}


def drawn_bytes(images: Tensor) -> Tensor:
    """Samples in [-1, 1] as bytes; weights that are not finite give samples that are not."""
    if not bool(images.isfinite().all()):
        raise DataError("the generator draws images that are not finite: its training diverged")
    return as_bytes(images)
