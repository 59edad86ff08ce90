"""The server's half of HuSCF-GAN: the middle blocks of both networks, clusters of silos, and the mean of each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor, nn

from manyhands.errors import Reason, Refused
from manyhands.messages.codec import activations
from manyhands.messages.message import Message
from manyhands.methods import clustering
from manyhands.methods.base import AVERAGE
from manyhands.methods.clustering import Assignment
from manyhands.methods.huscf.middle import MiddlePass
from manyhands.methods.huscf.operations import (
    ADVERSARIAL_BACKWARD,
    BACKWARD,
    GENERATOR_BACKWARD,
    ORDER,
    REAL_BACKWARD,
    REAL_FORWARD,
    forward_of,
    network_of,
)
from manyhands.methods.huscf.spec import HuSCFSpec
from manyhands.methods.server import Server
from manyhands.methods.update_length import LENGTHS, UpdateLengths
from manyhands.models.gan import GanModule, run_blocks
from manyhands.seed import torch_rng
from manyhands.silos.flops import Meter
from manyhands.silos.local_training import load_optimiser_state, optimiser_state
from manyhands.tensors import Tensors, add_prefix, running_average, snapshot, strip_prefix, weighted_sum

MAX_DRAWN_IMAGES = 4096
"""The most images that a silo may draw in one call."""
RUNNING_STATISTICS = ("running_mean", "running_var")


class HuSCFServer(Server):
    """Holds every block that at least one silo does not have.

    Args:
        method: The fields of the run.
        seed: The seed of the run.
        images: The number of images of each silo.
    """

    def __init__(self, method: HuSCFSpec, seed: int, images: Mapping[str, int]) -> None:
        self.method, self.seed, self.images = method, seed, dict(images)
        self.cuts = {silo: method.cuts_of(silo) for silo in images}
        self.means: dict[int, Tensors] = {0: snapshot(method.model.build(seed).state_dict())}
        self.average: Tensors = {}
        self.buffers: dict[str, Tensors] = {}
        self.cluster: dict[str, int] = {}
        self.meter = Meter({})
        self.lengths: UpdateLengths = UpdateLengths(method.max_update_ratio)
        self._begin_round()

    def _begin_round(self) -> None:
        """Forget the passes and the features of the last round."""
        self._position = 0
        self._passes: dict[str, list[MiddlePass]] = {}
        self._features: dict[str, tuple[Tensor, int]] = {}
        self._wire_rng: torch.Generator | None = None

    @cached_property
    def network(self) -> GanModule:
        """The blocks that at least one silo does not have, on the device."""
        whole = self.method.model.build(self.seed)
        kept = whole.keep(lambda name, block: any(not cuts.has(name, block) for cuts in self.cuts.values()))
        return kept.to(self.device).train()

    @cached_property
    def optimiser(self) -> torch.optim.Optimizer:
        """The optimiser of the middle blocks of both networks."""
        return self.method.training.optimiser_of(self.network, 0.0)

    def handle(self, silo: str, message: Message) -> Message:
        """Send a silo that joins its segments and the length of a round; run the middle for one that draws."""
        if message.op == "draw":
            return Message("draw", {"x": self._draw(silo, message.tensors["x"]).cpu()})
        return Message("join", self._segments_of(silo), self._facts())

    def validate(self, silo: str, message: Message) -> None:
        """Refuse a pass out of turn or of another cut, and segments of a silo that trained on nothing."""
        if message.op == "segments" and message.tensors:
            self.method.check_weights(message.tensors)
            if silo not in self._features:
                raise Refused(Reason.OUT_OF_SEQUENCE, f"{silo} sends segments, but it sent no real batch in this round")
            held, images = self._segments_of(silo), self.images[silo]
            self.lengths.check(silo, message.tensors, held, images, relative=False)
        if message.op == "draw":
            self._check_draw(silo, message)
        if message.op in ORDER:
            self._check_pass(silo, message)

    def _check_draw(self, silo: str, message: Message) -> None:
        if not self.average:
            raise Refused(Reason.OUT_OF_SEQUENCE, "no round has ended yet, so there is no trained middle to draw with")
        self.method.check_pass(message, self.cuts[silo])
        if not 0 < len(message.tensors["x"]) <= MAX_DRAWN_IMAGES:
            raise Refused(
                Reason.WRONG_SHAPE,
                f"{len(message.tensors['x'])} images in one call, expected 1 to {MAX_DRAWN_IMAGES}",
            )

    def _check_pass(self, silo: str, message: Message) -> None:
        self.lengths.check_takes_part(silo)
        if message.op != ORDER[self._position]:
            raise Refused(Reason.OUT_OF_SEQUENCE, f"{message.op} came, expected {ORDER[self._position]}")
        self.method.check_pass(message, self.cuts[silo])
        count, training = len(message.tensors["x"]), self.method.training
        if not training.min_images <= count <= training.batch:
            expected = f"{training.min_images} to {training.batch}"
            raise Refused(Reason.WRONG_SHAPE, f"{count} images in a batch, expected {expected}")
        if message.op.endswith(BACKWARD):
            passes = self._passes[forward_of(message.op)]
            inputs = next((passing.inputs[silo] for passing in passes if silo in passing.inputs), None)
            if inputs is None:
                raise Refused(Reason.OUT_OF_SEQUENCE, f"{silo} took no part in the forward pass")
            if len(inputs) != count:
                raise Refused(
                    Reason.WRONG_SHAPE, f"gradients of {count} images, but the forward pass had {len(inputs)}"
                )

    def handle_barrier(self, op: str, messages: Mapping[str, Message]) -> Mapping[str, Message]:
        """Run a pass of all silos, or end the round."""
        if op == "segments":
            return self._end_round(messages)
        batch = {silo: activations.decode(message.tensors).to(self.device) for silo, message in messages.items()}
        answers = self._backward(op, batch) if op.endswith(BACKWARD) else self._forward(op, batch)
        self._position = (self._position + 1) % len(ORDER)
        self._wire_rng = self._wire_rng or torch_rng(self.seed, "server", self.round, "wire", device=self.device)
        bits, rng = self.method.bits, self._wire_rng
        return {silo: Message(op, activations.encode(x, bits, rng)) for silo, x in answers.items()}

    def state_dict(self) -> Tensors:
        """Return the middle, its optimiser, the means of the clusters and who is in which.

        With statistics of each cluster it has the running statistics that go with each silo, too.
        """
        buffers = [add_prefix(tensors, f"buffers.{silo}/") for silo, tensors in self.buffers.items()]
        means = [add_prefix(tensors, f"mean.{number}/") for number, tensors in self.means.items()]
        cluster = {f"cluster.{silo}": torch.tensor(number) for silo, number in self.cluster.items()}
        optimiser = add_prefix(optimiser_state(self.optimiser), "server-")
        middle = add_prefix(snapshot(self.network.state_dict()), "middle.") | add_prefix(self.average, AVERAGE)
        middle |= add_prefix(self.lengths.state_dict(), LENGTHS)
        groups = (*buffers, *means)
        return middle | optimiser | cluster | {name: tensor for group in groups for name, tensor in group.items()}

    def load_state_dict(self, state: Tensors) -> None:
        """Go on from a state of ``state_dict``."""
        self.network.load_state_dict(strip_prefix(state, "middle."))
        self.average = strip_prefix(state, AVERAGE)
        load_optimiser_state(self.optimiser, add_prefix(strip_prefix(state, "server-optimiser."), "optimiser."))
        buffers = {silo: strip_prefix(state, f"buffers.{silo}/") for silo in self.cuts}
        self.buffers = {silo: tensors for silo, tensors in buffers.items() if tensors}
        self.cluster = {silo: int(number) for silo, number in strip_prefix(state, "cluster.").items()}
        self.means = {n: strip_prefix(state, f"mean.{n}/") for n in {0, *self.cluster.values()}}
        self.lengths.load_state_dict(strip_prefix(state, LENGTHS))
        self._begin_round()

    @torch.no_grad()
    def _draw(self, silo: str, x: Tensor) -> Tensor:
        """Run the generator's middle as it was after the last round, averaged over rounds where ``ema`` says so."""
        cut = self.cuts[silo].generator
        middle = self.method.model.build(0).keep(lambda name, block: name == "generator" and not cut.at_home(block))
        weights = self.average | self.buffers.get(silo, {})
        middle.load_state_dict({name: tensor for name, tensor in weights.items() if name in middle.state_dict()})
        return run_blocks(cut.parts(list(middle.to(self.device).eval().generator))[1], x.to(self.device))

    def _facts(self) -> dict[str, object]:
        return {"round": self.round, "done": self.round >= self.method.rounds, "steps": self._steps()}

    def _steps(self) -> int:
        """Return the steps of a round: as configured, or those that the largest silo needs for its epochs."""
        training = self.method.training
        most = max(math.ceil(count / min(training.batch, count)) for count in self.images.values())
        return training.steps or (training.epochs or 0) * most

    def _forward(self, op: str, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        network, answers = network_of(op), dict[str, Tensor]()
        blocks = getattr(self.network, network)
        self._passes[op] = []
        self.method.training.set_rate(self.optimiser, self.method.progress(self.round))
        for silos in self._groups(batch):
            cuts = {silo: self.cuts[silo].of(network) for silo in silos}
            sent = {silo: batch[silo] for silo in silos}
            self._load_statistics(network, silos[0])
            with self.meter.work(op, *self._work_key(op, sent)):
                passing = MiddlePass(blocks, cuts, sent, self.method.model.middle if op == REAL_FORWARD else None)
            self._keep_statistics(network, silos)
            self._passes[op].append(passing)
            answers |= passing.answers()
        if op == REAL_FORWARD:
            self._add_features(self._joint_features(blocks, batch) if self._per_cluster else passing.watched_output)
        return answers

    @torch.no_grad()
    def _joint_features(self, blocks: nn.ModuleList, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run all silos in one batch: normalisation within each cluster would hide how clusters differ."""
        cuts = {silo: self.cuts[silo].discriminator for silo in batch}
        return MiddlePass(blocks, cuts, batch, self.method.model.middle).watched_output

    def _add_features(self, features: Mapping[str, Tensor]) -> None:
        """Add up the batch means of real images: one batch is too little to compare silos, a whole round is enough."""
        for silo, x in features.items():
            total, count = self._features.get(silo, (torch.zeros(()), 0))
            self._features[silo] = total + x.mean(0).cpu(), count + 1

    def _backward(self, op: str, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        answers: dict[str, Tensor] = {}
        for passing in self._passes.pop(forward_of(op)):
            part = {silo: gradients[silo] for silo in passing.inputs if silo in gradients}
            if part:
                with self.meter.work(op, *self._work_key(op, part)):
                    answers |= passing.backward(part, learns=op != ADVERSARIAL_BACKWARD)
        if op in (REAL_BACKWARD, GENERATOR_BACKWARD):
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
        return answers

    def _work_key(self, op: str, batch: Mapping[str, Tensor]) -> list[tuple[str, int]]:
        """Return what the FLOPs of a pass depend on: the cut and the batch size of each silo."""
        return [(str(self.cuts[silo].of(network_of(op))), len(x)) for silo, x in batch.items()]

    def _groups(self, batch: Mapping[str, Tensor]) -> list[list[str]]:
        """Return the silos whose batches are joined: all, or those of each cluster."""
        if not self._per_cluster:
            return [sorted(batch)]
        numbers = sorted({self.cluster.get(silo, 0) for silo in batch})
        return [[silo for silo in sorted(batch) if self.cluster.get(silo, 0) == number] for number in numbers]

    def _load_statistics(self, network: str, silo: str) -> None:
        """Load the running statistics that go with a silo. They are copied: a pass keeps those that it used."""
        for name, tensor in strip_prefix(self.buffers.get(silo, {}), network).items() if self._per_cluster else ():
            module, _, buffer = f"{network}{name}".rpartition(".")
            setattr(self.network.get_submodule(module), buffer, tensor.to(self.device, copy=True))

    def _keep_statistics(self, network: str, silos: list[str]) -> None:
        if self._per_cluster:
            buffers = self.network.named_buffers()
            running = {
                name: tensor
                for name, tensor in buffers
                if name.endswith(RUNNING_STATISTICS) and name.startswith(network)
            }
            kept = snapshot(running)
            for silo in silos:
                self.buffers[silo] = self.buffers.get(silo, {}) | kept

    @property
    def _per_cluster(self) -> bool:
        return self.method.statistics == "cluster"

    def _end_round(self, messages: Mapping[str, Message]) -> Mapping[str, Message]:
        """Average what was sent, and answer each silo with its segments of its cluster's mean."""
        sent = {silo: dict(message.tensors) for silo, message in messages.items() if message.tensors}
        self.contributions = {}
        if sent:
            features = {silo: total[None] / count for silo, (total, count) in self._features.items() if silo in sent}
            self._average(sent, features)
        self.average = running_average(self.average, snapshot(self.network.state_dict()), self.method.ema, self.round)
        self.flops = self.meter.flops
        self.optimiser.zero_grad(set_to_none=True)
        self.lengths.close()
        self.round += 1
        self._begin_round()
        return {silo: Message("segments", self._segments_of(silo), self._facts()) for silo in messages}

    def _average(self, sent: Mapping[str, Tensors], features: Mapping[str, Tensor]) -> None:
        """Average the segments within each cluster, and the middle over all silos."""
        images, alpha = {silo: self.images[silo] for silo in sent}, self.method.alpha
        if self.round < self.method.warm:
            assignments, distances = clustering.one_cluster(images), dict.fromkeys(sent, 0.0)
        else:
            assignments = clustering.assign_clusters(features, images, self.method.clusters, alpha, self.cluster)
            distances = clustering.distances(features, list(sent))
        self.cluster |= {silo: assignment.cluster for silo, assignment in assignments.items()}
        own = snapshot(self.network.state_dict())
        whole = {silo: own | self.buffers.get(silo, {}) | segments for silo, segments in sent.items()}
        for number in set(self.cluster.values()):
            shares = {
                silo: assignment.weight for silo, assignment in assignments.items() if assignment.cluster == number
            }
            if shares:
                self.means[number] = weighted_sum(whole, shares)
        shared = weighted_sum(whole, clustering.mean_shares(images, distances, alpha))
        self.network.load_state_dict({name: shared[name] for name in own})
        running = {name: shared[name] for name in own if name.endswith(RUNNING_STATISTICS)}
        self.buffers = dict.fromkeys(self.cuts, running) if self._per_cluster else {}
        self.contributions = {silo: _journal_entry(assignment) for silo, assignment in assignments.items()}

    def _segments_of(self, silo: str) -> Tensors:
        """Return the silo's segments of the last mean of its cluster."""
        mean = self.means[self.cluster.get(silo, 0)]
        return {name: tensor for name, tensor in mean.items() if self.cuts[silo].at_home(name)}


def _journal_entry(assignment: Assignment) -> dict[str, float]:
    position = {} if assignment.position is None else dict(zip("xy", assignment.position, strict=True))
    return {
        "cluster": assignment.cluster,
        "distance": assignment.distance,
        "weight": assignment.weight,
        **position,
    }
