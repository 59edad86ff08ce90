"""The server's half of CollaFuse: it stores what silos release, trains on that, and denoises for who draws."""

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
from manyhands.methods import split_sampling
from manyhands.methods.collafuse.release import ReleasedImages, Store, joined
from manyhands.methods.collafuse.spec import CollaFuseSpec
from manyhands.methods.server import Accumulated, Server, ServerWrapper
from manyhands.seed import torch_rng
from manyhands.silos.flops import Meter
from manyhands.silos.local_training import load_optimiser_state, optimiser_state, prepare, steps
from manyhands.silos.step_average import StepAverage
from manyhands.tensors import Tensors, add_prefix, find_not_finite, running_average, snapshot, strip_prefix

CutSteps = dict[str, int]


class CollaFuseServer(ServerWrapper):
    """Stores the releases and trains the network above the cuts.

    Args:
        method: The fields of the run.
        seed: The seed of the run.
        cuts: The step of each silo's cut.
        inner: The server of the networks below the cuts.
    """

    def __init__(self, method: CollaFuseSpec, seed: int, cuts: CutSteps, inner: Server) -> None:
        super().__init__(inner)
        self.method, self.seed, self.cuts = method, seed, cuts
        self.held: dict[str, Store] = {}
        self.began = False
        self.enrolled: dict[str, int] = {}
        self.network: Any = method.server_model.build(seed)
        self.latest = self.average = snapshot(self.network.state_dict())
        self.sent_labels: dict[str, set[int]] = {}
        self._generator: DiffusionGenerator | None = None
        self.updates = 0
        self.optimiser: torch.optim.Optimizer | None = None
        self.meter = Meter({})
        self._batch: ReleasedImages | None = None
        self._sources: list[str] = []
        self._steps: Iterator[Tensor] | None = None
        self._losses: list[Tensor] = []
        self._step_average: StepAverage | None = None

    def handle(self, silo: str, message: Message) -> Message:
        """Answer ``enter``, ``release``, ``start`` and ``denoise``."""
        if message.op == "enter":
            self.enrolled[silo] = message.facts["images"]
            if silo not in self.held and self.method.release == "once":
                self.held[silo] = Store(self.cuts[silo], self.enrolled[silo])
            held = self.held[silo].count if silo in self.held else 0
            return Message("enter", {}, {"held": held, "began": self.began, "round": self.round})
        if message.op == "release":
            store = self.held[silo] = self._store_of(silo, message)
            store.add(message.tensors)
            self.sent_labels[silo] = self.sent_labels.get(silo, set()) | store.labels()
            return Message("release", {}, {"held": store.count})
        if message.op == "start":
            return Message("start", self.latest)
        if message.op == "denoise" and (generator := self.generator()):
            return split_sampling.server_answer(generator, message, self.method.mode == "exact")
        return self.inner.handle(silo, message)

    def validate(self, silo: str, message: Message) -> None:
        """Refuse a message that the silo may not send now."""
        check = {
            "enter": self._check_enter,
            "release": self._check_release,
            "ready": self._check_ready,
            "denoise": self._check_denoise,
        }
        check.get(message.op, self.inner.validate)(silo, message)

    def accumulate(self, silo: str, message: Message) -> Accumulated:
        """Keep ``ready`` as it is; everything else is for the inner server."""
        return Accumulated(message) if message.op == "ready" else self.inner.accumulate(silo, message)

    def handle_barrier(self, op: str, messages: Mapping[str, Message]) -> Mapping[str, Message]:
        """Begin the first round; or finish the server's steps of the open round, and close it."""
        if op == "ready":
            self._open()
            return {silo: Message("ready") for silo in messages}
        if self.method.release == "fresh":
            self._open()  # what is trained on came within the round
        while self._step():
            pass
        self._close()
        answers = self.inner.handle_barrier(op, messages)
        self._open()
        return answers

    def train_step(self) -> bool:
        """Take one step on what was released before the round began."""
        return self.method.release == "once" and self._step()

    def generator(self) -> DiffusionGenerator | None:
        """Return the server's network, for the steps above the cuts; None before it has been trained."""
        method = self.method
        if self._generator is None and self.updates:
            device = str(self.device)
            self._generator = DiffusionGenerator(
                method.server_model, method.server_diffusion, self.average, ema=method.ema, device=device
            )
        return self._generator

    def stores(self) -> Mapping[str, Tensors]:
        """Return the releases that are complete."""
        once = self.method.release == "once"
        return {silo: store.tensors() for silo, store in self.held.items() if once and store.count and store.whole}

    def load_stores(self, stores: Mapping[str, Tensors]) -> None:
        """Restore the releases."""
        for silo, tensors in stores.items():
            self.held[silo] = Store(self.cuts[silo], len(tensors["images"]))
            self.held[silo].add(tensors)

    def state_dict(self) -> Tensors:
        """Return the network, its average over rounds, its optimiser and the inner server's state."""
        weights = self.latest
        averages = self.method.ema or self.method.server_rounds(1).step_ema
        average = self.average if averages else {}
        optimiser = optimiser_state(self.optimiser) if self.optimiser else {}
        kept = {"server.": weights, "server-average.": average, "server-": optimiser, "inner.": self.inner.state_dict()}
        flat = {name: tensor for prefix, group in kept.items() for name, tensor in add_prefix(group, prefix).items()}
        sent_labels = {
            f"sent-labels.{silo}": torch.tensor(sorted(labels)).long()
            for silo, labels in self.sent_labels.items()
            if labels
        }
        return {"server-updates": torch.tensor(self.updates)} | flat | sent_labels

    def load_state_dict(self, state: Tensors) -> None:
        """Go on from a state of ``state_dict``."""
        self.network.load_state_dict(strip_prefix(state, "server."))
        self.latest = strip_prefix(state, "server.")
        self.average = strip_prefix(state, "server-average.") or self.latest
        self.sent_labels = {silo: set(labels.tolist()) for silo, labels in strip_prefix(state, "sent-labels.").items()}
        self.updates = int(state["server-updates"])
        if optimiser := strip_prefix(state, "server-optimiser."):
            load_optimiser_state(self._optimiser(), add_prefix(optimiser, "optimiser."))
        self.inner.load_state_dict(self.inner_state(state))
        self._open()

    def inner_state(self, state: Tensors) -> Tensors:
        """Return the state of the networks below the cuts."""
        return strip_prefix(state, "inner.")

    def _open(self) -> None:
        """Begin a round, with what is released by now."""
        self.began = True
        sources = [silo for silo in sorted(self.held) if self.held[silo].count and self.held[silo].whole]
        if self.method.release == "fresh":
            sources = [silo for silo in sources if self.held[silo].turn == self.round]
        if sources != self._sources or self.method.release == "fresh":
            self._sources, self._batch = sources, None
        self._steps, self._losses = self._training(), []

    def _step(self) -> bool:
        loss = None if self._steps is None else next(self._steps, None)
        if loss is not None:
            self._losses.append(loss)
        return loss is not None

    def _close(self) -> None:
        """Set the loss and FLOPs of the round, and take the weights into the average over rounds."""
        self.flops = self.meter.flops
        if not self._losses:
            self.loss = None
            return
        self.loss, self.latest = torch.stack(self._losses).mean().item(), snapshot(self.network.state_dict())
        if not math.isfinite(self.loss) or find_not_finite(self.latest):
            raise RecipeError(
                f"round {self.round + 1}: the server's loss or weights are not finite; lower its learning_rate"
            )
        latest = self._step_average.tensors() if self._step_average else self.latest
        self.average = running_average(self.average, latest, self.method.ema, self.updates)
        self.updates, self._generator = self.updates + 1, None

    def _training(self) -> Iterator[Tensor]:
        """Yield the loss of each of the server's steps in the open round."""
        if not self._sources or self.round >= self.method.rounds:
            return
        method, rng = self.method, torch_rng(self.seed, "server", self.round, device=self.device)
        training, data = method.server_rounds(len(self.cuts)), self._data()
        pairs = method.mode == "exact" and bool(data.cuts.any())
        optimiser = self._optimiser()
        training.set_rate(optimiser, method.progress(self.round))

        def loss(numbers: Tensor) -> Tensor:
            labels = None if data.labels is None else data.labels[numbers]
            return bridge_loss(
                method.diffusion,
                self.network,
                x_cut=training.augmented(data.images[numbers], rng),
                cut=data.cuts[numbers],
                labels=labels,
                no_label=method.server_model.classes,
                rng=rng,
                mode=method.mode,
                pairs=pairs,
            )

        batches = list((training.halved() if pairs else training).batches(len(data.images), rng))
        self.seen += sum(map(len, batches)) * (2 if pairs else 1)
        prepare(self.network, training)
        self._step_average = StepAverage(self.network, training.step_ema) if training.step_ema else None
        for value in steps(
            self.network,
            optimiser,
            training.warming_up(batches, optimiser, self.round),
            loss,
            clip=training.clip,
            autocast=training.autocasts(self.device),
            meter=self.meter,
            work=method.server_model,
            accumulate=training.accumulate,
        ):
            if self._step_average:
                self._step_average.add()
            yield value

    def _data(self) -> ReleasedImages:
        if self._batch is None:
            self._batch = joined([self.held[silo] for silo in self._sources], self.device)
        return self._batch

    def _optimiser(self) -> torch.optim.Optimizer:
        if self.optimiser is None:
            self.network.to(self.device)
            self.optimiser = self.method.server_rounds(len(self.cuts)).optimiser_of(self.network, 0.0)
        return self.optimiser

    def _allowed_labels(self, silo: str) -> set[int]:
        """Return the labels that a silo may ask for, with the one that stands for no class."""
        classes = self.method.model.classes
        if self.method.labels == "share" and self.method.ask == "own":
            return self.sent_labels.get(silo, set()) | {classes}
        return set(range(classes + 1))

    def _store_of(self, silo: str, message: Message) -> Store:
        """Return the store that a release goes to; with fresh releases a new one replaces the last."""
        if self.method.release == "once":
            return self.held[silo]
        turn, held = message.facts["turn"], self.held.get(silo)
        if held is not None and held.turn == turn and message.facts["first"]:
            return held
        return Store(self.cuts[silo], self.method.training.seen(self.enrolled[silo]), turn)

    def _check_enter(self, silo: str, message: Message) -> None:
        facts = message.facts
        if facts["chain"] != self.method.chain:
            raise Refused(Reason.OTHER_SCHEDULE, f"{silo} has {facts['chain'][:200]}, the server {self.method.chain}")
        if facts["cut"] != self.cuts[silo]:
            raise Refused(Reason.OTHER_CUT, f"{silo} cuts at step {facts['cut']}, the recipe says {self.cuts[silo]}")

    def _check_release(self, silo: str, message: Message) -> None:
        if self.cuts[silo] == self.method.diffusion.schedule.steps:
            raise Refused(Reason.OTHER_CUT, f"{silo} sends a release, but its cut keeps the whole chain at the silo")
        if silo not in self.enrolled:
            raise Refused(Reason.OUT_OF_SEQUENCE, f"{silo} sends a release before it has entered")
        if self.method.release == "fresh" and message.facts["turn"] != self.round:
            raise Refused(Reason.STALE_ROUND, f"a release of round {message.facts['turn']} came in round {self.round}")
        self._store_of(silo, message).check(message, self.method.model.classes)

    def _check_ready(self, silo: str, message: Message) -> None:
        if self.began:
            raise Refused(Reason.STALE_ROUND, "the others have started already")

    def _check_denoise(self, silo: str, message: Message) -> None:
        facts, chain = message.facts, self.method.diffusion.schedule.steps
        if not self.updates:
            raise Refused(Reason.OUT_OF_SEQUENCE, "the server's network has not been trained yet")
        if facts["to"] < self.method.server_stop(self.cuts[silo]):
            raise Refused(Reason.BELOW_CUT, f"{silo} asks for step {facts['to']}, its cut is {self.cuts[silo]}")
        drawn = split_sampling.MAX_DRAWN_IMAGES
        if not (facts["to"] <= chain and 0 < facts["count"] <= drawn and 0 < facts["steps"] <= chain):
            request = f"{facts['count']} images down to step {facts['to']} in {facts['steps']} steps of the chain"
            raise Refused(
                Reason.WRONG_FACTS,
                f"{request}: expected 1 to {drawn} images, and at most {chain} steps",
            )
        split_sampling.checked_sampling(message)
        labels = message.tensors.get("labels")
        if labels is None:
            return
        if len(labels) != facts["count"]:
            raise Refused(Reason.WRONG_FACTS, f"{len(labels)} labels came for {facts['count']} images")
        if bad := sorted(set(labels.tolist()) - self._allowed_labels(silo)):
            raise Refused(
                Reason.FOREIGN_LABEL,
                f"{silo} asks for label {bad[0]}, but has shared no image with it; method.ask = 'any' allows that",
            )
