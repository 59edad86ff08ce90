"""The denoising chain cut in time: noisy steps at the server, the last ones and the images at the silo."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch

from manyhands.diffusion.sample import Sampling
from manyhands.errors import RecipeError
from manyhands.formatting import names_text
from manyhands.generators.base import ImageGenerator
from manyhands.generators.diffusion import DiffusionGenerator
from manyhands.messages import outgoing
from manyhands.messages.facts import Flag, Text, Whole
from manyhands.messages.message import Message
from manyhands.messages.operation import COUNT, IMAGES, Operation, Payload
from manyhands.messages.plan import Plan
from manyhands.methods import relay
from manyhands.methods.base import Conversation, Release, Server, ServerCall, TrainedModel
from manyhands.methods.clustered import ClusteredServer
from manyhands.methods.collafuse import costs
from manyhands.methods.collafuse.release import chunk_of
from manyhands.methods.collafuse.server import CollaFuseServer
from manyhands.methods.collafuse.silo import converse, noising_of, order_of
from manyhands.methods.collafuse.spec import CollaFuseSpec
from manyhands.models.state_spec import state_spec_of
from manyhands.privacy.accountant import mu_of
from manyhands.silos.silo import Silo
from manyhands.tensors import TensorSpec


class CollaFuse(CollaFuseSpec):
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

    def silo(self, silo: Silo) -> Conversation:
        """Release what is noised, then train what is below the cut; all that follows is a method of its own."""
        return converse(self, silo)

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
        inner = ClusteredServer(each, self.clusters)
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
                Payload(facts={"images": IMAGES, "cut": self._any_step, "chain": Text()}),
                Payload(facts={"held": COUNT, "began": Flag(), "round": Whole(0, self.rounds)}),
            ),
            "release": self._release(),
            "ready": Operation("has released all, waits for the others", "once", barrier=True),
        }
        if self.warm_start:
            operations["start"] = Operation(
                "asks for the server's network, to begin with", "once", down=Payload(state_spec_of(self.server_model))
            )
        operations |= home.operations
        return Plan(operations | {"denoise": relay.operation(self.server_model)})

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
        numbers = order_of(self, silo, turn)[first : first + len(message.tensors["images"])]
        noising = noising_of(self, silo, turn)
        paths, labels = noising.paths(silo.images, numbers, first), noising.label_paths(silo.images, numbers)
        snr = float(self.diffusion.schedule.snr()[self.step_of(silo.name)])
        return Release(numbers, paths, snr, mu_of(snr, self.bound), self.label_epsilon if labels else 0.0, labels)

    def check_silo(self, silo: Silo) -> None:
        """As ever; and where a silo may ask for its own labels alone, it must have some of each that it is tried on."""
        super().check_silo(silo)
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

    def silo_generator(self, silo: Silo) -> TrainedModel | None:
        """The silo's own network, for the steps up to its cut."""
        step = self.step_of(silo.name)
        return self.home(step).silo_generator(silo) if step else None

    def generator_for(
        self, silo: str, shared: TrainedModel | None, own: TrainedModel | None, ask: ServerCall
    ) -> ImageGenerator | None:
        """The server down to the cut, and the silo from there."""
        near = own or shared
        if not isinstance(near, DiffusionGenerator) or (own is None and self.step_of(silo)):
            return None  # half a chain draws nothing
        for each in (own, shared):
            if isinstance(each, DiffusionGenerator) and each.diffusion.schedule != self.diffusion.schedule:
                raise RecipeError(f"{silo}: a network was trained on another schedule: {each.diffusion.schedule!r}")
        step, told = self.step_of(silo), bool(self.server_model.classes)
        return relay.Relay(
            self.model if own or told else self.server_model,
            ask,
            step,
            self.server_stop(step),
            self.silo_start(step),
            own if isinstance(own, DiffusionGenerator) else None,
            told,
            self.silo_steps(step, near.sampling),
            near.classes,
            near.sampling,
            near.device,
            self.ema,
            self.distil is not None,
            self.norm_at(step),
        )

    def released_by(self, silo: str) -> tuple[outgoing.OutgoingData, ...]:
        """What the release of a silo is; that of "" is of each that has no cut of its own."""
        step, chain = self.step_of(silo), self.diffusion.schedule
        if step == chain.steps:
            return ()
        whose: dict[str, Any] = {"silo": silo} if silo else {"except_silos": tuple(self.cuts)}
        images: outgoing.OutgoingData = outgoing.Images(**whose)
        if step:
            images = outgoing.NoisedImages(
                snr=float(chain.snr()[step]),
                norm=self.bound,
                fresh=outgoing.Fresh(self.rounds, self.training) if self.release == "fresh" else None,
                squeezed=self.norm == self.bound,
                delta=self.cuts.get(silo, self.cut).delta,
                **whose,
            )
        randomised = self.label_epsilon if self.labels == "randomised" else None
        return (images, *((outgoing.Labels(randomised=randomised, **whose),) if self.told_labels else ()))

    def _release(self) -> Operation:
        pixels = (self.model.channels, self.model.size, self.model.size)
        most = chunk_of(math.prod(pixels))
        held = {"images": TensorSpec((None, *pixels), torch.float32, most)}
        told = self.told_labels
        if told:
            held["labels"] = TensorSpec((None,), torch.int64, most)
        pictures = "its images as they are" if self.steps_told == [0] else "its images, noised up to its cut"
        labels = {"share": ", with their labels", "randomised": ", with labels that are in part random"}
        often = "once an image" if self.release == "once" else f"{self.rounds} times, with new noise each time"
        return Operation(
            f"gives away {pictures}{labels[self.labels] if told else ''}",
            often,
            Payload(held, {"first": COUNT, "cut": self._any_step, "turn": Whole(0, self.rounds)}),
            Payload(facts={"held": COUNT}),
            outgoing=tuple(kind for name in ("", *self.cuts) for kind in self.released_by(name)),
        )

    @property
    def _any_step(self) -> Whole:
        return Whole(0, self.diffusion.schedule.steps)

    def cost_lines(self, silos: int, sampling: Sampling) -> list[str]:
        """Each cut in every way that it can be told, and what it saves a silo."""
        return costs.cost_lines(self, silos, sampling)

    def upload_bytes(self, images: int) -> int:
        """The releases, and what the networks below the cut send."""
        return costs.upload_bytes(self, images)

    def warnings(self, roster: Mapping[str, int]) -> list[str]:
        """How often an image is released, and what that is as one release."""
        return costs.warnings(self, roster)

    def costs(self, silo: str, images: int, sampling: Sampling) -> dict[str, float]:
        """Of a silo, and what the whole chain would cost it: alone as in ``local``, or averaged as in ``fedavg``."""
        return costs.costs(self, silo, images, sampling)
