"""By attributes of the images, such as those of CelebA."""

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
    fits: np.ndarray,
    rng: np.random.Generator,
    *,
    overlap: bool = False,
    max_images: int | None = None,
    minimum: int = 1,
) -> Parts:
    """Give each silo images that fit it. Images that fit no silo are left out.

    Args:
        fits: Whether each image fits each silo, (images, silos).
        rng: The random numbers of the partition.
        overlap: Whether an image that fits several silos goes to all of them, instead of to one at random.
        max_images: The largest number of images of a silo; None for no limit.
        minimum: The least number of images of a silo; fewer are an error.
    """
    if not overlap:
        owner = np.where(fits, rng.random(fits.shape), -1).argmax(1)
        fits = fits & (owner[:, None] == np.arange(fits.shape[1]))
    parts = [np.sort(rng.permutation(np.flatnonzero(column))[:max_images]) for column in fits.T]
    for silo, part in enumerate(parts):
        if len(part) < minimum:
            raise DataError(f"silo {silo} would have {len(part)} images, fewer than the minimum of {minimum}")
    return parts


class ByAttributes(Partition):
    """Each silo has a group of attributes, and gets images that have at least one of them.

    The partition does not depend on the seed of the run: with other images left out, figures of different seeds could
    not be compared.

    References:
        CollaFuse: Collaborative Diffusion Models, Allmendinger, Zipperling, Struppek, Kuehl, 2024, arXiv 2406.14429
        Deep Learning Face Attributes in the Wild, Liu, Luo, Wang, Tang, 2015, arXiv 1411.7766
    """

    kind: Literal["attributes"] = Field(default="attributes", description="Selects this kind of partition.")
    file: Path = Field(description="The file that says which attributes each image has: CelebA's list, or a CSV.")
    groups: tuple[Annotated[tuple[str, ...], Field(min_length=1)], ...] = Field(
        min_length=1, description="The attributes of each silo, one group of names for each."
    )
    overlap: bool = Field(
        default=False,
        description="Whether an image that fits several silos goes to all of them, instead of to one at random.",
    )
    each: Int | None = Field(
        default=None, ge=1, description="The largest number of images of a silo; None for no limit."
    )

    @model_validator(mode="before")
    @classmethod
    def _a_silo_for_each_group(cls, fields: Any) -> Any:
        groups = fields.get("groups") if isinstance(fields, dict) else None
        return {"silos": len(groups), **fields} if isinstance(groups, list | tuple) and groups else fields

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.silos != len(self.groups):
            raise ValueError(f"silos is {self.silos}, but there are {len(self.groups)} groups of attributes")
        if self.each is not None and self.each < self.minimum:
            raise ValueError(f"each is {self.each}, fewer than the minimum of {self.minimum}")
        return self

    def parts(self, images: Images, rng: np.random.Generator) -> Parts:
        """Distribute the images; see ``by_attributes``."""
        fits = self._of(images, self.groups)
        own = numpy_rng(0, "attributes")
        return by_attributes(fits, own, overlap=self.overlap, max_images=self.each, minimum=self.minimum)

    def known(self, images: Images) -> tuple[tuple[str, ...], np.ndarray]:
        """Return the names of all attributes of the groups, and whether each image has each (images, attributes)."""
        names = tuple(dict.fromkeys(name for group in self.groups for name in group))
        return names, self._of(images, [(name,) for name in names])

    def _of(self, images: Images, groups: Sequence[Sequence[str]]) -> np.ndarray:
        attributes = read_attributes(self.file)
        return rows_of(images, np.stack([attributes.any_of(group) for group in groups], 1), self.file, "rows")
