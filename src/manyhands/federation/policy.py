"""What a site allows: its own policy, held against every recipe before anything is trained."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Literal

import tomli_w
from pydantic import Field, field_validator

from manyhands.formatting import size_text
from manyhands.messages import outgoing
from manyhands.messages.outgoing.kinds import epsilon_text
from manyhands.privacy.budget import Limits
from manyhands.runs.recipe import KINDS, Recipe
from manyhands.spec import Float, Int, Spec, suggest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from manyhands.messages.outgoing import OutgoingData


NO_MORE_THAN_NOISE = 0.0
"""An SNR in dB: what has more signal than noise can be seen."""

FROM_RECIPE = "recipe"
"""Told as a policy's ``data``: the images that a recipe deals to a site of this name."""


class Policy(Spec):
    """What runs may ask of this site.

    ``approve`` is ``hash``: only recipes run that the site's operator has approved, to the byte; or ``limits``: all
    recipes run that keep the limits below. ``rounds`` and ``bytes`` are the most that one recipe may use over all its
    runs. The site never trains with fewer than ``min_sites`` sites. ``data`` is a folder of images; ``recipe`` stands
    for what the recipe deals to a silo of this name, and is for the demo alone. ``ledger`` is the folder of the site's
    secret and of its record of releases, if it is not the site's own folder: sites that share images share one.

    Unless ``images`` is true no image leaves as it is, unless ``labels`` is true no label leaves, and unless
    ``computable`` is true nothing leaves from which the server can compute images or labels that may not leave.
    ``max_epsilon`` at ``delta``, ``max_snr_db`` and ``max_releases`` bound the releases of each image, all together and
    over all runs. If neither of the first two is set, releases may hold no more signal than noise. They do not bound
    weights, gradients and losses, for which no epsilon can be given: ``methods`` does. With ``approve = "limits"``
    noised images leave only if one of the three is set.
    """

    approve: Literal["hash", "limits"] = "hash"
    methods: tuple[str, ...] | None = None
    min_sites: Int = Field(default=2, ge=1)
    rounds: Int | None = Field(default=None, ge=1)
    bytes: Int | None = Field(default=None, ge=0)
    images: bool = False
    labels: bool = False
    computable: bool = False
    max_epsilon: Float | None = Field(default=None, gt=0)
    max_snr_db: Float | None = Field(default=None, ge=-200, le=200)
    max_releases: Int | None = Field(default=None, ge=1)
    delta: Float = Field(default=1e-5, gt=0, lt=1)
    min_head: Int = Field(default=0, ge=0)
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    data: str = ""
    ledger: str = ""

    @field_validator("methods")
    @classmethod
    def _known(cls, methods: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for kind in methods or ():
            if kind not in KINDS:
                raise ValueError(f"method {kind!r} is not known; {suggest(kind, KINDS)}")
        return methods

    @property
    def limits(self) -> Limits:
        """What may be released of an image in all, over all runs."""
        open_to_noise = self._bounds_noise or self.images or self.computable
        most = self.max_snr_db if open_to_noise else NO_MORE_THAN_NOISE
        return Limits(self.max_epsilon, most, self.max_releases, self.delta)

    def refusals(self, recipe: Recipe, images: int, site: str = "") -> list[str]:
        """Why this site does not take part in a run with so many images; nothing where it does."""
        method, reasons = recipe.method, []
        kinds = method.plan().outgoing_of(site)
        if self.methods is not None and method.kind not in self.methods:
            reasons.append(f"method {method.kind!r} is not one of {', '.join(self.methods)}")
        if self.rounds is not None and method.rounds > self.rounds:
            reasons.append(f"it has {method.rounds:,} rounds, {self.rounds:,} are the most")
        reasons += [] if kinds else [f"method {method.kind!r} does not state what leaves"]
        reasons += [line for kind in kinds for line in self._against(kind, images)]
        reasons += self._against_all(kinds, images)
        if (sent := method.upload_bytes(images)) > self.bytes if self.bytes is not None else False:
            reasons.append(f"about {size_text(sent)} would leave, {size_text(self.bytes or 0)} are the most")
        head = getattr(method, "min_head", None)
        if head is not None and head < self.min_head:
            reasons.append(f"min_head is {head}, {self.min_head} is the least here")
        return list(dict.fromkeys(reasons))

    def _against(self, kind: OutgoingData, images: int) -> list[str]:
        """Why this kind of thing may not leave."""
        may = {"images": self.images, "labels": self.labels}
        if isinstance(kind, outgoing.Images | outgoing.Labels):
            name = "images" if isinstance(kind, outgoing.Images) else "labels"
            return [] if may[name] else [f"{name} would leave: {kind.description}"]
        if isinstance(kind, outgoing.NoisedImages) and self._bounds_noise:
            return []
        shut = [] if self.computable else [name for name in kind.exposed(images) if not may[name]]
        return [f"{' and '.join(shut)} could be computed from what leaves: {kind.description}"] if shut else []

    @property
    def _bounds_noise(self) -> bool:
        """Whether it says itself how noisy images must be."""
        return self.max_epsilon is not None or self.max_snr_db is not None

    def _against_all(self, kinds: Sequence[OutgoingData], images: int) -> list[str]:
        """Why the noised images among all that leaves are too many, or not noised enough."""
        reasons, noised = [], [kind for kind in kinds if isinstance(kind, outgoing.NoisedImages)]
        if noised and self.approve == "limits" and not self._bounds_noise and self.max_releases is None:
            reasons.append("approve = 'limits' takes noised images only with max_epsilon, max_snr_db or max_releases")
        extra = sum(kind.randomised or 0 for kind in kinds if isinstance(kind, outgoing.Labels))
        for kind in noised:
            spent, level, count = kind.epsilon(images, self.delta) + extra, kind.snr_db(images), kind.releases(images)
            if self.max_epsilon is not None and spent > self.max_epsilon:
                reasons.append(
                    f"an image has epsilon {epsilon_text(spent)} at delta {self.delta:g}, "
                    f"{self.max_epsilon:g} is the most"
                )
            if self.max_snr_db is not None and level > self.max_snr_db:
                reasons.append(f"an image has an SNR of {level:.1f} dB, {self.max_snr_db:g} dB is the most")
            if self.max_releases is not None and (count or 0) > self.max_releases:
                reasons.append(f"an image is released {count:,} times, {self.max_releases:,} is the most")
        return reasons


def describe_run(recipe: Recipe, site: str, images: int) -> list[str]:
    """A run as an operator reads it before approving it."""
    method = recipe.method
    words = method.plan().words(site, images)
    return [
        f"{recipe.name}: method {method.kind}, {method.rounds:,} rounds",
        f"this site would send about {size_text(method.upload_bytes(images))} in all, for its {images:,} images",
        *words,
        *method.cost_lines(recipe.partition.silos, recipe.sampling),
        *method.warnings({site: images}),
    ]


def recipe_text(recipe: Recipe) -> str:
    """The recipe as it is kept and hashed: every field with its value."""
    return tomli_w.dumps(recipe.resolved())


def recipe_hash(text: str) -> str:
    """What a recipe is approved by."""
    return hashlib.sha256(text.encode()).hexdigest()
