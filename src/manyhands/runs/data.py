"""The [data] table of a recipe: where the images come from, and what is common to them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from manyhands.data.arrays import MAX_CLASSES
from manyhands.data.ids import check_sides, hash_ids, read_ids
from manyhands.data.images import Images, join
from manyhands.data.partition.base import rows_of
from manyhands.data.sources.base import AnySource, Source
from manyhands.errors import DataError
from manyhands.seed import numpy_rng
from manyhands.silos.silo import NAME_RULE, is_name
from manyhands.spec import Float, Int, Spec


class Data(Spec):
    """The images: where they come from, and their common size and channels.

    Which images are kept by ``limit`` and held out by ``held_out`` is random, but does not depend on the run's seed.
    """

    size: Int = Field(ge=4, le=1024, description="The width and height in pixels to which all images are brought.")
    channels: Literal[1, 3] = Field(default=1, description="1 for grey images, 3 for RGB.")
    source: AnySource | None = Field(
        default=None, description="Where the images come from; None where domains are given instead."
    )
    domains: dict[str, AnySource] = Field(
        default_factory=dict,
        description="A source for each domain, by the name of the domain, which is also the name of its silo.",
    )
    classes: tuple[str, ...] | None = Field(
        default=None,
        description="The names of the classes, or their number; 0 means that the images have no labels, None takes the "
        "classes of the source.",
    )
    limit: Int | None = Field(
        default=None, ge=1, description="Keep only this many images, chosen at random; None keeps all."
    )
    origin: str = Field(
        default="", description="How to obtain the images: a text for the error message where they are missing."
    )
    test: AnySource | None = Field(
        default=None,
        description="A source of test images, which no silo trains on; None holds out a share of the images instead.",
    )
    held_out: Float = Field(
        default=0.2,
        ge=0,
        lt=1,
        description="The share of the images that no silo trains on, where there is no test source; they are used for "
        "evaluation and audits. Of images with ids, whole ids are held out.",
    )
    ids: Path | None = Field(
        default=None,
        description="A file with the id of each image of the source, such as its patient, where the source has none: "
        "an idx file, or a text or CSV file with one line for each image. Whole ids are held out.",
    )
    ids_column: Int = Field(default=0, ge=0, description="The column of that file, counted from 0.")

    @model_validator(mode="before")
    @classmethod
    def _number_of_classes(cls, fields: Any) -> Any:
        if isinstance(fields, dict):
            fields = dict(fields)
            count = fields.get("classes")
            if isinstance(count, int) and not isinstance(count, bool) and 0 <= count <= MAX_CLASSES:
                fields["classes"] = tuple(map(str, range(count)))
        return fields

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes names a class twice: {', '.join(self.classes)}")
        if (self.source is None) == (not self.domains):
            raise ValueError("either source or domains is expected, and not both")
        if self.test is not None and self.source is None:
            raise ValueError("test is for a single source; with domains, a share of each is held out")
        if self.ids is not None and self.source is None:
            raise ValueError("ids is for a single source; with domains, each source names its own ids")
        if bad_names := [name for name in self.domains if not is_name(name)]:
            raise ValueError(f"domain {bad_names[0]!r} gives its silo its name: {NAME_RULE}")
        return self

    @property
    def sources(self) -> list[Source]:
        """The source, or those of the domains in the order of their names."""
        return [self.source] if self.source is not None else [self.domains[name] for name in sorted(self.domains)]

    def known_classes(self) -> tuple[str, ...]:
        """The names of the classes, as declared or as the sources give them."""
        return self.classes if self.classes is not None else max((s.classes() for s in self.sources), key=len)

    def load(self) -> Images:
        """Load all images in the declared size; those that are held out are marked."""
        try:
            return self._loaded()
        except DataError as error:
            raise DataError(f"{error}; to obtain the images: {self.origin}" if self.origin else str(error)) from None

    def _loaded(self) -> Images:
        classes = self.known_classes()
        parts = [self._read(source, classes) for source in self.sources]
        if any(part.held is not None for part in parts):
            parts = [part if part.held is not None else part.hold_out(self.held_out) for part in parts]
        images = self._with_ids(parts[0]) if self.source is not None else join(parts, sorted(self.domains))
        if self.limit is not None and self.limit < len(images):
            images = images.subset(np.sort(numpy_rng(0, "limit").permutation(len(images))[: self.limit]))
        if self.test is None:
            return images if images.held is not None else images.hold_out(self.held_out)
        test = self._read(self.test, classes)
        all_images = join([images, test])
        held = torch.arange(len(all_images)) >= len(images)
        if all_images.ids is not None:
            check_sides(all_images.ids, held, "data.test")
        return replace(all_images, domain=None, held=held)

    def _with_ids(self, images: Images) -> Images:
        """The images with the ids of the file that the recipe names."""
        if self.ids is None:
            return images
        table = rows_of(images, read_ids(self.ids, self.ids_column), self.ids, "ids")
        return replace(images, ids=hash_ids(map(str, table.tolist())))

    def _read(self, source: Source, classes: tuple[str, ...]) -> Images:
        """The images of a source, which may be of another package."""
        images = source.load(self.size, self.channels, classes)
        if not isinstance(images, Images):
            raise DataError(f"source {source.kind!r}: load returned {type(images).__name__}, Images are expected")
        shape, expected = tuple(images.shape[1:]), (self.channels, self.size, self.size)
        if shape != expected:
            raise DataError(f"source {source.kind!r}: load returned images of {shape}, {expected} is expected")
        if images.labels is not None and images.classes != classes:
            raise DataError(f"source {source.kind!r}: load returned the classes {images.classes}, not {classes}")
        return images
