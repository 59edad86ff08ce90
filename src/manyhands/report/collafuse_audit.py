"""The results of attacks on the releases of CollaFuse: a table, and sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from manyhands.formatting import TextTable, number_text
from manyhands.report import huscf_audit

Report = Mapping[str, Any]
HEADS = ["cut", "SNR dB", "epsilon", "explained", "PSNR dB", "1 of m", "theory", "class", "linked"]
ABOUT = (
    "The attackers have other images of the same kind, the held-out ones. Explained: the share of the images' "
    "variance that the best attack recovers. 1 of m: how often the right image is picked out of m by its release. "
    "Class: how often the class is inferred from the release (class inference). Linked: how well two releases of one "
    "image can be told from releases of two images (AUC; 0.5 means not at all). Attributes, where the recipe has a "
    "table of them: the AUC of inferring one from the release (attribute inference)."
)


def table(report: Report) -> TextTable:
    """A row for each cut; with several releases of an image, one more row for all of them."""
    body = []
    for cut in report["cuts"]:
        body.append(_row(f"{cut['share']:.3g}", cut, cut["one_release"], number_text(cut["linkability"]["value"])))
        if "all_releases" in cut:
            releases = report["releases"]
            with_all = {**cut, "snr_db": cut["snr_db"] + 10 * math.log10(releases)}
            body.append(_row(f"  x {releases:,}", with_all, cut["all_releases"], "-"))
    return TextTable([*HEADS, *["attributes"] * _has_attributes(report)], body)


def _has_attributes(report: Report) -> bool:
    return "attribute_inference" in report["floor"]


def words(report: Report) -> list[str]:
    """Sentences with what the table does not show."""
    return [
        *(_released(release) for release in report["as_released"]),
        _attackers(report),
        _guarantee(report),
        *_class_inference(report),
        *_attribute_inference(report),
        *huscf_audit.skipped(report),
        *_membership(report),
        _exact_algebra(report),
        "The feature distance, in report.json next to PSNR and SSIM, is that of the features of the small classifier "
        "of the run's own images; it is no LPIPS, and says nothing about what people find similar.",
        _recommended(report),
    ]


def _attackers(report: Report) -> str:
    identity = report["cuts"][0]["one_release"]["identity"]
    return (
        f"{report['images']:,} released images were attacked by somebody with {report['public']:,} other images; 1 of "
        f"m: m is {identity['candidates']:,}, and chance gives {number_text(identity['chance'])}."
    )


def _guarantee(report: Report) -> str:
    guarantee = report["cuts"][0]["one_release"]["guarantee"]
    return (
        f"Epsilon at delta {guarantee['delta']:g}: {guarantee['model']}; the unit is {guarantee['unit']} "
        f"(neighbouring: {guarantee['neighbouring']}), the norm {number_text(guarantee['norm'])}. Labels are not "
        "covered."
    )


def _class_inference(report: Report) -> list[str]:
    if "class_inference" not in report["floor"]:
        return []
    guessed, clean = (report["floor"][f"class_inference{of}"]["accuracy"]["value"] for of in ("", "_of_clean_images"))
    return [
        f"Class inference: guessing the most frequent class is right for {number_text(guessed)} of the images, a "
        f"classifier of clean images for {number_text(clean)}."
    ]


def _attribute_inference(report: Report) -> list[str]:
    if not _has_attributes(report):
        return []
    guessed, clean = (report["floor"][f"attribute_inference{of}"] for of in ("", "_of_clean_images"))
    return [
        f"Attribute inference, of {', '.join(report['attributes'])}: accuracy "
        f"{number_text(guessed['accuracy']['value'])} by guessing the more frequent answer, "
        f"{number_text(clean['accuracy']['value'])} from clean images (AUC {number_text(clean['auc']['value'])})."
    ]


def _membership(report: Report) -> list[str]:
    if "membership" not in report:
        return []
    auc, sensitivity = report["membership"]["auc"], report["membership"]["found_at_1_percent"]
    return [
        f"Membership inference with the server's network: AUC {_interval(auc)}; at 1 % false positives it finds "
        f"{_interval(sensitivity)} of the members."
    ]


def _exact_algebra(report: Report) -> str:
    sent, control = report["exact_algebra"]["sent"], report["exact_algebra"]["control"]
    return (
        f"Exact algebra recovers {sent['recovered']} of {sent['of']:,} images from what was sent. To check that the "
        f"attack works, it was also given the noise: then it recovers {control['recovered']:,} of {control['of']:,}."
    )


def _row(name: str, cut: Report, scores: Report, linked: str) -> list[str]:
    attacks = scores["reconstruction"].values()
    best, identity = max(attacks, key=lambda attack: attack["explained"]["value"]), scores["identity"]
    label = number_text(scores["class_inference"]["accuracy"]["value"]) if "class_inference" in scores else "-"
    attributes = [number_text(scores["attribute_inference"]["auc"]["value"])] if "attribute_inference" in scores else []
    return [
        name,
        f"{cut['snr_db']:.1f}",
        number_text(scores["guarantee"]["epsilon"]),
        f"{best['explained']['value']:.2f}",
        f"{best['psnr']['value']:.1f}",
        number_text(identity["top_1"]["value"]),
        number_text(identity["foretold"]),
        label,
        linked,
        *attributes,
    ]


def _released(release: Report) -> str:
    best = max(release["reconstruction"].items(), key=lambda item: item[1]["explained"]["value"])
    return (
        f"What the server holds, at step {release['cut']}: {best[0]} explains {best[1]['explained']['value']:.2f} of "
        f"the variance, and the right image of {release['identity']['candidates']:,} is picked in "
        f"{_interval(release['identity']['top_1'])} of cases."
    )


def _recommended(report: Report) -> str:
    cut = report["recommended"]
    if cut["cut"] is None:
        return (
            "Recommended cut: none; at every step of this chain an image is picked out of 1,000 in over 1 % of cases."
        )
    scores = cut["all_releases" if "all_releases" in cut else "one_release"]
    return (
        f"Recommended cut: {cut['share']:.3g} (step {cut['cut']}, {cut['snr_db']:.1f} dB, epsilon "
        f"{number_text(scores['guarantee']['epsilon'])}). It is the first at which theory, with a margin of a fifth, "
        "expects at most 1 % of images to be picked out of 1,000; the attack, among "
        f"{scores['identity']['candidates']:,} candidates, picked the right one in this share of cases: "
        f"{_interval(scores['identity']['top_1'])}."
    )


def _interval(interval: Report) -> str:
    return f"{number_text(interval['value'])} ({number_text(interval['low'])} to {number_text(interval['high'])})"


def tradeoff_table(rows: Sequence[Report]) -> TextTable:
    """A row for each cut of a sweep."""
    heads = ["cut", "SNR dB", "epsilon", "FID", "explained", f"1 of {rows[0]['of']:,}", "drawing", "training"]
    body = [
        [
            f"{row['cut']:.3g}",
            "-" if row["snr_db"] is None else f"{row['snr_db']:.1f}",
            number_text(row["epsilon"]),
            number_text(row["fid"]),
            f"{row['explained']:.2f}",
            number_text(row["picked"]),
            f"{row['draw_share']:.0%}",
            f"{row['train_share']:.0%}",
        ]
        for row in rows
    ]
    return TextTable(heads, body)
