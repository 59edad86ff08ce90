"""From a recipe to an experiment: data is loaded and dealt to silos."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from manyhands.data.images import Images
from manyhands.data.partition import Partition, Parts
from manyhands.data.sources import Folder
from manyhands.runs.experiment import Experiment
from manyhands.runs.recipe import Recipe
from manyhands.seed import numpy_rng
from manyhands.silos.silo import Silo


def compose(recipe: Recipe, folder: Path | str | None = None, *, resume: bool = False) -> Experiment:
    """The experiment that a recipe describes, with its data loaded and dealt."""
    silos, skipped = silos_of(recipe)
    return Experiment(
        recipe.method,
        silos,
        seed=recipe.seed,
        folder=folder,
        resume=resume,
        device=recipe.device,
        quorum=1 if recipe.method.pools else recipe.quorum,
        link=recipe.link,
        sampling=recipe.sampling,
        evaluation=recipe.evaluation,
        recipe=recipe.resolved(),
        skipped=skipped,
    )


def silos_of(recipe: Recipe) -> tuple[list[Silo], tuple[str, ...]]:
    """The silos that a recipe describes, and the names of the images that could not be read.

    Pooled is what the silos would have, no more, and each image as often as it was dealt.
    """
    images = recipe.data.load()
    if not recipe.method.pools:
        return split(images, recipe.partition, recipe.seed), images.skipped
    dealt = np.sort(np.concatenate(_parts(images, recipe.partition, recipe.seed)))
    return [Silo("pooled", images.subset(dealt))], images.skipped


def silo_of(name: str, folder: str, recipe: Recipe) -> Silo:
    """A silo with the images of a folder, as the recipe wants them."""
    data = recipe.data
    images = Folder(path=folder).load(data.size, data.channels, data.known_classes())
    return Silo(name, images.hold_out(data.held_out))


def split(images: Images, partition: Partition, seed: int = 0) -> list[Silo]:
    """Deal images to silos, which have the names of their domains or are called silo-0, silo-1, ..."""
    parts, names = _parts(images, partition, seed), partition.names(images.domains)
    return [Silo(name, images.subset(part)) for name, part in zip(names, parts, strict=True)]


def _parts(images: Images, partition: Partition, seed: int) -> Parts:
    return partition.parts(images, numpy_rng(seed, "partition"))
