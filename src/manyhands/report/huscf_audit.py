"""What attacks on a cut GAN came to, for people: rows of a table, sentences, and a section of the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from manyhands.report.markup import number, table, text

Told = Mapping[str, Any]
HEADS = ["head", "attack", "PSNR dB", "SSIM", "explained", "1 of m", "class"]
WIDE = 24
WEAK = 0.5
"""The share of the images' variance, or of the images that are picked, from which on a head counts as weak."""
ABOUT = (
    "The attacker is the server: it averages the discriminator's heads, so it knows the weights with which a round "
    "begins, and it sees what they make of real images. Head n ends with block n; the heads of this run were attacked "
    "as they were sent, the others as they would have been. Explained: the share of the images' variance that comes "
    "back. 1 of m: how often the right image is nearest to the estimate; nearest of m: how often what the head makes "
    "of it is nearest to what was sent. Class: how often the class label is told (class inference)."
)


def rows(found: Told) -> list[list[str]]:
    """A row for each attack on each head, and for its controls, under heads; first what is known without any."""
    floor = found["floor"]
    body = [_row("none", "mean image", {"label": floor.get("labels"), **floor["reconstruction"]})]
    later, step = found["later"]["heads"], found["later"]["step"]
    for head in found["heads"]:
        name = f"{head['head']}"
        body += [_row(name, attack, told) for attack, told in head["attacks"].items()]
        body.append([name, "nearest of m".ljust(WIDE), "-", "-", "-", number(head["recognised"]["value"]), "-"])
        body += [_row(name, f"{attack}, step {step}", told) for attack, told in later.get(name, {}).items()]
        best = max(head["unknown_head"].values(), key=lambda told: told["explained"]["value"])
        body += [_row(name, "unknown weights", best), _row(name, "other images", head["other_images"])]
    return [HEADS, *body]


def words(found: Told) -> list[str]:
    """What the table does not say."""
    own, tails, guard = found["own"], found["tails"], found["guard"]
    lines = [
        f"{found['images']:,} real images of {found['pixels']:,} numbers each, from the first mini-batches of the last "
        f"round; attackers learnt on {found['public']:,} others. Heads of this run: {_listed(own)}.",
        "Numbers that leave for each image: "
        + ", ".join(f"{head['numbers']:,} at head {head['head']}" for head in found["heads"])
        + ".",
        f"Later in the round (step {found['later']['step']} of {found['later']['of']}) weights have moved on from "
        "those that the server knows; unknown weights and other images are controls, which must come to nothing.",
    ]
    if guard is not None:
        lines.append(f"Guard: clipped to the norm {number(guard['clip'])}, noise {number(guard['noise'])} of that.")
    told = [f"{head['labels_of_made']['value']:.0%} at head {head['head']}" for head in _labelled(found)]
    if told:
        lines.append(
            f"Labels by trying each on the images that were made with them: {', '.join(told)}. Made images have the "
            "labels of real ones, so this needs no real image."
        )
    known, unknown = tails["known"], tails["unknown"]
    lines.append(
        f"Made images, by the weights of the generator's tail: {known['psnr']['value']:.1f} dB, "
        f"{known['explained']['value']:.2f} explained; without these weights {unknown['psnr']['value']:.1f} dB. That "
        "no message holds them hides nothing."
    )
    return [*_verdict(found), *lines, *skipped(found)]


def skipped(found: Told) -> list[str]:
    """What was not tried, and why: that the table has nothing of it does not make it safe."""
    return [f"Not tried: {name.replace('_', ' ')}, since {why}." for name, why in found.get("skipped", {}).items()]


def section(found: Told) -> str:
    """Of the report."""
    heads, *body = rows(found)
    lines = "".join(f"<p>{text(line)}</p>" for line in words(found))
    return f'<h2>Disclosure</h2><p class="dim">{text(ABOUT)}</p>{table(heads, body, left=2)}{lines}'


def best_of(attacks: Told) -> tuple[str, Told]:
    """The attack that brings back most, and what it came to."""
    return max(attacks.items(), key=lambda each: float(each[1]["explained"]["value"]))


def _verdict(found: Told) -> list[str]:
    """Which heads are weak, and what the least head is for."""
    weak = [head["head"] for head in found["heads"] if _is_weak(head)]
    strong = [head["head"] for head in found["heads"] if head["head"] not in weak]
    lines = [
        "Weak, half of the images' variance comes back or half of the images are picked, or more: "
        f"{_listed(weak)}. Less: {_listed(strong)}."
    ]
    solved = found["heads"][0]["attacks"].get("least squares")
    if solved and solved["explained"]["value"] > WEAK:
        lines.append(
            f"Head 0 is solved as linear equations, in {solved['psnr']['value']:.1f} dB, with no search and nothing "
            "learnt: that is why min_head is 1 unless told otherwise. Longer heads take a search or a trained "
            "network; where they are weak above, min_head = 1 hides images from the idle only."
        )
    return lines


def _is_weak(head: Told) -> bool:
    best = best_of(head["attacks"])[1]["explained"]["value"]
    return bool(max(best, head["recognised"]["value"]) >= WEAK)


def _labelled(found: Told) -> list[Told]:
    return [head for head in found["heads"] if head["labels_of_made"] is not None]


def _row(head: str, attack: str, told: Told) -> list[str]:
    return [
        head,
        attack.ljust(WIDE),
        f"{told['psnr']['value']:.1f}",
        f"{told['ssim']['value']:.2f}",
        f"{told['explained']['value']:.2f}",
        number(told["identity"]["top_1"]["value"]) if "identity" in told else "-",
        "-" if told.get("label") is None else number(told["label"]["value"]),
    ]


def _listed(heads: list[int]) -> str:
    return ", ".join(f"head {head}" for head in heads) or "none"
