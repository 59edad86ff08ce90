"""The denoising chain cut in time: noisy steps at the server, the last ones and the images at the silo."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from manyhands.diffusion.bridge import Mode, bridge_loss
from manyhands.diffusion.cut import Cut, cut_words, decibel
from manyhands.diffusion.release import box_norm
from manyhands.diffusion.sample import Sampling
from manyhands.errors import CheckpointError, Reason, RecipeError, Refused
from manyhands.message import Message
from manyhands.meter import Meter
from manyhands.methods import relay
from manyhands.methods.baselines import Local
from manyhands.methods.clustered import Clustered
from manyhands.methods.denoising import Denoising, update_facts
from manyhands.methods.distil import Distil
from manyhands.methods.fedavg import FedAvg
from manyhands.methods.method import Ask, Conversation, Server, Trained, Wrapping
from manyhands.methods.release import Batch, Labels, Noising, Store, chunk_of, chunks, fingerprint, together
from manyhands.models import cost
from manyhands.models.generator import Drawing, Generator
from manyhands.models.layout import layout_of
from manyhands.models.unet import UNet
from manyhands.plan import Carries, Operation, Plan, count_text, size_text
from manyhands.seed import torch_rng
from manyhands.silo import Silo
from manyhands.spec import Float, Int
from manyhands.tensors import Like, Tensors, named, prefixed, running_average, snapshot
from manyhands.training import Training, load_optimiser_state, optimiser_state, steps

RELEASED = "released"
Cuts = dict[str, int]


class CollaFuse(Denoising):
    """A silo noises its images up to a cut, and releases that once; the server learns the chain above from it.

    Below the cut each silo trains a network of its own, ``silo_model``, that never leaves it (or, where
    ``federate_silos``, is averaged over all silos, or over those of its cluster where there are ``clusters``).
    ``model`` is the server's. ``cut`` is that
    of every silo but those in ``cuts``. ``norm`` is what images are clipped to before they are noised. ``mode`` and
    ``release`` tell the exact form from those of others. ``labels`` go to the server or not; where they do, a silo
    may ``ask`` for its own labels or for any. ``server_training`` is the server's share of a round: if not told, as
    many steps as all silos take. A silo trains from round ``warm_start`` on, from the server's weights of then;
    it finishes what it draws in ``finish`` steps, by those of the whole chain if not told, or in those that its last
    rounds ``distil`` it to.

    References:
        CollaFuse: Navigating Limited Resources and Privacy in Collaborative Generative AI, Zipperling et al., 2024,
            arXiv 2402.19105
        CollaFuse: Collaborative Diffusion Models, Allmendinger et al., 2024, arXiv 2406.14429
        Personalized Federated Training of Diffusion Models with Privacy Guarantees, Patel et al., 2025,
            arXiv 2504.00952
    """

    kind: Literal["collafuse"] = "collafuse"
    model: UNet
    cut: Cut
    cuts: dict[str, Cut] = Field(default_factory=dict)
    mode: Mode = "exact"
    release: Literal["once", "fresh"] = "once"
    norm: Float | None = Field(default=None, gt=0)
    labels: Labels = "withhold"
    label_epsilon: Float = Field(default=1.0, gt=0, le=100)
    ask: Literal["own", "any"] = "own"
    silo_model: UNet | None = None
    server_training: Training | None = None
    keep_optimiser: bool = True
    warm_start: Int = Field(default=0, ge=0)
    finish: Int | None = Field(default=None, ge=1, le=100_000)
    distil: Distil | None = None
    federate_silos: bool = False
    clusters: dict[str, tuple[str, ...]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        home, model = self.home_model, self.model
        if (home.size, home.channels, home.classes) != (model.size, model.channels, model.classes):
            raise ValueError("silo_model is for other images or classes than model")
        if self.diffusion.upto is not None:
            raise ValueError("diffusion.upto is for the cut to say")
        if self.warm_start and home != self.server_model:
            raise ValueError("warm_start needs silos whose network is the server's, classes and all")
        if self.warm_start >= self.rounds:
            raise ValueError(f"warm_start is {self.warm_start}, there are {self.rounds} rounds")
        if self.mode != "exact" and len({self.step_of(name) for name in (*self.cuts, "")}) > 1:
            raise ValueError(f"mode {self.mode!r} has one cut for all; silos with cuts of their own need mode 'exact'")
        if self.federate_silos and 0 in self.steps_told:
            raise ValueError("federate_silos: a silo at cut 0 has no network")
        named = [silo for silos in self.clusters.values() for silo in silos]
        if self.clusters and (not self.federate_silos or len(set(named)) < len(named)):
            raise ValueError("clusters go with federate_silos, and no silo is in two of them")
        if self.distil and (self.finish or self.federate_silos or self.mode == "authors"):
            raise ValueError("distil goes with neither finish nor federate_silos, nor with the authors' mode")
        if self.distil and self.distil.rounds + self.warm_start >= self.rounds:
            raise ValueError(f"distil and warm_start leave none of {self.rounds} rounds to learn in")
        if self.federate_silos and self.warm_start:
            raise ValueError("warm_start is for silos with networks of their own; federate_silos averages them")
        return self

    def silo(self, silo: Silo) -> Conversation:
        """Release what is noised, then train what is below the cut; all that follows is a method of its own."""
        yield from self._enter(silo)
        home = self.home(self.step_of(silo.name)).silo(silo)
        yield from self._releasing_anew(silo, home) if self.release == "fresh" else home

    def server(self, seed: int, silos: Sequence[str]) -> Server:
        """The server, with a freshly initialised network."""
        if unknown := sorted(self.cuts.keys() - set(silos)):
            raise RecipeError(f"cuts names {unknown[0]!r}, which is none of the silos ({', '.join(sorted(silos)[:8])})")
        cuts = {silo: self.step_of(silo) for silo in silos}
        home = self.home(max(cuts.values()))
        each = {name: home.server(seed, mine) for name, mine in self._clusters(silos).items()}
        inner = Clustered(each, self.clusters)
        return CollaFuseServer(self, seed, cuts, inner if self.clusters else home.server(seed, silos))

    def _clusters(self, silos: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
        """The clusters, each silo in one."""
        named = {silo for mine in self.clusters.values() for silo in mine}
        if self.clusters and named != set(silos):
            odd = min(named ^ set(silos))
            raise RecipeError(f"clusters: {odd!r} is {'none of the silos' if odd in named else 'in no cluster'}")
        return self.clusters

    def plan(self) -> Plan:
        """The release, what the networks below the cut ask for, and half-denoised images."""
        home = self.home(max(self.steps_told)).plan()
        operations = {
            "enter": Operation(
                "says how many images it has and where it cuts which chain; gets how far its release is",
                "once",
                Carries(facts={"images": int, "cut": int, "chain": str}),
                Carries(facts={"held": int, "began": bool, "round": int}),
            ),
            "release": self._release(),
            "ready": Operation("has released all, waits for the others", "once", group=True),
        }
        if self.warm_start:
            operations["start"] = Operation(
                "asks for the server's network, to begin with", "once", down=Carries(layout_of(self.server_model))
            )
        operations |= home.operations
        return Plan(operations | {"denoise": relay.operation(self.server_model)}, never=self.never)

    def sizes(self, silos: int, sampling: Sampling) -> list[str]:
        """Each cut in every way that it can be told, and what it saves a silo."""
        pixels = self.model.channels * self.model.size**2
        lines = [f"an image's release is {size_text(4 * pixels)}"]
        for name in {self.step_of(name): name for name in (*self.cuts, "")}.values():
            step, costs = self.step_of(name), self.costs(name, 1, sampling)
            words = cut_words(self.diffusion.schedule, step, pixels, self.norm, self.cut.delta)
            drawn, whole = costs["draw_flops"], costs["draw_flops_whole"]
            lines.append(f"{name or 'an image'} is released at {words}")
            lines.append(
                f"there a silo does {drawn / whole:.1%} of the work of drawing an image ({count_text(drawn)}FLOP); its "
                f"network has {costs['weights']:,.0f} of {costs['weights_whole']:,.0f} weights and trains in "
                f"{size_text(costs['memory'])} where a whole one takes {size_text(costs['memory_whole'])}"
            )
        return [*lines, *self.home(max(self.steps_told)).sizes(silos, sampling)]

    def warnings(self, roster: Mapping[str, int]) -> list[str]:
        """How often an image is released, and what that is as one release."""
        schedule, lines = self.diffusion.schedule, []
        for silo, images in roster.items():
            step, count = self.step_of(silo), self.releases(images)
            if self.release == "fresh" and 0 < step < schedule.steps:
                snr = float(schedule.snr()[step])
                lines.append(
                    f"{silo}: releases each image about {count:,.0f} times, each time with new noise: to whoever "
                    f"averages, its SNR of {decibel(snr):.1f} dB is {decibel(snr * count):.1f} dB; release = 'once' "
                    "keeps it"
                )
            if step == 0:
                lines.append(f"{silo}: cut 0 sends its images to the server as they are")
        return lines

    def costs(self, silo: str, images: int, sampling: Sampling) -> dict[str, float]:
        """Of a silo, and what the whole chain would cost it: alone as in ``local``, or averaged as in ``fedavg``."""
        step, chain = self.step_of(silo), self.diffusion.schedule
        home, whole = self.home_model, self.model
        passes = self.finishes(step, sampling) or (len(sampling.between(chain, step, 0)) - 1 if step else 0)
        every = len(sampling.between(chain, chain.steps, 0)) - 1
        twice = 2 if sampling.guidance not in (0, 1) and whole.classes else 1
        seen = self.rounds * self.training.seen(images)
        released = 0 if step == chain.steps else round(self.releases(images) * images)
        return {
            "cut": step,
            "draw_flops": twice * passes * cost.forward_flops(home),
            "draw_flops_whole": twice * every * cost.forward_flops(whole),
            "train_flops": seen * cost.training_flops(home) if step else 0,
            "train_flops_whole": seen * cost.training_flops(whole),
            "weights": cost.weights(home) if step else 0,
            "weights_whole": cost.weights(whole),
            "memory": cost.training_memory(home, self.training.batch) if step else 0,
            "memory_whole": cost.training_memory(whole, self.training.batch),
            "bytes": released * 4 * whole.channels * whole.size**2,
            "bytes_fedavg": 2 * self.rounds * 4 * cost.weights(whole),
        }

    def own_generator(self, silo: Silo) -> Trained | None:
        """The silo's own network, for the steps up to its cut."""
        step = self.step_of(silo.name)
        return self.home(step).own_generator(silo) if step else None

    def drawn_from(self, silo: str, shared: Trained | None, own: Trained | None, ask: Ask) -> Drawing | None:
        """The server down to the cut, and the silo from there."""
        near = own or shared
        if not isinstance(near, Generator):
            return None
        for each in (own, shared):
            if isinstance(each, Generator) and each.diffusion.schedule != self.diffusion.schedule:
                raise RecipeError(f"{silo}: a network was trained on another schedule: {each.diffusion.schedule!r}")
        step, told = self.step_of(silo), bool(self.server_model.classes)
        return relay.Relay(
            self.model if own or told else self.server_model,
            ask,
            step,
            self.enters(step),
            own if isinstance(own, Generator) else None,
            told,
            self.finishes(step, near.sampling),
            near.classes,
            near.sampling,
            near.device,
            self.ema,
            self.distil is not None,
        )

    def step_of(self, silo: str) -> int:
        """The step of the chain that a silo's images are noised to."""
        pixels = self.model.channels * self.model.size**2
        return self.cuts.get(silo, self.cut).step(self.diffusion.schedule, self.norm or box_norm(pixels))

    def home(self, step: int) -> Local | FedAvg:
        """How the networks below a cut are trained: each by its silo alone, or averaged."""
        told = {
            "model": self.home_model,
            "training": self.training,
            "diffusion": self.diffusion.model_copy(update={"upto": step}),
            "rounds": self.rounds,
            "ema": self.ema,
            "keep_optimiser": self.keep_optimiser,
        }
        if self.federate_silos:
            return FedAvg(**told, kept=True)
        return Local(**told, distil=self.distil if step else None)

    @property
    def home_model(self) -> UNet:
        """The network of a silo."""
        return self.silo_model or self.model

    @property
    def server_model(self) -> UNet:
        """The server's network; it knows of no classes where labels are withheld."""
        return self.model.model_copy(update={"classes": 0}) if self.labels == "withhold" else self.model

    @property
    def steps_told(self) -> list[int]:
        """All cuts that the recipe tells of."""
        return sorted({self.step_of(name) for name in (*self.cuts, "")})

    @property
    def chain(self) -> str:
        """The chain that a cut is a step of, as silo and server must mean the same one."""
        return f"{self.mode} {self.diffusion.schedule!r}"

    @property
    def never(self) -> tuple[str, ...]:
        """What no silo ever sends."""
        told = self.labels != "withhold" and self.model.classes
        images = () if 0 in self.steps_told else ("images that are not noised",)
        return (
            *images,
            *(() if told else ("labels",)),
            "noise",
            "file names",
            *(() if self.federate_silos else ("weights",)),
        )

    def noising(self, silo: Silo, turn: int = 0) -> Noising:
        """How a silo makes its release."""
        return Noising(
            self.diffusion.schedule,
            self.step_of(silo.name),
            silo.secret or f"simulated {silo.seed}",
            self.norm,
            self.labels if self.model.classes else "withhold",
            self.label_epsilon,
            turn,
        )

    def releases(self, images: int) -> float:
        """How often each image is released in a whole run, in the mean."""
        return 1.0 if self.release == "once" else self.rounds * self.training.seen(images) / images

    def server_rounds(self, silos: int) -> Training:
        """The server's share of a round."""
        return self.server_training or self.training.times(silos)

    def _enter(self, silo: Silo) -> Conversation:
        """Enter, release what is not released yet, wait for the others, and rest until there is a warm start."""
        step = self.step_of(silo.name)
        facts = {"images": len(silo.images), "cut": step, "chain": self.chain}
        answer = yield Message("enter", {}, facts)
        if self.release == "once" and step < self.diffusion.schedule.steps:
            yield from self._released(silo, answer.facts["held"])
        if not answer.facts["began"]:
            yield from _ready()
        if self.warm_start and not named(silo.memory, "weights."):
            yield from self._warm(silo, answer.facts["round"])

    def _released(self, silo: Silo, held: int) -> Conversation:
        noising, numbers = self.noising(silo), torch.arange(len(silo.images))
        if (kept := silo.memory.get(RELEASED)) is not None and _code(noising, silo, numbers).ne(kept).any():
            raise CheckpointError(
                f"{silo.name}: what it would release now is not what it released: its images or its secret have changed"
            )
        if held < len(numbers):
            yield from chunks(noising, silo.images, numbers, held)
        silo.memory |= {RELEASED: _code(noising, silo, numbers) if kept is None else kept}

    def _warm(self, silo: Silo, number: int) -> Conversation:
        """Rest until the server has learnt something, then start from that."""
        answer = Message("progress", {}, {"round": number})
        while answer.facts["round"] < self.warm_start:
            answer = yield Message("progress", {}, update_facts(silo, answer))
        start = yield Message("start")
        silo.memory |= prefixed(dict(start.tensors), "weights.")

    def _releasing_anew(self, silo: Silo, home: Conversation) -> Conversation:
        """Before a round is closed, release what was trained on in it with noise of its own."""
        step, message = self.step_of(silo.name), next(home)
        while True:
            number = message.facts.get("round")
            if number is not None and step < self.diffusion.schedule.steps:
                numbers = torch.cat(list(self.training.batches(len(silo.images), silo.rng(number)))).cpu()
                yield from chunks(self.noising(silo, number), silo.images, numbers)
            try:
                answer = yield message
            except Refused as refusal:
                message = home.throw(refusal)
                continue
            try:
                message = home.send(answer)
            except StopIteration:
                return

    def _release(self) -> Operation:
        pixels = (self.model.channels, self.model.size, self.model.size)
        most = chunk_of(math.prod(pixels))
        held = {"images": Like((None, *pixels), torch.float32, most)}
        told = self.labels != "withhold" and bool(self.model.classes)
        if told:
            held["labels"] = Like((None,), torch.int64, most)
        pictures = "its images as they are" if self.steps_told == [0] else "its images, noised up to its cut"
        labels = {"share": ", with their labels", "randomised": ", with labels that are in part random"}
        often = "once an image" if self.release == "once" else f"{self.rounds} times, with new noise each time"
        return Operation(
            f"gives away {pictures}{labels[self.labels] if told else ''}",
            often,
            Carries(held, {"first": int, "cut": int, "turn": int}),
            Carries(facts={"held": int}),
        )

    def enters(self, step: int) -> int:
        """Where the silo takes a half-denoised image to be; higher than the cut in the authors' way."""
        whole = self.diffusion.schedule.steps
        return step if self.mode != "authors" else min(round(step + step * (1 - step / whole)), whole)

    def finishes(self, step: int, sampling: Sampling) -> int | None:
        """In how many steps the silo finishes: the authors' way takes those of the cut over a longer way."""
        if self.distil:
            return self.distil.steps
        if self.finish is not None or self.mode != "authors":
            return self.finish
        return len(sampling.between(self.diffusion.schedule, step, 0)) - 1 if step else None


