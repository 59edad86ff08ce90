"""The server's half of HuSCF-GAN: the middle of both networks, clusters of silos, and means of their ends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor, nn

from manyhands.errors import Reason, Refused
from manyhands.messages.codec import activations
from manyhands.messages.message import Message
from manyhands.methods import clusters
from manyhands.methods.base import Server
from manyhands.methods.clusters import Place
from manyhands.methods.huscf.middle import MiddlePass
from manyhands.methods.huscf.order import BACK, ORDER, network_of, there_of
from manyhands.methods.huscf.spec import HuSCFSpec
from manyhands.methods.update_length import LENGTHS, UpdateLengths
from manyhands.models.gan import GanModule, run_blocks
from manyhands.seed import torch_rng
from manyhands.silos.flops import Meter
from manyhands.silos.training import load_optimiser_state, optimiser_state
from manyhands.tensors import Tensors, named, prefixed, running_average, snapshot

MAX_DRAWN_IMAGES = 4096
"""The most images that a silo may draw at once."""
MEANS = ("running_mean", "running_var")


class HuSCFServer(Server):
    """Has the blocks that some silo has not."""

    def __init__(self, method: HuSCFSpec, seed: int, images: Mapping[str, int]) -> None:
        self.method, self.seed, self.images = method, seed, dict(images)
        self.cuts = {silo: method.of(silo) for silo in images}
        self.means: dict[int, Tensors] = {0: snapshot(method.model.build(seed).state_dict())}
        self.average: Tensors = {}
        self.buffers: dict[str, Tensors] = {}
        self.cluster: dict[str, int] = {}
        self.meter = Meter({})
        self.lengths: UpdateLengths = UpdateLengths(method.max_update_ratio)
        self._begin()

    def _begin(self) -> None:
        """A round begins: nothing has passed, no real batch was seen."""
        self._at = 0
        self._passes: dict[str, list[MiddlePass]] = {}
        self._seen: dict[str, tuple[Tensor, int]] = {}
        self._chance: torch.Generator | None = None

    @cached_property
    def network(self) -> GanModule:
        """The blocks that some silo has not, on the device."""
        whole = self.method.model.build(self.seed)
        kept = whole.keep(lambda name, block: any(not cuts.has(name, block) for cuts in self.cuts.values()))
        return kept.to(self.device).train()

    @cached_property
    def optimiser(self) -> torch.optim.Optimizer:
        """That of both networks' middle."""
        return self.method.training.optimiser_of(self.network, 0.0)

    def handle(self, silo: str, message: Message) -> Message:
        """Join: a silo gets its own ends of the common start, and how long a round is. Or draw."""
        if message.op == "draw":
            return Message("draw", {"x": self._drawn(silo, message.tensors["x"]).cpu()})
        return Message("join", self._ends(silo), self._facts())

    def validate(self, silo: str, message: Message) -> None:
        """A pass is taken in its turn, of activations such as this silo's cut makes; ends come of who was there."""
        if message.op == "segments" and message.tensors:
            self.method.check_weights(message.tensors)
            if silo not in self._seen:
                raise Refused(Reason.OUT_OF_SEQUENCE, f"{silo} sends ends, and has shown no real batch in this round")
            self.lengths.check(silo, message.tensors, self._ends(silo), self.images[silo], relative=False)
        if message.op == "draw":
            self._admit_draw(silo, message)
        if message.op in ORDER:
            self._admit_pass(silo, message)

    def _admit_draw(self, silo: str, message: Message) -> None:
        if not self.average:
            raise Refused(Reason.OUT_OF_SEQUENCE, "no round has ended: there is nothing to draw with")
        self.method.check(message, self.cuts[silo])
        if not 0 < len(message.tensors["x"]) <= MAX_DRAWN_IMAGES:
            raise Refused(
                Reason.WRONG_SHAPE, f"{len(message.tensors['x'])} images at once, {MAX_DRAWN_IMAGES} are the most"
            )

    def _admit_pass(self, silo: str, message: Message) -> None:
        self.lengths.check_takes_part(silo)
        if message.op != ORDER[self._at]:
            raise Refused(Reason.OUT_OF_SEQUENCE, f"{message.op} came, {ORDER[self._at]} is to come")
        self.method.check(message, self.cuts[silo])
        count, most = len(message.tensors["x"]), self.method.training.batch
        least = self.method.training.least
        if not least <= count <= most:
            raise Refused(Reason.WRONG_SHAPE, f"{count} images in a batch, {least} are the fewest, {most} the most")
        if message.op.endswith(BACK):
            sent = next((each.sent[silo] for each in self._passes[there_of(message.op)] if silo in each.sent), None)
            if sent is None:
                raise Refused(Reason.OUT_OF_SEQUENCE, f"{silo} was not there on the way forward")
            if len(sent) != count:
                raise Refused(Reason.WRONG_SHAPE, f"{count} images come back, {len(sent)} went forward")

    def handle_barrier(self, op: str, messages: Mapping[str, Message]) -> Mapping[str, Message]:
        """A pass of all silos, or the end of a round."""
        if op == "segments":
            return self._end(messages)
        told = {silo: activations.decode(message.tensors).to(self.device) for silo, message in messages.items()}
        answers = self._back(op, told) if op.endswith(BACK) else self._forward(op, told)
        self._at = (self._at + 1) % len(ORDER)
        self._chance = self._chance or torch_rng(self.seed, "server", self.round, "wire", device=self.device)
        bits, chance = self.method.bits, self._chance
        return {silo: Message(op, activations.encode(x, bits, chance)) for silo, x in answers.items()}

    def state_dict(self) -> Tensors:
        """The middle, its optimiser, the norms' means of each silo, and who is in which cluster."""
        kept = [prefixed(each, f"buffers.{silo}/") for silo, each in self.buffers.items()]
        means = [prefixed(each, f"mean.{number}/") for number, each in self.means.items()]
        cluster = {f"cluster.{silo}": torch.tensor(number) for silo, number in self.cluster.items()}
        optimiser = prefixed(optimiser_state(self.optimiser), "server-")
        middle = prefixed(snapshot(self.network.state_dict()), "middle.") | prefixed(self.average, "average.")
        middle |= prefixed(self.lengths.state_dict(), LENGTHS)
        return middle | optimiser | cluster | {name: t for each in (*kept, *means) for name, t in each.items()}

    def load_state_dict(self, state: Tensors) -> None:
        """Go on from a kept middle."""
        self.network.load_state_dict(named(state, "middle."))
        self.average = named(state, "average.")
        load_optimiser_state(self.optimiser, prefixed(named(state, "server-optimiser."), "optimiser."))
        buffers = {silo: named(state, f"buffers.{silo}/") for silo in self.cuts}
        self.buffers = {silo: each for silo, each in buffers.items() if each}
        self.cluster = {silo: int(number) for silo, number in named(state, "cluster.").items()}
        self.means = {n: named(state, f"mean.{n}/") for n in {0, *self.cluster.values()}}
        self.lengths.load_state_dict(named(state, LENGTHS))
        self._begin()

    @torch.no_grad()
    def _drawn(self, silo: str, x: Tensor) -> Tensor:
        """Through the middle of the generator as it is after the last round, averaged over rounds if so told."""
        cut = self.cuts[silo].generator
        middle = self.method.model.build(0).keep(lambda name, block: name == "generator" and not cut.at_home(block))
        kept = self.average | self.buffers.get(silo, {})
        middle.load_state_dict({name: tensor for name, tensor in kept.items() if name in middle.state_dict()})
        return run_blocks(cut.parts(list(middle.to(self.device).eval().generator))[1], x.to(self.device))

    def _facts(self) -> dict[str, object]:
        return {"round": self.round, "done": self.round >= self.method.rounds, "steps": self._steps()}

    def _steps(self) -> int:
        """As many as are told, or as the silo with the most images takes in its epochs."""
        training = self.method.training
        most = max(math.ceil(count / min(training.batch, count)) for count in self.images.values())
        return training.steps or (training.epochs or 0) * most

    def _forward(self, op: str, told: Mapping[str, Tensor]) -> dict[str, Tensor]:
        network, answers = network_of(op), dict[str, Tensor]()
        blocks = getattr(self.network, network)
        self._passes[op] = []
        for group in self.optimiser.param_groups:
            group["lr"] = self.method.training.rate(self.method.progress(self.round))
        for mine in self._groups(told):
            cuts, sent = {silo: self.cuts[silo].of(network) for silo in mine}, {silo: told[silo] for silo in mine}
            self._load_means(network, mine[0])
            with self.meter.work(op, *self._form(op, sent)):
                passing = MiddlePass(blocks, cuts, sent, self.method.model.middle if op == "real" else None)
            self._keep_means(network, mine)
            self._passes[op].append(passing)
            answers |= passing.answers()
        if op == "real":
            self._look(self._together(blocks, told) if self._apart else passing.seen)
        return answers

    @torch.no_grad()
    def _together(self, blocks: nn.ModuleList, told: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the middle makes of all in one batch: norms within each cluster would hide how clusters differ."""
        cuts = {silo: self.cuts[silo].discriminator for silo in told}
        return MiddlePass(blocks, cuts, told, self.method.model.middle).seen

    def _look(self, seen: Mapping[str, Tensor]) -> None:
        """Add up the means of real batches: those of a whole round tell silos apart where a single one is too few."""
        for silo, x in seen.items():
            total, count = self._seen.get(silo, (torch.zeros(()), 0))
            self._seen[silo] = total + x.mean(0).cpu(), count + 1

    def _back(self, op: str, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        answers: dict[str, Tensor] = {}
        for passing in self._passes.pop(there_of(op)):
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
        return [(str(self.cuts[silo].of(network_of(op))), len(x)) for silo, x in batch.items()]

    def _groups(self, told: Mapping[str, Tensor]) -> list[list[str]]:
        """Those who share a batch."""
        if not self._apart:
            return [sorted(told)]
        numbers = sorted({self.cluster.get(silo, 0) for silo in told})
        return [[silo for silo in sorted(told) if self.cluster.get(silo, 0) == n] for n in numbers]

    def _load_means(self, network: str, silo: str) -> None:
        """The norms go on from the means that they had with this silo; those that a pass holds stay as they are."""
        for name, tensor in named(self.buffers.get(silo, {}), network).items() if self._apart else ():
            where, _, which = f"{network}{name}".rpartition(".")
            setattr(self.network.get_submodule(where), which, tensor.to(self.device, copy=True))

    def _keep_means(self, network: str, group: list[str]) -> None:
        if self._apart:
            every = self.network.named_buffers()
            means = {name: mean for name, mean in every if name.endswith(MEANS) and name.startswith(network)}
            kept = snapshot(means)
            for silo in group:
                self.buffers[silo] = self.buffers.get(silo, {}) | kept

    @property
    def _apart(self) -> bool:
        return self.method.statistics == "cluster"

    def _end(self, messages: Mapping[str, Message]) -> Mapping[str, Message]:
        """Average what was sent, and give each what its cluster has made of its ends."""
        sent = {silo: dict(message.tensors) for silo, message in messages.items() if message.tensors}
        self.weighed = {}
        if sent:
            features = {silo: total[None] / count for silo, (total, count) in self._seen.items() if silo in sent}
            self._average(sent, features)
        self.average = running_average(self.average, snapshot(self.network.state_dict()), self.method.ema, self.round)
        self.flops = self.meter.flops
        self.optimiser.zero_grad(set_to_none=True)
        self.lengths.close()
        self.round += 1
        self._begin()
        return {silo: Message("segments", self._ends(silo), self._facts()) for silo in messages}

    def _average(self, sent: Mapping[str, Tensors], features: Mapping[str, Tensor]) -> None:
        """The ends within each cluster, the middle over all."""
        images, alpha = {silo: self.images[silo] for silo in sent}, self.method.alpha
        if self.round < self.method.warm:
            found, apart = clusters.plain(images), dict.fromkeys(sent, 0.0)
        else:
            found = clusters.grouped(features, images, self.method.clusters, alpha, self.cluster)
            apart = clusters.distances(features, list(sent))
        self.cluster |= {silo: place.cluster for silo, place in found.items()}
        own = snapshot(self.network.state_dict())
        whole = {silo: own | self.buffers.get(silo, {}) | ends for silo, ends in sent.items()}
        for number in set(self.cluster.values()):
            shares = {silo: place.weight for silo, place in found.items() if place.cluster == number}
            if shares:
                self.means[number] = mean(whole, shares)
        shared = mean(whole, clusters.weights(images, apart, alpha))
        self.network.load_state_dict({name: shared[name] for name in own})
        kept = {name: shared[name] for name in own if name.endswith(MEANS)}
        self.buffers = dict.fromkeys(self.cuts, kept) if self._apart else {}
        self.weighed = {silo: _told(place) for silo, place in found.items()}

    def _ends(self, silo: str) -> Tensors:
        """What a silo has at home, as its cluster had it last."""
        mean = self.means[self.cluster.get(silo, 0)]
        return {name: tensor for name, tensor in mean.items() if self.cuts[silo].at_home(name)}


def mean(whole: Mapping[str, Tensors], shares: Mapping[str, float]) -> Tensors:
    """The weighted mean of the networks of silos; of one alone it is that one, bit for bit."""
    total: Tensors = {}
    for silo, share in shares.items():
        for name, tensor in whole[silo].items():
            total[name] = total.get(name, 0) + tensor.double() * share
    return {name: tensor.float() for name, tensor in total.items()}


def _told(place: Place) -> dict[str, float]:
    """As the journal has it."""
    where = {} if place.at is None else dict(zip("xy", place.at, strict=True))
    return {"cluster": place.cluster, "distance": place.distance, "weight": place.weight, **where}
