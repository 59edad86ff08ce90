"""Tables of the committed results, for the docs and the headers of recipes."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness import bench, case_files, claims, real_claims
from harness.descriptions import DESCRIPTIONS

ROOT, RESULTS = bench.ROOT, bench.RESULTS
SCALES = ("paper", "small")
LEGEND = (
    "Seeds: from how many trainings a figure comes; **1** is marked; 3 (1) is the worst of several cases, and some of "
    "them have one seed; 1 run: there is no seed to vary, or it was measured once. Interval: 95 %, by Student's t over "
    "the ratios of the seeds (over their logarithms) or over their differences, in the worst case; for a worst seed it "
    "is the interval of the mean. ~: the interval contains the bar, so another set of seeds may change the verdict."
)


def figures() -> str:
    """All figures, for docs/claims.md."""
    lines = [
        "| claim | bar | measured | 95 % interval | seeds | holds | `benchmarks/` |",
        "|---|---|---|---|---|---|---|",
    ]
    for program in sorted({*results(), *claims.BARS}):
        every = rows(program)
        for name in sorted(every, key=lambda name: list(DESCRIPTIONS).index(_key(program, name))):
            row = every[name]
            cells = [DESCRIPTIONS[_key(program, name)], row["bar"] or "none set", shown(row["figure"]), interval(row)]
            lines.append("| " + " | ".join([*cells, seeds(row), verdict(row), f"`{program}.py`"]) + " |")
    return "\n".join([*lines, "", f"{LEGEND} {sources()}"])


def rows(program: str) -> dict[str, dict[str, Any]]:
    """What was measured in one run, and what is claimed of the files of cases."""
    result: dict[str, Any] = newest(program) if program in results() else {"figures": {}}
    measured = {
        name: {"figure": figure, "bar": result["bars"][name], "holds": result["holds"].get(name), "seeds": []}
        for name, figure in result["figures"].items()
    }
    return measured | (claims.rows(program, scale_of(program)) if program in claims.BARS else {})


def results() -> set[str]:
    """The programs that have a committed result."""
    return {path.stem.rsplit("-", 1)[0] for path in RESULTS.glob("*.json")}


def newest(program: str) -> dict[str, Any]:
    """The result at full size where there is one, else the small one."""
    paths = [RESULTS / f"{program}-{scale}.json" for scale in SCALES]
    result: dict[str, Any] = json.loads(next(path for path in paths if path.exists()).read_text())
    return result


def scale_of(program: str) -> str:
    """The size of the newest runs of a program that are kept by case."""
    return next((scale for scale in SCALES if (case_files.FOLDER / f"{program}-{scale}").is_dir()), "small")


def files(program: str) -> dict[str, dict[int, case_files.Case]]:
    """The files of cases of a program, at the size that is shown."""
    return case_files.read(case_files.FOLDER, program, scale_of(program))


def sources() -> str:
    """When and by what the runs of the files were trained and measured."""
    every = [case for program in claims.BARS for seeds in files(program).values() for case in seeds.values()]
    trained = sorted({case["trained"]["commit"] for case in every} - {None})
    unknown = sum(case["trained"]["commit"] is None for case in every)
    days = sorted({case["measured"]["date"] for case in every})
    by = f", {unknown} of them by commits that were not recorded" if unknown else ""
    return (
        f"Rows with seeds are put together from the files of {len(every)} runs in "
        f"[cases](../benchmarks/results/cases), measured from {days[0]} to {days[-1]} and trained "
        f"by {len(trained)} recorded commits{by}; rows of 1 run name their commit in [results](../benchmarks/results)."
    )


def _key(program: str, name: str) -> str:
    return f"{program}.{name}" if f"{program}.{name}" in DESCRIPTIONS else name


def shown(figure: float | None) -> str:
    """A figure with four digits."""
    return "-" if figure is None else f"{figure:.4g}"


def interval(row: dict[str, Any]) -> str:
    """The interval of a row."""
    ends = row.get("interval")
    if not ends:
        return "-"
    return "all equal" if ends[0] == ends[1] else f"{ends[0]:.3g} to {ends[1]:.3g}"


def seeds(row: dict[str, Any]) -> str:
    """From how many trainings a row comes."""
    count = len(row["seeds"])
    if count < 2:
        return "**1**" if count else "-" if row["figure"] is None else "1 run"
    return f"{count} ({row['fewest']})" if 0 < row.get("fewest", 0) < count else str(count)


def verdict(row: dict[str, Any]) -> str:
    """Whether a row holds, and whether another set of seeds may change that."""
    if row["figure"] is None:
        return "not measured"
    if not row["bar"]:
        return "-"
    ends = row.get("interval")
    across = ends and len({bench.held(end, row["bar"]) for end in ends}) > 1
    return ("yes" if row["holds"] else "**no**") + " ~" * bool(across)


def cases() -> str:
    """What each case of federated diffusion came to, for docs/methods.md."""
    table = files("federated_diffusion")
    lines = [
        "| case | FID | 95 % interval | seeds | asked class recognised | bytes both ways |",
        "|---|---|---|---|---|---|",
    ]
    plain = case_files.first(table, "vanilla", "bytes")
    for name in _in_order(table, [*claims.federated_cases("small"), claims.OWN]):
        sent = case_files.first(table, name, "bytes")
        fewer = f", {plain / sent:.1f} x fewer" if plain / sent > 1.01 and "bits" in name else ""
        cells = [name, *_of_seeds(table, name, "fid", ".2f"), _mean(table, name, "label_match", ".3f")]
        lines.append("| " + " | ".join([*cells, f"{sent / 1e6:.1f} MB{fewer}"]) + " |")
    return "\n".join(lines)


def cuts() -> str:
    """What each case of CollaFuse came to, for docs/methods.md."""
    table = files("collafuse")
    lines = [
        "| case | FID | 95 % interval | seeds | asked class recognised | images seen | up | a silo's work, FLOP |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in _in_order(table, claims.collafuse_cases("small")):
        seen, up, work = (case_files.first(table, name, what) for what in ("images_seen", "bytes_up", "flops_silo"))
        cells = [name, *_of_seeds(table, name, "fid", ".2f"), _mean(table, name, "label_match", ".3f"), f"{seen:,}"]
        lines.append("| " + " | ".join([*cells, f"{up / 1e6:.1f} MB", f"{work / 1e12:.2f} T"]) + " |")
    return "\n".join(lines)


def clinics() -> str:
    """What each case of three clinics came to, for docs/three-clinics.md."""
    return _of_real_training(of_clinics=True)


def training_options() -> str:
    """What samplers, training options, latent and pretrained models came to, for docs/methods.md."""
    return _of_real_training(of_clinics=False)


def _of_real_training(*, of_clinics: bool) -> str:
    table, judged = files("real_training"), " by held-out slides |" * of_clinics
    lines = [
        f"| case | FID | 95 % interval | seeds | floor | asked class recognised |{judged} both ways |",
        "|---|---|---|---|---|---|---|" + "---|" * of_clinics,
    ]
    for name in _in_order(table, real_claims.cases("small")):
        if name.startswith("cells") == of_clinics:
            cells = [name, *_of_seeds(table, name, "fid", ".2f"), _mean(table, name, "floor", ".2f")]
            cells += [_mean(table, name, "label_match", ".3f")]
            cells += [_mean(table, name, "recognised", ".3f")] * of_clinics
            lines.append("| " + " | ".join([*cells, f"{case_files.first(table, name, 'bytes') / 1e6:.1f} MB"]) + " |")
    return "\n".join(lines)


def rivals() -> str:
    """What each case of HuSCF-GAN came to, for docs/methods.md."""
    table = files("huscf")
    lines = [
        "| case | CAS, % | 95 % interval | seeds | of real images | FID | asked class recognised | bytes both ways "
        "| a silo's work, FLOP |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in _in_order(table, claims.huscf_cases("small")):
        if not case_files.values(table, name, "cas"):
            continue
        sent, work = (case_files.first(table, name, what) for what in ("bytes", "flops_silo"))
        cells = [name, *_of_seeds(table, name, "cas", ".1f"), _mean(table, name, "cas_real", ".1f", of=1)]
        cells += [_mean(table, name, "fid", ".2f"), _mean(table, name, "label_match", ".3f")]
        lines.append("| " + " | ".join([*cells, f"{sent / 1e9:.2f} GB", f"{work / 1e9:.0f} G"]) + " |")
    return "\n".join(lines)


def _in_order(table: case_files.Table, names: Iterable[str]) -> list[str]:
    return [name for name in names if name in table]


def _of_seeds(table: case_files.Table, case: str, name: str, form: str) -> list[str]:
    """The mean over seeds, its interval, and how many seeds there are."""
    figure = case_files.over(case_files.values(table, case, name), positive=name == "fid")
    ends = "-" if figure.low is None or figure.high is None else f"{figure.low:{form}} to {figure.high:{form}}"
    return [f"{figure.value:{form}}", ends, str(len(figure.seeds))]


def _mean(table: case_files.Table, case: str, name: str, form: str, of: int = 0) -> str:
    """The mean over the seeds; what is the same for all of them, of the first."""
    figure = case_files.first(table, case, name) if of else getattr(case_files.mean(table, case, name), "value", None)
    return "-" if figure is None else f"{figure:{form}}"


def tradeoff() -> str:
    """Quality and privacy at the same cuts of CollaFuse, for docs/server-learns.md."""
    from manyhands.diffusion.schedule import Schedule
    from manyhands.privacy.accountant import decibel, epsilon, mu_of

    table, audit, snr = files("collafuse"), newest("collafuse")["reidentified"], Schedule().snr()
    best = audit["recommended_cut"]
    picked = {float(cut): scores["picked"] for cut, scores in audit["picked"].items()} | {
        best: audit["at_it"]["picked"]
    }

    def row(cut: float) -> list[str]:
        signal, case = float(snr[round(cut * 1000)]), f"exact {cut}"
        spent = epsilon(mu_of(signal, PIXELS**0.5), 1e-5)
        fid = _of_seeds(table, case, "fid", ".2f") if case in table else ["not measured", "-", "-"]
        hidden = [f"{decibel(signal):.1f} dB", f"{spent:,.0f}", f"{100 * picked[cut]:.3g} %"]
        return [f"{cut:.3g}" + ", recommended" * (cut == best), f"{cut:.0%}", *fid, *hidden]

    ends = [_of_seeds(table, case, "fid", ".2f") for case in ("global", "alone")]
    body = [
        ["0: images go as they are; a sixth of the training", "0%", *ends[0], "no noise", "none", "100 %"],
        *[row(cut) for cut in (*claims.INNER, best)],
        ["1: silos alone, nothing is released", "100%", *ends[1], "-", "-", "-"],
    ]
    heads = ["cut", "silo's share of drawing", "FID", "95 % interval", "seeds", "SNR", "epsilon", "picked out of 1,000"]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, ["---"] * len(heads), *body])


PIXELS = 256
"""Of an image of MNIST at 16 x 16: its norm is at most the root of that."""


COMPUTABLE = (
    "the images and their labels. The server averages the weights of the heads and so knows them: it can compute the "
    "images and labels that they were shown (docs/privacy.md)."
)


def recipes() -> list[Path]:
    """The shipped recipes that say in their header what their cut gives away."""
    cut = re.compile(r'^kind = "(collafuse|huscf)"', re.MULTILINE)
    return [path for path in sorted((ROOT / "recipes").glob("*.toml")) if cut.search(path.read_text())]


def header(path: Path) -> str:
    """A recipe with what its cut gives away before what is expected of it."""
    before, expected = path.read_text().split("# Expected:", 1)
    before = before.split("# Gives away:")[0]
    gift = COMPUTABLE if '\nkind = "huscf"' in expected else _releases(files("given_away")[path.stem][0]["figures"])
    gift += " Labels are sent as they are." if 'labels = "share"' in expected else ""
    words = textwrap.fill(f"Gives away: {gift}", 118, initial_indent="# ", subsequent_indent="# ")
    return f"{before}{words}\n# Expected:{expected}"


def _releases(figures: dict[str, Any]) -> str:
    """What releases at one cut, or at several, give away, in words."""
    cuts, picked = figures["cuts"], figures["picked"] or [None] * len(figures["cuts"])
    labels = [f"SNR {round(cut['snr_db'], 1) + 0.0:.1f} dB, epsilon {cut['epsilon']:,.0f}" for cut in cuts]
    if len(labels) > 1:
        each = zip(cuts, labels, picked, strict=True)
        rows = "; ".join(f"{cut['cut']:g}: {words}, {_percent(share)}" for cut, words, share in each)
        return (
            "each image is released once. By cut, with epsilon at delta 1e-5 and the share of releases for which, in "
            f"theory, the right one of 1,000 candidates is picked: {rows}. At cut 0 images are sent as they are, at 1 "
            "nothing is sent."
        )
    once = f"each image is released once, with {labels[0]} at delta 1e-5"
    if picked[0] is not None:
        return (
            f"{once}; in theory the right one of 1,000 candidates is picked for {_percent(picked[0])} of the releases."
        )
    least = f"{cuts[0]['told_apart_at']:.2g} (root mean square of pixels from -1 to 1)"
    return f"{once}. If 1,000 candidates differ by {least} or more, the right one is picked for at least 99 %."


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{'over 99.9' if share > 0.999 else f'{100 * share:.3g}'} %"
