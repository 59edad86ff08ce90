"""The report of a run, made from its folder: one HTML file that opens from disk and loads nothing over the network."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from manyhands import __version__
from manyhands.errors import RunFolderError
from manyhands.evaluation import figures, verdict
from manyhands.evaluation.evaluator import AT_ONCE
from manyhands.files.write import disk_errors
from manyhands.formatting import count_text, names_text, size_text
from manyhands.messages.outgoing.summary import NO_REASSURANCE
from manyhands.report import charts, clusters, collafuse_audit
from manyhands.report.charts import Line
from manyhands.report.markup import flat, number, picture, style, table, text

if TYPE_CHECKING:
    from manyhands.runs.run_folder import Round, RunFolder

MAX_CELLS, MAX_PICTURES, MAX_PICTURE_BYTES = 3000, 25, 1_200_000
NAMES = {
    "fid": "FID", "kid": "KID", "precision": "precision", "recall": "recall", "density": "density",
    "coverage": "coverage", "inception_score": "Inception score", "generation_score": "generation score",
    "label_match": "asked class recognised", "mifid": "MIFID", "memorised": "memorised", "cas": "CAS accuracy",
    "cas_precision": "CAS precision", "cas_recall": "CAS recall", "cas_f1": "CAS F1", "cas_fpr": "CAS false positives",
}  # fmt: skip
"""The figures in the order in which they are shown, with the names that people read."""
HEADLINES = ("fid", "kid", "coverage", "label_match", "cas", "memorised")
FEW = "Each silo is compared with its own images, on few samples; the figures of real images are in brackets."
_SCRIPT = """
for (const box of document.querySelectorAll(".samples")) {
  const slider = box.querySelector("input"), output = box.querySelector("output");
  const pictures = box.querySelectorAll("img");
  if (slider) slider.addEventListener("input", () => {
    pictures.forEach((picture, i) => picture.hidden = i != slider.value);
    output.value = slider.dataset.rounds.split(" ")[slider.value];
    slider.setAttribute("aria-valuetext", "round " + output.value);
  });
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(element => element.open = true));
"""


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries."""
    names = ("torch", "diffusers", "torchmetrics", "numpy")
    return {"python": platform.python_version(), "manyhands": __version__, **{name: version(name) for name in names}}


def write(folder: RunFolder, facts: dict[str, Any]) -> None:
    """Write report.json and, from it, the journal, the ledger and the pictures, report.html: both files, or neither."""
    try:
        html = page(folder, facts)
    except KeyError as missing:
        raise RunFolderError(
            f"{folder.path}/report.json: was written by another version: it has no {missing}"
        ) from None
    by_silo = losses(folder.rounds)
    if by_silo:
        with disk_errors(folder.figures):
            folder.figures.mkdir(exist_ok=True)
        figures.losses(folder.figures / "loss.png", by_silo)
    folder.write("report.html", html)
    folder.write("report.json", facts)


