"""What a cut of the denoising chain costs a silo, and what it saves."""

from __future__ import annotations

import math
from collections.abc import Mapping

from manyhands.diffusion.release_privacy import box_norm
from manyhands.diffusion.sampling import Sampling
from manyhands.diffusion.timestep_cut import cut_words
from manyhands.formatting import count_text, size_text
from manyhands.methods.collafuse.spec import CollaFuseSpec
from manyhands.models import network_cost
from manyhands.privacy.accountant import decibel


def cost_lines(method: CollaFuseSpec, silos: int, sampling: Sampling) -> list[str]:
    """Return sentences on each cut: as a step, an SNR and an epsilon, and what it saves a silo."""
    pixels = method.model.channels * method.model.size**2
    label = ", and 8 B of its label" if method.sends_labels else ""
    lines = [f"an image's release is {size_text(4 * pixels)}{label}"]
    if label and method.labels == "randomised":
        lines.append(f"a label has an epsilon of {method.label_epsilon:g} of its own (randomised response)")
    if method.norm and method.norm < (largest := box_norm(pixels)):
        grows = math.log2(2 * largest / method.norm)
        lines.append(
            f"images whose norm is between {method.norm / 2:g} and {largest:g} are squeezed into the norm "
            f"{method.norm:g} before noise is added, and stretched back when they are drawn; that multiplies errors of "
            f"the norm by {grows:.2g}"
        )
    for name in {method.step_of(name): name for name in (*method.cuts, "")}.values():
        step, cost = method.step_of(name), costs(method, name, 1, sampling)
        delta = method.cuts.get(name, method.cut).delta
        words = cut_words(method.diffusion.schedule, step, method.bound, delta)
        drawn, whole = cost["draw_flops"], cost["draw_flops_whole"]
        lines.append(f"{name or 'an image'} is released at {words}")
        lines.append(
            f"at this cut a silo does {drawn / whole:.1%} of the work of generating an image "
            f"({count_text(drawn)}FLOP); it trains {cost['weights']:,.0f} weights in {size_text(cost['memory'])} of "
            f"memory, where training the whole network would be {cost['weights_whole']:,.0f} weights in "
            f"{size_text(cost['memory_whole'])}"
        )
    if method.release == "fresh":
        copies = method.training.steps and method.rounds * method.training.steps * method.training.batch
        many = f"{copies:,} copies of a silo's images" if copies else f"{method.releases(1):,.0f} of each image"
        lines.append(
            f"each round releases images again, {many} in all: the epsilon and SNR above are those of one copy, and n "
            "copies of one image say as much as one copy at n times the SNR"
        )
    return [*lines, *method.local_method(max(method.cut_steps)).cost_lines(silos, sampling)]


def upload_bytes(method: CollaFuseSpec, images: int) -> int:
    """Return the bytes of the releases, and of what the networks below the cut send."""
    image = 4 * method.model.channels * method.model.size**2 + 8 * method.sends_labels
    below = method.local_method(max(method.cut_steps)).upload_bytes(images)
    return round(method.releases(images) * images * image) + below


def warnings(method: CollaFuseSpec, roster: Mapping[str, int]) -> list[str]:
    """Return warnings on repeated releases, and on a cut that sends images as they are."""
    schedule, lines = method.diffusion.schedule, method.learner.warnings()
    lines += method.local_method(max(method.cut_steps)).warnings(roster)
    for silo, images in roster.items():
        step, count = method.step_of(silo), method.releases(images)
        if method.release == "fresh" and 0 < step < schedule.steps:
            snr = float(schedule.snr()[step])
            lines.append(
                f"{silo}: releases each image about {count:,.0f} times, each time with new noise: whoever averages "
                f"these copies gets an SNR of {decibel(snr * count):.1f} dB instead of {decibel(snr):.1f} dB; "
                "release = 'once' avoids that"
            )
        if step == 0:
            lines.append(f"{silo}: its cut is step 0, so it sends its images to the server as they are")
    return lines


def costs(method: CollaFuseSpec, silo: str, images: int, sampling: Sampling) -> dict[str, float]:
    """Return what training and drawing cost a silo, beside what the whole chain would cost it.

    The whole chain is that of ``local`` or, for bytes, of ``fedavg``.
    """
    step, chain = method.step_of(silo), method.diffusion.schedule
    local, whole = method.local_model, method.model
    steps = method.steps_below_cut(step, sampling) or (len(sampling.between(chain, step, 0)) - 1 if step else 0)
    passes = steps if method.distil else sampling.passes(steps)
    whole_passes = sampling.passes(len(sampling.between(chain, chain.steps, 0)) - 1)
    twice = 2 if sampling.guidance not in (0, 1) and whole.classes else 1
    seen = method.rounds * method.training.seen(images)
    training, again = method.training, {"checkpointing": method.training.checkpointing}
    at_once = -(-training.batch // training.accumulate)
    released = 0 if step == chain.steps else round(method.releases(images) * images)
    return {
        "cut": step,
        "draw_flops": twice * passes * network_cost.forward_flops(local),
        "draw_flops_whole": twice * whole_passes * network_cost.forward_flops(whole),
        "train_flops": seen * network_cost.training_flops(local, **again) if step else 0,
        "train_flops_whole": seen * network_cost.training_flops(whole, **again),
        "weights": network_cost.weights(local) if step else 0,
        "weights_whole": network_cost.weights(whole),
        "memory": network_cost.training_memory(local, at_once, **again) if step else 0,
        "memory_whole": network_cost.training_memory(whole, at_once, **again),
        "bytes": released
        * (4 * whole.channels * whole.size**2 + 8 * (method.labels != "withhold" and whole.classes > 0))
        + (2 * method.rounds * 4 * network_cost.weights(local) if method.federate_silos else 0),
        "bytes_fedavg": 2 * method.rounds * 4 * network_cost.weights(whole),
    }
