"""What a cut of the chain costs a silo, and what it saves."""

from __future__ import annotations

import math
from collections.abc import Mapping

from manyhands.diffusion.release import box_norm
from manyhands.diffusion.sample import Sampling
from manyhands.diffusion.timestep_cut import cut_words
from manyhands.formatting import count_text, size_text
from manyhands.methods.collafuse.spec import CollaFuseSpec
from manyhands.models import block_cost
from manyhands.privacy.accountant import decibel


def cost_lines(method: CollaFuseSpec, silos: int, sampling: Sampling) -> list[str]:
    """Each cut in every way that it can be told, and what it saves a silo."""
    pixels = method.model.channels * method.model.size**2
    label = ", and 8 B of its label" if method.told_labels else ""
    lines = [f"an image's release is {size_text(4 * pixels)}{label}"]
    if label and method.labels == "randomised":
        lines.append(f"a label has an epsilon of {method.label_epsilon:g} of its own (randomised response)")
    if method.norm and method.norm < (most := box_norm(pixels)):
        grows = math.log2(2 * most / method.norm)
        lines.append(
            f"images of norms from {method.norm / 2:g} to {most:g} are squeezed into {method.norm:g} before they are "
            f"noised, and stretched when they are drawn: an error of a norm grows {grows:.2g} x"
        )
    for name in {method.step_of(name): name for name in (*method.cuts, "")}.values():
        step, price = method.step_of(name), costs(method, name, 1, sampling)
        delta = method.cuts.get(name, method.cut).delta
        words = cut_words(method.diffusion.schedule, step, method.bound, delta)
        drawn, whole = price["draw_flops"], price["draw_flops_whole"]
        lines.append(f"{name or 'an image'} is released at {words}")
        lines.append(
            f"there a silo does {drawn / whole:.1%} of the work of drawing an image ({count_text(drawn)}FLOP); its "
            f"network has {price['weights']:,.0f} of {price['weights_whole']:,.0f} weights and trains in "
            f"{size_text(price['memory'])} where a whole one takes {size_text(price['memory_whole'])}"
        )
    if method.release == "fresh":
        copies = method.training.steps and method.rounds * method.training.steps * method.training.batch
        many = f"{copies:,} copies of a silo's images" if copies else f"{method.releases(1):,.0f} of each image"
        lines.append(
            f"released anew, {many} in all: epsilon and SNR above are of one copy, n copies of one image are as "
            "one at n times the SNR"
        )
    return [*lines, *method.home(max(method.steps_told)).cost_lines(silos, sampling)]


def upload_bytes(method: CollaFuseSpec, images: int) -> int:
    """The releases, and what the networks below the cut send."""
    image = 4 * method.model.channels * method.model.size**2 + 8 * method.told_labels
    return round(method.releases(images) * images * image) + method.home(max(method.steps_told)).upload_bytes(images)


def warnings(method: CollaFuseSpec, roster: Mapping[str, int]) -> list[str]:
    """How often an image is released, and what that is as one release."""
    schedule, lines = method.diffusion.schedule, []
    for silo, images in roster.items():
        step, count = method.step_of(silo), method.releases(images)
        if method.release == "fresh" and 0 < step < schedule.steps:
            snr = float(schedule.snr()[step])
            lines.append(
                f"{silo}: releases each image about {count:,.0f} times, each time with new noise: to whoever "
                f"averages, its SNR of {decibel(snr):.1f} dB is {decibel(snr * count):.1f} dB; release = 'once' "
                "keeps it"
            )
        if step == 0:
            lines.append(f"{silo}: cut 0 sends its images to the server as they are")
    return lines


def costs(method: CollaFuseSpec, silo: str, images: int, sampling: Sampling) -> dict[str, float]:
    """Of a silo, and what the whole chain would cost it: alone as in ``local``, or averaged as in ``fedavg``."""
    step, chain = method.step_of(silo), method.diffusion.schedule
    home, whole = method.home_model, method.model
    passes = method.silo_steps(step, sampling) or (len(sampling.between(chain, step, 0)) - 1 if step else 0)
    every = len(sampling.between(chain, chain.steps, 0)) - 1
    twice = 2 if sampling.guidance not in (0, 1) and whole.classes else 1
    seen = method.rounds * method.training.seen(images)
    released = 0 if step == chain.steps else round(method.releases(images) * images)
    return {
        "cut": step,
        "draw_flops": twice * passes * block_cost.forward_flops(home),
        "draw_flops_whole": twice * every * block_cost.forward_flops(whole),
        "train_flops": seen * block_cost.training_flops(home) if step else 0,
        "train_flops_whole": seen * block_cost.training_flops(whole),
        "weights": block_cost.weights(home) if step else 0,
        "weights_whole": block_cost.weights(whole),
        "memory": block_cost.training_memory(home, method.training.batch) if step else 0,
        "memory_whole": block_cost.training_memory(whole, method.training.batch),
        "bytes": released
        * (4 * whole.channels * whole.size**2 + 8 * (method.labels != "withhold" and whole.classes > 0))
        + (2 * method.rounds * 4 * block_cost.weights(home) if method.federate_silos else 0),
        "bytes_fedavg": 2 * method.rounds * 4 * block_cost.weights(whole),
    }
