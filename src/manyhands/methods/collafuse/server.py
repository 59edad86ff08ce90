"""The server's half of CollaFuse: it keeps what silos release, learns from that, and answers who draws."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from manyhands.diffusion.bridge import bridge_loss
from manyhands.errors import Reason, RecipeError, Refused
from manyhands.generators.diffusion import DiffusionGenerator
from manyhands.messages.message import Message
from manyhands.methods import relay
from manyhands.methods.base import Server, ServerWrapper
from manyhands.methods.collafuse.release import Batch, Store, together
from manyhands.methods.collafuse.spec import CollaFuseSpec
from manyhands.seed import torch_rng
from manyhands.silos.flops import Meter
from manyhands.silos.training import load_optimiser_state, optimiser_state, steps
from manyhands.tensors import Tensors, add_prefix, find_not_finite, running_average, snapshot, strip_prefix

Cuts = dict[str, int]


class CollaFuseServer(ServerWrapper):
    """Keeps the releases and learns the chain above the cuts; ``inner`` answers for the networks below."""

    def __init__(self, method: CollaFuseSpec, seed: int, cuts: Cuts, inner: Server) -> None:
        super().__init__(inner)
        self.method, self.seed, self.cuts = method, seed, cuts
        self.held: dict[str, Store] = {}
        self.began = False
        self.enrolled: dict[str, int] = {}
        self.network: Any = method.server_model.build(seed)
        self.latest = self.average = snapshot(self.network.state_dict())
        self.told: dict[str, set[int]] = {}
        self._generator: DiffusionGenerator | None = None
        self.updates = 0
        self.optimiser: torch.optim.Optimizer | None = None
        self.meter = Meter({})
        self._batch: Batch | None = None
        self._learns: list[str] = []
        self._steps: Iterator[Tensor] | None = None
        self._losses: list[Tensor] = []

    def handle(self, silo: str, message: Message) -> Message:
        """Enter, release, start and denoise."""
        if message.op == "enter":
            self.enrolled[silo] = message.facts["images"]
            if silo not in self.held and self.method.release == "once":
                self.held[silo] = Store(self.cuts[silo], self.enrolled[silo])
            held = self.held[silo].count if silo in self.held else 0
            return Message("enter", {}, {"held": held, "began": self.began, "round": self.round})
        if message.op == "release":
            store = self.held[silo] = self._store_of(silo, message)
            store.add(message.tensors)
            self.told[silo] = self.told.get(silo, set()) | store.labels()
            return Message("release", {}, {"held": store.count})
        if message.op == "start":
            return Message("start", self.latest)
        if message.op == "denoise" and (generator := self.generator()):
            return relay.answered(generator, message, self.method.mode == "exact")
        return self.inner.handle(silo, message)

    def validate(self, silo: str, message: Message) -> None:
        """Refuse what a silo may not say now."""
        check = {
            "enter": self._may_enter,
            "release": self._may_release,
            "ready": self._may_wait,
            "denoise": self._may_draw,
        }
        check.get(message.op, self.inner.validate)(silo, message)

    def accumulate(self, silo: str, message: Message) -> Message:
        """Waiting is all that is in ``ready``."""
        return message if message.op == "ready" else self.inner.accumulate(silo, message)

    def handle_barrier(self, op: str, messages: Mapping[str, Message]) -> Mapping[str, Message]:
        """Begin; or do what is left of the round's work, and close it."""
        if op == "ready":
            self._open()
            return {silo: Message("ready") for silo in messages}
        if self.method.release == "fresh":
            self._open()  # what is learnt from came within the round
        while self._step():
            pass
        self._close()
        answers = self.inner.handle_barrier(op, messages)
        self._open()
        return answers

    def train_step(self) -> bool:
        """One step of the server's training, on what was released before the round began."""
        return self.method.release == "once" and self._step()

    def generator(self) -> DiffusionGenerator | None:
        """The server's network, for the steps above the cuts; None before it has learnt anything."""
        method = self.method
        if self._generator is None and self.updates:
            device = str(self.device)
            self._generator = DiffusionGenerator(
                method.server_model, method.drawn_at_server, self.average, ema=method.ema, device=device
            )
        return self._generator

    def stores(self) -> Mapping[str, Tensors]:
        """The releases that are whole."""
        once = self.method.release == "once"
        return {silo: store.tensors() for silo, store in self.held.items() if once and store.count and store.whole}

    def load_stores(self, stores: Mapping[str, Tensors]) -> None:
        """Go on with releases."""
        for silo, tensors in stores.items():
            self.held[silo] = Store(self.cuts[silo], len(tensors["images"]))
            self.held[silo].add(tensors)

    def state_dict(self) -> Tensors:
        """The network, its average over rounds and its optimiser, and what the inner server keeps."""
        weights = self.latest
        average = self.average if self.method.ema else {}
        optimiser = optimiser_state(self.optimiser) if self.optimiser else {}
        kept = {"server.": weights, "server-average.": average, "server-": optimiser, "inner.": self.inner.state_dict()}
        flat = {name: tensor for prefix, group in kept.items() for name, tensor in add_prefix(group, prefix).items()}
        told = {f"told.{silo}": torch.tensor(sorted(labels)).long() for silo, labels in self.told.items() if labels}
        return {"server-updates": torch.tensor(self.updates)} | flat | told

    def load_state_dict(self, state: Tensors) -> None:
        """Go on from a kept network."""
        self.network.load_state_dict(strip_prefix(state, "server."))
        self.latest = strip_prefix(state, "server.")
        self.average = strip_prefix(state, "server-average.") or self.latest
        self.told = {silo: set(labels.tolist()) for silo, labels in strip_prefix(state, "told.").items()}
        self.updates = int(state["server-updates"])
        if optimiser := strip_prefix(state, "server-optimiser."):
            load_optimiser_state(self._optimiser(), add_prefix(optimiser, "optimiser."))
        self.inner.load_state_dict(self.inner_state(state))
        self._open()

    def inner_state(self, state: Tensors) -> Tensors:
        """That of the networks below the cuts."""
        return strip_prefix(state, "inner.")

    def _open(self) -> None:
        """Begin a round: with what is released by now."""
        self.began = True
        learns = [silo for silo in sorted(self.held) if self.held[silo].count and self.held[silo].whole]
        if self.method.release == "fresh":
            learns = [silo for silo in learns if self.held[silo].turn == self.round]
        if learns != self._learns or self.method.release == "fresh":
            self._learns, self._batch = learns, None
        self._steps, self._losses = self._training(), []

    def _step(self) -> bool:
        loss = None if self._steps is None else next(self._steps, None)
        if loss is not None:
            self._losses.append(loss)
        return loss is not None

    def _close(self) -> None:
        """The round's figures, and the average over rounds."""
        self.flops = self.meter.flops
        if not self._losses:
            self.loss = None
            return
        self.loss, self.latest = torch.stack(self._losses).mean().item(), snapshot(self.network.state_dict())
        if not math.isfinite(self.loss) or find_not_finite(self.latest):
            raise RecipeError(f"round {self.round + 1}: what the server learns is not finite; lower its learning_rate")
        self.average = running_average(self.average, self.latest, self.method.ema, self.updates)
        self.updates, self._generator = self.updates + 1, None

    def _training(self) -> Iterator[Tensor]:
        """The server's steps in the open round."""
        if not self._learns or self.round >= self.method.rounds:
            return
        method, rng = self.method, torch_rng(self.seed, "server", self.round, device=self.device)
        training, data = method.server_rounds(len(self.cuts)), self._data()
        pairs = method.mode == "exact" and bool(data.cuts.any())
        optimiser = self._optimiser()
        for group in optimiser.param_groups:
            group["lr"] = training.rate(method.progress(self.round))

        def loss(numbers: Tensor) -> Tensor:
            labels = None if data.labels is None else data.labels[numbers]
            x_cut, cuts, no_label = data.images[numbers], data.cuts[numbers], method.server_model.classes
            told = x_cut, cuts, labels, no_label, rng, method.mode
            return bridge_loss(method.diffusion, self.network, *told, pairs=pairs)

        batches = list((training.halved() if pairs else training).batches(len(data.images), rng))
        self.seen += sum(map(len, batches)) * (2 if pairs else 1)
        told: dict[str, Any] = {"clip": training.clip, "autocast": training.autocasts(self.device)}
        yield from steps(self.network, optimiser, batches, loss, **told, meter=self.meter, work=method.server_model)

    def _data(self) -> Batch:
        if self._batch is None:
            self._batch = together([self.held[silo] for silo in self._learns], self.device)
        return self._batch

    def _optimiser(self) -> torch.optim.Optimizer:
        if self.optimiser is None:
            self.network.to(self.device)
            self.optimiser = self.method.server_rounds(len(self.cuts)).optimiser_of(self.network, 0.0)
        return self.optimiser

    def _labels_of(self, silo: str) -> set[int]:
        """What a silo may ask for: no class is one of them."""
        classes = self.method.model.classes
        if self.method.labels == "share" and self.method.ask == "own":
            return self.told.get(silo, set()) | {classes}
        return set(range(classes + 1))

    def _store_of(self, silo: str, message: Message) -> Store:
        """What a part of a release belongs to; one that is made anew takes the place of the last."""
        if self.method.release == "once":
            return self.held[silo]
        turn, held = message.facts["turn"], self.held.get(silo)
        if held is not None and held.turn == turn and message.facts["first"]:
            return held
        return Store(self.cuts[silo], self.method.training.seen(self.enrolled[silo]), turn)

    def _may_enter(self, silo: str, message: Message) -> None:
        told = message.facts
        if told["chain"] != self.method.chain:
            raise Refused(Reason.OTHER_SCHEDULE, f"{silo} has {told['chain'][:200]}, the server {self.method.chain}")
        if told["cut"] != self.cuts[silo]:
            raise Refused(Reason.OTHER_CUT, f"{silo} cuts at step {told['cut']}, the recipe says {self.cuts[silo]}")

    def _may_release(self, silo: str, message: Message) -> None:
        if self.cuts[silo] == self.method.diffusion.schedule.steps:
            raise Refused(Reason.OTHER_CUT, f"{silo} keeps the whole chain, and has nothing to release")
        if silo not in self.enrolled:
            raise Refused(Reason.OUT_OF_SEQUENCE, f"{silo} releases before it has entered")
        if self.method.release == "fresh" and message.facts["turn"] != self.round:
            raise Refused(Reason.STALE_ROUND, f"a release of round {message.facts['turn']}, this is {self.round}")
        self._store_of(silo, message).check(message, self.method.model.classes)

    def _may_wait(self, silo: str, message: Message) -> None:
        if self.began:
            raise Refused(Reason.STALE_ROUND, "the others have begun")

    def _may_draw(self, silo: str, message: Message) -> None:
        told, chain = message.facts, self.method.diffusion.schedule.steps
        if not self.updates:
            raise Refused(Reason.OUT_OF_SEQUENCE, "the server has learnt nothing yet")
        if told["to"] < self.method.server_stop(self.cuts[silo]):
            raise Refused(Reason.BELOW_CUT, f"{silo} asks for step {told['to']}, its cut is {self.cuts[silo]}")
        if not (told["to"] <= chain and 0 < told["count"] <= relay.MAX_DRAWN_IMAGES and 0 < told["steps"] <= chain):
            asked = f"{told['count']} images down to step {told['to']} in {told['steps']} steps of the chain"
            raise Refused(
                Reason.WRONG_FACTS, f"{asked}: at most {relay.MAX_DRAWN_IMAGES} images and {chain} steps are drawn"
            )
        relay.sampling_of(message)
        labels = message.tensors.get("labels")
        if labels is None:
            return
        if len(labels) != told["count"]:
            raise Refused(Reason.WRONG_FACTS, f"{len(labels)} labels came for {told['count']} images")
        known = self._labels_of(silo)
        if bad := sorted(set(labels.tolist()) - known):
            raise Refused(Reason.FOREIGN_LABEL, f"{silo} asks for label {bad[0]}, and told of none such (ask = 'any')")
