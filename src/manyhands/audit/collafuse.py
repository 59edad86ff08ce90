"""What CollaFuse discloses at each cut: every attack, with its floor, its control and its theory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from manyhands.audit.attacks import attributes, identity, membership, reconstruction
from manyhands.audit.attacks.distance import reconstruction_scores
from manyhands.audit.attacks.statistics import Interval, proportion
from manyhands.audit.collafuse_attackers import Attackers, ServerDenoiser, trained_attackers
from manyhands.audit.effort import MAX_RECONSTRUCTED_IMAGES, Effort
from manyhands.audit.expected_identification import expected_identification, first_hidden_step
from manyhands.data.images import Images, as_floats
from manyhands.diffusion.objective import Diffusion
from manyhands.diffusion.release_privacy import box_norm
from manyhands.errors import RecipeError
from manyhands.privacy.accountant import epsilon, mu_of
from manyhands.seed import torch_rng

if TYPE_CHECKING:
    from manyhands.evaluation.features import Extractor

DELTA = 1e-5
CANDIDATES = 1000
DRAWS = 4
"""The number of draws of noise over which the losses of the membership attack are averaged."""


class ActualReleases(NamedTuple):
    """What was really released at a cut (N, C, H, W), and the indices of its N private images."""

    cut: int
    indices: np.ndarray
    released: Tensor


def attack_releases(
    private: Images,
    public: Images,
    diffusion: Diffusion,
    cuts: Sequence[int],
    *,
    releases: int = 1,
    server_denoiser: ServerDenoiser | None = None,
    extractor: Extractor | None = None,
    clip_norm: float | None = None,
    effort: Effort | None = None,
    actual: Sequence[ActualReleases] = (),
    known_attributes: attributes.KnownAttributes | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Attack releases of private images at each cut, as somebody who has public images of the same kind.

    The result holds plain numbers, never images; what could not be tried is listed under ``skipped``.

    Args:
        private: The images that are released.
        public: The images of the attackers.
        diffusion: The noise schedule and the target of the denoiser.
        cuts: Steps of the chain at which the images are released.
        releases: How often an image is released, each time with fresh noise; one release alone is attacked as well.
        server_denoiser: The denoiser of the server, which attacks, too.
        extractor: A network for the feature distance; None leaves this out.
        clip_norm: The maximum norm of released images; None takes the largest norm of pixels in [-1, 1].
        effort: How much the attackers train.
        actual: What was really released, which is attacked as well.
        known_attributes: Attributes that are inferred in addition to the class.
        seed: The seed of the attacks.
    """
    steps = diffusion.schedule.steps
    if outside := [cut for cut in cuts if not 1 <= cut <= steps]:
        raise RecipeError(
            f"cut {outside[0]}: a step of the chain is expected, 1 to {steps}; at 0 the images themselves leave"
        )
    cuts = sorted(set(cuts))
    attackers = trained_attackers(
        private,
        public,
        diffusion,
        cuts,
        releases=releases,
        server_denoiser=server_denoiser,
        extractor=extractor,
        known_attributes=known_attributes,
        effort=effort or Effort(),
        seed=seed,
    )
    norm = box_norm(private.pixels[0].numel()) if clip_norm is None else clip_norm
    by_cut = [_at(attackers, cut, releases, norm, torch_rng(seed, "disclosure", cut)) for cut in cuts]
    report = {
        "kind": "collafuse",
        "images": len(private),
        "public": len(public),
        "releases": releases,
        "floor": _floor(attackers, seed),
    }
    report["skipped"] = {name: why for name, why in attributes.WHY_SKIPPED.items() if name not in attackers.questions}
    if known_attributes is not None:
        report["attributes"] = list(known_attributes.names)
    if server_denoiser is not None:
        report["membership"] = _membership(attackers, server_denoiser, torch_rng(seed, "membership"))
    report["as_released"] = [
        {"cut": cut, **_scores(attackers.of(indices), x_t, cut, torch_rng(seed, "as released", cut))}
        for cut, indices, x_t in actual
    ]
    return report | {"recommended": _recommended(attackers, releases, norm, seed), "cuts": by_cut}


def _recommended(attackers: Attackers, releases: int, norm: float, seed: int) -> dict[str, Any]:
    """The first cut at which an image is picked out of 1,000 in at most 1 % of cases, and the attacks there."""
    cut = first_hidden_step(attackers.clouds, attackers.diffusion.schedule, CANDIDATES, seed, releases)
    if cut is None:
        return {"cut": None}
    return _at(attackers, cut, releases, norm, torch_rng(seed, "recommended", cut))


