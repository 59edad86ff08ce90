"""The recipe: one experiment, as a TOML file describes it."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from manyhands.data.partition.base import AnyPartition
from manyhands.diffusion.sampling import Sampling
from manyhands.evaluation.spec import Evaluation
from manyhands.links.in_process import InProcess
from manyhands.methods.base import AnyMethod
from manyhands.runs.data import Data
from manyhands.runs.recipe_silos import SiloImages, with_domains
from manyhands.silos.quorum import can_reach_quorum
from manyhands.silos.silo import NAME, NAME_RULE, is_name
from manyhands.spec import Float, Int, Spec


class Federation(Spec):
    """How a run between real sites waits for them, and what it accepts from them."""

    gather: Float = Field(
        default=600.0, ge=0, description="How many seconds the run waits, before it begins, for sites that are missing."
    )
    deadline: Float = Field(
        default=600.0,
        gt=0,
        description="How many seconds the other sites wait for a site in a round, in total; then the round goes on "
        "without it.",
    )
    lost: Literal["refuse", "admit"] = Field(
        default="refuse",
        description="What happens to a site that has lost its files of the run: 'refuse' excludes it, 'admit' accepts "
        "it as a new one.",
    )
    images: Int = Field(
        default=1_000_000,
        ge=1,
        description="The maximum number of images that a site may enrol; it limits what a site can release and its "
        "weight in averages.",
    )


class Recipe(Spec):
    """One experiment: the data, its partition over silos, the method, and how it is run and evaluated."""

    name: str = Field(pattern=f"^{NAME}$", description="The name of the run; without it, that of the recipe's file.")
    seed: Int = Field(
        default=0, ge=0, description="The seed of the partition, the initial weights, the batches and the noise."
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        default="auto", description="The device for training and sampling; 'auto' takes a GPU if there is one."
    )
    repeatable: bool = Field(
        default=True,
        description="Whether a run that is repeated or resumed has the same bits on CUDA, which then takes "
        "deterministic algorithms; false takes the fastest. On a CPU every run repeats its bits.",
    )
    quorum: Int = Field(
        default=1,
        ge=1,
        description="The minimum number of silos that must send something in a round; with fewer, the run stops.",
    )
    data: Data = Field(description="Where the images come from, and their size.")
    silos: dict[str, SiloImages] = Field(
        default_factory=dict,
        exclude=True,
        description="The images of each silo, by its name, instead of a source and a partition: the same as "
        "[data.domains] and the partition 'domains', which they become.",
    )
    partition: AnyPartition = Field(description="How the images are distributed over silos.")
    method: AnyMethod = Field(description="How the silos train together, and which model.")
    sampling: Sampling = Field(default=Sampling(), description="How a diffusion model draws samples.")
    evaluation: Evaluation = Field(default=Evaluation(), description="What is drawn and measured.")
    link: InProcess = Field(default=InProcess(), description="How messages are carried in a simulation.")
    federation: Federation = Field(
        default=Federation(), description="How a run between real sites waits for them; a simulation ignores it."
    )

    @model_validator(mode="before")
    @classmethod
    def _with_silos(cls, fields: Any) -> Any:
        return with_domains(fields) if isinstance(fields, dict) else fields

    @model_validator(mode="after")
    def _data_fits(self) -> Self:
        domains, partition = self.data.domains, self.partition
        if domains and partition.silos % len(domains):
            raise ValueError(
                f"partition.silos is {partition.silos}, a multiple of {len(domains)}, the number of domains, is "
                "expected"
            )
        partition.check_data(tuple(domains), labelled=self.data.classes != ())
        if domains and not is_name(long := max(self.silo_names, key=len)):
            raise ValueError(f"a silo would be named {long!r}: {NAME_RULE}; give its domain a shorter name")
        return self

    @model_validator(mode="after")
    def _method_fits(self) -> Self:
        method, names = self.method, self.silo_names
        model, data = method.image_model, self.data
        if model and (model.size, model.channels) != (data.size, data.channels):
            raise ValueError(
                f"method.model is for {model.channels} x {model.size}, data is {data.channels} x {data.size}"
            )
        method.check_partition(names)
        if not can_reach_quorum(self.quorum, a_round := method.silos_per_round(len(names))):
            raise ValueError(f"quorum is {self.quorum}, but only {a_round} silos take part in a round")
        if self.sampling.guidance != 1 and model and model.classes and not method.takes_guidance:
            raise ValueError(
                "sampling.guidance needs a network that was also trained without labels: label_dropout > 0"
            )
        return self

    @property
    def silo_names(self) -> list[str]:
        """The names of the silos, in the order of the recipe's domains where it has domains."""
        return self.partition.names(tuple(self.data.domains))

    def resolved(self) -> dict[str, Any]:
        """All fields with their values, as they are written to the run folder."""
        return self.model_dump(mode="json", exclude_none=True)
