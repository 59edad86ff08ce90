"""The server's half of federated averaging: it has the model, and averages the weights that silos send."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from manyhands.errors import Reason, Refused
from manyhands.generators.load import TrainedModel
from manyhands.messages.message import Message
from manyhands.methods.base import AVERAGE, WEIGHTS
from manyhands.methods.fedavg.sharing import assigned_parts
from manyhands.methods.fedavg.spec import Facts, FedAvgSpec
from manyhands.methods.fedavg.stacking import StackedMean
from manyhands.methods.server import Accumulated, Server
from manyhands.methods.update_length import LENGTHS, UpdateLengths
from manyhands.models.state_spec import initial_weights
from manyhands.seed import numpy_rng
from manyhands.tensors import Tensors, WeightedMean, add_prefix, running_average, strip_prefix, zeros


class FedAvgServer(Server):
    """Has the model, and while a round is open the sum of the weights that came.

    Args:
        method: The fields of the run.
        seed: The seed of the run.
        silos: The names of all silos.
    """

    trains = False

    def __init__(self, method: FedAvgSpec, seed: int, silos: Collection[str]) -> None:
        self.method, self.seed, self.silos = method, seed, sorted(silos)
        weights = initial_weights(method.model, seed)  # first: then its specification is known and not built once more
        self.broadcast = method.broadcast(seed, weights)
        self.average = self.broadcast.silo_weights
        self.memory: Tensors = {}
        self.updates = 0
        self.mean = self._new_mean()
        self.lengths: UpdateLengths = UpdateLengths(method.max_update_ratio)
        self._went_back = False
        self._assigned = self._draw_participants()

    @property
    def weights(self) -> Tensors:
        """The server's own weights."""
        return self.broadcast.weights

    def handle(self, silo: str, message: Message) -> Message:
        """Send a silo that joins the model of the open round, if it takes part in that."""
        return self._answer(silo, message)

    def validate(self, silo: str, message: Message) -> None:
        """Refuse an update of a silo that does not take part in the round, and one that is far too long."""
        if not message.tensors:
            return
        if silo not in self._assigned:
            raise Refused(Reason.NOT_ASKED, f"{silo} does not take part in round {self.round}")
        self.method.up.check(message.tensors, self.method.spec_of(self._assigned[silo]))
        update, images = self._decoded(silo, message), message.facts["images"]
        relative = self.method.up.relative or bool(self.method.model.stacking)
        if self.method.model.stacking:
            update = self.method.model.stacking.changes(update)
        self.lengths.check(silo, update, self.broadcast.silo_weights, images, relative=relative)

    def accumulate(self, silo: str, message: Message) -> Accumulated:
        """Add an update to the sum, and keep only its facts."""
        if message.tensors:
            self.mean.add(self._decoded(silo, message), message.facts["images"])
        return Accumulated(Message(message.op, {}, message.facts), taken=True)

    def handle_barrier(self, op: str, messages: Mapping[str, Message]) -> Mapping[str, Message]:
        """Close the round, and send the new weights to those who take part in the next one."""
        mean, self.mean = self.mean.value(), self._new_mean()
        self.broadcast = self.broadcast.restarted() if self._went_back else self.broadcast.next(self._moved(mean))
        self.lengths.close()
        self.round, self._went_back = self.round + 1, False
        self._assigned = self._draw_participants()
        if mean:
            self.average = running_average(self.average, self.broadcast.silo_weights, self.method.ema, self.updates)
            self.updates += 1
        return {silo: self._answer(silo, message) for silo, message in messages.items()}

    def go_back(self, state: Tensors) -> str | None:
        """Return to earlier weights; the silo that moved the last mean most takes no part in the next round."""
        self._went_back = True
        return super().go_back({name: tensor for name, tensor in state.items() if not name.startswith("base.")})

    def generator(self) -> TrainedModel | None:
        """Return the network as silos receive it; None where parts of it stay at the silos."""
        return None if self.method.personal else self.method.learner.generator(self.average)

    def state_dict(self) -> Tensors:
        """Return the model, its average over rounds, and the state of optimizer and codec."""
        average = self.average if self.method.ema else {}
        kept = {WEIGHTS: self.weights, "base.": self.broadcast.base, AVERAGE: average, "memory.": self.memory}
        kept |= {LENGTHS: self.lengths.state_dict()}
        flat = {name: tensor for prefix, group in kept.items() for name, tensor in add_prefix(group, prefix).items()}
        return {"updates": torch.tensor(self.updates)} | flat

    def load_state_dict(self, state: Tensors) -> None:
        """Go on from a state of ``state_dict``."""
        self.updates, self.memory = int(state["updates"]), strip_prefix(state, "memory.")
        weights, base = strip_prefix(state, WEIGHTS), strip_prefix(state, "base.")
        self.broadcast = self.method.broadcast(self.seed, weights, base, self.round)
        self.average = strip_prefix(state, AVERAGE) or self.broadcast.silo_weights
        self.lengths.load_state_dict(strip_prefix(state, LENGTHS))
        self._assigned = self._draw_participants()

    def _decoded(self, silo: str, message: Message) -> Mapping[str, Tensor]:
        return self.method.up.decode(message.tensors, zeros(self.method.spec_of(self._assigned[silo])))

    def _new_mean(self) -> WeightedMean | StackedMean:
        return StackedMean() if self.method.model.stacking else WeightedMean()

    def _moved(self, mean: Tensors) -> Tensors:
        """Return the server's weights after the mean update of the silos."""
        up, down, optimizer = self.method.up, self.method.down, self.method.server_optimizer
        if not (optimizer or up.relative or down.relative):
            return mean  # exactly, bit for bit
        held = self.broadcast.silo_weights
        moved = mean if up.relative else {name: value - held[name] for name, value in mean.items()}
        if optimizer and mean:
            moved, self.memory = optimizer.step(moved, self.memory)
        return {name: self.weights[name] + value for name, value in moved.items()}

    def _answer(self, silo: str, message: Message) -> Message:
        done, holds = self.round >= self.method.rounds, message.facts.get("holds", -1)
        kind = self.broadcast.kind(holds)
        facts: Facts = {"round": self.round, "done": done}
        if self.method.share == "usplit":
            facts["send"] = self._assigned.get(silo, "")
        if self.broadcast.downlink.tracks:
            facts["kind"] = kind
        takes_part = silo in self._assigned or (done and (self.method.personal or self.method.kept))
        return Message(message.op, self.broadcast.wire(kind) if takes_part else {}, facts)

    def _draw_participants(self) -> dict[str, str]:
        """Return which parts each participant of the open round must send; nobody takes part after the last."""
        if self.round >= self.method.rounds:
            return {}
        silos = [silo for silo in self.silos if silo != self.lengths.left_out]
        count = min(self.method.participants or len(silos), len(silos))
        rng = numpy_rng(self.seed, "participants", self.round)
        return assigned_parts(self.method.share, rng.choice(silos, count, replace=False).tolist(), rng)
