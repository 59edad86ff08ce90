"""HuSCF-GAN: a conditional GAN cut into a U over weak devices, with clusters found and weighed."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from manyhands.codec import activations
from manyhands.codec.activations import Bits
from manyhands.errors import Reason, RecipeError, Refused
from manyhands.message import Message
from manyhands.meter import Meter
from manyhands.methods.huscf.guard import GUARDED, Guard
from manyhands.methods.huscf.server import ORDER, HuSCFServer
from manyhands.methods.method import Ask, Conversation, Method, Trained, check_images
from manyhands.models.cut import Cut, Cuts, maps
from manyhands.models.forger import Forger, generators_part
from manyhands.models.gan import Gan, through
from manyhands.models.generator import Drawing
from manyhands.models.layout import layout_of
from manyhands.models.work import price
from manyhands.plan import ROUND_FACTS, Carries, Operation, Plan, size_text
from manyhands.seed import torch_rng
from manyhands.silo import Silo
from manyhands.spec import Float, Int
from manyhands.tensors import Layout, Like, Tensors, finite, named, prefixed, running_average, snapshot
from manyhands.training import GanTraining, load_optimiser_state, optimiser_state

if TYPE_CHECKING:
    from manyhands.diffusion.sample import Sampling

SAYS = {
    "make": "sends what its head of the generator makes of noise and labels, gets what its tail goes on from",
    "made": "sends what its head of the discriminator makes of made images, gets what its tail judges",
    "made-back": "sends and gets gradients of that",
    "real": "sends what its head of the discriminator makes of its own images, gets what its tail judges",
    "real-back": "sends and gets gradients of that",
    "fool": "sends what the discriminator's head now makes of the images that were made, gets what its tail judges",
    "fool-back": "sends and gets gradients of that",
    "make-back": "sends and gets gradients of the generator",
}


class HuSCF(Method):
    """A GAN whose middle blocks are the server's: silos keep images, labels, noise, losses and both ends.

    ``cut`` says what a silo has at home, ``cuts`` those of silos that have others, by name or by a pattern as
    ``silo-1*`` (the first that fits counts); a discriminator's head of at least ``min_head`` + 1 blocks stays at home,
    since of one layer's output images can be computed. ``clusters`` of silos are found by themselves, or so many; from
    round ``warm`` on their ends are averaged within them, by the weights n exp(-``alpha`` d). ``statistics`` are those
    of the server's norms: over all silos, or within each cluster. ``guard`` clips and noises what the discriminator's
    head sends. Each number of an activation or a gradient takes so many ``bits`` on the wire.

    References:
        A Distributed Generative AI Approach for Heterogeneous Multi-Domain Environments under Data Sharing constraints,
            Tawfilis et al., 2025, arXiv 2507.12979
    """

    kind: Literal["huscf"] = "huscf"
    model: Gan
    training: GanTraining
    cut: Cuts | None = None
    cuts: dict[str, Cuts] = Field(default_factory=dict)
    min_head: Int = Field(default=1, ge=0)
    clusters: Literal["auto"] | Int = "auto"
    alpha: Float = Field(default=1.0, ge=0)
    warm: Int = Field(default=2, ge=0)
    statistics: Literal["all", "cluster"] = "all"
    bits: Bits = 32
    ema: Float = Field(default=0.0, ge=0, lt=1)
    guard: Guard | None = None

    @model_validator(mode="after")
    def _can_be_cut(self) -> Self:
        for name, cuts in {"cut": self.default, **self.cuts}.items():
            cuts.check(self.model)
            if cuts.discriminator.head < self.min_head:
                raise ValueError(
                    f"{name}: the discriminator's head ends at block {cuts.discriminator.head}, min_head is "
                    f"{self.min_head}: images can be computed from what a single layer sends"
                )
        return self

    @property
    def default(self) -> Cuts:
        """The cuts of silos that have none of their own: as little at home as may be."""
        last = self.model.depth - 1
        least = Cuts(generator=Cut(head=0, tail=last), discriminator=Cut(head=self.min_head, tail=last))
        return self.cut or least

    def of(self, silo: str) -> Cuts:
        """The cuts of a silo: those of the first name, or pattern of names, that is its own."""
        return next((cuts for name, cuts in self.cuts.items() if fnmatchcase(silo, name)), self.default)

    @property
    def every(self) -> list[Cuts]:
        """All cuts that the recipe tells of, each once."""
        return list({str(cuts): cuts for cuts in (self.default, *self.cuts.values())}.values())

    def silo(self, silo: Silo) -> Conversation:
        """Join, then train with the server a mini-batch at a time, and have one's ends averaged after each round."""
        answer = yield Message("join", facts={"images": len(silo.images)})
        half = Half(self, silo, dict(answer.tensors), answer.facts["round"])
        while not answer.facts["done"]:
            number, told = answer.facts["round"], {"loss": None, "seen": 0, "flops": 0, "withheld": ""}
            try:
                told |= yield from half.round(number, answer.facts["steps"])
                ends = half.ends()
            except Refused as refusal:
                half.restore()
                told["withheld"], ends = str(refusal), {}
            facts = {"round": number, "images": len(silo.images), **told}
            answer = yield Message("segments", ends, facts)
            half.take(dict(answer.tensors))

    def server(self, seed: int, silos: Sequence[str]) -> HuSCFServer:
        """The server, with the middle blocks of the common start."""
        if unknown := [name for name in self.cuts if not any(fnmatchcase(silo, name) for silo in silos)]:
            raise RecipeError(f"cuts names {unknown[0]!r}, which is none of the silos ({', '.join(sorted(silos)[:8])})")
        return HuSCFServer(self, seed, {silo: self.of(silo) for silo in silos})

    def plan(self) -> Plan:
        """Activations and their gradients in each mini-batch, the ends after each round; no image, no label."""
        ends = [self.ends_of(cuts) for cuts in self.every]
        gives = {"round": int, "done": bool, "steps": int}
        join = Operation(
            "says how many images it has, gets its ends of both networks", "once",
            Carries(facts={"images": int}), Carries(ends[0], gives, tuple(ends[1:])),
        )  # fmt: skip
        passes = {
            op: Operation(SAYS[op], "in each mini-batch", self._carries(op, up=True), self._carries(op, up=False), True)
            for op in ORDER
        }
        segments = Operation(
            "sends its ends of both networks, gets the mean of its cluster", f"{self.rounds} times",
            Carries(ends[0], ROUND_FACTS, (*ends[1:], {})), Carries(ends[0], gives, (*ends[1:], {})), True, True,
        )  # fmt: skip
        draw = Operation(
            "sends what its head of the generator makes of noise and labels, gets what its tail goes on from",
            "whenever it draws", self._carries("make", up=True, bits=32), self._carries("make", up=False, bits=32),
        )  # fmt: skip
        never = ("images, real or made", "labels", "noise", "file names")
        return Plan({"join": join} | passes | {"segments": segments, "draw": draw}, never=never)

    def sizes(self, silos: int, sampling: Sampling) -> list[str]:
        """What a silo with each of the cuts has at home, and what passes in an iteration."""
        batch, lines = self.training.batch, []
        for cuts in self.every:
            own = self._costs(cuts)
            lines.append(
                f"a silo cut at {cuts} has {own['weights']:,.0f} of {own['weights_whole']:,.0f} weights and does "
                f"{own['work'] / own['work_whole']:.1%} of the work; it trains in {size_text(own['memory'])} where the "
                f"whole takes {size_text(own['memory_whole'])}, sends {size_text(own['bytes'])} in an iteration of "
                f"{batch} images and gets as much"
            )
        return lines

    def costs(self, silo: str, images: int, sampling: Sampling) -> dict[str, float]:
        """What a silo has at home, what it works for an image, and what it sends in an iteration."""
        return self._costs(self.of(silo))

    def _costs(self, cuts: Cuts) -> dict[str, float]:
        batch = self.training.batch
        found: dict[str, float] = {"bytes": sum(self._sent(op, cuts) for op in ORDER)}
        parts = {"": (cuts.has, self.ends_of(cuts)), "_whole": (lambda *_: True, layout_of(self.model))}
        for name, (kept, layout) in parts.items():
            work, memory = price(self.model, batch, kept)
            weights = sum(like.size for like in layout.values())
            found |= {f"work{name}": work, f"memory{name}": memory, f"weights{name}": weights}
        return found

    def _sent(self, op: str, cuts: Cuts) -> int:
        """The bytes of one message of a whole batch."""
        wire, batch = activations.wire(self.crossing(op, cuts, up=True), self.bits), self.training.batch
        return sum(like.size * like.dtype.itemsize * (batch if None in like.shape else 1) for like in wire.values())

    def fits(self, silo: Silo) -> None:
        """Its images must be those of the model, and two at least: norms need more than one."""
        if len(silo.images) < 2:
            raise RecipeError(f"{silo.name}: holds {len(silo.images)} images, at least 2 are needed")
        check_images(silo, self.model)

    def own_generator(self, silo: Silo) -> Forger | None:
        """Both ends of the generator, as the silo has them."""
        weights = generators_part(named(silo.memory, "average."))
        return Forger(self.model, weights, self.of(silo.name).generator, ema=self.ema) if weights else None

    def drawn_from(self, silo: str, shared: Trained | None, own: Trained | None, ask: Ask) -> Drawing | None:
        """The ends at home, and the server's middle between them."""
        if not isinstance(own, Forger):
            return None
        return replace(own, ask=lambda x: ask(Message("draw", {"x": x})).tensors["x"])

    def progress(self, number: int) -> float:
        """The share of the run that is done before a round."""
        return number / max(self.rounds - 1, 1)

    def ends_of(self, cuts: Cuts) -> Layout:
        """The names, shapes and types of what a silo has at home."""
        return {name: like for name, like in layout_of(self.model).items() if cuts.at_home(name)}

    def check(self, message: Message, cuts: Cuts) -> None:
        """Refuse what this cut does not make."""
        drawn = message.op == "draw"
        like = self.crossing("make" if drawn else message.op, cuts, up=True)
        activations.check(message.tensors, like, 32 if drawn else self.bits)

    def _carries(self, op: str, *, up: bool, bits: Bits | None = None) -> Carries:
        likes = dict.fromkeys(self.crossing(op, cuts, up=up) for cuts in self.every)
        forms = [activations.wire(like, bits or self.bits) for like in likes]
        return Carries(forms[0], others=tuple(forms[1:]))

    def crossing(self, op: str, cuts: Cuts, *, up: bool) -> Like:
        """What passes: at the head on the way forward up and on the way back down, else at the tail."""
        network = "generator" if op.startswith("make") else "discriminator"
        cut = cuts.of(network)
        at_head = up != op.endswith("-back")
        return maps(self.model, network)[cut.head if at_head else cut.tail - 1]


