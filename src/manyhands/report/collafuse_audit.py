"""What attacks on a run came to, for people: rows of a table, sentences, and a section of the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from manyhands.report import huscf_audit
from manyhands.report.markup import number, picture, table, text

Told = Mapping[str, Any]
CROSSINGS = "crossings"
"""The kind of what is told of a cut GAN."""
HEADS = ["cut", "SNR dB", "epsilon", "explained", "PSNR dB", "1 of m", "theory", "class", "linked"]
ABOUT = (
    "Attackers have other images of the same kind, the held-out ones. Explained: the share of the images' variance "
    "that the best of them brings back. 1 of m: how often the right image is picked out of m by its release. Class: "
    "how often the class is read off the release (class inference). Linked: how well two releases of one image are "
    "told from releases of two (0.5: not at all). Attributes, where the recipe has a table of them: the AUC of reading "
    "one off the release (attribute inference)."
)


def rows(found: Told) -> list[list[str]]:
    """A row for each cut, under heads; where there were several releases of an image, one more for all of them."""
    if found.get("kind") == CROSSINGS:
        return huscf_audit.rows(found)
    body = []
    for cut in found["cuts"]:
        body.append(_row(f"{cut['share']:.3g}", cut, cut["one_release"], number(cut["linkability"]["value"])))
        if "all_releases" in cut:
            many = found["releases"]
            together = {**cut, "snr_db": cut["snr_db"] + 10 * math.log10(many)}
            body.append(_row(f"  x {many:,}", together, cut["all_releases"], "-"))
    return [[*HEADS, *["attributes"] * _has_attributes(found)], *body]


def _has_attributes(found: Told) -> bool:
    return "attribute_inference" in found["floor"]


def words(found: Told) -> list[str]:
    """What the table does not say."""
    if found.get("kind") == CROSSINGS:
        return huscf_audit.words(found)
    floor, exact = found["floor"], found["exact_algebra"]
    one = found["cuts"][0]["one_release"]
    guarantee = one["guarantee"]
    lines = [
        f"{found['images']:,} released images, attacked with {found['public']:,} others; 1 of m: m = "
        f"{one['identity']['candidates']:,}, by chance {number(one['identity']['chance'])}.",
        f"Epsilon at delta {guarantee['delta']:g}: {guarantee['model']}, of {guarantee['unit']}, "
        f"{guarantee['neighbouring']}, norm {number(guarantee['norm'])}; of images, it says nothing of labels.",
    ]
    if "class_inference" in floor:
        clean = floor["class_inference_of_clean_images"]["accuracy"]["value"]
        lines.append(
            f"Class inference: {number(floor['class_inference']['accuracy']['value'])} by guessing the most frequent "
            f"one, {number(clean)} of clean images."
        )
    if _has_attributes(found):
        floored, clean = floor["attribute_inference"], floor["attribute_inference_of_clean_images"]
        lines.append(
            f"Attribute inference, of {', '.join(found['attributes'])}: accuracy "
            f"{number(floored['accuracy']['value'])} by guessing the more frequent answer, "
            f"{number(clean['accuracy']['value'])} of clean images (AUC {number(clean['auc']['value'])})."
        )
    lines += huscf_audit.skipped(found)
    if "membership" in found:
        auc, caught = found["membership"]["auc"], found["membership"]["found_at_1_percent"]
        lines.append(
            f"Membership by the server's network: AUC {_interval(auc)}, found {_interval(caught)} at 1 % false alarms."
        )
    lines.append(
        f"Exact algebra on what was sent: {exact['sent']['recovered']} of {exact['sent']['of']:,} images; on the "
        f"control, which sends the noise too: {exact['control']['recovered']} of {exact['control']['of']:,}."
    )
    lines.append(
        "Feature distance, in report.json beside PSNR and SSIM, is that of the features of the small classifier of the "
        "run's own images; it is no LPIPS, and says nothing of what people find alike."
    )
    return [*(_released(each) for each in found["as_released"]), *lines, _recommended(found)]


def section(found: Told, path: Path) -> str:
    """Of the report."""
    if found.get("kind") == CROSSINGS:
        return huscf_audit.section(found)
    heads, *body = rows(found)
    lines = "".join(f"<p>{text(line)}</p>" for line in words(found))
    drawn = f'<div class="wide">{picture(path, "what releases give away over the cut")}</div>' if path.exists() else ""
    return f'<h2>Disclosure</h2><p class="dim">{text(ABOUT)}</p>{drawn}{table(heads, body)}{lines}'


def _row(name: str, cut: Told, scores: Told, linked: str) -> list[str]:
    attacks = scores["reconstruction"].values()
    best, identity = max(attacks, key=lambda told: told["explained"]["value"]), scores["identity"]
    label = number(scores["class_inference"]["accuracy"]["value"]) if "class_inference" in scores else "-"
    attributes = [number(scores["attribute_inference"]["auc"]["value"])] if "attribute_inference" in scores else []
    return [
        name,
        f"{cut['snr_db']:.1f}",
        number(scores["guarantee"]["epsilon"]),
        f"{best['explained']['value']:.2f}",
        f"{best['psnr']['value']:.1f}",
        number(identity["top_1"]["value"]),
        number(identity["foretold"]),
        label,
        linked,
        *attributes,
    ]


def _released(told: Told) -> str:
    best = max(told["reconstruction"].items(), key=lambda each: each[1]["explained"]["value"])
    return (
        f"What the server holds, at step {told['cut']}: {best[1]['explained']['value']:.2f} explained by {best[0]}, "
        f"the right one of {told['identity']['candidates']:,} in {_interval(told['identity']['top_1'])} of cases."
    )


def _recommended(found: Told) -> str:
    told = found["recommended"]
    if told["cut"] is None:
        return (
            "Recommended cut: none; at every step of this chain an image is picked out of 1,000 in over 1 % of cases."
        )
    scores = told["all_releases" if "all_releases" in told else "one_release"]
    return (
        f"Recommended cut: {told['share']:.3g} (step {told['cut']}, {told['snr_db']:.1f} dB, epsilon "
        f"{number(scores['guarantee']['epsilon'])}), the first where theory, and a fifth for what it is off by, has at "
        f"most 1 % of images picked out of 1,000; picked here, out of {scores['identity']['candidates']:,}: "
        f"{_interval(scores['identity']['top_1'])}."
    )


def _interval(told: Told) -> str:
    return f"{number(told['value'])} ({number(told['low'])} to {number(told['high'])})"


def trade_rows(rows: Sequence[Told]) -> list[list[str]]:
    """A sweep over cuts, under heads."""
    heads = ["cut", "SNR dB", "epsilon", "FID", "explained", f"1 of {rows[0]['of']:,}", "drawing", "training"]
    body = [
        [
            f"{row['cut']:.3g}",
            "-" if row["snr_db"] is None else f"{row['snr_db']:.1f}",
            number(row["epsilon"]),
            number(row["fid"]),
            f"{row['explained']:.2f}",
            number(row["picked"]),
            f"{row['draw_share']:.0%}",
            f"{row['train_share']:.0%}",
        ]
        for row in rows
    ]
    return [heads, *body]