def page(folder: RunFolder, facts: dict[str, Any]) -> str:
    """The HTML of the page."""
    recipe, rounds, ledger = folder.recipe, folder.rounds, folder.ledger
    title = text(recipe.get("name", "run"))
    parts = [
        _headline(facts), _warnings(facts, rounds), _samples(folder), _quality(facts, rounds), _training(rounds),
        _silos(facts, rounds, ledger), clusters.section(facts, folder.figures / "clusters.png"), _groups(facts),
        _holdings(facts, folder), _sharing(facts, ledger),
        _disclosed(folder, facts),
        _measured(facts), _recipe(recipe, facts),
    ]  # fmt: skip
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title} - Manyhands</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; \
script-src 'unsafe-inline'"><link rel="icon" href="data:,"><style>{style()}</style></head><body><main>
<h1>{title}</h1>{_given_away(facts)}<p class="lead">{_story(facts)}</p>
{"".join(parts)}
</main><script>{_SCRIPT}</script></body></html>"""


def losses(rounds: Iterable[Round]) -> dict[str, list[tuple[int, float]]]:
    """The loss of each silo in each round; rounds are counted from 1."""
    by_silo: dict[str, list[tuple[int, float]]] = {}
    for done in rounds:
        for silo, loss in done.losses.items():
            by_silo.setdefault(silo, []).append((done.number + 1, loss))
    return by_silo


def figures_table(facts: Mapping[str, Any]) -> list[list[str]]:
    """The heads, then a row for each figure: of the samples, of real images, and its deviation."""
    metrics, floor, spread = facts["metrics"], facts["floor"], facts.get("evaluation", {}).get("spread", {})
    doubted = verdict.MISLEADING if verdict.is_far(metrics, floor) else ()
    rows = [
        [
            NAMES[name] + " (do not quote)" * (name in doubted),
            *map(number, (metrics[name], floor.get(name), spread.get(name))),
        ]
        for name in NAMES
        if name in metrics
    ]
    return [["figure", "samples", "real images", "deviation"], *rows]


def protocol_words(protocol: Mapping[str, Any]) -> str:
    """How figures were measured, in words."""
    return (
        f"{protocol['images']:,} samples were compared with {protocol['reference']:,} training images by the features "
        f"of {protocol['features']}; figures of real images are those of as many held-out ones. Samples were "
        f"{sampling_words(protocol)}, seeds: {', '.join(map(str, protocol['seeds']))}"
    )


def sampling_words(protocol: Mapping[str, Any]) -> str:
    """How samples were drawn, in words."""
    sampling, weights = protocol["sampling"], f"weights: {protocol['weights']}"
    if not sampling:
        return f"reconstructed from the held-out images by an autoencoder, {weights}"
    if sampling == AT_ONCE:
        return f"drawn in one step by a GAN, {weights}"
    return f"drawn by {sampling['sampler']} in {sampling['steps']} steps, guidance {sampling['guidance']:g}, {weights}"


def measured_words(facts: Mapping[str, Any]) -> str:
    """How the figures of a report were measured, in sentences."""
    evaluation = facts["evaluation"]
    return f"{protocol_words(evaluation['protocol'])}. Deviations (±) are over {evaluation['spread_of']}."


def curve(facts: Mapping[str, Any], rounds: Sequence[Round], name: str) -> list[tuple[int, float]]:
    """A figure by round, always by the same protocol: in the rounds that were evaluated, and at the end."""
    at_end = facts.get("at_end", {}).get("metrics", {})
    points = {done.number + 1: done.metrics[name] for done in rounds if name in done.metrics}
    return sorted((points | ({facts["rounds"]: at_end[name]} if name in at_end else {})).items())


def _disclosed(folder: RunFolder, facts: dict[str, Any]) -> str:
    disclosure = facts.get("disclosure")
    return collafuse_audit.section(disclosure, folder.figures / "disclosure.png") if disclosure else ""


def _story(facts: dict[str, Any]) -> str:
    silos, images = len(facts["silos"]), sum(facts["silos"].values())
    model = "a model of its own for each silo" if facts["own"] else "one model"
    method, rounds = f"<b>{text(facts['method'])}</b>", f"{facts['rounds']:,} round{'s' * (facts['rounds'] != 1)}"
    if facts["pooled"]:
        return (
            f"One model with {facts['parameters']:,} parameters was trained on {images:,} images in one place by "
            f"{method} in {rounds}: a baseline with pooled data."
        )
    return (
        f"{silos} silo{'s' * (silos != 1)} with {images:,} images trained {model}, with {facts['parameters']:,} "
        f"parameters, by {method} in {rounds}. The silos sent {size_text(facts['bytes_up'])} and received "
        f"{size_text(facts['bytes_down'])}."
    )


def _given_away(facts: dict[str, Any]) -> str:
    """Warnings that must be read before anything else."""
    lines = "".join(f"<p><b>{text(line)}</b></p>" for line in facts["gives_away"])
    return f'<section class="warn" role="note">{lines}</section>' if lines else ""


def _headline(facts: dict[str, Any]) -> str:
    evaluation = facts.get("evaluation", {})
    spread = evaluation.get("spread", {})
    cards = []
    for name in HEADLINES:
        if name in facts["metrics"]:
            about = f"&plusmn; {number(spread[name])}, " if name in spread else ""
            floor = f"<small>{about}real images: {number(facts['floor'].get(name))}</small>"
            cards.append(f"<div><dt>{NAMES[name]}</dt><dd>{number(facts['metrics'][name])}{floor}</dd></div>")
    silos = max(len(facts["silos"]), 1)
    work = sum(facts["flops_silos"].values()) / silos
    costs = {
        "sent by a silo (mean)": size_text(facts["bytes_up"] / silos),
        "received by a silo (mean)": size_text(facts["bytes_down"] / silos),
        "work of a silo (mean), FLOP": count_text(work),
        "work of the server, FLOP": count_text(facts["flops_server"]),
        "training time, seconds": number(facts["seconds"]),
        "peak memory, evaluation included": size_text(facts["peak_memory"]),
    }
    cost_cards = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in costs.items())
    verdict_words = verdict.of_report(facts)
    first = f"<p><b>{text(verdict_words)}</b></p>" if verdict_words else ""
    quality = (
        f'<h2>Quality</h2>{first}<dl class="cards">{"".join(cards)}</dl>'
        f'<p class="dim">{text(measured_words(facts))}</p>'
        if cards
        else ""
    )
    return f'{quality}<h2>Cost</h2><dl class="cards">{cost_cards}</dl>'


def _warnings(facts: dict[str, Any], rounds: list[Round]) -> str:
    missing = [f"round {done.number + 1}: {silo}: {why}" for done in rounds for silo, why in done.missing.items()]
    skipped = [f"skipped: {name}" for name in facts["skipped"]]
    lines = facts.get("evaluation", {}).get("notes", []) + facts["problems"] + skipped + missing
    if not lines:
        return ""
    more = f"<li>and {len(lines) - 20} more</li>" if len(lines) > 20 else ""
    items = "".join(f"<li>{text(line)}</li>" for line in lines[:20])
    return f'<section class="warn" role="note"><h2>Warnings</h2><ul>{items}{more}</ul></section>'


def _samples(folder: RunFolder) -> str:
    paths = sorted((folder.figures / "rounds").glob("*.png"))
    if len(paths) < 2:
        last, about = folder.figures / "samples.png", "Samples of the trained model."
        return (
            f'<h2>Samples</h2><div class="samples"><p>{about}</p>{picture(last, about)}</div>' if last.exists() else ""
        )
    largest = max(path.stat().st_size for path in paths)
    count = max(2, min(len(paths), MAX_PICTURES, MAX_PICTURE_BYTES // largest))
    steps = [paths[round(i * (len(paths) - 1) / (count - 1))] for i in range(count)]
    rounds = [int(path.stem) for path in steps]
    pictures = "".join(
        picture(path, f"samples after round {number}", hidden=path != steps[-1])
        for number, path in zip(rounds, steps, strict=True)
    )
    round_numbers = " ".join(map(str, rounds))
    return (
        '<h2>Samples</h2><div class="samples"><p>Samples with the same noise and classes, after round '
        f"<output>{rounds[-1]}</output>.</p>"
        f'<label>Round<input type="range" min="0" max="{len(steps) - 1}" value="{len(steps) - 1}" '
        f'data-rounds="{round_numbers}" '
        f'aria-valuetext="round {rounds[-1]}"></label>{pictures}</div>'
    )


def _quality(facts: dict[str, Any], rounds: list[Round]) -> str:
    points = curve(facts, rounds, "fid")
    if len(points) < 2:
        return ""
    floor, lines = facts.get("at_end", {}).get("floor", {}).get("fid"), [Line(points, "samples")]
    if floor is not None:
        lines.append(Line([(points[0][0], floor), (points[-1][0], floor)], "real images", "floor"))
    about, protocol = "", facts.get("at_end", {}).get("protocol")
    if protocol and protocol != facts["evaluation"]["protocol"]:
        how = text(protocol_words(protocol))
        about = f'<p class="dim">Measured during the run, by another protocol than the figures above: {how}.</p>'
    return f"<h2>Quality over rounds</h2>{about}{charts.curves(lines, 'round', 'FID', zero=True)}"


def _training(rounds: list[Round]) -> str:
    by_silo = losses(rounds)
    mean = [(done.number + 1, done.loss) for done in rounds if done.losses]
    if len(mean) < 2:
        return ""
    lines = [Line(points, "", "thin") for points in list(by_silo.values())[:50]]
    chart = charts.curves([*lines, Line(mean, "mean of the silos")], "round", "training loss")
    return f"<h2>Training</h2>{chart}"


def _silos(facts: dict[str, Any], rounds: list[Round], ledger: list[dict[str, Any]]) -> str:
    by_silo, groups = losses(rounds), facts.get("evaluation", {}).get("groups", {}).get("silos", {})
    bytes_carried: dict[tuple[str, str], int] = {}
    for entry in ledger:
        key = (entry["silo"], entry["direction"])
        bytes_carried[key] = bytes_carried.get(key, 0) + entry["bytes"]
    rows = []
    for silo, images in facts["silos"].items():
        cells = [f"{images:,}", number(by_silo[silo][-1][1]) if silo in by_silo else "-"]
        cells += _against(groups.get(silo, {}), ("fid", "coverage", "label_match")) if groups else []
        cells += [size_text(bytes_carried.get((silo, way), 0)) for way in ("up", "down")]
        missed = sum(silo in done.missing for done in rounds)
        rows.append([silo, *cells, count_text(facts["flops_silos"].get(silo, 0)), str(missed)])
    heads = ["silo", "images", "last loss"]
    heads += ["FID (real)", "coverage (real)", "class recognised (real)"] if groups else []
    heads += ["sent", "received", "FLOP", "rounds missed"]
    note = f'<p class="dim">{FEW}</p>' if groups else ""
    measured = {name: group for name, group in groups.items() if "metrics" in group}
    about = "FID of each silo; the marks are the FID of real images"
    chart = charts.bars(_fids(measured), about) if 1 < len(measured) <= 30 else ""
    return f"<h2>Silos</h2>{table(heads, rows)}{note}{chart}"


def _groups(facts: dict[str, Any]) -> str:
    groups = facts.get("evaluation", {}).get("groups", {})
    parts = []
    for kind, name in (("classes", "By class"), ("domains", "By domain")):
        if kind in groups:
            shown = ("fid", "precision", "recall", "coverage", "label_match")
            rows = [[member, f"{group['images']:,}", *_against(group, shown)] for member, group in groups[kind].items()]
            heads = [name[3:], "samples", *[f"{NAMES[figure]} (real)" for figure in shown]]
            parts.append(f"<details><summary>{name}</summary>{table(heads, rows)}</details>")
    return "".join(parts)


def _holdings(facts: dict[str, Any], folder: RunFolder) -> str:
    counts, classes = facts["class_counts"], facts["classes"] or ["images"]
    if len(counts) * len(classes) > MAX_CELLS:
        image = picture(folder.figures / "partition.png", "images of each class at each silo")
        return f"<h2>Who holds what</h2>{image}"
    if not counts:
        return ""  # the server of a federation has no images
    maximum = max([max(row) for row in counts.values()] + [1])
    rows = "".join(
        f'<tr><th scope="row">{text(silo)}</th>'
        + "".join(
            f'<td class="n" style="background: rgba(var(--heat), {0.65 * count / maximum:.2f})">{count:,}</td>'
            for count in row
        )
        + "</tr>"
        for silo, row in counts.items()
    )
    heads = "".join(f'<th class="n" scope="col">{text(name)}</th>' for name in classes)
    held_out = sum(facts["held_out"].values())
    return (
        f'<h2>Who holds what</h2><p class="dim">Training images of each class at each silo; {held_out:,} more are held '
        'out, and no silo trains on them.</p><div class="scroll heat" tabindex="0" role="region" '
        f'aria-label="images by silo and class"><table><tr><th></th>{heads}</tr>{rows}</table></div>'
    )


def _sharing(facts: dict[str, Any], ledger: list[dict[str, Any]]) -> str:
    """What left the silos and what can be computed from it; each operation and its bytes; what no message contains."""
    rows = [
        [row["what"], row["often"], row["computed"], row["guarantee"], _whose(row["silos"], facts["silos"])]
        for row in facts["leaves"]
    ]
    outgoing = table(
        ["what left a silo", "how often", "what can be computed from it", "proven guarantee", "which silos"],
        rows,
        left=5,
    )
    operations = "".join(
        f"<li><b>{text(name)}</b> ({text(row['often'])}): {text(row['says'])}; its facts: "
        f"{text(', '.join(row['tells']) or 'none')}</li>"
        for name, row in facts["operations"].items()
    )
    absent = text(", ".join(facts["never"]))
    return (
        f'<h2>What left the silos, and what can be computed from it</h2><div class="outgoing">{outgoing}</div>'
        f"<details><summary>Each operation</summary><ul>{operations}</ul></details>{_bytes(facts, ledger)}"
        f'<p class="dim">No message contains: {absent}; {NO_REASSURANCE}.</p>'
    )


def _whose(silos: Sequence[str], all_silos: Mapping[str, int]) -> str:
    """The names of silos, or "every silo"."""
    if len(silos) == len(all_silos):
        return "every silo" if len(silos) > 1 else silos[0]
    return names_text(silos)


def _bytes(facts: dict[str, Any], ledger: list[dict[str, Any]]) -> str:
    """The bytes of each operation."""
    totals: dict[tuple[str, str], list[int]] = {}
    for entry in ledger:
        total = totals.setdefault((entry["op"], entry["direction"]), [0, 0])
        total[0] += entry["messages"]
        total[1] += entry["bytes"]
    silos = max(len(facts["silos"]), 1)
    rows = [
        [op, way, f"{messages:,}", size_text(size), size_text(size / silos)]
        for (op, way), (messages, size) in sorted(totals.items())
    ]
    planned = "; ".join(facts.get("sizes", ()))
    sizes = f'<p class="dim">Planned: {text(planned)}.</p>' if planned else ""
    by_operation = table(["operation", "direction", "messages", "total", "per silo"], rows, left=2)
    return f"<h3>Bytes of encoded messages, by operation</h3>{sizes}{by_operation}"


def _measured(facts: dict[str, Any]) -> str:
    evaluation = facts.get("evaluation")
    if not evaluation:
        return ""
    heads, *rows = figures_table(facts)
    accuracy = evaluation["classifier"]["accuracy"]
    about = "classes" if evaluation["classifier"]["labels"] else "rotations"
    protocol = table(["field", "value"], flat(evaluation["protocol"]), left=2)
    return (
        f"<h2>All figures</h2>{table(heads, rows)}"
        f'<p class="dim">The accuracy of the classifier is {accuracy:.1%} on the {about} of held-out real images.</p>'
        f"<details><summary>Protocol</summary>{protocol}</details>"
    )


def _recipe(recipe: dict[str, Any], facts: dict[str, Any]) -> str:
    papers = "".join(f"<li>{text(paper)}</li>" for paper in facts["papers"])
    made_with = ", ".join(f"{name} {value}" for name, value in facts["versions"].items())
    fields = table(["field", "value"], flat(recipe), left=2)
    return (
        f"<h2>Recipe and versions</h2><details><summary>Recipe</summary>{fields}</details>"
        f"<p>{text(made_with)}</p><h2>How to cite</h2><ul>{papers}</ul>"
    )


def _against(group: Mapping[str, Any], shown: Sequence[str]) -> list[str]:
    """The figures of a group, each with the figure of real images in brackets."""
    metrics, floor = group.get("metrics", {}), group.get("floor", {})
    return [f"{number(metrics[name])} ({number(floor[name])})" if name in metrics else "-" for name in shown]


def _fids(groups: Mapping[str, Any]) -> dict[str, tuple[float, float | None]]:
    return {name: (group["metrics"]["fid"], group["floor"]["fid"]) for name, group in groups.items()}
