"""What a run with CollaFuse is told, and what follows from that."""

from __future__ import annotations

import math
from abc import ABC
from typing import Literal, Self

from pydantic import Field, model_validator

from manyhands.diffusion.bridge import Mode
from manyhands.diffusion.objective import Diffusion
from manyhands.diffusion.release import box_norm
from manyhands.diffusion.sample import Sampling
from manyhands.diffusion.timestep_cut import TimestepCut
from manyhands.methods.baselines import Local
from manyhands.methods.collafuse.release import Labels
from manyhands.methods.distil import Distil
from manyhands.methods.fedavg.method import FedAvg
from manyhands.methods.local_training import LocalTrainingMethod
from manyhands.methods.update_length import MAX_RATIO, MaxUpdateRatio
from manyhands.models.layer_cut import MAX_CUTS
from manyhands.models.unet import UNet
from manyhands.silos.training import Training
from manyhands.spec import Float, Int


class CollaFuseSpec(LocalTrainingMethod, ABC):
    """The fields of ``CollaFuse``, which says what they mean."""

    kind: Literal["collafuse"] = "collafuse"
    model: UNet
    cut: TimestepCut
    cuts: dict[str, TimestepCut] = Field(default_factory=dict, max_length=MAX_CUTS)
    mode: Mode = "exact"
    release: Literal["once", "fresh"] = "once"
    norm: Float | None = Field(default=None, gt=0)
    labels: Labels = "withhold"
    label_epsilon: Float = Field(default=1.0, gt=0, le=100)
    ask: Literal["own", "any"] = "own"
    silo_model: UNet | None = None
    server_training: Training | None = None
    keep_optimiser: bool = True
    warm_start: Int = Field(default=0, ge=0)
    finish: Int | None = Field(default=None, ge=1, le=100_000)
    distil: Distil | None = None
    federate_silos: bool = False
    clusters: dict[str, tuple[str, ...]] = Field(default_factory=dict, max_length=MAX_CUTS)
    max_update_ratio: MaxUpdateRatio = MAX_RATIO

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        home, model = self.home_model, self.model
        if (home.size, home.channels, home.classes) != (model.size, model.channels, model.classes):
            raise ValueError("silo_model is for other images or classes than model")
        if self.diffusion.upto is not None:
            raise ValueError("diffusion.upto is for the cut to say")
        if self.diffusion.norm is not None:
            raise ValueError("diffusion.norm is for method.norm to say")
        if self.warm_start and home != self.server_model:
            raise ValueError("warm_start needs silos whose network is the server's, classes and all")
        if self.warm_start >= self.rounds:
            raise ValueError(f"warm_start is {self.warm_start}, there are {self.rounds} rounds")
        if self.mode != "exact" and len({self.step_of(name) for name in (*self.cuts, "")}) > 1:
            raise ValueError(f"mode {self.mode!r} has one cut for all; silos with cuts of their own need mode 'exact'")
        if self.federate_silos and 0 in self.steps_told:
            raise ValueError("federate_silos: a silo at cut 0 has no network")
        named = [silo for silos in self.clusters.values() for silo in silos]
        if self.clusters and (not self.federate_silos or len(set(named)) < len(named)):
            raise ValueError("clusters go with federate_silos, and no silo is in two of them")
        if self.distil and (self.finish or self.federate_silos or self.mode == "authors"):
            raise ValueError("distil goes with neither finish nor federate_silos, nor with the authors' mode")
        if self.distil and self.distil.rounds + self.warm_start >= self.rounds:
            raise ValueError(f"distil and warm_start leave none of {self.rounds} rounds to learn in")
        if self.release == "fresh" and any(cut.epsilon for cut in (self.cut, *self.cuts.values())):
            raise ValueError("a cut by epsilon is for one release of an image; release = 'fresh' makes many")
        if self.release == "fresh" and self.warm_start:
            raise ValueError(
                "warm_start needs releases to learn from; with release = 'fresh' silos that rest make none"
            )
        if self.federate_silos and self.warm_start:
            raise ValueError("warm_start is for silos with networks of their own; federate_silos averages them")
        return self

    def step_of(self, silo: str) -> int:
        """The step of the chain that a silo's images are noised to."""
        return self.cuts.get(silo, self.cut).step(self.diffusion.schedule, self.bound)

    def norm_at(self, step: int) -> float | None:
        """What images are squeezed into below a cut; a silo that releases nothing, and averages nothing, needs none."""
        alone = step == self.diffusion.schedule.steps and not self.federate_silos
        return None if alone else self.norm

    @property
    def drawn_at_server(self) -> Diffusion:
        """What the server's network is the denoiser of: squeezed images, or, of a chain of its own, noised ones."""
        return self.diffusion.model_copy(update={"norm": None if self.mode == "nested" else self.norm})

    @property
    def bound(self) -> float:
        """The largest norm that a released image has: that of the corners of the box of pixels, or ``norm``."""
        return min(self.norm or math.inf, box_norm(self.model.channels * self.model.size**2))

    def home(self, step: int) -> Local | FedAvg:
        """How the networks below a cut are trained: each by its silo alone, or averaged."""
        told = {
            "model": self.home_model,
            "training": self.training,
            "diffusion": self.diffusion.model_copy(update={"upto": step, "norm": self.norm_at(step)}),
            "rounds": self.rounds,
            "ema": self.ema,
            "keep_optimiser": self.keep_optimiser,
        }
        if self.federate_silos:
            return FedAvg(**told, kept=True, max_update_ratio=self.max_update_ratio)
        return Local(**told, distil=self.distil if step else None)

    @property
    def home_model(self) -> UNet:
        """The network of a silo."""
        return self.silo_model or self.model

    @property
    def server_model(self) -> UNet:
        """The server's network; it knows of no classes where labels are withheld."""
        return self.model.model_copy(update={"classes": 0}) if self.labels == "withhold" else self.model

    @property
    def told_labels(self) -> bool:
        """Whether labels, true ones or not, go to the server."""
        return self.labels != "withhold" and self.model.classes > 0

    @property
    def steps_told(self) -> list[int]:
        """All cuts that the recipe tells of."""
        return sorted({self.step_of(name) for name in (*self.cuts, "")})

    @property
    def chain(self) -> str:
        """The chain that a cut is a step of, as silo and server must mean the same one."""
        return f"{self.mode} {self.diffusion.schedule!r}"

    def releases(self, images: int) -> float:
        """How often each image is released in a whole run, in the mean."""
        return 1.0 if self.release == "once" else self.rounds * self.training.seen(images) / images

    def server_rounds(self, silos: int) -> Training:
        """The server's share of a round."""
        return self.server_training or self.training.repeated(silos)

    def server_stop(self, step: int) -> int:
        """Down to where the server is asked to go: to the cut, or to the end of a chain of its own."""
        return 0 if self.mode == "nested" else step

    def silo_start(self, step: int) -> int:
        """Where the silo takes a half-denoised image to be; higher than the cut in the authors' way."""
        whole = self.diffusion.schedule.steps
        return step if self.mode != "authors" else min(round(step + step * (1 - step / whole)), whole)

    def silo_steps(self, step: int, sampling: Sampling) -> int | None:
        """In how many steps the silo finishes: the authors' way takes those of the cut over a longer way."""
        if not step:
            return None
        if self.distil or self.finish:
            return min(self.distil.steps if self.distil else self.finish or step, step)
        if self.mode != "authors":
            return None
        return len(sampling.between(self.diffusion.schedule, step, 0)) - 1
