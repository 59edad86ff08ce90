"""The report of a run, made from its folder: one HTML file that opens from disk and loads nothing over the network."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from manyhands import __version__
from manyhands.errors import RunFolderError
from manyhands.evaluation import plots
from manyhands.files.write import disk_errors
from manyhands.formatting import TextTable, count_text, number_text, size_text
from manyhands.report import clusters, disclosure, outgoing, quality, silos
from manyhands.report.parts import Card, Picture, fields, picture
from manyhands.report.render import render

if TYPE_CHECKING:
    from manyhands.report.charts import Curves
    from manyhands.report.clusters import Clusters
    from manyhands.report.disclosure import Disclosure
    from manyhands.report.outgoing import Outgoing
    from manyhands.report.quality import AllFigures, Quality, QualityByRound
    from manyhands.report.silos import Holdings, Silos
    from manyhands.runs.round import Round
    from manyhands.runs.run_folder import RunFolder

MAX_PICTURES, MAX_PICTURE_BYTES = 25, 1_200_000


@dataclass(frozen=True)
class Story:
    """The run in one sentence: who trained what, on how much, and what it sent.

    Args:
        method: The kind of the method.
        rounds: How many rounds, with the noun.
        silos: How many silos, with the noun.
        images: How many training images.
        parameters: How many parameters a model has.
        sent: The bytes that the silos sent.
        received: The bytes that the silos received.
        own: Whether each silo has a model of its own.
        pooled: Whether all images were in one place.
    """

    method: str
    rounds: str
    silos: str
    images: str
    parameters: str
    sent: str
    received: str
    own: bool
    pooled: bool


@dataclass(frozen=True)
class Samples:
    """Pictures of samples, and the round of each; without rounds, the one picture is of the trained model.

    Args:
        pictures: The pictures, in the order of the rounds.
        rounds: The round of each picture.
    """

    pictures: Sequence[Picture]
    rounds: Sequence[int] = ()


@dataclass(frozen=True)
class RecipeSection:
    """The recipe, the versions with which it ran, and the papers to cite.

    Args:
        fields: The fields of the recipe.
        versions: The versions, in words.
        papers: The papers to cite.
    """

    fields: TextTable
    versions: str
    papers: Sequence[str]


@dataclass(frozen=True)
class PageContent:
    """What the page shows, section by section, for ``templates/page.html``; None where a run has no such section.

    Args:
        title: The name of the run.
        gives_away: Sentences on images that the run gives away.
        story: The run in one sentence.
        quality: The most important figures.
        costs: What the run cost.
        warnings: What went wrong, a line each.
        samples: Samples over rounds.
        progress: FID over rounds.
        training: The loss over rounds.
        silos: A row for each silo.
        clusters: Which silos were clustered together.
        groups: The figures of classes and of domains, with a heading each.
        holdings: Who holds what.
        outgoing: What left the silos.
        disclosure: The results of attacks.
        figures: Every figure, with its protocol.
        recipe: The recipe, versions and papers.
    """

    title: str
    gives_away: Sequence[str]
    story: Story
    quality: Quality | None
    costs: Sequence[Card]
    warnings: Sequence[str]
    samples: Samples | None
    progress: QualityByRound | None
    training: Curves | None
    silos: Silos
    clusters: Clusters | None
    groups: Sequence[tuple[str, TextTable]]
    holdings: Holdings | None
    outgoing: Outgoing
    disclosure: Disclosure | None
    figures: AllFigures | None
    recipe: RecipeSection


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries."""
    names = ("torch", "diffusers", "torchmetrics", "numpy")
    return {"python": platform.python_version(), "manyhands": __version__, **{name: version(name) for name in names}}