def _code(noising: Noising, silo: Silo, numbers: Tensor) -> Tensor:
    return torch.tensor(list(bytes.fromhex(fingerprint(noising, silo.images, numbers))), dtype=torch.uint8)


def _ready() -> Conversation:
    try:
        yield Message("ready")
    except Refused as refusal:
        if refusal.reason is not Reason.STALE_ROUND:  # the others have begun without it
            raise


class CollaFuseServer(Wrapping):
    """Keeps the releases and learns the chain above the cuts; ``inner`` answers for the networks below."""

    def __init__(self, method: CollaFuse, seed: int, cuts: Cuts, inner: Server) -> None:
        super().__init__(inner)
        self.method, self.seed, self.cuts = method, seed, cuts
        self.held: dict[str, Store] = {}
        self.began = False
        self.enrolled: dict[str, int] = {}
        self.network: Any = method.server_model.build(seed)
        self.average = snapshot(self.network.state_dict())
        self.updates = 0
        self.optimiser: torch.optim.Optimizer | None = None
        self.meter = Meter({})
        self._batch: Batch | None = None
        self._learns: list[str] = []
        self._steps: Iterator[Tensor] | None = None
        self._losses: list[Tensor] = []

    def on(self, silo: str, message: Message) -> Message:
        """Enter, release, start and denoise."""
        if message.op == "enter":
            self.enrolled[silo] = message.facts["images"]
            if silo not in self.held and self.method.release == "once":
                self.held[silo] = Store(self.cuts[silo], self.enrolled[silo])
            held = self.held[silo].count if silo in self.held else 0
            return Message("enter", {}, {"held": held, "began": self.began, "round": self.round})
        if message.op == "release":
            self.held[silo].add(message.tensors)
            return Message("release", {}, {"held": self.held[silo].count})
        if message.op == "start":
            return Message("start", snapshot(self.network.state_dict()))
        if message.op == "denoise":
            return relay.answered(self.generator(), message, self.method.mode == "exact")
        return self.inner.on(silo, message)

    def admit(self, silo: str, message: Message) -> None:
        """Refuse what a silo may not say now."""
        check = {
            "enter": self._may_enter,
            "release": self._may_release,
            "ready": self._may_wait,
            "denoise": self._may_draw,
        }
        check.get(message.op, self.inner.admit)(silo, message)

    def fold(self, silo: str, message: Message) -> Message:
        """Waiting is all that is in ``ready``."""
        return message if message.op == "ready" else self.inner.fold(silo, message)

    def on_group(self, op: str, messages: Mapping[str, Message]) -> Mapping[str, Message]:
        """Begin; or do what is left of the round's work, and close it."""
        if op == "ready":
            self._open()
            return {silo: Message("ready") for silo in messages}
        if self.method.release == "fresh":
            self._open()  # what is learnt from came within the round
        while self._step():
            pass
        self._close()
        answers = self.inner.on_group(op, messages)
        self._open()
        return answers

    def work(self) -> bool:
        """One step of the server's training, on what was released before the round began."""
        return self.method.release == "once" and self._step()

    def generator(self) -> Generator:
        """The server's network, for the steps above the cuts."""
        method = self.method
        return Generator(method.server_model, method.diffusion, self.average, ema=method.ema, device=str(self.device))

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
        weights = snapshot(self.network.state_dict())
        average = self.average if self.method.ema else {}
        optimiser = optimiser_state(self.optimiser) if self.optimiser else {}
        kept = {"server.": weights, "server-average.": average, "server-": optimiser, "inner.": self.inner.state_dict()}
        flat = {name: tensor for prefix, group in kept.items() for name, tensor in prefixed(group, prefix).items()}
        return {"server-updates": torch.tensor(self.updates)} | flat

    def load_state_dict(self, state: Tensors) -> None:
        """Go on from a kept network."""
        self.network.load_state_dict(named(state, "server."))
        self.average = named(state, "server-average.") or snapshot(self.network.state_dict())
        self.updates = int(state["server-updates"])
        if optimiser := named(state, "server-optimiser."):
            load_optimiser_state(self._optimiser(), prefixed(optimiser, "optimiser."))
        self.inner.load_state_dict(named(state, "inner."))
        self._open()

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
        self.loss = torch.stack(self._losses).mean().item()
        self.average = running_average(self.average, snapshot(self.network.state_dict()), self.method.ema, self.updates)
        self.updates += 1

    def _training(self) -> Iterator[Tensor]:
        """The server's steps in the open round."""
        if not self._learns or self.round >= self.method.rounds:
            return
        method, rng = self.method, torch_rng(self.seed, "server", self.round, device=self.device)
        training, data = method.server_rounds(len(self.cuts)), self._data()
        optimiser = self._optimiser()
        for group in optimiser.param_groups:
            group["lr"] = training.rate(method.progress(self.round))

        def loss(numbers: Tensor) -> Tensor:
            labels = None if data.labels is None else data.labels[numbers]
            x_cut, cuts, no_label = data.images[numbers], data.cuts[numbers], method.server_model.classes
            return bridge_loss(method.diffusion, self.network, x_cut, cuts, labels, no_label, rng, method.mode)

        batches = list(training.batches(len(data.images), rng))
        self.seen += sum(map(len, batches))
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
        every = set(range(self.method.model.classes + 1))
        own = silo in self.held and self.method.labels == "share" and self.method.ask == "own"
        return self.held[silo].labels() | {self.method.model.classes} if own else every

    def _may_enter(self, silo: str, message: Message) -> None:
        told = message.facts
        if told["chain"] != self.method.chain:
            raise Refused(Reason.OTHER_SCHEDULE, f"{silo} has {told['chain']}, the server {self.method.chain}")
        if told["cut"] != self.cuts[silo]:
            raise Refused(Reason.OTHER_CUT, f"{silo} cuts at step {told['cut']}, the recipe says {self.cuts[silo]}")

    def _may_release(self, silo: str, message: Message) -> None:
        if self.cuts[silo] == self.method.diffusion.schedule.steps:
            raise Refused(Reason.OTHER_CUT, f"{silo} keeps the whole chain, and has nothing to release")
        turn = message.facts["turn"]
        if self.method.release == "fresh" and (silo not in self.held or self.held[silo].turn < turn == self.round):
            count = self.method.training.seen(self.enrolled[silo])
            self.held[silo] = Store(self.cuts[silo], count, turn)
        if silo not in self.held:
            raise Refused(Reason.OUT_OF_SEQUENCE, f"{silo} releases before it has entered")
        self.held[silo].check(message, self.method.model.classes)

    def _may_wait(self, silo: str, message: Message) -> None:
        if self.began:
            raise Refused(Reason.STALE_ROUND, "the others have begun")

    def _may_draw(self, silo: str, message: Message) -> None:
        told, chain = message.facts, self.method.diffusion.schedule.steps
        if told["to"] < self.cuts[silo]:
            raise Refused(Reason.BELOW_CUT, f"{silo} asks for step {told['to']}, its cut is {self.cuts[silo]}")
        if not (told["to"] <= chain and 0 < told["count"] <= relay.MOST and 0 < told["steps"] <= chain):
            raise Refused(
                Reason.WRONG_FACTS, f"step {told['to']}, {told['count']} images or {told['steps']} steps are too many"
            )
        labels = message.tensors.get("labels")
        if labels is None:
            return
        if len(labels) != told["count"]:
            raise Refused(Reason.WRONG_FACTS, f"{len(labels)} labels came for {told['count']} images")
        known = self._labels_of(silo)
        if bad := sorted(set(labels.tolist()) - known):
            raise Refused(Reason.FOREIGN_LABEL, f"{silo} asks for label {bad[0]}, and has released none such")
