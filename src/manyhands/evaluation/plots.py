"""Figures of a run: pure functions of arrays, each writes one file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from manyhands.data.images import as_bytes
from manyhands.errors import DataError
from manyhands.files.write import disk_errors

Points = Sequence[tuple[float, float]]
TILE = 64
SMALL = 32
GAP = 4
HEAD = 18
COLOURS = ("tab:blue", "tab:cyan", "tab:orange", "tab:red")
RELEASES = {"one_release": "tab:blue", "all_releases": "tab:orange"}


def grid(path: Path, images: Tensor, headings: Sequence[str] = (), columns: int = 0) -> None:
    """Draw a grid of images under the headings of its columns; small images are enlarged smoothly.

    Args:
        path: The file to write.
        images: Images (N, C, H, W): floats in [-1, 1], or bytes.
        headings: A heading for each column.
        columns: The number of columns; 0 takes that of the headings, or makes the grid about square.
    """
    if images.dim() != 4 or not len(images):
        raise DataError(f"{path}: images are {tuple(images.shape)}, not N x C x H x W")
    columns = columns or len(headings) or math.ceil(len(images) ** 0.5)
    tiles = [_enlarged(picture_of(image), TILE) for image in as_bytes(images)]
    step, top = tiles[0].width + GAP, GAP + (HEAD if headings else 0)
    sheet = Image.new("RGB", (columns * step + GAP, -(-len(tiles) // columns) * step + top), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (GAP + i % columns * step, top + i // columns * step))
    for i, heading in enumerate(headings):
        place = (GAP + i * step + tiles[0].width // 2, top // 2)
        ImageDraw.Draw(sheet).text(place, heading[:10], fill="black", anchor="mm", font_size=13)
    with disk_errors(path):
        sheet.save(path)


def sheet(path: Path, images: Tensor, headings: Sequence[str] = ()) -> None:
    """Draw a grid of small images, for a page that holds many such grids."""
    pictures = [_enlarged(picture_of(image), SMALL) for image in as_bytes(images)]
    columns, side = len(headings) or 8, pictures[0].width
    rows = -(-len(pictures) // columns)
    whole = Image.new(pictures[0].mode, (columns * (side + 1) - 1, rows * (side + 1) - 1), "gray")
    for i, picture in enumerate(pictures):
        whole.paste(picture, (i % columns * (side + 1), i // columns * (side + 1)))
    with disk_errors(path):
        whole.save(path)


def picture_of(image: Tensor) -> Image.Image:
    """One image of bytes (C, H, W) as a Pillow image."""
    array = image.permute(1, 2, 0).numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def _enlarged(picture: Image.Image, side: int) -> Image.Image:
    times = max(1, side // picture.width)
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.BICUBIC)


def partition(path: Path, silos: Sequence[str], counts: np.ndarray) -> None:
    """How many images of each class each silo has."""
    figure, axes = _axes((1.6 + 0.42 * counts.shape[1], 1.2 + 0.28 * min(len(silos), 100)))
    drawn = axes.imshow(counts, aspect="auto", cmap="Blues", vmin=0)
    axes.set(xlabel="class", ylabel="silo", xticks=range(counts.shape[1]))
    if len(silos) <= 30:
        axes.set_yticks(range(len(silos)), silos)
    if counts.size <= 300:
        for (row, column), count in np.ndenumerate(counts):
            dark = count > counts.max() / 2
            axes.text(column, row, f"{count}", ha="center", va="center", color="white" if dark else "black", size=7)
    figure.colorbar(drawn, label="images")
    _save(figure, path)


def losses(path: Path, by_silo: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    """The loss of each silo over the rounds, and the mean of all."""
    figure, axes = _axes((6.4, 3.2))
    every: dict[int, list[float]] = {}
    for points in by_silo.values():
        axes.plot(*zip(*points, strict=True), color="tab:blue", alpha=0.25, lw=1)
        for number, loss in points:
            every.setdefault(number, []).append(loss)
    mean = [(number, float(np.mean(values))) for number, values in sorted(every.items())]
    axes.plot(*zip(*mean, strict=True), color="tab:blue", lw=2, label="mean of the silos")
    axes.set(xlabel="round", ylabel="loss")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    _save(figure, path)


def against(path: Path, lines: Mapping[str, Points], x: str, y: str, floor: float | None = None) -> None:
    """A figure of several runs over what was spent on it."""
    figure, axes = _axes((6.4, 3.8))
    for name, points in lines.items():
        axes.plot(*zip(*points, strict=True), marker="o", ms=4, label=_plain(name))
    if floor is not None:
        axes.axhline(floor, color="0.4", ls="--", lw=1, label="real images")
    axes.set(xlabel=x, ylabel=y, ylim=(min(0, *(value for points in lines.values() for _, value in points)), None))
    axes.legend(frameon=False)
    _save(figure, path)


def silos(path: Path, runs: Mapping[str, Mapping[str, tuple[float, float]]], y: str) -> None:
    """A figure of each silo in each run as bars, with a mark for real images."""
    names = sorted({silo for figures in runs.values() for silo in figures})
    figure, axes = _axes((2 + 0.3 * len(names) * len(runs), 3.8))
    width = 0.8 / len(runs)
    for i, (run, figures) in enumerate(runs.items()):
        places = [names.index(silo) + (i - (len(runs) - 1) / 2) * width for silo in figures]
        axes.bar(places, [value for value, _ in figures.values()], width * 0.9, label=_plain(run))
        axes.scatter(places, [floor for _, floor in figures.values()], marker="_", color="black", s=60, zorder=3)
    axes.set(ylabel=f"{y} (marks: real images)", xticks=range(len(names)))
    axes.set_xticklabels(names, rotation=60 if len(names) > 8 else 0)
    axes.legend(frameon=False)
    _save(figure, path)


def disclosure(path: Path, report: Mapping[str, Any]) -> None:
    """What releases give away over the cut: reconstruction, identification and classes; from one and from all."""
    figure, (explained, identity, label) = _row_of_axes((11, 3.4), 3)
    _compared(explained, report, _best_explained)
    explained.set(ylabel="variance explained, best attack", ylim=(-0.03, 1.03))
    _compared(identity, report, lambda scores: scores["identity"]["top_1"])
    for kind, colour in RELEASES.items():
        known = [(share, scores["identity"]["foretold"]) for share, scores in _over_cuts(report, kind)]
        if known:
            identity.plot(*zip(*known, strict=True), color=colour, ls=":", lw=1.5)
    one_of = report["cuts"][0]["one_release"]["identity"]["candidates"]
    identity.axhline(1 / one_of, color="0.5", ls="--", lw=1)
    identity.set(ylabel=f"right one of {one_of:,} picked (dots: theory)", yscale="log", ylim=(0.5 / one_of, 1.4))
    question = next((name for name in ("class_inference", "attribute_inference") if name in report["floor"]), None)
    if question:
        _compared(label, report, lambda scores: scores[question]["accuracy"])
        for name in (question, f"{question}_of_clean_images"):
            label.axhline(report["floor"][name]["accuracy"]["value"], color="0.5", ls="--", lw=1)
    answers = {"class_inference": "class accuracy", "attribute_inference": "attribute accuracy"}.get(question or "")
    label.set(
        ylabel=f"{answers} (dashes: floor, clean image)" if answers else "not tried: no classes", ylim=(-0.03, 1.03)
    )
    explained.axhline(0, color="0.5", ls="--", lw=1)
    for axes in (explained, identity, label):
        _mark_cuts(axes, report)
    explained.legend(frameon=False, fontsize=8)
    _save(figure, path)


def tradeoff(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Over the cut: the quality of samples, what releases give away, and the work of a silo."""
    figure, (quality, disclosed, work) = _row_of_axes((11, 3.4), 3)
    cuts = [row["cut"] for row in rows]

    def line(axes: Any, name: str, label: str, colour: str) -> None:
        known = [(row["cut"], row[name]) for row in rows if row[name] is not None]
        if known:
            axes.plot(*zip(*known, strict=True), "o-", ms=4, color=colour, label=label)

    line(quality, "fid", "drawn across the cut", "tab:blue")
    deviations = [row["fid_deviation"] or 0.0 for row in rows]
    if any(deviations):
        quality.errorbar(cuts, [row["fid"] for row in rows], deviations, fmt="none", ecolor="tab:blue", capsize=3)
    if (floor := rows[0]["fid_real"]) is not None:
        quality.axhline(floor, color="0.5", ls="--", lw=1, label="real images")
    quality.set(ylabel="FID", ylim=(0, None))
    line(disclosed, "explained", "variance explained", "tab:orange")
    line(disclosed, "picked", f"right one of {rows[0]['of']:,} picked", "tab:red")
    disclosed.set(ylabel="given away by one release", ylim=(-0.03, 1.03))
    line(work, "draw_share", "drawing an image", "tab:green")
    line(work, "train_share", "a step of training", "tab:olive")
    work.set(ylabel="work of a silo (share of the whole)", ylim=(-0.03, None))
    for axes in (quality, disclosed, work):
        axes.set(xlabel="cut (share of the chain at the silo)", xlim=(-0.03, 1.03))
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def timeline(path: Path, bars: Sequence[tuple[str, str, str, float, float]]) -> None:
    """A timeline of one iteration: rows of (party, part, "work" or "wire", start, end), in seconds."""
    rows = list(dict.fromkeys(["server", *sorted(bar[0] for bar in bars if bar[0] != "server")]))
    parts = list(dict.fromkeys(bar[1].split(":")[0] + ": " + bar[1].split()[-1] for bar in bars))
    figure, axes = _axes((9, 1.2 + 0.3 * len(rows)))
    for party, part, kind, start, end in bars:
        colour = COLOURS[parts.index(part.split(":")[0] + ": " + part.split()[-1])]
        axes.barh(
            rows.index(party), end - start, left=start, height=0.7, color=colour, alpha=1 if kind == "work" else 0.35
        )
    for i, part in enumerate(parts):
        axes.barh(0, 0, color=COLOURS[i], label=part)
    axes.barh(0, 0, color="0.75", label="pale: transfer")
    axes.set(xlabel="seconds of one iteration", yticks=range(len(rows)), yticklabels=rows, xlim=(0, None))
    axes.invert_yaxis()
    axes.legend(frameon=False, fontsize=7, ncols=5, loc="lower left", bbox_to_anchor=(0, 1))
    _save(figure, path)


