"""What a site allows: its policy, against which each recipe is checked before anything is trained."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated, Literal

import tomli_w
from pydantic import Field, field_validator

from manyhands.data.sources.base import Source
from manyhands.data.sources.file_source import FileSource
from manyhands.data.sources.of_path import source_of_path
from manyhands.errors import RecipeError
from manyhands.formatting import number_text, size_text
from manyhands.messages import outgoing
from manyhands.privacy.budget import Limits
from manyhands.registry import METHODS, SOURCES, OneOf
from manyhands.runs.recipe import Recipe
from manyhands.spec import Float, Int, Spec, suggest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from manyhands.messages.outgoing import OutgoingData


NO_MORE_THAN_NOISE = 0.0
"""The default limit of the SNR in dB: an image with more signal than noise can be recognised."""

APPROVED_RUNS = 4
"""How often a recipe that a person approved may run in full, unless the policy has ``rounds``."""

FROM_RECIPE = "recipe"
"""The value of ``data`` with which a site trains on the images that the recipe deals to a silo of its name."""


class Policy(Spec):
    """What this site allows runs to do.

    Three kinds of data leave only with a permission: images as they are (``images``), labels (``labels``), and data
    from which the server can compute either (``computable``). ``max_epsilon`` at ``delta``, ``max_snr_db`` and
    ``max_releases`` limit the noised releases of an image, all of them together and over all runs. They do not limit
    weights, gradients and losses, which have no epsilon; use ``methods`` for these.
    """

    approve: Literal["hash", "limits"] = Field(
        default="hash",
        description="hash: only recipes run that a person at this site has approved, by the hash of every byte. "
        "limits: every recipe runs that keeps to the limits below.",
    )
    methods: tuple[str, ...] | None = Field(
        default=None, description="The methods that may run here, such as fedavg. None: all methods."
    )
    min_sites: Int = Field(default=2, ge=1, description="This site never trains with fewer sites, itself included.")
    rounds: Int | None = Field(
        default=None,
        ge=1,
        description="The most rounds of one recipe, over all its runs. None: with approve = 'hash', four times the "
        "rounds of the recipe; with approve = 'limits', no limit.",
    )
    bytes: Int | None = Field(
        default=None, ge=0, description="The most bytes that leave for one recipe, over all its runs. None: no limit."
    )
    images: bool = Field(default=False, description="Whether images may leave as they are.")
    labels: bool = Field(default=False, description="Whether labels may leave, true or randomised ones.")
    computable: bool = Field(
        default=False,
        description="Whether data may leave from which the server can compute images or labels that may not leave.",
    )
    max_epsilon: Float | None = Field(
        default=None,
        gt=0,
        description="The largest epsilon, at delta, of all noised releases of an image together. None: no limit.",
    )
    max_snr_db: Float | None = Field(
        default=None,
        ge=-200,
        le=200,
        description="The largest signal-to-noise ratio, in dB, of all noised releases of an image together. None: 0 "
        "dB, unless max_epsilon, images or computable is set.",
    )
    max_releases: Int | None = Field(
        default=None,
        ge=1,
        description="How often an image may be released with new noise. None: no limit. With approve = 'limits', "
        "noised images leave only if this, max_epsilon or max_snr_db is set.",
    )
    delta: Float = Field(default=1e-5, gt=0, lt=1, description="The delta at which max_epsilon holds.")
    min_head: Int = Field(
        default=0,
        ge=0,
        description="huscf: the smallest number of the last block of the discriminator's head, which stays at this "
        "site. Blocks count from 0.",
    )
    logs: bool = Field(
        default=False,
        description="Whether FLARE may stream the logs of jobs to the server, for whoever submits jobs to read.",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        default="auto", description="Where this site trains. auto takes a GPU if there is one."
    )
    data: str | Annotated[Source, OneOf(SOURCES)] = Field(
        default="",
        description="This site's images: the path of a folder with a folder for each class, of a zip file or of a "
        "table, or the table of a source, as a recipe has it: kind 'folder', 'zip' or 'table'. 'recipe' takes the "
        "images that the recipe deals to a silo of this name; it is for the demo only.",
    )
    ledger: str = Field(
        default="",
        description="The folder of this site's secret and of its record of releases. Sites that share images share "
        "one. Empty: the site's own folder.",
    )

    @field_validator("methods")
    @classmethod
    def _known(cls, methods: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for kind in methods or ():
            if kind not in METHODS.kinds():
                raise ValueError(f"method {kind!r} is not known; {suggest(kind, METHODS.kinds())}")
        return methods

    @field_validator("data")
    @classmethod
    def _lists_files(cls, data: str | Source) -> str | Source:
        if isinstance(data, Source) and not isinstance(data, FileSource):
            raise ValueError(f"kind {data.kind!r} is not for sites; 'folder', 'zip' or 'table' is expected")
        return data

    @property
    def source(self) -> FileSource | None:
        """Where this site's images are; None for those that a recipe deals to it."""
        if isinstance(self.data, FileSource):
            return self.data
        return source_of_path(str(self.data)) if self.data not in ("", FROM_RECIPE) else None

    @property
    def limits(self) -> Limits:
        """The limits of all noised releases of an image together, over all runs."""
        any_snr = self._bounds_noise or self.images or self.computable
        max_snr_db = self.max_snr_db if any_snr else NO_MORE_THAN_NOISE
        return Limits(self.max_epsilon, max_snr_db, self.max_releases, self.delta)

    def max_rounds(self, recipe: Recipe) -> int | None:
        """The most rounds of this recipe, over all its runs, or None for no limit."""
        if self.rounds is None and self.approve == "hash":
            return APPROVED_RUNS * recipe.method.rounds
        return self.rounds

    def refusals(self, recipe: Recipe, images: int, site: str = "") -> list[str]:
        """Return why this site does not take part in a run with this many of its images; empty if it does."""
        method, reasons = recipe.method, []
        kinds = method.plan().outgoing_of(site)
        if self.methods is not None and method.kind not in self.methods:
            reasons.append(f"method {method.kind!r} is not one of {', '.join(self.methods)}")
        if self.rounds is not None and method.rounds > self.rounds:
            reasons.append(f"the recipe has {method.rounds:,} rounds, but {self.rounds:,} are allowed")
        reasons += [] if kinds else [f"method {method.kind!r} does not state what leaves"]
        reasons += [line for kind in kinds for line in self._against(kind, images)]
        reasons += self._against_all(kinds, images)
        if self.bytes is not None and (sent := method.upload_bytes(images)) > self.bytes:
            reasons.append(f"about {size_text(sent)} would leave, but {size_text(self.bytes)} are allowed")
        head = getattr(method, "min_head", None)
        if head is not None and head < self.min_head:
            reasons.append(f"min_head is {head}, but must be at least {self.min_head}")
        return list(dict.fromkeys(reasons))

    def _against(self, kind: OutgoingData, images: int) -> list[str]:
        """Return why this kind of data may not leave."""
        allowed = {"images": self.images, "labels": self.labels}
        if isinstance(kind, outgoing.Images | outgoing.Labels):
            name = "images" if isinstance(kind, outgoing.Images) else "labels"
            return [] if allowed[name] else [f"{name} would leave: {kind.description}"]
        if isinstance(kind, outgoing.NoisedImages) and self._bounds_noise:
            return []
        exposed = [] if self.computable else [name for name in kind.exposed(images) if not allowed[name]]
        return [f"{' and '.join(exposed)} could be computed from what leaves: {kind.description}"] if exposed else []

    @property
    def _bounds_noise(self) -> bool:
        """Whether this policy sets how noisy images must be."""
        return self.max_epsilon is not None or self.max_snr_db is not None

    def _against_all(self, kinds: Sequence[OutgoingData], images: int) -> list[str]:
        """Return why noised images would leave too often or with too little noise."""
        reasons, noised = [], [kind for kind in kinds if isinstance(kind, outgoing.NoisedImages)]
        if noised and self.approve == "limits" and not self._bounds_noise and self.max_releases is None:
            reasons.append("approve = 'limits' allows noised images only with max_epsilon, max_snr_db or max_releases")
        extra = sum(kind.randomised or 0 for kind in kinds if isinstance(kind, outgoing.Labels))
        for kind in noised:
            spent, level, count = kind.epsilon(images, self.delta) + extra, kind.snr_db(images), kind.releases(images)
            if self.max_epsilon is not None and spent > self.max_epsilon:
                reasons.append(
                    f"an image would have epsilon {number_text(spent)} at delta {self.delta:g}, "
                    f"but {self.max_epsilon:g} is allowed"
                )
            if self.max_snr_db is not None and level > self.max_snr_db:
                reasons.append(f"an image would have an SNR of {level:.1f} dB, but {self.max_snr_db:g} dB is allowed")
            if self.max_releases is not None and (count or 0) > self.max_releases:
                reasons.append(f"an image would be released {count:,} times, but {self.max_releases:,} is allowed")
        return reasons


