"""Summarises what leaves with the operations of a plan: in words, for one silo, and for a report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from manyhands.messages.operation import Operation
from manyhands.messages.outgoing.kinds import IMAGES, LABELS, Labels, NoisedImages, OutgoingData, Statistics, Weights

NO_REASSURANCE = "this is no guarantee: content may be computed from what leaves"
FACT_MEANINGS = {
    "images": "how many images it has",
    "cut": "its cut",
    "loss": "its mean loss",
    "seen": "how many images it saw",
    "flops": "how much work that was",
    "withheld": "why it withholds its update, if it does",
    "count": "how many images it asks for",
}
"""What a fact reveals about a silo, in words; a fact that is not listed is described by its name."""
TECHNICAL_FACTS = frozenset(
    {"round", "chain", "holds", "first", "turn", "to", "seed", "steps", "guidance", "sampler", "clip"}
)
"""Facts that reveal nothing about a silo: they keep messages in order, or say how to sample."""


def collect_outgoing(operations: Iterable[Operation], before: Sequence[OutgoingData] = ()) -> tuple[OutgoingData, ...]:
    """Collect what leaves with these operations, without duplicates; what reveals most comes first."""
    kinds, known = [*before], set(TECHNICAL_FACTS)
    for operation in operations:
        kinds += [replace(kind, often=kind.often or operation.often) for kind in operation.outgoing]
        new = [fact for fact in operation.up.facts if fact not in known]
        kinds += (
            [Statistics(of=tuple(FACT_MEANINGS.get(fact, fact) for fact in new), often=operation.often)] if new else []
        )
        known |= set(new)
    return tuple(sorted(dict.fromkeys(kinds), key=lambda kind: (IMAGES not in kind.exposed(), kind.rank)))


def for_silo(kinds: Iterable[OutgoingData], silo: str) -> tuple[OutgoingData, ...]:
    """Select what leaves this silo; the result names no silo."""
    selected = (kind for kind in kinds if (kind.silo == silo if kind.silo else silo not in kind.except_silos))
    return tuple(replace(kind, silo="", except_silos=()) for kind in selected)


def given_away(kinds: Iterable[OutgoingData], images: int | None = None) -> list[str]:
    """List the warnings that images are given away, without duplicates."""
    lines = ((kind.silo, kind.gives_away(images)) for kind in kinds)
    return list(dict.fromkeys(f"{silo}: {line}" if silo else line for silo, line in lines if line))


def describe(kinds: Iterable[OutgoingData], images: int | None = None) -> Iterator[str]:
    """Describe each of them in one line."""
    for kind in kinds:
        silo = f" {kind.silo}" if kind.silo else f" all but {', '.join(kind.except_silos)}" if kind.except_silos else ""
        computed, guarantee = kind.computed(images), kind.guarantee(images)
        yield f"leaves{silo} ({kind.often}): {kind.description}. From it: {computed}. Proven guarantee: {guarantee}"


def never_sent(kinds: Sequence[OutgoingData]) -> tuple[str, ...]:
    """List what no message contains and the server cannot compute."""
    exposed = {name for kind in kinds for name in kind.exposed()}
    noised = any(isinstance(kind, NoisedImages) for kind in kinds)
    weights = [kind for kind in kinds if isinstance(kind, Weights)]
    withheld = {
        "images that are not noised" if noised else "images": IMAGES not in exposed,
        "labels": LABELS not in exposed and not any(isinstance(kind, Labels) for kind in kinds),
        "weights": not weights,
        **{f"weights of the {part}": True for kind in weights for part in kind.kept},
        "file names": True,
    }
    return tuple(name for name, stays in withheld.items() if stays)


def rows(silos: Mapping[str, tuple[int, Sequence[OutgoingData]]]) -> list[dict[str, Any]]:
    """List what left the silos, for a report; silos of which the same is said share a row.

    Args:
        silos: The number of images of each silo, and what left it.
    """
    heads = ("what", "often", "computed", "guarantee")
    silos_of: dict[tuple[str, ...], list[str]] = {}
    for silo, (images, kinds) in silos.items():
        for kind in kinds:
            row = (kind.description, kind.often, kind.computed(images), kind.guarantee(images))
            silos_of.setdefault(row, []).append(silo)
    return [dict(zip(heads, row, strict=True)) | {"silos": names} for row, names in silos_of.items()]
