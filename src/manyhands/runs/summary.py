"""What a run tells of itself when it has ended: the facts of its report, and a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from manyhands.audit.given_away import given_away
from manyhands.data.images import as_floats
from manyhands.data.partition import class_counts
from manyhands.evaluation.features import fingerprint
from manyhands.messages.outgoing.summary import rows
from manyhands.models.autoencoder import TrainedAutoencoder
from manyhands.report import clusters, page
from manyhands.runs.citation import citations
from manyhands.silos.memory import peak_memory

if TYPE_CHECKING:
    from torch import Tensor

    from manyhands.diffusion.sample import Sampling
    from manyhands.evaluation.evaluator import Evaluation
    from manyhands.generators.base import ImageGenerator
    from manyhands.messages.ledger import Ledger
    from manyhands.methods.base import Method, Server, TrainedModel
    from manyhands.runs.run_folder import Round, RunFolder
    from manyhands.silos.silo import Silo


class RunSummary(NamedTuple):
    """What is known of a run wherever it is."""

    method: Method
    server: Server
    ledger: Ledger
    roster: dict[str, int]
    sampling: Sampling
    evaluation: Evaluation


def facts(
    told: RunSummary, folder: RunFolder, drawn: TrainedModel | None, images: dict[str, Any], silos: Sequence[Silo] = ()
) -> dict[str, Any]:
    """What report.json has of every run, evaluated or not; ``images`` is what is known of those of the silos."""
    rounds, ledger, roster, method = folder.rounds, told.ledger, told.roster, told.method
    plan = method.plan()
    left = {silo: (count, plan.outgoing_of(silo)) for silo, count in roster.items()}
    return {
        "method": method.model_dump()["kind"],
        "silos": roster,
        "rounds": len(rounds),
        "seconds": sum(done.seconds for done in rounds),
        "images_seen": sum(done.images + done.server_images for done in rounds),
        "parameters": sum(t.numel() for t in drawn.weights.values()) if drawn else 0,
        "bytes_up": ledger.bytes("up"),
        "bytes_down": ledger.bytes("down"),
        "flops_silos": {silo: sum(done.flops.get(silo, 0) for done in rounds) for silo in roster},
        "flops_server": sum(done.server_flops for done in rounds),
        "peak_memory": peak_memory(),
        "metrics": {"loss": _loss(rounds)},
        "floor": {},
        **images,
        "operations": {
            name: {"says": each.description, "often": each.often, "tells": list(each.up.facts)}
            for name, each in plan.operations.items()
        },
        "leaves": rows(left),
        "gives_away": given_away(left, silos),
        "never": list(plan.never_sent),
        "sizes": method.cost_lines(len(roster), told.sampling),
        "costs": {silo: costs for silo, count in roster.items() if (costs := method.costs(silo, count, told.sampling))},
        "pooled": method.pools,
        "own": told.server.generator() is None,
        "papers": citations(method, told.sampling, told.evaluation),
        "clusters": clusters.facts(rounds, images["domains"]),
        "problems": folder.problems,
        "versions": page.versions(),
    }


def data_of(silos: Sequence[Silo]) -> str:
    """The first letters of the hash of all images, as they were dealt."""
    return fingerprint(*(part for silo in silos for part in (silo.images, silo.held_out) if part is not None))


def measured(verdict: dict[str, Any], rounds: Sequence[Round]) -> dict[str, Any]:
    """A verdict as report.json has it."""
    return {
        "metrics": {"loss": _loss(rounds), **verdict["metrics"]},
        "floor": verdict["floor"],
        "evaluation": {name: value for name, value in verdict.items() if name not in ("metrics", "floor")},
    }


def picture(generator: ImageGenerator, rows: int, known: Sequence[int]) -> tuple[Tensor, tuple[str, ...]]:
    """Rows of images with a column for each of the known classes, ten at most; eight columns where there are none."""
    columns = list(known)[:10] if generator.model.classes else [0] * 8
    labels = [columns[i % len(columns)] for i in range(rows * len(columns))]
    headings = tuple(generator.classes[label] for label in columns) if generator.model.classes else ()
    return generator.sample(labels=labels), headings


def before_and_after(autoencoder: TrainedAutoencoder, silo: Silo, rows: int) -> tuple[Tensor, tuple[str, ...]]:
    """Rows of a silo's images, and beside each what the autoencoder makes of it."""
    images = as_floats((silo.held_out or silo.images).pixels[: 4 * rows])
    return torch.stack([images, autoencoder.reconstruct(images)], 1).flatten(0, 1), ("image", "back") * 4


def _domain_of(silo: Silo) -> str:
    """The domain that most of its images are of, where there are several."""
    images = silo.images
    return "" if images.domain is None else images.domains[int(images.domain.mode().values)]


def _loss(rounds: Sequence[Round]) -> float | None:
    return rounds[-1].loss if rounds and not math.isnan(rounds[-1].loss) else None


def ready(trained: TrainedModel, sampling: Sampling, classes: tuple[str, ...], device: str) -> TrainedModel:
    """What was trained, with all that is needed to draw from it."""
    if isinstance(trained, TrainedAutoencoder):
        return replace(trained, device=device)
    return replace(trained, sampling=sampling, classes=classes, device=device)


def images_of(silos: Sequence[Silo], skipped: Sequence[str]) -> dict[str, Any]:
    """What silos hold, for a reader who has only the report."""
    counts = class_counts([silo.images for silo in silos])
    return {
        "data": data_of(silos),
        "domains": {silo.name: domain for silo in silos if (domain := _domain_of(silo))},
        "held_out": {silo.name: len(silo.held_out or ()) for silo in silos},
        "classes": list(silos[0].images.classes),
        "class_counts": {silo.name: row for silo, row in zip(silos, counts.tolist(), strict=True)},
        "skipped": list(skipped),
    }
