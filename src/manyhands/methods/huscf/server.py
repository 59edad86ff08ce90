"""The server's half of HuSCF-GAN: the middle of both networks, clusters of silos, and means of their ends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from manyhands.codec import activations
from manyhands.errors import Reason, Refused
from manyhands.message import Message
from manyhands.meter import Meter
from manyhands.methods.huscf import clusters
from manyhands.methods.huscf.middle import Passing
from manyhands.methods.method import Server
from manyhands.models.gan import through
from manyhands.seed import torch_rng
from manyhands.tensors import Tensors, named, prefixed, running_average, snapshot
from manyhands.training import load_optimiser_state, optimiser_state

if TYPE_CHECKING:
    from manyhands.methods.huscf.method import HuSCF
    from manyhands.models.cut import Cuts

ORDER = ("make", "made", "made-back", "real", "real-back", "fool", "fool-back", "make-back")
"""The group operations of an iteration, in their order: images are made; the discriminator learns from them and from
real ones; then the generator learns from what it now says of those that were made."""


class HuSCFServer(Server):
    """Has the blocks that some silo has not."""

    _at: int
    _passes: dict[str, list[Passing]]
    _chance: torch.Generator
    _seen: dict[str, tuple[Tensor, int]]

    def __init__(self, method: HuSCF, seed: int, cuts: Mapping[str, Cuts]) -> None:
        self.method, self.seed, self.cuts = method, seed, dict(cuts)
        whole = method.model.build(seed)
        self.means: dict[int, Tensors] = {0: snapshot(whole.state_dict())}
        self.average: Tensors = {}
        self.network = whole.keep(lambda name, block: any(not c.of(name).at_home(block) for c in cuts.values()))
        self.optimiser = method.training.optimiser_of(self.network, 0.0)
        self.buffers: dict[str, Tensors] = {}
        self.images: dict[str, int] = {}
        self.cluster: dict[str, int] = {}
        self.meter = Meter({})
        self._begin()

    def on(self, silo: str, message: Message) -> Message:
        """Join: a silo gets its own ends of the common start, and how long a round is. Or draw."""
        if message.op == "draw":
            return Message("draw", {"x": self._drawn(silo, message.tensors["x"])})
        self.images[silo] = message.facts["images"]
        return Message("join", self._ends(silo), self._facts())

    def admit(self, silo: str, message: Message) -> None:
        """A pass is taken in its turn, of activations such as this silo's cut makes."""
        if message.op in ("make", "draw") and len(message.tensors["x"]) > MOST:
            raise Refused(Reason.WRONG_SHAPE, f"{len(message.tensors['x'])} images at once, {MOST} are the most")
        if message.op == "draw":
            self.method.check(message, self.cuts[silo])
        if message.op not in ORDER:
            return
        if message.op != ORDER[self._at]:
            raise Refused(Reason.OUT_OF_SEQUENCE, f"{message.op} came, {ORDER[self._at]} is to come")
        if message.op.endswith("-back") and not any(silo in each.sent for each in self._passes[message.op[:-5]]):
            raise Refused(Reason.OUT_OF_SEQUENCE, f"{silo} was not there on the way forward")
        self.method.check(message, self.cuts[silo])

    def on_group(self, op: str, messages: Mapping[str, Message]) -> Mapping[str, Message]:
        """A pass of all silos, or the end of a round."""
        if op == "segments":
            return self._end(messages)
        told = {silo: activations.decode(message.tensors) for silo, message in messages.items()}
        answers = self._back(op, told) if op.endswith("-back") else self._forward(op, told)
        self._at = (self._at + 1) % len(ORDER)
        bits, rng = self.method.bits, self._chance
        return {silo: Message(op, activations.encode(x, bits, rng)) for silo, x in answers.items()}

    def state_dict(self) -> Tensors:
        """The middle, its optimiser, the norms' means of each silo, and who is in which cluster."""
        kept = {
            f"buffers.{silo}.{name}": tensor for silo, each in self.buffers.items() for name, tensor in each.items()
        }
        cluster = {f"cluster.{silo}": torch.tensor(number) for silo, number in self.cluster.items()}
        optimiser = prefixed(optimiser_state(self.optimiser), "server-")
        middle = prefixed(snapshot(self.network.state_dict()), "middle.") | prefixed(self.average, "average.")
        means = {f"mean.{n}.{name}": tensor for n, each in self.means.items() for name, tensor in each.items()}
        return middle | optimiser | kept | cluster | means

    def load_state_dict(self, state: Tensors) -> None:
        """Go on from a kept middle."""
        self.network.load_state_dict(named(state, "middle."))
        self.average = named(state, "average.")
        load_optimiser_state(self.optimiser, prefixed(named(state, "server-optimiser."), "optimiser."))
        for silo in self.cuts:
            self.buffers[silo] = named(state, f"buffers.{silo}.")
        self.cluster = {silo: int(number) for silo, number in named(state, "cluster.").items()}
        self.means = {n: named(state, f"mean.{n}.") for n in {0, *self.cluster.values()}}
        self._begin()

    def _begin(self) -> None:
        """A round begins."""
        self._at, self._passes, self._seen = 0, {}, {}
        self._chance = torch_rng(self.seed, "server", self.round, "wire", device=self.device)

    @torch.no_grad()
    def _drawn(self, silo: str, x: Tensor) -> Tensor:
        """Through the middle of the generator as it is after the last round, averaged over rounds if so told."""
        cut = self.cuts[silo].generator
        middle = self.method.model.build(0).keep(lambda name, block: name == "generator" and not cut.at_home(block))
        kept = self.average | self.buffers.get(silo, {})
        middle.load_state_dict({name: tensor for name, tensor in kept.items() if name in middle.state_dict()})
        return through(cut.parts(list(middle.to(x.device).eval().generator))[1], x)

    def _facts(self) -> dict[str, object]:
        return {"round": self.round, "done": self.round >= self.method.rounds, "steps": self._steps()}

    def _steps(self) -> int:
        training = self.method.training
        most = max(math.ceil(count / min(training.batch, count)) for count in self.images.values())
        return training.steps or (training.epochs or 0) * most

    def _blocks(self, op: str) -> tuple[str, nn.ModuleList]:
        network = "generator" if op.startswith("make") else "discriminator"
        return network, getattr(self.network, network)

    def _forward(self, op: str, told: Mapping[str, Tensor]) -> dict[str, Tensor]:
        network, blocks = self._blocks(op)
        self._passes[op] = []
        for group in self.optimiser.param_groups:
            group["lr"] = self.method.training.rate(self.method.progress(self.round))
        answers: dict[str, Tensor] = {}
        for mine in self._groups(told):
            cuts = {silo: self.cuts[silo].of(network) for silo in mine}
            sent = {silo: told[silo] for silo in mine}
            self._load_means(network, mine[0])
            with self.meter.work(op, *self._form(op, sent)):
                passing = Passing(blocks, cuts, sent, self.method.model.middle if op == "real" else None)
            self._keep_means(network, mine)
            if not self._apart:
                self._look(passing.seen)
            self._passes[op].append(passing)
            answers |= passing.answers()
        if op == "real" and self._apart:
            self._look(self._together(blocks, told))
        return answers

    @torch.no_grad()
    def _together(self, blocks: nn.ModuleList, told: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the middle makes of all in one batch: norms within each cluster would hide how clusters differ."""
        cuts = {silo: self.cuts[silo].discriminator for silo in told}
        return Passing(blocks, cuts, told, self.method.model.middle).seen

    def _look(self, seen: Mapping[str, Tensor]) -> None:
        """Add up the means of real batches: those of a whole round tell silos apart where a single one is too few."""
        for silo, x in seen.items():
            total, count = self._seen.get(silo, (torch.zeros(()), 0))
            self._seen[silo] = total + x.mean(0).cpu(), count + 1

    def _back(self, op: str, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        answers: dict[str, Tensor] = {}
        for passing in self._passes.pop(op.removesuffix("-back")):
            mine = {silo: gradients[silo] for silo in passing.sent if silo in gradients}
            if mine:
                with self.meter.work(op, *self._form(op, mine)):
                    answers |= passing.back(mine, learns=op != "fool-back")
        if op in ("real-back", "make-back"):
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
        return answers

    def _form(self, op: str, batch: Mapping[str, Tensor]) -> list[tuple[str, int]]:
        """What the work of a pass depends on."""
        network, _ = self._blocks(op)
        return [(str(self.cuts[silo].of(network)), len(x)) for silo, x in batch.items()]

    def _groups(self, messages: Mapping[str, Tensor]) -> list[list[str]]:
        """Those who share a batch."""
        if self.method.statistics == "all":
            return [sorted(messages)]
        numbers = sorted({self.cluster.get(silo, 0) for silo in messages})
        return [[silo for silo in sorted(messages) if self.cluster.get(silo, 0) == n] for n in numbers]

    def _means(self, network: str = "") -> Tensors:
        """Those that norms have for drawing."""
        every = self.network.named_buffers()
        return {name: tensor for name, tensor in every if name.endswith(MEANS) and name.startswith(network)}

    def _load_means(self, network: str, silo: str) -> None:
        """The norms go on from the means that they had with this silo; those that a pass holds stay as they are."""
        for name, tensor in named(self.buffers.get(silo, {}), network).items() if self._apart else ():
            where, _, which = f"{network}{name}".rpartition(".")
            setattr(self.network.get_submodule(where), which, tensor.clone())

    def _keep_means(self, network: str, group: list[str]) -> None:
        if self._apart:
            kept = {name: tensor.clone() for name, tensor in self._means(network).items()}
            for silo in group:
                self.buffers[silo] = self.buffers.get(silo, {}) | kept

    @property
    def _apart(self) -> bool:
        return self.method.statistics == "cluster"

    def _end(self, messages: Mapping[str, Message]) -> Mapping[str, Message]:
        """Cluster the silos, weigh them, and give each what its cluster has made of its ends."""
        sent = {silo: dict(message.tensors) for silo, message in messages.items() if message.tensors}
        images = {silo: self.images[silo] for silo in sent}
        features = {silo: total[None] / count for silo, (total, count) in self._seen.items() if silo in sent}
        plain = self.round < self.method.warm or len(features) < len(sent)
        if sent:
            self.cluster |= dict.fromkeys(sent, 0) if plain else clusters.found(features, self.method.clusters)
        members = {n: [silo for silo in sent if self.cluster[silo] == n] for n in set(self.cluster.values())}
        alpha = self.method.alpha
        own = snapshot(self.network.state_dict())
        whole = {silo: own | self.buffers.get(silo, {}) | ends for silo, ends in sent.items()}
        apart = dict.fromkeys(sent, 0.0) if plain else clusters.distances(features, list(sent))
        weighed, places = dict[str, dict[str, float]](), clusters.places(features)
        for number, mine in members.items():
            near = dict.fromkeys(mine, 0.0) if plain else clusters.distances(features, mine)
            shares = clusters.weights({silo: images[silo] for silo in mine}, near, alpha)
            self.means[number] = mean(whole, shares)
            for silo in mine:
                place = dict(zip("xy", places[silo], strict=True)) if silo in places else {}
                weighed[silo] = {"cluster": number, "distance": near[silo], "weight": shares[silo], **place}
        if sent:
            shared = mean(whole, clusters.weights(images, apart, alpha))
            self.network.load_state_dict({name: shared[name] for name in own})
            kept = {name: shared[name] for name in self._means()}
            self.buffers = {silo: kept for silo in self.cuts if self._apart}
        self.average = running_average(self.average, snapshot(self.network.state_dict()), self.method.ema, self.round)
        self.weighed = weighed
        self.flops = self.meter.flops
        self.optimiser.zero_grad(set_to_none=True)
        self.round += 1
        self._begin()
        return {silo: Message("segments", self._ends(silo), self._facts()) for silo in messages}

    def _ends(self, silo: str) -> Tensors:
        """What a silo has at home, as its cluster had it last."""
        mean = self.means[self.cluster.get(silo, 0)]
        return {name: tensor for name, tensor in mean.items() if self.cuts[silo].at_home(name)}


MOST = 4096
"""The most images of a silo at once."""
MEANS = ("running_mean", "running_var")


def mean(whole: Mapping[str, Tensors], shares: Mapping[str, float]) -> Tensors:
    """The weighted mean of the networks of silos; of one alone it is that one, bit for bit."""
    total: Tensors = {}
    for silo, share in shares.items():
        for name, tensor in whole[silo].items():
            total[name] = total.get(name, 0) + tensor.double() * share
    return {name: tensor.float() for name, tensor in total.items()}