def _compared(axes: Any, report: Mapping[str, Any], figure_of: Callable[[Any], Mapping[str, float]]) -> None:
    """A figure over the cut, with its interval: from one release, and from all of them."""
    names = {"one_release": "one release", "all_releases": f"{report['releases']} with fresh noise"}
    for kind, colour in RELEASES.items():
        if intervals := [(share, figure_of(scores)) for share, scores in _over_cuts(report, kind)]:
            places = [share for share, _ in intervals]
            low, high = ([interval[end] for _, interval in intervals] for end in ("low", "high"))
            axes.plot(
                places, [interval["value"] for _, interval in intervals], "o-", ms=3, color=colour, label=names[kind]
            )
            axes.fill_between(places, low, high, color=colour, alpha=0.2, lw=0)
    axes.set(xlabel="cut (share of the chain at the silo)", xlim=(0, 1))


def _mark_cuts(axes: Any, report: Mapping[str, Any]) -> None:
    """Mark the cuts of the run, and the recommended one."""
    first, recommended = report["cuts"][0], report["recommended"].get("share")
    steps = round(first["cut"] / first["share"])
    for i, cut in enumerate(sorted({release["cut"] for release in report["as_released"]})):
        axes.axvline(cut / steps, color="0.3", lw=1, label=None if i else "cut of this run")
    if recommended is not None:
        axes.axvline(recommended, color="tab:green", lw=1, label="recommended")


