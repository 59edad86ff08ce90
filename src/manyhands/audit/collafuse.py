"""What CollaFuse discloses, over the cut: every attack beside its floor, its control and its theory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from manyhands.audit import population
from manyhands.audit.attacks import attributes, identity, membership, reconstruction
from manyhands.audit.attacks.distance import nearness
from manyhands.audit.attacks.reconstruction import Attack
from manyhands.audit.attacks.statistics import Interval, proportion
from manyhands.data.images import Images, as_floats
from manyhands.diffusion.objective import Diffusion, Network
from manyhands.diffusion.release import box_norm
from manyhands.diffusion.sample import Denoiser, guided
from manyhands.errors import RecipeError
from manyhands.models.unet import UNet
from manyhands.privacy.accountant import epsilon, mu_of
from manyhands.seed import torch_rng
from manyhands.silos.training import Training

if TYPE_CHECKING:
    from manyhands.evaluation.features import Extractor

DELTA = 1e-5
SHOWN = 256
CANDIDATES = 1000
DRAWS = 4
"""How many draws of noise the losses of membership are a mean of."""


@dataclass(frozen=True)
class Own:
    """The server's denoiser, trained on releases at ``cut`` and noisier; ``no_label`` if it takes labels.

    ``labels`` says that the server has the labels of the releases, as a run may allow, and asks with them.
    """

    network: Network
    cut: int
    no_label: int | None = None
    labels: bool = False

    def denoiser(self, diffusion: Diffusion, images: Images) -> Denoiser:
        """It, as it is asked about these images."""
        if self.no_label is None:
            return guided(reconstruction.in_parts(self.network), diffusion, None, 0, 1.0)
        known = images.labels if self.labels else None
        labels = torch.full((len(images),), self.no_label) if known is None else known
        return guided(reconstruction.in_parts(self.network), diffusion, labels, self.no_label, 1.0)


@dataclass(frozen=True)
class Effort:
    """How hard the attackers train on their public images: the steps of each, and the widths of their U-Nets.

    ``inverter`` and ``descent`` are of those who attack a cut GAN.
    """

    denoiser: int = 400
    regressor: int = 400
    classifier: int = 1000
    inverter: int = 600
    descent: int = 200
    widths: tuple[int, ...] = (16, 32)
    batch: int = 64
    learning_rate: float = 2e-3

    def training(self, steps: int) -> Training:
        """So many steps, at a falling rate."""
        told = {"batch": self.batch, "steps": steps, "learning_rate": self.learning_rate, "learning_rate_end": 0.05}
        return Training.model_validate(told)


class Actual(NamedTuple):
    """What was really released at a cut, and of which of the private images."""

    cut: int
    numbers: np.ndarray
    released: Tensor


@dataclass(frozen=True)
class _Attackers:
    """All that is trained or fitted before a release is seen, and the images that they are tried on."""

    diffusion: Diffusion
    private: Images
    public: Images
    lens: Extractor | None
    own: Own | None
    attacks: dict[str, Attack]
    guess: Attack
    questions: dict[str, attributes.Question]
    clouds: list[population.Cloud]
    x_0: Tensor = field(repr=False)

    @property
    def shown(self) -> Images:
        return self.private.subset(torch.arange(min(SHOWN, len(self.private))).numpy())


def disclosure(
    private: Images,
    public: Images,
    diffusion: Diffusion,
    cuts: Sequence[int],
    *,
    releases: int = 1,
    own: Own | None = None,
    lens: Extractor | None = None,
    clip_norm: float | None = None,
    effort: Effort | None = None,
    actual: Sequence[Actual] = (),
    known: attributes.Known | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    r"""What the releases of private images at each of the cuts give away, to attackers with public images of the kind.

    An image is released once, and also, where ``releases`` is more, so often with fresh noise. ``clip_norm`` is the
    largest norm that released images have; without it, that of the pixels' box. What was ``actual``\ ly released is
    attacked too. Beside the class the attributes that are ``known`` are inferred; what cannot be tried is told under
    ``skipped``. All comes back as plain numbers, never as pictures.
    """
    steps = diffusion.schedule.steps
    if bad := [cut for cut in cuts if not 1 <= cut <= steps]:
        raise RecipeError(f"cut {bad[0]}: a step of the chain is expected, 1 to {steps}; at 0 the images themselves go")
    cuts = sorted(set(cuts))
    ready = _attackers(private, public, diffusion, cuts, releases, own, lens, known, effort or Effort(), seed)
    norm = box_norm(private.pixels[0].numel()) if clip_norm is None else clip_norm
    told = [_at(ready, cut, releases, norm, torch_rng(seed, "disclosure", cut)) for cut in cuts]
    found = {"images": len(private), "public": len(public), "releases": releases, "floor": _floor(ready, seed)}
    found["skipped"] = {name: why for name, why in attributes.WHY_NOT.items() if name not in ready.questions}
    if known is not None:
        found["attributes"] = list(known.names)
    if own is not None:
        found["membership"] = _membership(ready, own, torch_rng(seed, "membership"))
    found["as_released"] = [
        {"cut": cut, **_scores(_those(ready, numbers), x_t, cut, torch_rng(seed, "as released", cut))}
        for cut, numbers, x_t in actual
    ]
    return found | {"recommended": _recommended(ready, releases, norm, seed), "cuts": told}


def _those(ready: _Attackers, numbers: np.ndarray) -> _Attackers:
    at = torch.from_numpy(numbers)
    questions = {name: asked._replace(answers=asked.answers[at]) for name, asked in ready.questions.items()}
    return replace(ready, private=ready.private.subset(numbers), x_0=ready.x_0[at], questions=questions)


def _recommended(ready: _Attackers, releases: int, norm: float, seed: int) -> dict[str, Any]:
    """The first cut at which an image is picked out of 1,000 in at most 1 % of cases, and what comes of it."""
    cut = population.hidden_from(ready.clouds, ready.diffusion.schedule, CANDIDATES, seed, releases)
    if cut is None:
        return {"cut": None}
    return _at(ready, cut, releases, norm, torch_rng(seed, "recommended", cut))


def guarantee(snr: float, norm: float, releases: int) -> dict[str, Any]:
    """What so many releases at this SNR hold to by proof, with all the words that it has no meaning without."""
    return {
        "epsilon": epsilon(mu_of(snr, norm, releases), DELTA),
        "delta": DELTA,
        "mechanism": "Gaussian noise, once" if releases == 1 else f"Gaussian noise, {releases} times afresh",
        "model": "local differential privacy",
        "unit": "one image",
        "neighbouring": "replace one image",
        "norm": norm,
    }


def _attackers(
    private: Images,
    public: Images,
    diffusion: Diffusion,
    cuts: Sequence[int],
    releases: int,
    own: Own | None,
    lens: Extractor | None,
    traits: attributes.Known | None,
    effort: Effort,
    seed: int,
) -> _Attackers:
    schedule, known = diffusion.schedule, as_floats(public.pixels)
    levels = [*cuts, *(_together(diffusion, cut, releases) for cut in cuts)]
    model = UNet(size=known.shape[-1], channels=known.shape[1], classes=0, widths=effort.widths)
    denoiser = reconstruction.public_denoiser(
        known, diffusion, model, effort.training(effort.denoiser), torch_rng(seed, "public denoiser")
    )
    attacks = {
        "linear": reconstruction.linear(schedule),
        "wiener": reconstruction.wiener(schedule, known),
        "regressor": reconstruction.regressor(
            known, schedule, levels, model, effort.training(effort.regressor), torch_rng(seed, "regressor")
        ),
        "denoised": reconstruction.denoised(denoiser),
        "walked": reconstruction.sampled(denoiser, schedule),
    }

    def reader(answers: Tensor, outputs: int, what: str) -> attributes.NoisyClassifier:
        rng, every = torch_rng(seed, what), [0, *levels]
        return attributes.classifier(known, answers, outputs, schedule, every, effort.classifier, rng)

    questions = attributes.questions(private, public, traits, reader)
    clouds = population.clouds(known, public.labels)
    guess, x_0 = reconstruction.mean_of(known), as_floats(private.pixels)
    return _Attackers(diffusion, private, public, lens, own, attacks, guess, questions, clouds, x_0)


def _together(diffusion: Diffusion, cut: int, releases: int) -> int:
    return reconstruction.level_of(diffusion.schedule, float(diffusion.schedule.snr()[cut]) * releases)


def _at(ready: _Attackers, cut: int, releases: int, norm: float, rng: torch.Generator) -> dict[str, Any]:
    """All about one cut: what it is, what one release there gives away, and what all together do."""
    schedule = ready.diffusion.schedule
    snr = float(schedule.snr()[cut])
    copies = (reconstruction.release(schedule, ready.x_0, cut, rng) for _ in range(releases))
    one = next(copies)
    second = reconstruction.release(schedule, ready.x_0, cut, rng)
    told = {
        "cut": cut,
        "share": cut / schedule.steps,
        "snr_db": 10 * math.log10(snr),
        "one_release": {"guarantee": guarantee(snr, norm, 1), **_scores(ready, one, cut, rng)},
        "linkability": identity.linkability(one, second, rng),
    }
    if releases > 1:
        x_t, level = reconstruction.averaged(schedule, _first_then(one, copies), cut)
        scores = {"guarantee": guarantee(snr, norm, releases), "equal_to_cut": level, **_scores(ready, x_t, level, rng)}
        told["all_releases"] = scores
    return told


def _first_then(first: Tensor, others: Iterator[Tensor]) -> Iterator[Tensor]:
    yield first
    yield from others


def _scores(ready: _Attackers, x_t: Tensor, t: int, rng: torch.Generator) -> dict[str, Any]:
    """What every attack makes of releases at one level."""
    truth = ready.x_0[:SHOWN]
    guess = ready.guess(truth, t)
    attacks = ready.attacks | _own_attacks(ready, t)
    found: dict[str, Any] = {
        "reconstruction": {
            name: nearness(attack(x_t[:SHOWN], t), truth, guess, ready.lens, rng) for name, attack in attacks.items()
        },
        "identity": _identity(ready, x_t, t, rng),
    }
    return found | {name: asked.of(x_t, t, rng) for name, asked in ready.questions.items()}


def _own_attacks(ready: _Attackers, t: int) -> dict[str, Attack]:
    """The server's own denoiser, at the levels that it was trained for."""
    if ready.own is None or t < ready.own.cut:
        return {}
    denoiser = ready.own.denoiser(ready.diffusion, ready.shown)
    return {
        "own_denoised": reconstruction.denoised(denoiser),
        "own_walked": reconstruction.sampled(denoiser, ready.diffusion.schedule),
    }


