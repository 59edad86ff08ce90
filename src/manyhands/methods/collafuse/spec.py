"""The fields of a CollaFuse run, and what follows from them."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from manyhands.diffusion.bridge import Mode
from manyhands.diffusion.objective import Diffusion
from manyhands.diffusion.release_privacy import box_norm
from manyhands.diffusion.sampling import Sampling
from manyhands.diffusion.timestep_cut import TimestepCut
from manyhands.methods.baselines import Local
from manyhands.methods.collafuse.release import Labels
from manyhands.methods.distil import Distil
from manyhands.methods.fedavg.method import FedAvg
from manyhands.methods.learners.by_model import learner_type
from manyhands.methods.update_length import MAX_RATIO, MaxUpdateRatio
from manyhands.methods.whole_network import WholeNetworkMethod, check_training
from manyhands.models.base import Model
from manyhands.models.dit import DiT
from manyhands.models.layer_cut import MAX_CUTS
from manyhands.models.pretrained import Pretrained
from manyhands.models.unet import UNet
from manyhands.registry import MODELS, OneOf
from manyhands.silos.training import Training
from manyhands.spec import Float, Int


def _of_a_unet(model: Any) -> Any:
    return {"kind": "unet", **model} if isinstance(model, Mapping) else model


def _of_pixels(model: Model) -> Model:
    if not isinstance(model, UNet | DiT):
        raise ValueError(f"collafuse releases noised pixels, so its networks are a 'unet' or a 'dit', not {model.noun}")
    return model


def _of_silo(model: Model) -> Model:
    return model if isinstance(model, Pretrained) else _of_pixels(model)


PixelDenoiser = Annotated[UNet | DiT, OneOf(MODELS), BeforeValidator(_of_a_unet), AfterValidator(_of_pixels)]
"""A denoiser of pixels that can be built without classes, too; a U-Net where no kind is named."""
SiloDenoiser = Annotated[UNet | DiT | Pretrained, OneOf(MODELS), BeforeValidator(_of_a_unet), AfterValidator(_of_silo)]
"""A denoiser of pixels, or a pretrained one."""


class CollaFuseSpec(WholeNetworkMethod, ABC):
    """The fields of ``CollaFuse``, and the cuts, networks and rounds that follow from them."""

    kind: Literal["collafuse"] = Field(default="collafuse", description="The name of this method in a recipe.")
    model: PixelDenoiser = Field(description="The server's network; also that of the silos unless silo_model is set.")
    cut: TimestepCut = Field(
        description="Where the denoising chain is cut: the silo's images are noised up to this step before they leave."
    )
    cuts: dict[str, TimestepCut] = Field(
        default_factory=dict, max_length=MAX_CUTS, description="Cuts of single silos, by name, instead of cut."
    )
    mode: Mode = Field(
        default="exact",
        description="How the two parts of the chain fit together: 'exact', or as published by the authors of CollaFuse "
        "('authors') or of PFDM ('nested').",
    )
    release: Literal["once", "fresh"] = Field(
        default="once",
        description="'once' releases each image a single time, always with the same noise; 'fresh' releases the images "
        "of each round again with new noise, which gives more away with every round.",
    )
    norm: Float | None = Field(
        default=None,
        gt=0,
        description="The largest L2 norm of an image of pixels in [-1, 1]; larger images are squeezed into it before "
        "noise is added, and stretched back when drawn. None leaves images as they are.",
    )
    labels: Labels = Field(
        default="withhold",
        description="Whether the server gets the labels: 'withhold', 'share', or 'randomised' for labels that are "
        "replaced at random (randomised response).",
    )
    label_epsilon: Float = Field(
        default=1.0, gt=0, le=100, description="The epsilon of randomised response for one label."
    )
    ask: Literal["own", "any"] = Field(
        default="own",
        description="Which labels a silo may ask the server to draw: its 'own', which it has shared, or 'any'.",
    )
    silo_model: SiloDenoiser | None = Field(
        default=None,
        description="The network of a silo, such as a smaller U-Net or a pretrained one with adapters; None takes "
        "model.",
    )
    server_training: Training | None = Field(
        default=None,
        description="The server's training in a round; None takes as many steps as all silos together.",
    )
    keep_optimiser: bool = Field(
        default=True, description="Whether a silo keeps its optimiser's state from round to round."
    )
    warm_start: Int = Field(
        default=0,
        ge=0,
        description="The round from which on silos train; they start from the server's weights of that round. 0 starts "
        "them at once from their own.",
    )
    silo_steps: Int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="In how many steps a silo denoises its part of an image; None takes those of the whole chain that "
        "are below the cut.",
    )
    distil: Distil | None = Field(
        default=None,
        description="Distils the silo's network in its last rounds, so that it denoises in a few steps; None does not.",
    )
    federate_silos: bool = Field(
        default=False, description="Whether the silos' networks are averaged as in FedAvg instead of staying private."
    )
    clusters: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        max_length=MAX_CUTS,
        description="With federate_silos: the silos of each cluster, whose networks are averaged with each other only. "
        "Empty averages over all silos.",
    )
    max_update_ratio: MaxUpdateRatio = MAX_RATIO

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        local, model = self.local_model, self.model
        if (local.size, local.channels, local.classes) != (model.size, model.channels, model.classes):
            raise ValueError("silo_model must have the size, channels and classes of model")
        for name in ("training", "server_training"):
            self._check_training(name)
        if self.diffusion.max_timestep is not None:
            raise ValueError("diffusion.max_timestep follows from the cut; leave it out")
        if self.diffusion.norm is not None:
            raise ValueError("diffusion.norm follows from method.norm; set that instead")
        if self.warm_start and local != self.server_model:
            raise ValueError("warm_start needs silos whose network equals the server's, with the same classes")
        if self.warm_start >= self.rounds:
            raise ValueError(f"warm_start is {self.warm_start}, there are {self.rounds} rounds")
        if self.mode != "exact" and len({self.step_of(name) for name in (*self.cuts, "")}) > 1:
            raise ValueError(f"mode {self.mode!r} needs one cut for all silos; different cuts need mode 'exact'")
        if self.federate_silos and 0 in self.cut_steps:
            raise ValueError("federate_silos: a silo at cut 0 has no network")
        members = [silo for silos in self.clusters.values() for silo in silos]
        if self.clusters and (not self.federate_silos or len(set(members)) < len(members)):
            raise ValueError("clusters need federate_silos = true, and a silo may be in one cluster only")
        if self.distil and (self.silo_steps or self.federate_silos or self.mode == "authors"):
            raise ValueError("distil cannot be combined with silo_steps, federate_silos or mode 'authors'")
        if self.distil and not learner_type(type(local)).can_distil:
            raise ValueError(f"distil is for a denoiser of images, such as a U-Net, not for {local.noun}")
        if self.distil and self.distil.rounds + self.warm_start >= self.rounds:
            raise ValueError(f"distil and warm_start leave none of the {self.rounds} rounds for training")
        if self.release == "fresh" and any(cut.epsilon for cut in (self.cut, *self.cuts.values())):
            raise ValueError("a cut by epsilon assumes one release of each image, but release = 'fresh' makes many")
        if self.release == "fresh" and self.warm_start:
            raise ValueError(
                "warm_start needs releases to train on, but with release = 'fresh' silos that do not train make none"
            )
        if self.federate_silos and self.warm_start:
            raise ValueError("warm_start is for silos with private networks, but federate_silos averages them")
        return self

    def _check_training(self, name: str) -> None:
        """Raise ``ValueError`` where the networks cannot be trained as it is asked for."""
        training: Training | None = getattr(self, name)
        if training is None:
            return
        check_training(training, self.model)
        if training.shift and any(step < self.diffusion.schedule.steps for step in self.cut_steps):
            raise ValueError(
                f"{name}.shift repeats pixels at the edges, and the server trains on released images, whose noise "
                "must not be repeated; use flip, which mirrors both"
            )

    def step_of(self, silo: str) -> int:
        """Return the step of the chain up to which a silo's images are noised."""
        return self.cuts.get(silo, self.cut).step(self.diffusion.schedule, self.bound)

    def norm_at(self, step: int) -> float | None:
        """Return the norm that images below a cut are squeezed into; None where nothing is released or averaged."""
        private = step == self.diffusion.schedule.steps and not self.federate_silos
        return None if private else self.norm

    @property
    def server_diffusion(self) -> Diffusion:
        """The diffusion of the server's network; in mode 'nested' it has a chain of its own over noised images."""
        return self.diffusion.model_copy(update={"norm": None if self.mode == "nested" else self.norm})

    @property
    def bound(self) -> float:
        """The largest L2 norm that a released image has without its noise: ``norm``, or that of an all-white image."""
        return min(self.norm or math.inf, box_norm(self.model.channels * self.model.size**2))

    def local_method(self, step: int) -> Local | FedAvg:
        """Return the method that trains the networks below a cut: ``Local``, or ``FedAvg`` where they are averaged."""
        fields = {
            "model": self.local_model,
            "training": self.training,
            "diffusion": self.diffusion.model_copy(update={"max_timestep": step, "norm": self.norm_at(step)}),
            "rounds": self.rounds,
            "ema": self.ema,
            "keep_optimiser": self.keep_optimiser,
        }
        if self.federate_silos:
            return FedAvg(**fields, kept=True, max_update_ratio=self.max_update_ratio)
        return Local(**fields, distil=self.distil if step else None)

    @property
    def local_model(self) -> UNet | DiT | Pretrained:
        """The network of a silo: ``silo_model``, or the same as the server's."""
        return self.silo_model or self.model

    @property
    def server_model(self) -> UNet | DiT:
        """The network of the server; it is unconditional where labels are withheld."""
        return self.model.model_copy(update={"classes": 0}) if self.labels == "withhold" else self.model

    @property
    def sends_labels(self) -> bool:
        """Whether labels, true or randomised, are sent to the server."""
        return self.labels != "withhold" and self.model.classes > 0

    @property
    def cut_steps(self) -> list[int]:
        """All steps at which the recipe cuts, in rising order."""
        return sorted({self.step_of(name) for name in (*self.cuts, "")})

    @property
    def chain(self) -> str:
        """The chain in words: silo and server compare it, because a cut is a step of the same chain for both."""
        return f"{self.mode} {self.diffusion.schedule!r}"

    def releases(self, images: int) -> float:
        """Return how often each image is released in a whole run, on average."""
        return 1.0 if self.release == "once" else self.rounds * self.training.seen(images) / images

    def server_rounds(self, silos: int) -> Training:
        """Return the server's training in a round."""
        return self.server_training or self.training.repeated(silos)

    def server_stop(self, step: int) -> int:
        """Return the step down to which the server denoises: the cut, or 0 for a chain of its own."""
        return 0 if self.mode == "nested" else step

    def silo_start(self, step: int) -> int:
        """Return the step at which the silo takes over; in the authors' mode it is above the cut."""
        whole = self.diffusion.schedule.steps
        return step if self.mode != "authors" else min(round(step + step * (1 - step / whole)), whole)

    def steps_below_cut(self, step: int, sampling: Sampling) -> int | None:
        """Return in how many steps the silo denoises its part; None takes those of the whole chain below the cut.

        The authors' mode takes the steps below the cut over the longer way from ``silo_start``.
        """
        if not step:
            return None
        if self.distil or self.silo_steps:
            return min(self.distil.steps if self.distil else self.silo_steps or step, step)
        if self.mode != "authors":
            return None
        return len(sampling.between(self.diffusion.schedule, step, 0)) - 1
