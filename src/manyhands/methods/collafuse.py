"""The denoising chain cut in time: noisy steps at the server, the last ones and the images at the silo."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from manyhands import leaves
from manyhands.accountant import decibel, mu_of
from manyhands.diffusion.bridge import Mode
from manyhands.diffusion.cut import Cut, cut_words
from manyhands.diffusion.objective import Diffusion
from manyhands.diffusion.release import box_norm
from manyhands.diffusion.sample import Sampling
from manyhands.errors import CheckpointError, Reason, RecipeError, Refused
from manyhands.facts import Flag, Text, Whole
from manyhands.message import Message
from manyhands.methods import relay
from manyhands.methods.baselines import Local
from manyhands.methods.clustered import Clustered
from manyhands.methods.denoising import Denoising, update_facts
from manyhands.methods.distil import Distil
from manyhands.methods.fedavg import FedAvg
from manyhands.methods.method import Ask, Conversation, Release, Server, Trained
from manyhands.methods.release import Labels, Noising, chunk_of, chunks, fingerprint
from manyhands.methods.update_length import MAX_RATIO, MaxUpdateRatio
from manyhands.models import cost
from manyhands.models.cut import MAX_CUTS
from manyhands.models.generator import Drawing, Generator
from manyhands.models.layout import layout_of
from manyhands.models.unet import UNet
from manyhands.plan import COUNT, IMAGES, Carries, Operation, Plan, count_text, names_text, size_text
from manyhands.silo import Silo
from manyhands.spec import Float, Int
from manyhands.tensors import Like, named, prefixed
from manyhands.training import Training

RELEASED = "released"
Cuts = dict[str, int]


class CollaFuse(Denoising):
    """A silo noises its images up to a cut, and releases that once; the server learns the chain above from it.

    Below the cut each silo trains a network of its own, ``silo_model``, that never leaves it (or, where
    ``federate_silos``, is averaged over all silos, or over those of its cluster where there are ``clusters``).
    ``model`` is the server's. ``cut`` is that of every silo but those in ``cuts``. ``norm`` bounds what is released:
    images are squeezed into it before they are noised, for the server and for the silo alike, and stretched back when
    they are drawn. ``mode`` and ``release`` tell the exact form from those of others. ``labels`` go to the server or
    not; where they do, a silo may ``ask`` for its own labels or for any. ``server_training`` is the server's share of a
    round: if not told, as many steps as all silos take. A silo trains from round ``warm_start`` on, from the server's
    weights of then; it finishes what it draws in ``finish`` steps, by those of the whole chain if not told, or in those
    that its last rounds ``distil`` it to. ``max_update_ratio`` is that of ``FedAvg``, for networks that are averaged.

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
    cuts: dict[str, Cut] = Field(default_factory=dict, max_length=MAX_CUTS)
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
    clusters: dict[str, tuple[str, ...]] = Field(default_factory=dict, max_length=MAX_CUTS)
    max_update_ratio: MaxUpdateRatio = MAX_RATIO

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        home, model = self.home_model, self.model
        if (home.size, home.channels, home.classes) != (model.size, model.channels, model.classes):
            raise ValueError("silo_model is for other images or classes than model")
        if self.diffusion.upto is not None:
            raise ValueError("diffusion.upto is for the cut to say")
        if self.diffusion.norm is not None:
            raise ValueError("diffusion.norm is for method.norm to say")
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
        if self.release == "fresh" and any(cut.epsilon for cut in (self.cut, *self.cuts.values())):
            raise ValueError("a cut by epsilon is for one release of an image; release = 'fresh' makes many")
        if self.release == "fresh" and self.warm_start:
            raise ValueError(
                "warm_start needs releases to learn from; with release = 'fresh' silos that rest make none"
            )
        if self.federate_silos and self.warm_start:
            raise ValueError("warm_start is for silos with networks of their own; federate_silos averages them")
        return self

    def silo(self, silo: Silo) -> Conversation:
        """Release what is noised, then train what is below the cut; all that follows is a method of its own."""
        yield from self._enter(silo)
        home = self.home(self.step_of(silo.name)).silo(silo)
        yield from self._releasing_anew(silo, home) if self.release == "fresh" else home

    def server(self, seed: int, silos: Mapping[str, int]) -> Server:
        """The server, with a freshly initialised network."""
        if unknown := sorted(self.cuts.keys() - set(silos)):
            raise RecipeError(f"cuts names {unknown[0]!r}, which is none of the silos ({names_text(sorted(silos))})")
        cuts = {silo: self.step_of(silo) for silo in silos}
        home = self.home(max(cuts.values()))
        each = {
            name: home.server(seed, {silo: silos[silo] for silo in mine})
            for name, mine in self._clusters(silos).items()
        }
        inner = Clustered(each, self.clusters)
        from manyhands.methods.collafuse_server import CollaFuseServer

        return CollaFuseServer(self, seed, cuts, inner if self.clusters else home.server(seed, silos))

    def _clusters(self, silos: Collection[str]) -> Mapping[str, tuple[str, ...]]:
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
                Carries(facts={"images": IMAGES, "cut": self._any_step, "chain": Text()}),
                Carries(facts={"held": COUNT, "began": Flag(), "round": Whole(0, self.rounds)}),
            ),
            "release": self._release(),
            "ready": Operation("has released all, waits for the others", "once", group=True),
        }
        if self.warm_start:
            operations["start"] = Operation(
                "asks for the server's network, to begin with", "once", down=Carries(layout_of(self.server_model))
            )
        operations |= home.operations
        return Plan(operations | {"denoise": relay.operation(self.server_model)})

    def sizes(self, silos: int, sampling: Sampling) -> list[str]:
        """Each cut in every way that it can be told, and what it saves a silo."""
        pixels = self.model.channels * self.model.size**2
        label = ", and 8 B of its label" if self.told_labels else ""
        lines = [f"an image's release is {size_text(4 * pixels)}{label}"]
        if label and self.labels == "randomised":
            lines.append(f"a label has an epsilon of {self.label_epsilon:g} of its own (randomised response)")
        if self.norm and self.norm < (most := box_norm(pixels)):
            grows = math.log2(2 * most / self.norm)
            lines.append(
                f"images of norms from {self.norm / 2:g} to {most:g} are squeezed into {self.norm:g} before they are "
                f"noised, and stretched when they are drawn: an error of a norm grows {grows:.2g} x"
            )
        for name in {self.step_of(name): name for name in (*self.cuts, "")}.values():
            step, costs = self.step_of(name), self.costs(name, 1, sampling)
            delta = self.cuts.get(name, self.cut).delta
            words = cut_words(self.diffusion.schedule, step, self.bound, delta)
            drawn, whole = costs["draw_flops"], costs["draw_flops_whole"]
            lines.append(f"{name or 'an image'} is released at {words}")
            lines.append(
                f"there a silo does {drawn / whole:.1%} of the work of drawing an image ({count_text(drawn)}FLOP); its "
                f"network has {costs['weights']:,.0f} of {costs['weights_whole']:,.0f} weights and trains in "
                f"{size_text(costs['memory'])} where a whole one takes {size_text(costs['memory_whole'])}"
            )
        if self.release == "fresh":
            copies = self.training.steps and self.rounds * self.training.steps * self.training.batch
            many = f"{copies:,} copies of a silo's images" if copies else f"{self.releases(1):,.0f} of each image"
            lines.append(
                f"released anew, {many} in all: epsilon and SNR above are of one copy, n copies of one image are as "
                "one at n times the SNR"
            )
        return [*lines, *self.home(max(self.steps_told)).sizes(silos, sampling)]

    def uploads(self, images: int) -> int:
        """The releases, and what the networks below the cut send."""
        image = 4 * self.model.channels * self.model.size**2 + 8 * self.told_labels
        return round(self.releases(images) * images * image) + self.home(max(self.steps_told)).uploads(images)

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
            "bytes": released
            * (4 * whole.channels * whole.size**2 + 8 * (self.labels != "withhold" and whole.classes > 0))
            + (2 * self.rounds * 4 * cost.weights(home) if self.federate_silos else 0),
            "bytes_fedavg": 2 * self.rounds * 4 * cost.weights(whole),
        }

    @property
    def hides(self) -> bool:
        """Where images are noised, or labels told at random."""
        noised = any(0 < step < self.diffusion.schedule.steps for step in self.steps_told)
        return noised or (self.told_labels and self.labels == "randomised")

    def release_in(self, silo: Silo, message: Message) -> Release | None:
        """Which images a part of a release is of, at the silo's cut."""
        if message.op != "release":
            return None
        first, turn = message.facts["first"], message.facts["turn"]
        numbers = self._order(silo, turn)[first : first + len(message.tensors["images"])]
        noising = self.noising(silo, turn)
        paths, labels = noising.paths(silo.images, numbers, first), noising.label_paths(silo.images, numbers)
        snr = float(self.diffusion.schedule.snr()[self.step_of(silo.name)])
        return Release(numbers, paths, snr, mu_of(snr, self.bound), self.label_epsilon if labels else 0.0, labels)

    def _order(self, silo: Silo, turn: int) -> Tensor:
        """The numbers of the images of a release: all of them, or those that a round trains on."""
        if self.release == "once":
            return torch.arange(len(silo.images))
        return torch.cat(list(self.training.batches(len(silo.images), silo.rng(turn)))).cpu()

    def fits(self, silo: Silo) -> None:
        """As ever; and where a silo may ask for its own labels alone, it must have some of each that it is tried on."""
        super().fits(silo)
        shared = self.told_labels and self.ask == "own" and self.labels == "share"
        step = self.step_of(silo.name)
        if not shared or step == self.diffusion.schedule.steps or silo.held_out is None:
            return
        mine, held = (images.labels for images in (silo.images, silo.held_out))
        if mine is not None and held is not None and (odd := sorted(set(held.tolist()) - set(mine.tolist()))):
            raise RecipeError(
                f"{silo.name}: holds out images of class {odd[0]} and trains on none, so it may not ask for any; let "
                "it with method.ask = 'any', or hold out nothing"
            )

    def own_generator(self, silo: Silo) -> Trained | None:
        """The silo's own network, for the steps up to its cut."""
        step = self.step_of(silo.name)
        return self.home(step).own_generator(silo) if step else None

    def drawn_from(self, silo: str, shared: Trained | None, own: Trained | None, ask: Ask) -> Drawing | None:
        """The server down to the cut, and the silo from there."""
        near = own or shared
        if not isinstance(near, Generator) or (own is None and self.step_of(silo)):
            return None  # half a chain draws nothing
        for each in (own, shared):
            if isinstance(each, Generator) and each.diffusion.schedule != self.diffusion.schedule:
                raise RecipeError(f"{silo}: a network was trained on another schedule: {each.diffusion.schedule!r}")
        step, told = self.step_of(silo), bool(self.server_model.classes)
        return relay.Relay(
            self.model if own or told else self.server_model,
            ask,
            step,
            self.asks(step),
            self.enters(step),
            own if isinstance(own, Generator) else None,
            told,
            self.finishes(step, near.sampling),
            near.classes,
            near.sampling,
            near.device,
            self.ema,
            self.distil is not None,
            self.norm_at(step),
        )

    def step_of(self, silo: str) -> int:
        """The step of the chain that a silo's images are noised to."""
        return self.cuts.get(silo, self.cut).step(self.diffusion.schedule, self.bound)

    def norm_at(self, step: int) -> float | None:
        """What images are squeezed into below a cut; a silo that releases nothing, and averages nothing, needs none."""
        alone = step == self.diffusion.schedule.steps and not self.federate_silos
        return None if alone else self.norm

    @property
    def drawn_at_server(self) -> Diffusion:
        """What the server's network is the denoiser of: squeezed images, or, of a chain of its own, noised ones."""
        return self.diffusion.model_copy(update={"norm": None if self.mode == "nested" else self.norm})

    @property
    def bound(self) -> float:
        """The largest norm that a released image has: that of the corners of the box of pixels, or ``norm``."""
        return min(self.norm or math.inf, box_norm(self.model.channels * self.model.size**2))

    def home(self, step: int) -> Local | FedAvg:
        """How the networks below a cut are trained: each by its silo alone, or averaged."""
        told = {
            "model": self.home_model,
            "training": self.training,
            "diffusion": self.diffusion.model_copy(update={"upto": step, "norm": self.norm_at(step)}),
            "rounds": self.rounds,
            "ema": self.ema,
            "keep_optimiser": self.keep_optimiser,
        }
        if self.federate_silos:
            return FedAvg(**told, kept=True, max_update_ratio=self.max_update_ratio)
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
    def told_labels(self) -> bool:
        """Whether labels, true ones or not, go to the server."""
        return self.labels != "withhold" and self.model.classes > 0

    @property
    def steps_told(self) -> list[int]:
        """All cuts that the recipe tells of."""
        return sorted({self.step_of(name) for name in (*self.cuts, "")})

    @property
    def chain(self) -> str:
        """The chain that a cut is a step of, as silo and server must mean the same one."""
        return f"{self.mode} {self.diffusion.schedule!r}"

    def released_by(self, silo: str) -> tuple[leaves.Leaving, ...]:
        """What the release of a silo is; that of "" is of each that has no cut of its own."""
        step, chain = self.step_of(silo), self.diffusion.schedule
        if step == chain.steps:
            return ()
        whose: dict[str, Any] = {"silo": silo} if silo else {"but": tuple(self.cuts)}
        images: leaves.Leaving = leaves.Images(**whose)
        if step:
            images = leaves.NoisedImages(
                snr=float(chain.snr()[step]),
                norm=self.bound,
                fresh=leaves.Fresh(self.rounds, self.training) if self.release == "fresh" else None,
                squeezed=self.norm == self.bound,
                delta=self.cuts.get(silo, self.cut).delta,
                **whose,
            )
        randomised = self.label_epsilon if self.labels == "randomised" else None
        return (images, *((leaves.Labels(randomised=randomised, **whose),) if self.told_labels else ()))

    def noising(self, silo: Silo, turn: int = 0) -> Noising:
        """How a silo makes its release."""
        return Noising(
            self.diffusion.schedule,
            self.step_of(silo.name),
            silo.noise_secret,
            self.norm,
            self.labels if self.model.classes else "withhold",
            self.label_epsilon,
            turn,
            self.release == "fresh",
            silo.held_out,
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
        noising, numbers = self.noising(silo), self._order(silo, 0)
        if not 0 <= held <= len(numbers):
            raise Refused(Reason.WRONG_FACTS, f"the server says that it holds {held} of {len(numbers)} images")
        code = _code(noising, silo, numbers)
        if code.ne(silo.memory.get(RELEASED, code)).any():
            raise CheckpointError(
                f"{silo.name}: what it would release now is not what it released: its images or its secret have changed"
            )
        silo.memory |= {RELEASED: code}
        yield from chunks(noising, silo.images, numbers, held)

    def _warm(self, silo: Silo, number: int) -> Conversation:
        """Rest until the server has learnt something, then start from that."""
        answer = Message("progress", {}, {"round": number})
        while answer.facts["round"] < self.warm_start:
            answer = yield Message("progress", {}, update_facts(silo, answer))
        start = yield Message("start")
        silo.memory |= prefixed(dict(start.tensors), "weights.")

    def _releasing_anew(self, silo: Silo, home: Conversation) -> Conversation:
        """Before a round is closed, release what was trained on in it with noise of its own."""
        step, message, last = self.step_of(silo.name), next(home), -1
        while True:
            number = message.facts.get("round")
            if number is not None and step < self.diffusion.schedule.steps:
                if not last < number < self.rounds:  # else whoever asks could have as many releases as it likes
                    raise Refused(Reason.STALE_ROUND, f"the server says round {number} of {self.rounds} after {last}")
                yield from chunks(self.noising(silo, number), silo.images, self._order(silo, number))
                last = number
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
        told = self.told_labels
        if told:
            held["labels"] = Like((None,), torch.int64, most)
        pictures = "its images as they are" if self.steps_told == [0] else "its images, noised up to its cut"
        labels = {"share": ", with their labels", "randomised": ", with labels that are in part random"}
        often = "once an image" if self.release == "once" else f"{self.rounds} times, with new noise each time"
        return Operation(
            f"gives away {pictures}{labels[self.labels] if told else ''}",
            often,
            Carries(held, {"first": COUNT, "cut": self._any_step, "turn": Whole(0, self.rounds)}),
            Carries(facts={"held": COUNT}),
            leaves=tuple(kind for name in ("", *self.cuts) for kind in self.released_by(name)),
        )

    @property
    def _any_step(self) -> Whole:
        return Whole(0, self.diffusion.schedule.steps)

    def asks(self, step: int) -> int:
        """Down to where the server is asked to go: to the cut, or to the end of a chain of its own."""
        return 0 if self.mode == "nested" else step

    def enters(self, step: int) -> int:
        """Where the silo takes a half-denoised image to be; higher than the cut in the authors' way."""
        whole = self.diffusion.schedule.steps
        return step if self.mode != "authors" else min(round(step + step * (1 - step / whole)), whole)

    def finishes(self, step: int, sampling: Sampling) -> int | None:
        """In how many steps the silo finishes: the authors' way takes those of the cut over a longer way."""
        if not step:
            return None
        if self.distil or self.finish:
            return min(self.distil.steps if self.distil else self.finish or step, step)
        if self.mode != "authors":
            return None
        return len(sampling.between(self.diffusion.schedule, step, 0)) - 1


def _code(noising: Noising, silo: Silo, numbers: Tensor) -> Tensor:
    return torch.tensor(list(bytes.fromhex(fingerprint(noising, silo.images, numbers))), dtype=torch.uint8)


def _ready() -> Conversation:
    try:
        yield Message("ready")
    except Refused as refusal:
        if refusal.reason is not Reason.STALE_ROUND:  # the others have begun without it
            raise
