"""Makes an experiment from a recipe: the data is loaded and partitioned over silos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from manyhands.data.images import Images
from manyhands.data.partition.base import Partition, Parts
from manyhands.data.sources.file_source import FileSource, Listing
from manyhands.errors import DataError, RecipeError
from manyhands.runs.experiment import Experiment
from manyhands.runs.recipe import Recipe
from manyhands.seed import numpy_rng
from manyhands.silos.silo import Silo


def compose(recipe: Recipe, folder: Path | str | None = None, *, resume: bool = False) -> Experiment:
    """Make the experiment that a recipe describes, with its data loaded and partitioned.

    Args:
        recipe: The recipe, as ``load_recipe`` returns it.
        folder: The run folder; None writes no files.
        resume: Whether to continue the run in this folder if there is one.
    """
    silos, skipped = silos_of(recipe)
    return Experiment(
        recipe.method,
        silos,
        seed=recipe.seed,
        folder=folder,
        resume=resume,
        device=recipe.device,
        repeatable=recipe.repeatable,
        quorum=1 if recipe.method.pools_images else recipe.quorum,
        link=recipe.link,
        sampling=recipe.sampling,
        evaluation=recipe.evaluation,
        recipe=recipe.resolved(),
        skipped=skipped,
    )


def silos_of(recipe: Recipe) -> tuple[list[Silo], tuple[str, ...]]:
    """The silos that a recipe describes, and the names of the images that could not be read.

    Pooled data is what the silos would have together, with an image as often as the partition gives it to a silo.
    """
    images = recipe.data.load()
    if not recipe.method.pools_images:
        return split(images, recipe.partition, recipe.seed), images.skipped
    dealt = np.sort(np.concatenate(_parts(images, recipe.partition, recipe.seed)))
    return [Silo("pooled", images.subset(dealt))], images.skipped


def silo_of(name: str, source: FileSource, recipe: Recipe, listing: Listing | None = None) -> Silo:
    """A silo with the images of a source of its own, in the size and the classes of the recipe.

    Args:
        name: The name of the silo.
        source: Where its images come from.
        recipe: The recipe.
        listing: What the source lists; None lists it.
    """
    data, classes = recipe.data, recipe.data.known_classes()
    images = source.read(listing or source.listing(classes), data.size, data.channels, classes)
    return Silo(name, images if images.held is not None else images.hold_out(data.held_out))


def split(images: Images, partition: Partition, seed: int = 0) -> list[Silo]:
    """Distribute images over silos, which are named silo-0, silo-1, ..., or after the domains.

    Args:
        images: The images, with those held out among them.
        partition: How they are distributed.
        seed: The seed of the partition.
    """
    if not isinstance(partition, Partition):
        raise RecipeError(f"the partition is {partition!r}, an object such as Iid(silos=3) is expected")
    parts, names = _parts(images, partition, seed), partition.names(images.domains)
    return [Silo(name, images.subset(part)) for name, part in zip(names, parts, strict=True)]


def _parts(images: Images, partition: Partition, seed: int) -> Parts:
    parts = partition.parts(images, numpy_rng(seed, "partition"))
    if problem := _problem_of(parts, partition, images):
        raise DataError(f"{type(partition).__name__}.parts() {problem}")
    return parts


def _problem_of(parts: object, partition: Partition, images: Images) -> str:
    """What is wrong with the parts that a partition gives its silos, as the end of a sentence; "" for nothing."""
    silos, last = len(partition.names(images.domains)), len(images) - 1
    if not isinstance(parts, Sequence) or len(parts) != silos:
        count = len(parts) if isinstance(parts, Sequence) else f"a value of type {type(parts).__name__}"
        return f"returns {count}, a list of {silos} arrays is expected, one for each silo"
    for number, part in enumerate(parts):
        if not isinstance(part, np.ndarray) or part.ndim != 1 or part.dtype.kind not in "iu":
            return f"gives silo {number} no one-dimensional array of whole numbers, the numbers of its images"
        if part.size and not 0 <= part.min() <= part.max() <= last:
            return f"gives silo {number} the images {part.min()} to {part.max()}, but they are numbered 0 to {last}"
    if not getattr(partition, "overlap", False) and len(np.unique(np.concatenate(parts))) < sum(map(len, parts)):
        return "gives an image twice; a partition that means to has a field `overlap` that is true"
    return ""
