"""One source of images for each silo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from manyhands.data.images import Images
from manyhands.data.partition.base import (
    NEED_EACH_OTHER,
    Partition,
    Parts,
    domain_of,
    top_up,
)
from manyhands.errors import DataError
from manyhands.spec import Int


def domains(domain: np.ndarray, silos: int, rng: np.random.Generator, minimum: int = 1) -> Parts:
    """Give each silo images of one source only; several silos of a source have random shares of equal size."""
    sources = np.unique(domain)
    if silos % len(sources):
        raise DataError(f"{silos} silos cannot be divided evenly among {len(sources)} sources")
    parts: Parts = []
    for source in sources:
        members = rng.permutation(np.flatnonzero(domain == source))
        parts += top_up(np.array_split(members, silos // len(sources)), rng, minimum)
    return parts


class Domains(Partition):
    """Each silo has the images of one of the sources under [data.domains], and its name."""

    kind: Literal["domains"] = Field(default="domains", description="Selects this kind of partition.")
    silos: Int = Field(default=0, ge=0, le=100_000, description="The number of silos; 0 for one silo for each source.")

    def parts(self, images: Images, rng: np.random.Generator) -> Parts:
        """Distribute the images; see ``domains``."""
        if images.domain is None:
            raise DataError("partition 'domains' needs several sources, under [data.domains.<name>]")
        if not (self.silos or images.domains):
            raise DataError("the domains of these images have no names: set the number of silos")
        return domains(domain_of(images), self.silos or len(images.domains), rng, self.minimum)

    def check_data(self, domains: Sequence[str], *, labelled: bool) -> None:
        """Check that there are domains."""
        if not domains:
            raise ValueError(NEED_EACH_OTHER)

    def names(self, domains: Sequence[str] = ()) -> list[str]:
        """Return the names of the silos, as in ``Partition.names``; without ``silos``, the names of the domains."""
        return super().names(domains) if self.silos else list(domains)
