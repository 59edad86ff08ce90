"""HFL-GAN: GANs averaged within clusters of silos, and now and then over all."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field

from manyhands.generators.gan import GanGenerator, generator_weights
from manyhands.messages.message import Message
from manyhands.messages.plan import Plan
from manyhands.methods import clusters
from manyhands.methods.base import Conversation, Server
from manyhands.methods.fedavg.method import FedAvg
from manyhands.methods.gan_method import GanMethod
from manyhands.methods.update_length import LENGTHS, MAX_RATIO, MaxUpdateRatio, UpdateLengths
from manyhands.silos.silo import Silo
from manyhands.spec import Int
from manyhands.tensors import Tensors, WeightedMean, add_prefix, running_average, snapshot, strip_prefix


class HFLGan(GanMethod):
    """Silos train whole GANs, as in ``FedAvg``; each round they are averaged within clusters, one to an edge server.

    Every ``globally`` rounds, and after the last, the mean is over all. Every ``regroup`` rounds ``clusters`` of silos
    are formed anew, of those whose discriminators moved alike; before that there is one. ``auto`` finds out how many.

    References:
        HFL-GAN: scalable hierarchical federated learning GAN for high quantity heterogeneous clients, Petch, Moustafa,
            Ma, Yasser, 2025, doi 10.1007/s10489-024-05924-x
    """

    kind: Literal["hflgan"] = "hflgan"
    clusters: Literal["auto"] | Annotated[Int, Field(ge=1)] = 2
    regroup: Int = Field(default=5, ge=1)
    globally: Int = Field(default=2, ge=1)
    keep_optimiser: bool = False
    max_update_ratio: MaxUpdateRatio = MAX_RATIO

    def silo(self, silo: Silo) -> Conversation:
        """As in ``FedAvg``."""
        return self._averaged.silo(silo)

    def server(self, seed: int, silos: Mapping[str, int]) -> HFLGanServer:
        """The server, which stands for those at the edge, too."""
        return HFLGanServer(self, seed, silos)

    def plan(self) -> Plan:
        """Weights down and up, as in ``FedAvg``; the mean is another."""
        plan = self._averaged.plan()
        says = "sends its model after local training, gets the mean of its cluster or of all"
        return replace(
            plan, operations={**plan.operations, "update": replace(plan.operations["update"], description=says)}
        )

    @property
    def _averaged(self) -> FedAvg:
        told = {name: getattr(self, name) for name in ("model", "training", "rounds", "ema", "keep_optimiser")}
        return FedAvg(**told)


class HFLGanServer(Server):
    """Has a model for each cluster, and the average over rounds of their mean."""

    def __init__(self, method: HFLGan, seed: int, silos: Collection[str]) -> None:
        self.method, self.seed = method, seed
        self.weights: dict[int, Tensors] = {0: snapshot(method.model.build(seed).state_dict())}
        self.cluster = dict.fromkeys(sorted(silos), 0)
        self.average, self.updates = self.weights[0], 0
        self.lengths: UpdateLengths = UpdateLengths(method.max_update_ratio)

    def handle(self, silo: str, message: Message) -> Message:
        """Join: the model of a silo's cluster."""
        return self._answer(message.op, silo)

    def validate(self, silo: str, message: Message) -> None:
        """Numbers that no weights are, are refused, and updates that are far too long."""
        self.method.check_weights(message.tensors)
        if message.tensors:
            held, images = self.weights[self.cluster[silo]], message.facts["images"]
            self.lengths.check(silo, message.tensors, held, images, relative=False)

    def handle_barrier(self, op: str, messages: Mapping[str, Message]) -> Mapping[str, Message]:
        """Close the round: a mean for each cluster, or for all."""
        sent = {silo: messages[silo] for silo in sorted(messages) if messages[silo].tensors}
        if sent and self._comes(self.method.regroup):
            self._regroup({silo: dict(message.tensors) for silo, message in sent.items()})
        if sent:
            self._average(sent)
        self.lengths.close()
        self.round += 1
        return {silo: self._answer(op, silo) for silo in messages}

    def generator(self) -> GanGenerator:
        """That of the mean over all silos."""
        return GanGenerator(self.method.model, generator_weights(self.average), ema=self.method.ema)

    def state_dict(self) -> Tensors:
        """The models, who is in which cluster, and the average."""
        models = {f"{n}/{name}": tensor for n, each in self.weights.items() for name, tensor in each.items()}
        cluster = {silo: torch.tensor(number) for silo, number in self.cluster.items()}
        kept = {"updates": torch.tensor(self.updates)} | add_prefix(self.average, "average.")
        kept |= add_prefix(self.lengths.state_dict(), LENGTHS)
        return kept | add_prefix(models, "weights.") | add_prefix(cluster, "cluster.")

    def load_state_dict(self, state: Tensors) -> None:
        """Go on from kept models."""
        self.updates, self.average = int(state["updates"]), strip_prefix(state, "average.")
        self.cluster = {silo: int(number) for silo, number in strip_prefix(state, "cluster.").items()}
        numbers = {int(name.partition("/")[0]) for name in strip_prefix(state, "weights.")}
        self.weights = {number: strip_prefix(state, f"weights.{number}/") for number in sorted(numbers)}
        self.lengths.load_state_dict(strip_prefix(state, LENGTHS))

    def _comes(self, every: int) -> bool:
        return (self.round + 1) % every == 0

    def _regroup(self, sent: Mapping[str, Tensors]) -> None:
        """Those who moved alike are one cluster; who is silent now is of the first."""
        moved = {silo: direction(self.weights[self.cluster[silo]], weights)[None] for silo, weights in sent.items()}
        found = clusters.cluster_labels(moved, self.method.clusters, seed=self.seed % 2**32)
        self.cluster = {silo: found.get(silo, 0) for silo in self.cluster}
        self.weights = {number: self.weights.get(number, self.weights[0]) for number in set(self.cluster.values())}

    def _average(self, sent: Mapping[str, Message]) -> None:
        means = {number: WeightedMean() for number in self.weights}
        every, images = WeightedMean(), dict.fromkeys(self.weights, 0)
        for silo, message in sent.items():
            count = message.facts["images"]
            images[self.cluster[silo]] += count
            for mean in (every, means[self.cluster[silo]]):
                mean.add(message.tensors, count)
        shared, last = every.value(), self.round + 1 == self.method.rounds
        all_alike = last or self._comes(self.method.globally)
        self.weights = {
            number: shared if all_alike else mean.value() or self.weights[number] for number, mean in means.items()
        }
        self.average = running_average(self.average, shared, self.method.ema, self.updates)
        self.updates += 1
        own = {silo: message.facts["images"] / images[self.cluster[silo]] for silo, message in sent.items()}
        self.weighed = {silo: {"cluster": self.cluster[silo], "weight": weight} for silo, weight in own.items()}

    def _answer(self, op: str, silo: str) -> Message:
        done = self.round >= self.method.rounds
        weights = {} if done else self.weights[self.cluster[silo]]
        return Message(op, weights, {"round": self.round, "done": done})


def direction(before: Tensors, after: Tensors) -> torch.Tensor:
    """Where a discriminator has moved to, as a vector of length 1; what norms have seen is left out."""
    names = sorted(name for name in after if name.startswith("discriminator.") and "running_" not in name)
    moved = torch.cat([(after[name] - before[name]).flatten().double() for name in names])
    length: torch.Tensor = moved.norm().clamp(min=1e-12)
    return moved / length
