"""The contents of report.json when a run has ended, and a picture of samples."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import is_dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from manyhands.audit.given_away import given_away
from manyhands.data.images import as_floats
from manyhands.data.partition.base import class_counts
from manyhands.evaluation.features import fingerprint
from manyhands.messages.outgoing.summary import rows
from manyhands.models.autoencoder import TrainedAutoencoder
from manyhands.report import clusters, page
from manyhands.runs.citation import citations
from manyhands.silos.memory import peak_memory

if TYPE_CHECKING:
    from torch import Tensor

    from manyhands.diffusion.sampling import Sampling
    from manyhands.evaluation.spec import Evaluation
    from manyhands.generators.base import ImageGenerator
    from manyhands.generators.load import TrainedModel
    from manyhands.messages.ledger import Ledger
    from manyhands.methods.base import Method
    from manyhands.methods.server import Server
    from manyhands.runs.round import Round
    from manyhands.runs.run_folder import RunFolder
    from manyhands.silos.silo import Silo


class RunSummary(NamedTuple):
    """What is known of a run, in one process as between sites.

    Args:
        method: How the silos trained.
        server: The server, with its final state.
        ledger: The bytes of training.
        roster: The silos, with their numbers of images.
        sampling: How a diffusion model draws.
        evaluation: What is drawn and measured.
    """

    method: Method
    server: Server
    ledger: Ledger
    roster: dict[str, int]
    sampling: Sampling
    evaluation: Evaluation


def build_report(
    run: RunSummary, folder: RunFolder, trained: TrainedModel | None, images: dict[str, Any], silos: Sequence[Silo] = ()
) -> dict[str, Any]:
    """The keys of report.json that every run has, evaluated or not; ``images`` are those of ``images_of``."""
    rounds, ledger, roster, method = folder.rounds, run.ledger, run.roster, run.method
    plan = method.plan()
    outgoing = {silo: (count, plan.outgoing_of(silo)) for silo, count in roster.items()}
    return {
        "method": method.model_dump()["kind"],
        "silos": roster,
        "rounds": len(rounds),
        "seconds": sum(closed_round.seconds for closed_round in rounds),
        "images_seen": sum(closed_round.images_seen + closed_round.server_images_seen for closed_round in rounds),
        "parameters": sum(t.numel() for t in trained.weights.values()) if trained else 0,
        "bytes_up": ledger.bytes("up"),
        "bytes_down": ledger.bytes("down"),
        "flops_silos": {silo: sum(closed_round.flops.get(silo, 0) for closed_round in rounds) for silo in roster},
        "flops_server": sum(closed_round.server_flops for closed_round in rounds),
        "peak_memory": peak_memory(),
        "metrics": {"loss": _loss(rounds)},
        "floor": {},
        **images,
        "operations": {
            name: {"description": operation.description, "often": operation.often, "facts": list(operation.up.facts)}
            for name, operation in plan.operations.items()
        },
        "leaves": rows(outgoing),
        "gives_away": given_away(outgoing, silos),
        "never_sent": list(plan.never_sent),
        "cost_lines": method.cost_lines(len(roster), run.sampling),
        "costs": {silo: costs for silo, count in roster.items() if (costs := method.costs(silo, count, run.sampling))},
        "pooled": method.pools_images,
        "own_models": run.server.generator() is None,
        "papers": citations(method, run.sampling, run.evaluation),
        "clusters": clusters.build_section(rounds, images["domains"]),
        "problems": folder.problems,
        "versions": page.versions(),
    }


def data_of(silos: Sequence[Silo]) -> str:
    """The first 16 letters of the hash of all images, in the order of the silos."""
    return fingerprint(*(part for silo in silos for part in (silo.images, silo.held_out) if part is not None))


def measured(verdict: dict[str, Any], rounds: Sequence[Round]) -> dict[str, Any]:
    """The keys of report.json that an evaluation gives."""
    return {
        "metrics": {"loss": _loss(rounds), **verdict["metrics"]},
        "floor": verdict["floor"],
        "evaluation": {name: value for name, value in verdict.items() if name not in ("metrics", "floor")},
    }


def picture(generator: ImageGenerator, rows: int, known: Sequence[int]) -> tuple[Tensor, tuple[str, ...]]:
    """Samples (rows * columns, C, H, W) and headings: a column for each known class, at most 10; else 8 columns.

    Args:
        generator: The generator that draws.
        rows: The number of rows.
        known: The classes that may be shown.
    """
    columns = list(known)[:10] if generator.model.classes else [0] * 8
    labels = [columns[i % len(columns)] for i in range(rows * len(columns))]
    headings = tuple(generator.classes[label] for label in columns) if generator.model.classes else ()
    return generator.sample(labels=labels), headings


def before_and_after(autoencoder: TrainedAutoencoder, silo: Silo, rows: int) -> tuple[Tensor, tuple[str, ...]]:
    """Images of a silo (8 * rows, C, H, W), each followed by its reconstruction, and headings."""
    images = as_floats((silo.held_out or silo.images).read(slice(4 * rows)))
    return torch.stack([images, autoencoder.reconstruct(images)], 1).flatten(0, 1), ("image", "decoded") * 4


def _domain_of(silo: Silo) -> str:
    """The domain of most of a silo's images; empty where there are no domains."""
    images = silo.images
    return "" if images.domain is None else images.domains[int(images.domain.mode().values)]


def _loss(rounds: Sequence[Round]) -> float | None:
    return rounds[-1].loss if rounds and not math.isnan(rounds[-1].loss) else None


def prepare_for_sampling(
    trained: TrainedModel, sampling: Sampling, classes: tuple[str, ...], device: str
) -> TrainedModel:
    """Return a trained model with everything that sampling needs."""
    if isinstance(trained, TrainedAutoencoder):
        return replace(trained, device=device)
    if is_dataclass(trained):
        return replace(trained, sampling=sampling, classes=classes, device=device)
    ready = copy.copy(trained)
    ready.sampling, ready.classes, ready.device = sampling, classes, device
    return ready


def images_of(silos: Sequence[Silo], skipped: Sequence[str]) -> dict[str, Any]:
    """The images of the silos, in numbers, for the report."""
    counts = class_counts([silo.images for silo in silos])
    return {
        "data": data_of(silos),
        "domains": {silo.name: domain for silo in silos if (domain := _domain_of(silo))},
        "held_out_counts": {silo.name: len(silo.held_out or ()) for silo in silos},
        "classes": list(silos[0].images.classes),
        "class_counts": {silo.name: row for silo, row in zip(silos, counts.tolist(), strict=True)},
        "skipped": list(skipped),
    }
