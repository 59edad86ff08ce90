"""HFL-GAN: GANs that are averaged within clusters of silos, and at times over all silos."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field

from manyhands.generators.gan import GanGenerator, generator_weights
from manyhands.messages.message import Message
from manyhands.messages.plan import Plan
from manyhands.methods import clustering
from manyhands.methods.base import AVERAGE, WEIGHTS, Conversation
from manyhands.methods.fedavg.method import FedAvg
from manyhands.methods.gan_method import GanMethod
from manyhands.methods.server import Server
from manyhands.methods.update_length import LENGTHS, MAX_RATIO, MaxUpdateRatio, UpdateLengths
from manyhands.silos.silo import Silo
from manyhands.spec import Int
from manyhands.tensors import Tensors, WeightedMean, add_prefix, running_average, snapshot, strip_prefix


class HFLGan(GanMethod):
    """Silos train whole GANs, as in ``FedAvg``; each round they are averaged within clusters, one per edge server.

    Clusters are formed of silos whose discriminators moved in similar directions; before that there is one cluster.

    References:
        HFL-GAN: scalable hierarchical federated learning GAN for high quantity heterogeneous clients, Petch, Moustafa,
            Ma, Yasser, 2025, doi 10.1007/s10489-024-05924-x
    """

    kind: Literal["hflgan"] = Field(default="hflgan", description="The name of this method in a recipe.")
    clusters: Literal["auto"] | Annotated[Int, Field(ge=1)] = Field(
        default=2, description="How many clusters of silos to form; 'auto' finds the number."
    )
    regroup: Int = Field(default=5, ge=1, description="After how many rounds clusters are formed again.")
    globally: Int = Field(
        default=2, ge=1, description="Every this many rounds, and after the last one, the mean is over all silos."
    )
    keep_optimiser: bool = Field(
        default=False, description="Whether a silo keeps its optimiser's state from round to round."
    )
    max_update_ratio: MaxUpdateRatio = MAX_RATIO

    def silo(self, silo: Silo) -> Conversation:
        """Train as in ``FedAvg``."""
        return self._fedavg.silo(silo)

    def check_partition(self, silos: Sequence[str]) -> None:
        """Check the number of clusters."""
        clustering.check_count(self.clusters, silos)

    def server(self, seed: int, silos: Mapping[str, int]) -> HFLGanServer:
        """Return the server, which stands for the edge servers, too."""
        return HFLGanServer(self, seed, silos)

    def plan(self) -> Plan:
        """Weights down and up as in ``FedAvg``, with another mean."""
        plan = self._fedavg.plan()
        says = "sends its model after local training, gets the mean of its cluster or of all"
        return replace(
            plan, operations={**plan.operations, "update": replace(plan.operations["update"], description=says)}
        )

    @property
    def _fedavg(self) -> FedAvg:
        fields = {name: getattr(self, name) for name in ("model", "training", "rounds", "ema", "keep_optimiser")}
        return FedAvg(**fields)


class HFLGanServer(Server):
    """Has a model for each cluster, and the average over rounds of the mean of all silos.

    Args:
        method: The fields of the run.
        seed: The seed of the run.
        silos: The names of all silos.
    """

    def __init__(self, method: HFLGan, seed: int, silos: Collection[str]) -> None:
        self.method, self.seed = method, seed
        self.weights: dict[int, Tensors] = {0: snapshot(method.model.build(seed).state_dict())}
        self.cluster = dict.fromkeys(sorted(silos), 0)
        self.average, self.updates = self.weights[0], 0
        self.lengths: UpdateLengths = UpdateLengths(method.max_update_ratio)

    def handle(self, silo: str, message: Message) -> Message:
        """Send a silo that joins the model of its cluster."""
        return self._answer(message.op, silo)

    def validate(self, silo: str, message: Message) -> None:
        """Refuse numbers that cannot be weights, and updates that are far too long."""
        self.method.check_weights(message.tensors)
        if message.tensors:
            held, images = self.weights[self.cluster[silo]], message.facts["images"]
            self.lengths.check(silo, message.tensors, held, images, relative=False)

    def handle_barrier(self, op: str, messages: Mapping[str, Message]) -> Mapping[str, Message]:
        """Close the round with a mean for each cluster, or one for all."""
        sent = {silo: messages[silo] for silo in sorted(messages) if messages[silo].tensors}
        if sent and self._is_due(self.method.regroup):
            self._regroup({silo: dict(message.tensors) for silo, message in sent.items()})
        if sent:
            self._average(sent)
        self.lengths.close()
        self.round += 1
        return {silo: self._answer(op, silo) for silo in messages}

    def generator(self) -> GanGenerator:
        """Return the generator of the mean over all silos."""
        return GanGenerator(self.method.model, generator_weights(self.average), ema=self.method.ema)

    def state_dict(self) -> Tensors:
        """Return the models, the cluster of each silo, and the average."""
        models = {f"{n}/{name}": tensor for n, weights in self.weights.items() for name, tensor in weights.items()}
        cluster = {silo: torch.tensor(number) for silo, number in self.cluster.items()}
        kept = {"updates": torch.tensor(self.updates)} | add_prefix(self.average, AVERAGE)
        kept |= add_prefix(self.lengths.state_dict(), LENGTHS)
        return kept | add_prefix(models, WEIGHTS) | add_prefix(cluster, "cluster.")

    def load_state_dict(self, state: Tensors) -> None:
        """Go on from a state of ``state_dict``."""
        self.updates, self.average = int(state["updates"]), strip_prefix(state, AVERAGE)
        self.cluster = {silo: int(number) for silo, number in strip_prefix(state, "cluster.").items()}
        numbers = {int(name.partition("/")[0]) for name in strip_prefix(state, WEIGHTS)}
        self.weights = {number: strip_prefix(state, f"weights.{number}/") for number in sorted(numbers)}
        self.lengths.load_state_dict(strip_prefix(state, LENGTHS))

    def _is_due(self, every: int) -> bool:
        return (self.round + 1) % every == 0

    def _regroup(self, sent: Mapping[str, Tensors]) -> None:
        """Form clusters of silos that moved in similar directions; a silo that sent nothing goes to the first."""
        moved = {silo: direction(self.weights[self.cluster[silo]], weights)[None] for silo, weights in sent.items()}
        labels = clustering.cluster_labels(moved, self.method.clusters, seed=self.seed % 2**32)
        self.cluster = {silo: labels.get(silo, 0) for silo in self.cluster}
        self.weights = {number: self.weights.get(number, self.weights[0]) for number in set(self.cluster.values())}

    def _average(self, sent: Mapping[str, Message]) -> None:
        means = {number: WeightedMean() for number in self.weights}
        overall, images = WeightedMean(), dict.fromkeys(self.weights, 0)
        for silo, message in sent.items():
            count = message.facts["images"]
            images[self.cluster[silo]] += count
            for mean in (overall, means[self.cluster[silo]]):
                mean.add(message.tensors, count)
        shared, last = overall.value(), self.round + 1 == self.method.rounds
        is_global = last or self._is_due(self.method.globally)
        self.weights = {
            number: shared if is_global else mean.value() or self.weights[number] for number, mean in means.items()
        }
        self.average = running_average(self.average, shared, self.method.ema, self.updates)
        self.updates += 1
        shares = {silo: message.facts["images"] / images[self.cluster[silo]] for silo, message in sent.items()}
        self.contributions = {
            silo: {"cluster": self.cluster[silo], "weight": weight} for silo, weight in shares.items()
        }

    def _answer(self, op: str, silo: str) -> Message:
        done = self.round >= self.method.rounds
        weights = {} if done else self.weights[self.cluster[silo]]
        return Message(op, weights, {"round": self.round, "done": done})


def direction(before: Tensors, after: Tensors) -> torch.Tensor:
    """Return the direction in which a discriminator moved, of length 1; without running statistics."""
    names = sorted(name for name in after if name.startswith("discriminator.") and "running_" not in name)
    moved = torch.cat([(after[name] - before[name]).flatten().double() for name in names])
    length: torch.Tensor = moved.norm().clamp(min=1e-12)
    return moved / length
