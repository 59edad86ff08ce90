"""The base of learners: how a silo trains one kind of model, and what generates images with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from manyhands.data.loader import BatchLoader
from manyhands.models.base import Model
from manyhands.silos.flops import Meter
from manyhands.silos.local_training import prepare, steps
from manyhands.silos.step_average import StepAverage
from manyhands.silos.training import Training

if TYPE_CHECKING:
    from manyhands.diffusion.objective import Diffusion
    from manyhands.generators.load import TrainedModel
    from manyhands.messages.operation import Operation
    from manyhands.methods.base import Conversation
    from manyhands.methods.distil import Teacher
    from manyhands.methods.proximal import Proximal
    from manyhands.methods.server import Server
    from manyhands.silos.silo import Silo
    from manyhands.tensors import Tensors

M = TypeVar("M", bound=Model)
BatchFunction = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""Returns what a network is trained on for the numbers of images, (B,): images or latents and their labels."""


class LocalResult(NamedTuple):
    """The statistics of a round of local training.

    Args:
        loss: The mean loss, or None where nothing was trained or the loss must not be reported.
        seen: How many images were trained on; repeated ones count again.
        flops: The floating-point operations.
        average: The average of the weights over the steps of the round; None without ``step_ema``.
    """

    loss: float | None = None
    seen: int = 0
    flops: int = 0
    average: Tensors | None = None


NOTHING = LocalResult()


@dataclass(frozen=True, kw_only=True)
class LocalRound:
    """One round of training at a silo.

    Args:
        network: The network, with its weights of the start of the round.
        optimiser: Its optimiser.
        silo: The silo whose images it is trained on.
        number: The round.
        proximal: A term that keeps the weights near those of the start, or None.
        teacher: A network to distil instead of the usual objective, or None.
    """

    network: nn.Module
    optimiser: torch.optim.Optimizer
    silo: Silo
    number: int
    proximal: Proximal | None = None
    teacher: Teacher | None = None

    @cached_property
    def loader(self) -> BatchLoader:
        """What gives batches of the silo's images on its device."""
        return BatchLoader(self.silo.images, self.silo.device_context.device)


@dataclass(frozen=True)
class Learner(ABC, Generic[M]):
    """How a silo trains one kind of model, and what generates images with it.

    The smallest learner has ``train_round`` and ``generator``. One that must send something before the first round
    also has ``operations``, ``prepare`` and ``wrap_server``, which are both halves of that conversation.

    Args:
        model: The specification of the network.
        training: The local training of a round.
        diffusion: The noise schedule and the objective of a denoiser.
        ema: The decay of the average of weights over rounds that images are sampled with; 0 for the last weights.

    Attributes:
        training_type: The class of ``training``.
        uses_diffusion: Whether ``diffusion`` is its objective.
        has_single_loss: Whether it minimizes one loss, to which a method can add terms.
        can_distil: Whether a ``Teacher`` can take the place of its objective.
    """

    training_type: ClassVar[type[Training]] = Training
    uses_diffusion: ClassVar[bool] = False
    has_single_loss: ClassVar[bool] = True
    can_distil: ClassVar[bool] = False

    model: M
    training: Training
    diffusion: Diffusion
    ema: float

    @abstractmethod
    def train_round(self, local: LocalRound) -> LocalResult:
        """Train a network for one round on a silo's images.

        Args:
            local: The network and the silo. Its terms are None where this learner does not have what they need.
        """

    @abstractmethod
    def generator(self, weights: Tensors) -> TrainedModel:
        """Return the generator with these weights.

        Args:
            weights: The weights of the network by name.
        """

    def silo_generator(self, silo: Silo, weights: Tensors) -> TrainedModel | None:
        """Return the generator with a silo's own weights, or None where it has none.

        Args:
            silo: The silo.
            weights: Its weights by name; empty where it has none.
        """
        return self.generator(weights) if weights else None

    def operations(self) -> dict[str, Operation]:
        """Return the operations before the first round, which also run when a run is resumed."""
        return {}

    def prepare(self, silo: Silo) -> Conversation:
        """Run the silo's half of ``operations``.

        Args:
            silo: The silo that is going to train.
        """
        yield from ()

    def wrap_server(self, inner: Server) -> Server:
        """Return a server that answers ``operations``, too.

        Args:
            inner: The server of the rounds.
        """
        return inner

    def cost_lines(self) -> list[str]:
        """Return sentences about what is sent before the first round, or is not trained."""
        return []

    def warnings(self) -> list[str]:
        """Return sentences that must be read before a run starts."""
        return []


def pixel_batches(learner: Learner[Any], local: LocalRound, rng: torch.Generator) -> BatchFunction:
    """Return a function that gives the silo's images and their labels, augmented as the training says.

    Args:
        learner: The learner, with its training.
        local: The round, with the silo.
        rng: The random numbers of the augmentation.
    """

    def batch(numbers: Tensor) -> tuple[Tensor, Tensor | None]:
        x, labels = local.loader.batch(numbers)
        return learner.training.augmented(x, rng), labels

    return batch


def minimize(
    learner: Learner[Any], local: LocalRound, loss: Callable[[Tensor], Tensor], rng: torch.Generator
) -> LocalResult:
    """Train for one round on a single loss, with the terms of the method.

    Args:
        learner: The learner, with its training.
        local: The round.
        loss: Returns the loss of a batch of the silo's images, for their numbers, (B,).
        rng: The random numbers of the order of images.
    """
    training, context, proximal = learner.training, local.silo.device_context, local.proximal
    batches, meter = list(training.batches(len(local.silo.images), rng)), Meter(context.known_flops)
    total = torch.zeros((), device=context.device)
    local.loader.announce([part for numbers in batches for part in numbers.chunk(training.accumulate)])
    average = StepAverage(local.network, training.step_ema) if training.step_ema else None
    prepare(local.network, training)
    for value in steps(
        local.network,
        local.optimiser,
        training.warming_up(batches, local.optimiser, local.number),
        (lambda numbers: proximal.added_to(loss(numbers))) if proximal else loss,
        clip=training.clip,
        autocast=training.autocasts(context.device),
        meter=meter,
        work=(learner.model, local.teacher is not None),
        accumulate=training.accumulate,
    ):
        total += value
        if proximal:
            proximal.after_step(local.optimiser.param_groups[0]["lr"])
        if average:
            average.add()
    loss_of_round, seen = (total / len(batches)).item(), sum(map(len, batches))
    return LocalResult(loss_of_round, seen, meter.flops, average.tensors() if average else None)
