"""The server's half of federated averaging: it holds the model, and averages what silos send."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from manyhands.errors import Reason, Refused
from manyhands.generators.diffusion import DiffusionGenerator
from manyhands.generators.gan import GanGenerator
from manyhands.messages.message import Message
from manyhands.methods.base import Server
from manyhands.methods.fedavg.broadcast import Broadcast
from manyhands.methods.fedavg.sharing import asked
from manyhands.methods.fedavg.spec import AVERAGE, Facts, FedAvgSpec
from manyhands.methods.update_length import LENGTHS, UpdateLengths
from manyhands.models.autoencoder import TrainedAutoencoder
from manyhands.models.state_spec import initial_weights
from manyhands.seed import numpy_rng
from manyhands.tensors import Tensors, WeightedMean, add_prefix, running_average, strip_prefix, zeros


class FedAvgServer(Server):
    """Holds the model, and while a round is open the sum of the updates that came."""

    trains = False

    def __init__(self, method: FedAvgSpec, seed: int, silos: Collection[str]) -> None:
        self.method, self.seed, self.silos = method, seed, sorted(silos)
        begun = initial_weights(method.model, seed)
        self.broadcast = Broadcast(method.downlink, seed, begun)
        self.average = self.broadcast.given
        self.memory: Tensors = {}
        self.updates = 0
        self.mean = WeightedMean()
        self.lengths: UpdateLengths = UpdateLengths(method.max_update_ratio)
        self._went_back = False
        self._asked = self._draw()

    @property
    def weights(self) -> Tensors:
        """The server's own weights."""
        return self.broadcast.weights

    def handle(self, silo: str, message: Message) -> Message:
        """Join: the model of the open round, for those who take part in it."""
        return self._answer(silo, message)

    def validate(self, silo: str, message: Message) -> None:
        """An update is refused from a silo that does not take part in the round, and where it is far too long."""
        if not message.tensors:
            return
        if silo not in self._asked:
            raise Refused(Reason.NOT_ASKED, f"{silo} does not take part in round {self.round}")
        self.method.up.check(message.tensors, self.method.layout_of(self._asked[silo]))
        update, images, relative = self._decoded(silo, message), message.facts["images"], self.method.up.relative
        self.lengths.check(silo, update, self.broadcast.given, images, relative=relative)

    def accumulate(self, silo: str, message: Message) -> Message:
        """Add an update to the sum and keep only what it says."""
        if message.tensors:
            self.mean.add(self._decoded(silo, message), message.facts["images"])
        return Message(message.op, {}, message.facts)

    def handle_barrier(self, op: str, messages: Mapping[str, Message]) -> Mapping[str, Message]:
        """Close the round, and give what came of it to those who take part in the next one."""
        mean, self.mean = self.mean.value(), WeightedMean()
        self.broadcast = self.broadcast.anew() if self._went_back else self.broadcast.next(self._moved(mean))
        self.lengths.close()
        self.round, self._went_back = self.round + 1, False
        self._asked = self._draw()
        if mean:
            self.average = running_average(self.average, self.broadcast.given, self.method.ema, self.updates)
            self.updates += 1
        return {silo: self._answer(silo, message) for silo, message in messages.items()}

    def go_back(self, state: Tensors) -> str | None:
        """To the weights of an earlier round; whoever moved the last mean most takes no part in the next round."""
        self._went_back = True
        return super().go_back({name: tensor for name, tensor in state.items() if not name.startswith("base.")})

    def generator(self) -> DiffusionGenerator | GanGenerator | TrainedAutoencoder | None:
        """The network that all share, as silos receive it; there is none where parts of it stay with them."""
        return None if self.method.personal else self.method.generator_of(self.average)

    def state_dict(self) -> Tensors:
        """The model, its average over rounds, how many means went into that, and what optimiser and codec keep."""
        average = self.average if self.method.ema else {}
        kept = {"weights.": self.weights, "base.": self.broadcast.base, AVERAGE: average, "memory.": self.memory}
        kept |= {LENGTHS: self.lengths.state_dict()}
        flat = {name: tensor for prefix, group in kept.items() for name, tensor in add_prefix(group, prefix).items()}
        return {"updates": torch.tensor(self.updates)} | flat

    def load_state_dict(self, state: Tensors) -> None:
        """Go on from a kept model."""
        self.updates, self.memory = int(state["updates"]), strip_prefix(state, "memory.")
        weights, base = strip_prefix(state, "weights."), strip_prefix(state, "base.")
        self.broadcast = Broadcast(self.method.downlink, self.seed, weights, base, self.round)
        self.average = strip_prefix(state, AVERAGE) or self.broadcast.given
        self.lengths.load_state_dict(strip_prefix(state, LENGTHS))
        self._asked = self._draw()

    def _decoded(self, silo: str, message: Message) -> Mapping[str, Tensor]:
        return self.method.up.decode(message.tensors, zeros(self.method.layout_of(self._asked[silo])))

    def _moved(self, mean: Tensors) -> Tensors:
        """The server's weights, moved as silos moved away from what they held."""
        up, down, optimizer = self.method.up, self.method.down, self.method.server_optimizer
        if not (optimizer or up.relative or down.relative):
            return mean  # to the bit
        given = self.broadcast.given
        moved = mean if up.relative else {name: value - given[name] for name, value in mean.items()}
        if optimizer and mean:
            moved, self.memory = optimizer.step(moved, self.memory)
        return {name: self.weights[name] + value for name, value in moved.items()}

    def _answer(self, silo: str, message: Message) -> Message:
        done, holds = self.round >= self.method.rounds, message.facts.get("holds", -1)
        form = self.broadcast.form(holds)
        facts: Facts = {"round": self.round, "done": done}
        if self.method.share == "usplit":
            facts["send"] = self._asked.get(silo, "")
        if self.broadcast.link.tracks:
            facts["form"] = form
        wanted = silo in self._asked or (done and (self.method.personal or self.method.kept))
        return Message(message.op, self.broadcast.wire(form) if wanted else {}, facts)

    def _draw(self) -> dict[str, str]:
        """Those who take part in the open round, and what each is to send; nobody when all are done."""
        if self.round >= self.method.rounds:
            return {}
        silos = [silo for silo in self.silos if silo != self.lengths.left_out]
        count = min(self.method.participants or len(silos), len(silos))
        rng = numpy_rng(self.seed, "participants", self.round)
        return asked(self.method.share, rng.choice(silos, count, replace=False).tolist(), rng)