def _over_cuts(report: Mapping[str, Any], kind: str) -> list[tuple[float, Any]]:
    return [(cut["share"], cut[kind]) for cut in report["cuts"] if kind in cut]


def _best_explained(scores: Mapping[str, Any]) -> Mapping[str, float]:
    shares = [attack["explained"] for attack in scores["reconstruction"].values()]
    return dict(max(shares, key=lambda share: share["value"]))


def side_by_side(path: Path, pictures: Mapping[str, Path]) -> None:
    """Pictures of several runs in a row, under their names."""
    images = [_opened(picture_path) for picture_path in pictures.values()]
    width = sum(image.width for image in images) + GAP * 4 * (len(images) - 1)
    whole = Image.new("RGB", (width, 2 * HEAD + max(image.height for image in images)), "white")
    left = 0
    for name, image in zip(pictures, images, strict=True):
        whole.paste(image, (left, 2 * HEAD))
        ImageDraw.Draw(whole).text((left + image.width // 2, HEAD), name, fill="black", anchor="mm", font_size=15)
        left += image.width + GAP * 4
    with disk_errors(path):
        whole.save(path)


def _plain(name: str) -> str:
    """Escape dollar signs, between which matplotlib expects mathematics."""
    return name.replace("$", r"\$")


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def clusters(path: Path, places: Mapping[str, tuple[float, float]], kinds: Mapping[str, tuple[str, int]]) -> None:
    """Silos as points: the colour shows the domain, the number beside a point its cluster."""
    figure, axes = _axes((6.4, 4.2))
    for domain in sorted({domain for domain, _ in kinds.values()}):
        members = [silo for silo in places if kinds[silo][0] == domain]
        axes.scatter(*zip(*[places[silo] for silo in members], strict=True), s=36, alpha=0.8, label=_plain(domain))
    for silo, place in places.items():
        axes.annotate(str(kinds[silo][1] + 1), place, (4, 4), textcoords="offset points", fontsize=7)
    axes.set(xlabel="first principal component", ylabel="second")
    axes.legend(frameon=False)
    _save(figure, path)


def _axes(size: tuple[float, float]) -> tuple[Any, Any]:
    figure, axes = _row_of_axes(size, 1)
    return figure, axes[0]


def _row_of_axes(size: tuple[float, float], count: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    figure = Figure(figsize=(min(size[0], 30), min(size[1], 30)), layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _save(figure: Any, path: Path) -> None:
    with disk_errors(path):
        figure.savefig(path, dpi=110)
