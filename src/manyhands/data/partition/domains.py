"""A source for each silo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from manyhands.data.images import Images
from manyhands.data.partition.base import (
    Partition,
    Parts,
    domain_of,
    top_up,
)
from manyhands.errors import DataError
from manyhands.spec import Int


def domains(domain: np.ndarray, silos: int, rng: np.random.Generator, minimum: int = 1) -> Parts:
    """Each silo has images of one source only; a source with several silos deals them equal shares."""
    sources = np.unique(domain)
    if silos % len(sources):
        raise DataError(f"{silos} silos cannot be shared evenly by {len(sources)} sources")
    parts: Parts = []
    for source in sources:
        members = rng.permutation(np.flatnonzero(domain == source))
        parts += top_up(np.array_split(members, silos // len(sources)), rng, minimum)
    return parts


class Domains(Partition):
    """Each silo has one of the sources under [data.domains], and its name; without ``silos`` there is one of each."""

    kind: Literal["domains"] = "domains"
    silos: Int = Field(default=0, ge=0, le=100_000)

    def parts(self, images: Images, rng: np.random.Generator) -> Parts:
        """See ``domains``."""
        if images.domain is None:
            raise DataError("partition 'domains' needs several sources, under [data.domains.<name>]")
        if not (self.silos or images.domains):
            raise DataError("the domains of these images have no names: say how many silos there are")
        return domains(domain_of(images), self.silos or len(images.domains), rng, self.minimum)

    def names(self, domains: Sequence[str] = ()) -> list[str]:
        """As ever, with one silo a domain where it is not said how many."""
        return super().names(domains) if self.silos else list(domains)
