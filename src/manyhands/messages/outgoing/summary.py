"""What leaves by the operations of a plan: for a person, for a silo, for a report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from manyhands.messages.operation import Operation
from manyhands.messages.outgoing.kinds import IMAGES, LABELS, Labels, NoisedImages, OutgoingData, Statistics, Weights

NO_REASSURANCE = "this says nothing about what can be computed from what leaves"
FACT_MEANINGS = {
    "images": "how many images it has",
    "cut": "its cut",
    "loss": "its mean loss",
    "seen": "how many images it saw",
    "flops": "how much work that was",
    "withheld": "why it withholds what it was to send",
    "numbers": "how many numbers its latents are",
    "sum": "the sum of its latents",
    "squares": "that of their squares",
    "count": "how many images it asks for",
}
"""What facts say of a silo; one that is not here is told by its own name."""
TECHNICAL_FACTS = frozenset(
    {"round", "chain", "holds", "first", "turn", "to", "seed", "steps", "guidance", "sampler", "clip"}
)
"""Facts that keep a conversation in order, or say how something is to be drawn."""


def collect_outgoing(operations: Iterable[Operation], before: Sequence[OutgoingData] = ()) -> tuple[OutgoingData, ...]:
    """Every kind of thing that leaves by these operations, each once; what gives most away comes first."""
    kinds, known = [*before], set(TECHNICAL_FACTS)
    for operation in operations:
        kinds += [replace(kind, often=kind.often or operation.often) for kind in operation.outgoing]
        anew = [fact for fact in operation.up.facts if fact not in known]
        kinds += (
            [Statistics(of=tuple(FACT_MEANINGS.get(fact, fact) for fact in anew), often=operation.often)]
            if anew
            else []
        )
        known |= set(anew)
    return tuple(sorted(dict.fromkeys(kinds), key=lambda kind: (IMAGES not in kind.exposed(), kind.rank)))


def for_silo(kinds: Iterable[OutgoingData], silo: str) -> tuple[OutgoingData, ...]:
    """Those kinds that leave this silo; they name none."""
    mine = (kind for kind in kinds if (kind.silo == silo if kind.silo else silo not in kind.except_silos))
    return tuple(replace(kind, silo="", except_silos=()) for kind in mine)


def given_away(kinds: Iterable[OutgoingData], images: int | None = None) -> list[str]:
    """What is to be said of them before anything else, each thing once."""
    lines = ((kind.silo, kind.gives_away(images)) for kind in kinds)
    return list(dict.fromkeys(f"{silo}: {line}" if silo else line for silo, line in lines if line))


def describe(kinds: Iterable[OutgoingData], images: int | None = None) -> Iterator[str]:
    """A line for each of them."""
    for kind in kinds:
        silo = f" {kind.silo}" if kind.silo else f" all but {', '.join(kind.except_silos)}" if kind.except_silos else ""
        computed, guarantee = kind.computed(images), kind.guarantee(images)
        yield f"leaves{silo} ({kind.often}): {kind.description}. From it: {computed}; {guarantee}"


def never_sent(kinds: Sequence[OutgoingData]) -> tuple[str, ...]:
    """What no message has a place for, but for what can be computed all the same."""
    opened = {name for kind in kinds for name in kind.exposed()}
    noised = any(isinstance(kind, NoisedImages) for kind in kinds)
    weights = [kind for kind in kinds if isinstance(kind, Weights)]
    told = {
        "images that are not noised" if noised else "images": IMAGES not in opened,
        "labels": LABELS not in opened and not any(isinstance(kind, Labels) for kind in kinds),
        "weights": not weights,
        **{f"weights of the {part}": True for kind in weights for part in kind.kept},
        "file names": True,
    }
    return tuple(name for name, stays in told.items() if stays)


def rows(silos: Mapping[str, tuple[int, Sequence[OutgoingData]]]) -> list[dict[str, Any]]:
    """What left each silo of so many images, for a report; silos of which the same is told stand together."""
    heads = ("what", "often", "computed", "guarantee")
    found: dict[tuple[str, ...], list[str]] = {}
    for silo, (images, kinds) in silos.items():
        for kind in kinds:
            told = (kind.description, kind.often, kind.computed(images), kind.guarantee(images))
            found.setdefault(told, []).append(silo)
    return [dict(zip(heads, told, strict=True)) | {"silos": mine} for told, mine in found.items()]