def write(folder: RunFolder, report: dict[str, Any]) -> None:
    """Write report.json and report.html, or neither of them where a fact is missing.

    The page shows the facts together with the journal, the ledger and the pictures of the folder.
    """
    try:
        html = page(folder, report)
    except KeyError as missing:
        raise RunFolderError(
            f"{folder.path}/report.json: was written by another version: it has no {missing}"
        ) from None
    by_silo = silos.losses(folder.rounds)
    if by_silo:
        with disk_errors(folder.figures):
            folder.figures.mkdir(exist_ok=True)
        plots.losses(folder.figures / "loss.png", by_silo)
    folder.write("report.html", html)
    folder.write("report.json", report)


def page(folder: RunFolder, report: Mapping[str, Any]) -> str:
    """The HTML of the page."""
    return render("page.html", page=content(folder, report))


def content(folder: RunFolder, report: Mapping[str, Any]) -> PageContent:
    """What the page shows."""
    recipe, rounds, ledger = folder.recipe, folder.rounds, folder.ledger
    return PageContent(
        title=recipe.get("name", "run"),
        gives_away=report["gives_away"],
        story=_story(report),
        quality=quality.quality(report),
        costs=_costs(report),
        warnings=_warnings(report, rounds),
        samples=_samples(folder),
        progress=quality.by_round(report, rounds),
        training=silos.training(rounds),
        silos=silos.silos(report, rounds, ledger),
        clusters=clusters.content(report, folder.figures / "clusters.png"),
        groups=quality.by_group(report),
        holdings=silos.holdings(report, folder),
        outgoing=outgoing.outgoing(report, ledger),
        disclosure=disclosure.content(report.get("disclosure"), folder.figures / "disclosure.png"),
        figures=quality.all_figures(report),
        recipe=RecipeSection(
            fields(recipe), ", ".join(f"{name} {value}" for name, value in report["versions"].items()), report["papers"]
        ),
    )


def _story(report: Mapping[str, Any]) -> Story:
    return Story(
        method=report["method"],
        rounds=_counted(report["rounds"], "round"),
        silos=_counted(len(report["silos"]), "silo"),
        images=f"{sum(report['silos'].values()):,}",
        parameters=f"{report['parameters']:,}",
        sent=size_text(report["bytes_up"]),
        received=size_text(report["bytes_down"]),
        own=report["own_models"],
        pooled=report["pooled"],
    )


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _costs(report: Mapping[str, Any]) -> list[Card]:
    count = max(len(report["silos"]), 1)
    return [
        Card("sent by a silo (mean)", size_text(report["bytes_up"] / count)),
        Card("received by a silo (mean)", size_text(report["bytes_down"] / count)),
        Card("work of a silo (mean), FLOP", count_text(sum(report["flops_silos"].values()) / count)),
        Card("work of the server, FLOP", count_text(report["flops_server"])),
        Card("training time, seconds", number_text(report["seconds"])),
        Card("peak memory, evaluation included", size_text(report["peak_memory"])),
    ]


def _warnings(report: Mapping[str, Any], rounds: Sequence[Round]) -> list[str]:
    missing = [
        f"round {closed_round.number + 1}: {silo}: {why}"
        for closed_round in rounds
        for silo, why in closed_round.missing.items()
    ]
    skipped = [f"skipped: {name}" for name in report["skipped"]]
    return [*report.get("evaluation", {}).get("notes", []), *report["problems"], *skipped, *missing]


def _samples(folder: RunFolder) -> Samples | None:
    """The samples after a choice of rounds; where there are fewer than two, those of the trained model."""
    paths, last = sorted((folder.figures / "rounds").glob("*.png")), folder.figures / "samples.png"
    if len(paths) < 2:
        return Samples([picture(last, "Samples of the trained model.")]) if last.exists() else None
    largest = max(path.stat().st_size for path in paths)
    count = max(2, min(len(paths), MAX_PICTURES, MAX_PICTURE_BYTES // largest))
    chosen = [paths[round(i * (len(paths) - 1) / (count - 1))] for i in range(count)]
    rounds = [int(path.stem) for path in chosen]
    pictures = [picture(path, f"samples after round {at}") for path, at in zip(chosen, rounds, strict=True)]
    return Samples(pictures, rounds)