class Half:
    """What a silo has of both networks, and its side of an iteration."""

    def __init__(self, method: HuSCF, silo: Silo, start: Tensors, number: int) -> None:
        self.method, self.silo, self.cuts = method, silo, method.of(silo.name)
        self.network = method.model.build(0).keep(lambda name, block: self.cuts.of(name).at_home(block))
        self.network.to(silo.bench.device)
        self.optimiser = method.training.optimiser_of(self.network, 0.0)
        self.meter = Meter(silo.bench.known_flops)
        self.chance = torch_rng(silo.seed, silo.name, "wire")
        self.start = start
        self.restore()
        if number > self.taken:
            self.take(start)

    @property
    def taken(self) -> int:
        """How often it has taken what its cluster made of its ends."""
        return int(self.silo.memory.get("taken", torch.tensor(0)))

    def restore(self) -> None:
        """Go on from what was there when the round began."""
        self.network.load_state_dict(self.start)
        self.optimiser.state.clear()
        load_optimiser_state(self.optimiser, self.silo.memory)

    def ends(self) -> Tensors:
        """What is sent of it, if it is finite; what is not, the optimiser's memory, is kept."""
        ends = snapshot(self.network.state_dict())
        if bad := finite(ends):
            raise Refused(Reason.NOT_FINITE, f"{bad} is not finite")
        self.silo.memory = self.silo.memory | optimiser_state(self.optimiser)
        return ends

    def take(self, ends: Tensors) -> None:
        """Go on from what the cluster has made of it, and average that over rounds."""
        self.start = ends
        self.network.load_state_dict(ends)
        average = running_average(named(self.silo.memory, "average."), ends, self.method.ema, self.taken)
        taken = {"taken": torch.tensor(self.taken + 1)} | prefixed(average, "average.")
        self.silo.memory = self.silo.memory | taken

    def round(self, number: int, steps: int) -> Generator[Message, Message, dict[str, Any]]:
        """So many mini-batches; the mean loss of the discriminator."""
        silo, training, before = self.silo, self.method.training, self.meter.flops
        training = training.model_copy(update={"steps": steps, "epochs": None})
        rng = silo.rng(number)
        self.chance = torch_rng(silo.seed, silo.name, number, "wire", device=silo.bench.device)
        for group in self.optimiser.param_groups:
            group["lr"] = training.rate(self.method.progress(number))
        images, total, seen = silo.images.to(silo.bench.device), torch.zeros((), device=silo.bench.device), 0
        for numbers in list(training.batches(len(silo.images), rng)):
            x, labels = images.batch(numbers)
            known = labels if self.method.model.classes else None
            z = torch.randn(len(x), self.method.model.latent, generator=rng, device=x.device)
            total += yield from self.iteration(x, known, z)
            seen += len(x)
        loss = (total / steps).item()
        return {"loss": loss, "seen": seen, "flops": self.meter.flops - before}

    def iteration(self, x: Tensor, labels: Tensor | None, z: Tensor) -> Generator[Message, Message, Tensor]:
        """One step of the discriminator, one of the generator, as a plain GAN would take them."""
        spec, loss = self.method.model, torch.zeros((), device=x.device)
        made = yield from self._there("make", z, labels)
        self.optimiser.zero_grad(set_to_none=True)
        for op, image, real in (("made", made.out.detach(), False), ("real", x, True)):
            judged = yield from self._there(op, image, labels)
            with self.meter.work(spec, self.cuts, op, "judged", len(x)):
                value = spec.judged(judged.out, real=real)
                value.backward()
            yield from self._back(op, judged)
            loss += value.detach()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        judged = yield from self._there("fool", made.out, labels)
        with self.meter.work(spec, self.cuts, "fool", "judged", len(x)):
            spec.fooled(judged.out).backward()
        yield from self._back("fool", judged)
        yield from self._back("make", made)
        self.network.discriminator.zero_grad(set_to_none=True)
        self.optimiser.step()
        return loss

    def _there(self, op: str, x: Tensor, labels: Tensor | None) -> Generator[Message, Message, Pass]:
        """Through the head, the server's middle, and the tail."""
        network = "generator" if op == "make" else "discriminator"
        head, _, tail = self.cuts.of(network).parts(list(getattr(self.network, network)))
        with self.meter.work(self.method.model, self.cuts, op, "head", len(x)):
            sent = through(head, x, labels)
            if self.method.guard and op in GUARDED:
                sent = self.method.guard.hidden(sent, self.silo)
        answer = yield self._says(op, sent.detach())
        got = activations.decode(answer.tensors).to(x.device).requires_grad_()
        with self.meter.work(self.method.model, self.cuts, op, "tail", len(x)):
            out = through(tail, got)
        return Pass(sent, got, out)

    def _back(self, op: str, there: Pass) -> Conversation:
        """The gradient goes back the same way."""
        assert there.got.grad is not None
        answer = yield self._says(f"{op}-back", there.got.grad)
        with self.meter.work(self.method.model, self.cuts, op, "back", len(there.sent)):
            there.sent.backward(activations.decode(answer.tensors).to(there.sent.device))

    def _says(self, op: str, x: Tensor) -> Message:
        return Message(op, activations.encode(x, self.method.bits, self.chance))


class Pass(NamedTuple):
    """One pass of a batch: what was sent of it, what came back, and what came of that."""

    sent: Tensor
    got: Tensor
    out: Tensor
