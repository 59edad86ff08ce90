"""What a site allows: its own policy, held against every recipe before anything is trained."""

from __future__ import annotations

import hashlib
from typing import Literal

import tomli_w
from pydantic import Field, field_validator

from manyhands.plan import size_text
from manyhands.privacy.budget import Limits
from manyhands.recipe import KINDS, Recipe
from manyhands.spec import Float, Int, Spec, nearest


class Policy(Spec):
    """What a run may ask of this site; what is not said is not limited, but that images and labels stay at home.

    ``approve`` is ``hash``: the site's operator has read this very recipe, to the byte, and approved it; or ``limits``:
    whatever keeps to the limits below may run. ``rounds`` and ``bytes`` are the most that a recipe may have of it in
    all its runs; fewer than ``min_sites`` never train with it. ``data`` is a folder of images; ``recipe``, for what the
    recipe deals to a silo of this name, is for the demo alone. ``ledger`` is the folder of the site's secret and of
    what it has released, where that is not the site's own: sites that have images in common share one. ``max_epsilon``
    (at ``delta``), ``max_snr_db`` and ``max_releases`` are the most that may be released of an image, over all runs.
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
    def _known(cls, told: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for kind in told or ():
            if kind not in KINDS:
                raise ValueError(f"method {kind!r} is not known; {nearest(kind, KINDS)}")
        return told

    @property
    def limits(self) -> Limits:
        """What may be released of an image in all, over all runs."""
        return Limits(self.max_epsilon, self.max_snr_db, self.max_releases, self.delta)

    def refusals(self, recipe: Recipe, images: int) -> list[str]:
        """Why this site does not take part in a run with so many images; nothing where it does."""
        method, told = recipe.method, []
        if self.methods is not None and method.kind not in self.methods:
            told.append(f"method {method.kind!r} is not one of {', '.join(self.methods)}")
        if self.rounds is not None and method.rounds > self.rounds:
            told.append(f"it has {method.rounds:,} rounds, {self.rounds:,} are the most")
        for what, may in {"images": self.images, "labels": self.labels}.items():
            if not may and not any(words.startswith(what) for words in method.plan().never):
                told.append(f"{what} would leave")
        if (sent := method.uploads(images)) > self.bytes if self.bytes is not None else False:
            told.append(f"about {size_text(sent)} would leave, {size_text(self.bytes or 0)} are the most")
        head = getattr(method, "min_head", None)
        if head is not None and head < self.min_head:
            told.append(f"min_head is {head}, {self.min_head} is the least here")
        return told


def told_in_words(recipe: Recipe, site: str, images: int) -> list[str]:
    """A run as an operator reads it before approving it."""
    method = recipe.method
    lines = [
        f"{recipe.name}: method {method.kind}, {method.rounds:,} rounds",
        f"this site would send about {size_text(method.uploads(images))} in all, for its {images:,} images",
        *method.plan().words(),
        *method.sizes(recipe.partition.silos, recipe.sampling),
    ]
    if not any("epsilon" in line for line in lines):
        lines.append("no epsilon can be given for what it sends")
    return [*lines, *method.warnings({site: images})]


def recipe_text(recipe: Recipe) -> str:
    """The recipe as it is kept and hashed: every field with its value."""
    return tomli_w.dumps(recipe.resolved())


def recipe_hash(text: str) -> str:
    """What a recipe is approved by."""
    return hashlib.sha256(text.encode()).hexdigest()
