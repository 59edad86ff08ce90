"""The results of attacks on a cut GAN: a table, and sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from manyhands.formatting import TextTable, number_text

Report = Mapping[str, Any]
HEADS = ["head", "attack", "PSNR dB", "SSIM", "explained", "1 of m", "class"]
WEAK = 0.5
"""A head counts as weak if this share of the images' variance is recovered, or of the images picked, or more."""
ABOUT = (
    "The attacker is the server. It averages the discriminator's heads, so it knows the weights with which a round "
    "begins, and it receives their activations on real images. Head n ends with block n. The heads of this run were "
    "attacked as they were sent, the others as they would have been sent. Explained: the share of the images' variance "
    "that is recovered. 1 of m: how often the right image is nearest to the estimate; nearest of m: how often the "
    "activations of the right image are nearest to those that were sent. Class: how often the class is inferred (class "
    "inference)."
)


def table(report: Report) -> TextTable:
    """What is known without any message, then a row for each attack and control on each head."""
    floor = report["floor"]
    body = [_row("none", "mean image", {"label": floor.get("labels"), **floor["reconstruction"]})]
    later, step = report["later"]["heads"], report["later"]["step"]
    for head in report["heads"]:
        name = f"{head['head']}"
        body += [_row(name, attack, scores) for attack, scores in head["attacks"].items()]
        body.append([name, "nearest of m", "-", "-", "-", number_text(head["recognised"]["value"]), "-"])
        body += [_row(name, f"{attack}, step {step}", scores) for attack, scores in later.get(name, {}).items()]
        best = max(head["unknown_head"].values(), key=lambda scores: scores["explained"]["value"])
        body += [_row(name, "unknown weights", best), _row(name, "other images", head["other_images"])]
    return TextTable(HEADS, body, left=2)


def words(report: Report) -> list[str]:
    """Sentences with what the table does not show."""
    own, tails, guard = report["own"], report["tails"], report["guard"]
    lines = [
        f"{report['images']:,} real images of {report['pixels']:,} numbers each, from the first mini-batches of the "
        f"last round; the attackers trained on {report['public']:,} others. Heads of this run: {_listed(own)}.",
        "Numbers that leave the silo for each image: "
        + ", ".join(f"{head['numbers']:,} at head {head['head']}" for head in report["heads"])
        + ".",
        f"Later in the round (step {report['later']['step']} of {report['later']['of']}) the weights differ from "
        "those that the server knows. Unknown weights and other images are controls, which must recover nothing.",
    ]
    if guard is not None:
        lines.append(
            f"Guard: clipped to the norm {number_text(guard['clip'])}, with noise {number_text(guard['noise'])} times "
            "that."
        )
    accuracies = [f"{head['labels_of_generated']['value']:.0%} at head {head['head']}" for head in _labelled(report)]
    if accuracies:
        lines.append(
            f"Labels, inferred by trying each on the generated images: {', '.join(accuracies)} are right. Generated "
            "images have the labels of real ones, so this needs no real image."
        )
    known, unknown = tails["known"], tails["unknown"]
    lines.append(
        f"Generated images are recovered with the weights of the generator's tail: {known['psnr']['value']:.1f} dB, "
        f"{known['explained']['value']:.2f} explained; without these weights: {unknown['psnr']['value']:.1f} dB. That "
        "no message contains generated images hides nothing."
    )
    return [*_verdict(report), *lines, *skipped(report)]


def skipped(report: Report) -> list[str]:
    """What was not tried, and why; an attack that was not tried may still succeed."""
    return [
        f"Not tried: {name.replace('_', ' ')}, since {reason}." for name, reason in report.get("skipped", {}).items()
    ]


def best_of(attacks: Report) -> tuple[str, Report]:
    """The attack that recovers most, and its result."""
    return max(attacks.items(), key=lambda item: float(item[1]["explained"]["value"]))


def _verdict(report: Report) -> list[str]:
    """Which heads are weak, and what ``min_head`` is for."""
    weak = [head["head"] for head in report["heads"] if _is_weak(head)]
    strong = [head["head"] for head in report["heads"] if head["head"] not in weak]
    lines = [
        "Weak (at least half of the images' variance is recovered, or half of the images are picked): "
        f"{_listed(weak)}. Less: {_listed(strong)}."
    ]
    solved = report["heads"][0]["attacks"].get("least squares")
    if solved and solved["explained"]["value"] > WEAK:
        lines.append(
            f"Head 0 is solved as linear equations, with {solved['psnr']['value']:.1f} dB, without search or "
            "training: that is why min_head is 1 by default. Longer heads need a search or a trained network; where "
            "they are weak above, min_head = 1 stops only attackers who make no effort."
        )
    return lines


def _is_weak(head: Report) -> bool:
    best = best_of(head["attacks"])[1]["explained"]["value"]
    return bool(max(best, head["recognised"]["value"]) >= WEAK)


def _labelled(report: Report) -> list[Report]:
    return [head for head in report["heads"] if head["labels_of_generated"] is not None]


def _row(head: str, attack: str, scores: Report) -> list[str]:
    return [
        head,
        attack,
        f"{scores['psnr']['value']:.1f}",
        f"{scores['ssim']['value']:.2f}",
        f"{scores['explained']['value']:.2f}",
        number_text(scores["identity"]["top_1"]["value"]) if "identity" in scores else "-",
        "-" if scores.get("label") is None else number_text(scores["label"]["value"]),
    ]


def _listed(heads: list[int]) -> str:
    return ", ".join(f"head {head}" for head in heads) or "none"
