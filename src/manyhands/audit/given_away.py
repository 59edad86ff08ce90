"""Whether a run gives its images away: judged by what left the silos and, where the images are at hand, by theory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from manyhands.audit.attacks.identity import equidistant
from manyhands.data.images import Images, as_floats, pooled
from manyhands.diffusion.norm_bound import squeezed
from manyhands.formatting import names_text
from manyhands.messages.outgoing import NoisedImages, Picked
from manyhands.messages.outgoing.kinds import CANDIDATES

if TYPE_CHECKING:
    from torch import Tensor

    from manyhands.messages.outgoing import OutgoingData
    from manyhands.silos.silo import Silo


class Candidates:
    """The images of the silos, as far as they are at hand."""

    def __init__(self, silos: Sequence[Silo]) -> None:
        self.silos = silos

    @cached_property
    def images(self) -> Tensor:
        """At most ``CANDIDATES`` images (N, C, H, W), from each silo in proportion."""
        images = pooled([Images(silo.images.stored) for silo in self.silos])
        return as_floats(images.read(slice(None, None, max(len(images) // CANDIDATES, 1)))[:CANDIDATES])

    def picked(self, kind: OutgoingData, count: int) -> Picked | None:
        """Return the share of releases of a silo whose image can be picked out of the candidates, or None if not known.

        Args:
            kind: What left the silo.
            count: The number of images of the silo.
        """
        if not (isinstance(kind, NoisedImages) and self.silos):
            return None
        images = squeezed(self.images, kind.norm) if kind.squeezed else self.images
        return Picked(equidistant(images, 10 ** (-kind.snr_db(count) / 20)), len(images))


def given_away(left: Mapping[str, tuple[int, Sequence[OutgoingData]]], silos: Sequence[Silo] = ()) -> list[str]:
    """The first lines of a report; a line that is not true of all silos names those of which it is."""
    silos_of_line: dict[str, list[str]] = {}
    candidates = Candidates(silos)
    for silo, (count, kinds) in left.items():
        for kind in kinds:
            if line := kind.gives_away(count, candidates.picked(kind, count)):
                silos_of_line.setdefault(line, []).append(silo)
    prefix = {
        line: "" if len(names) == len(left) else f"{names_text(names)}: " for line, names in silos_of_line.items()
    }
    return [f"{prefix[line]}{line}" for line in silos_of_line]