def guarantee(snr: float, norm: float, releases: int) -> dict[str, Any]:
    """The proven privacy guarantee of this many releases at this SNR, with everything that is part of its meaning."""
    return {
        "epsilon": epsilon(mu_of(snr, norm, releases), DELTA),
        "delta": DELTA,
        "mechanism": "Gaussian noise, once" if releases == 1 else f"Gaussian noise, {releases} times afresh",
        "model": "local differential privacy",
        "unit": "one image",
        "neighbouring": "replace one image",
        "norm": norm,
    }


def _at(attackers: Attackers, cut: int, releases: int, norm: float, rng: torch.Generator) -> dict[str, Any]:
    """One cut: its SNR, what one release there gives away, and what all releases together give away."""
    schedule = attackers.diffusion.schedule
    snr = float(schedule.snr()[cut])
    copies = (reconstruction.release(schedule, attackers.x_0, cut, rng) for _ in range(releases))
    first = next(copies)
    second = reconstruction.release(schedule, attackers.x_0, cut, rng)
    scores_of_cut = {
        "cut": cut,
        "share": cut / schedule.steps,
        "snr_db": 10 * math.log10(snr),
        "one_release": {"guarantee": guarantee(snr, norm, 1), **_scores(attackers, first, cut, rng)},
        "linkability": identity.linkability(first, second, rng),
    }
    if releases > 1:
        x_t, level = reconstruction.averaged(schedule, _first_then(first, copies), cut)
        scores = {
            "guarantee": guarantee(snr, norm, releases),
            "equal_to_cut": level,
            **_scores(attackers, x_t, level, rng),
        }
        scores_of_cut["all_releases"] = scores
    return scores_of_cut


def _first_then(first: Tensor, others: Iterator[Tensor]) -> Iterator[Tensor]:
    yield first
    yield from others


def _scores(attackers: Attackers, x_t: Tensor, t: int, rng: torch.Generator) -> dict[str, Any]:
    """The results of every attack on releases at one noise level."""
    truth = attackers.x_0[:MAX_RECONSTRUCTED_IMAGES]
    guess = attackers.guess(truth, t)
    scores: dict[str, Any] = {
        "reconstruction": {
            name: reconstruction_scores(
                attack(x_t[:MAX_RECONSTRUCTED_IMAGES], t), truth, guess, attackers.extractor, rng
            )
            for name, attack in attackers.at(t).items()
        },
        "identity": _identity(attackers, x_t, t, rng),
    }
    return scores | {name: question.of(x_t, t, rng) for name, question in attackers.questions.items()}


def _identity(attackers: Attackers, x_t: Tensor, t: int, rng: torch.Generator) -> dict[str, Any]:
    """How often the true image is picked among all candidates, and how often theory expects that."""
    alpha, snr = float(attackers.diffusion.schedule.alpha()[t]), float(attackers.diffusion.schedule.snr()[t])
    candidates, sigma = attackers.x_0[:CANDIDATES], snr**-0.5
    count = len(candidates)
    return {
        "candidates": count,
        "top_1": proportion(identity.recognised(x_t[:CANDIDATES], candidates, alpha)),
        "equidistant": identity.equidistant(candidates, sigma),
        "foretold": expected_identification(attackers.clouds, sigma, count, rng),
        "limit": identity.limit(candidates, sigma),
        "chance": 1 / count,
    }


def _floor(attackers: Attackers, seed: int) -> dict[str, Any]:
    """What attackers know without any release, and what they would read off the image itself."""
    rng, truth = torch_rng(seed, "floor"), attackers.x_0[:MAX_RECONSTRUCTED_IMAGES]
    guess = attackers.guess(truth, 0)
    floor: dict[str, Any] = {"reconstruction": reconstruction_scores(guess, truth, guess, attackers.extractor, rng)}
    for name, question in attackers.questions.items():
        floor[name] = question.floor(question.answers, rng)
        floor[f"{name}_of_clean_images"] = question.of(attackers.x_0, 0, rng)
    return floor


def _membership(
    attackers: Attackers, server_denoiser: ServerDenoiser, rng: torch.Generator
) -> dict[str, Interval | Any]:
    """Membership inference: released images against public ones, by the losses of the server's denoiser."""
    schedule = attackers.diffusion.schedule
    levels = membership.levels_above(server_denoiser.cut, schedule)
    eps = torch.randn(DRAWS, *attackers.x_0.shape[1:], generator=rng)
    members, others = (
        membership.losses(
            server_denoiser.denoiser(attackers.diffusion, images), schedule, as_floats(images.pixels), levels, eps
        )
        for images in (attackers.private, attackers.public)
    )
    return {
        "levels": levels,
        "members": len(members),
        "others": len(others),
        **membership.membership_scores(members, others, rng),
    }