PUBLIC_IMAGES = Policy(approve="limits", labels=True, computable=True, max_snr_db=200, logs=True, data=FROM_RECIPE)
"""The policy of the demo and of FLARE's simulator: labels may leave, images may be computable, noise negligible."""


def describe_run(recipe: Recipe, site: str, images: int) -> list[str]:
    """Describe a run to an operator who may approve it."""
    method = recipe.method
    words = method.plan().words(site, images)
    return [
        f"{recipe.name}: method {method.kind}, {method.rounds:,} rounds",
        f"this site would send about {size_text(method.upload_bytes(images))} in all, for its {images:,} images",
        *words,
        *method.cost_lines(recipe.partition.silos, recipe.sampling),
        *method.warnings({site: images}),
    ]


def check_between_sites(recipe: Recipe) -> None:
    """Raise ``RecipeError`` where the method needs all images in one place."""
    if recipe.method.pools_images:
        raise RecipeError(f"method {recipe.method.kind!r} needs all images in one place")


def recipe_text(recipe: Recipe) -> str:
    """Return the recipe as it is stored and hashed, with the value of every field."""
    return tomli_w.dumps(recipe.resolved())


def recipe_hash(text: str) -> str:
    """Return the SHA-256 by which a recipe is approved."""
    return hashlib.sha256(text.encode()).hexdigest()