def _identity(ready: _Attackers, x_t: Tensor, t: int, rng: torch.Generator) -> dict[str, Any]:
    """How often the true image is picked among all candidates, and how often it had to be."""
    alpha_bar = float(ready.diffusion.schedule.alpha_bar()[t])
    candidates, sigma = ready.x_0[:CANDIDATES], math.sqrt((1 - alpha_bar) / alpha_bar)
    count = len(candidates)
    return {
        "candidates": count,
        "top_1": proportion(identity.recognised(x_t[:CANDIDATES], candidates, alpha_bar**0.5)),
        "equidistant": identity.equidistant(candidates, sigma),
        "foretold": population.foretold(ready.clouds, sigma, count, rng),
        "limit": identity.limit(candidates, sigma),
        "chance": 1 / count,
    }


def _floor(ready: _Attackers, seed: int) -> dict[str, Any]:
    """What is known without any release, and what would be known from the image itself."""
    rng, truth = torch_rng(seed, "floor"), ready.x_0[:SHOWN]
    guess = ready.guess(truth, 0)
    found: dict[str, Any] = {"reconstruction": nearness(guess, truth, guess, ready.lens, rng)}
    for name, asked in ready.questions.items():
        found[name] = asked.floor(asked.answers, rng)
        found[f"{name}_of_clean_images"] = asked.of(ready.x_0, 0, rng)
    return found


def _membership(ready: _Attackers, own: Own, rng: torch.Generator) -> dict[str, Interval | Any]:
    """Released images against public ones, by the losses of the server's denoiser."""
    schedule = ready.diffusion.schedule
    levels = membership.levels_above(own.cut, schedule)
    eps = torch.randn(DRAWS, *ready.x_0.shape[1:], generator=rng)
    members, others = (
        membership.losses(own.denoiser(ready.diffusion, images), schedule, as_floats(images.pixels), levels, eps)
        for images in (ready.private, ready.public)
    )
    return {
        "levels": levels,
        "members": len(members),
        "others": len(others),
        **membership.told_apart(members, others, rng),
    }
