"""By attributes of images, such as those of CelebA."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from manyhands.data.attributes import read_attributes
from manyhands.data.images import Images
from manyhands.data.partition.base import (
    Partition,
    Parts,
    rows_of,
)
from manyhands.errors import DataError
from manyhands.seed import numpy_rng
from manyhands.spec import Int


def by_attributes(
    fits: np.ndarray, rng: np.random.Generator, *, overlap: bool = False, each: int | None = None, minimum: int = 1
) -> Parts:
    """Each silo takes images that fit it (images x silos), ``each`` of them at most; what fits none is left out.

    An image that fits several silos goes to one of them at random, or where they ``overlap`` to all.
    """
    if not overlap:
        owner = np.where(fits, rng.random(fits.shape), -1).argmax(1)
        fits = fits & (owner[:, None] == np.arange(fits.shape[1]))
    parts = [np.sort(rng.permutation(np.flatnonzero(mine))[:each]) for mine in fits.T]
    for silo, part in enumerate(parts):
        if len(part) < minimum:
            raise DataError(f"silo {silo} would have {len(part)} images, fewer than the minimum of {minimum}")
    return parts


class ByAttributes(Partition):
    """By a file that says which attributes each image has, CelebA's list or a CSV: a group of attributes for each silo.

    A silo has the images with at least one of its attributes, ``each`` of them at most. One that several silos could
    have goes to one of them at random, or where they ``overlap`` to all. Who holds what does not depend on the run's
    seed: with other images left out, its figures could not be held against those of other seeds.

    References:
        CollaFuse: Collaborative Diffusion Models, Allmendinger, Zipperling, Struppek, Kuehl, 2024, arXiv 2406.14429
        Deep Learning Face Attributes in the Wild, Liu, Luo, Wang, Tang, 2015, arXiv 1411.7766
    """

    kind: Literal["attributes"] = "attributes"
    file: Path
    groups: tuple[Annotated[tuple[str, ...], Field(min_length=1)], ...] = Field(min_length=1)
    overlap: bool = False
    each: Int | None = Field(default=None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _a_silo_for_each_group(cls, told: Any) -> Any:
        groups = told.get("groups") if isinstance(told, dict) else None
        return {"silos": len(groups), **told} if isinstance(groups, list | tuple) and groups else told

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.silos != len(self.groups):
            raise ValueError(f"silos is {self.silos}, but there are {len(self.groups)} groups of attributes")
        if self.each is not None and self.each < self.minimum:
            raise ValueError(f"each is {self.each}, fewer than the minimum of {self.minimum}")
        return self

    def parts(self, images: Images, rng: np.random.Generator) -> Parts:
        """See ``by_attributes``."""
        fits = self._of(images, self.groups)
        own = numpy_rng(0, "attributes")
        return by_attributes(fits, own, overlap=self.overlap, each=self.each, minimum=self.minimum)

    def known(self, images: Images) -> tuple[tuple[str, ...], np.ndarray]:
        """The names of all attributes of the groups, and whether each image has each."""
        names = tuple(dict.fromkeys(name for group in self.groups for name in group))
        return names, self._of(images, [(name,) for name in names])

    def _of(self, images: Images, groups: Sequence[Sequence[str]]) -> np.ndarray:
        told = read_attributes(self.file)
        return rows_of(images, np.stack([told.any_of(group) for group in groups], 1), self.file, "rows")
