"""CollaFuse: the server denoises the noisy steps of the chain, and each silo the last ones, on its own images."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from manyhands.diffusion.sampling import Sampling
from manyhands.errors import RecipeError
from manyhands.generators.base import ImageGenerator
from manyhands.generators.diffusion import DiffusionGenerator
from manyhands.generators.load import TrainedModel
from manyhands.messages import outgoing
from manyhands.messages.facts import Flag, Text, Whole
from manyhands.messages.message import Message
from manyhands.messages.operation import COUNT, IMAGES, Operation, Payload
from manyhands.messages.plan import Plan
from manyhands.methods import split_sampling
from manyhands.methods.base import Conversation, Release, ServerCall, check_cuts, check_names
from manyhands.methods.clustered_server import ClusteredServer
from manyhands.methods.collafuse import costs
from manyhands.methods.collafuse.release import images_per_message
from manyhands.methods.collafuse.server import CollaFuseServer
from manyhands.methods.collafuse.silo import converse, noising_of, order_of
from manyhands.methods.collafuse.spec import CollaFuseSpec
from manyhands.methods.server import Server
from manyhands.models.state_spec import state_spec_of
from manyhands.privacy.accountant import mu_of
from manyhands.silos.silo import Silo
from manyhands.tensors import TensorSpec


class CollaFuse(CollaFuseSpec):
    """The denoising chain is cut at a time step: the server trains above the cut, each silo below it.

    A silo adds noise to its images up to the cut, and releases them to the server, by default a single time. From these
    the server trains a network for the steps above the cut. Below it, each silo trains a network of its own on its
    images, which never leaves it (or is averaged over silos with ``federate_silos``). To draw an image, the server
    denoises from pure noise down to the cut, and the silo goes on from there.

    References:
        CollaFuse: Navigating Limited Resources and Privacy in Collaborative Generative AI, Zipperling et al., 2024,
            arXiv 2402.19105
        CollaFuse: Collaborative Diffusion Models, Allmendinger et al., 2024, arXiv 2406.14429
        Personalized Federated Training of Diffusion Models with Privacy Guarantees, Patel et al., 2025,
            arXiv 2504.00952
    """

    def silo(self, silo: Silo) -> Conversation:
        """Release noised images, then train the network below the cut by ``Local`` or ``FedAvg``."""
        return converse(self, silo)

    def server(self, seed: int, silos: Mapping[str, int]) -> Server:
        """Return the server, with a freshly initialised network."""
        check_cuts(sorted(self.cuts.keys() - set(silos)), silos)
        cuts = {silo: self.step_of(silo) for silo in silos}
        local = self.local_method(max(cuts.values()))
        if not self.clusters:
            return CollaFuseServer(self, seed, cuts, local.server(seed, silos))
        servers = {
            name: local.server(seed, {silo: silos[silo] for silo in members})
            for name, members in self._clusters(silos).items()
        }
        return CollaFuseServer(self, seed, cuts, ClusteredServer(servers, self.clusters))

    def check_partition(self, silos: Sequence[str]) -> None:
        """Check the names in cuts and clusters."""
        check_names((*self.cuts, *(silo for cluster in self.clusters.values() for silo in cluster)), silos)

    def _clusters(self, silos: Collection[str]) -> Mapping[str, tuple[str, ...]]:
        """Return the clusters, or raise ``RecipeError`` where not every silo is in one."""
        members = {silo for silos_of_one in self.clusters.values() for silo in silos_of_one}
        if members != set(silos):
            odd = min(members ^ set(silos))
            raise RecipeError(f"clusters: {odd!r} is {'none of the silos' if odd in members else 'in no cluster'}")
        return self.clusters

    def plan(self) -> Plan:
        """The release, the operations of the networks below the cut, and partly denoised images for sampling."""
        local, release = self.local_method(max(self.cut_steps)).plan(), self._release()
        operations = {
            "enter": Operation(
                "says how many images it has, its schedule and its cut; gets how many of its releases the server has",
                "once",
                Payload(facts={"images": IMAGES, "cut": self._any_step, "chain": Text()}),
                Payload(facts={"held": COUNT, "began": Flag(), "round": Whole(0, self.rounds)}),
            ),
            **({"release": release} if release.outgoing else {}),
            "ready": Operation("has released all its images and waits for the other silos", "once", barrier=True),
        }
        if self.warm_start:
            operations["start"] = Operation(
                "asks for the server's network to start from", "once", down=Payload(state_spec_of(self.server_model))
            )
        operations |= local.operations
        return Plan(operations | {"denoise": split_sampling.operation(self.server_model)})

    @property
    def needs_secret(self) -> bool:
        """Whether images are noised, or labels replaced at random."""
        noised = any(0 < step < self.diffusion.schedule.steps for step in self.cut_steps)
        return noised or (self.sends_labels and self.labels == "randomised")

    def release_in(self, silo: Silo, message: Message) -> Release | None:
        """Return which images a release is of, at the silo's cut."""
        if message.op != "release":
            return None
        first, turn = message.facts["first"], message.facts["turn"]
        numbers = order_of(self, silo, turn)[first : first + len(message.tensors["images"])]
        noising = noising_of(self, silo, turn)
        paths, labels = noising.paths(silo.images, numbers, first), noising.label_paths(silo.images, numbers)
        snr = float(self.diffusion.schedule.snr()[self.step_of(silo.name)])
        return Release(
            numbers=numbers,
            paths=paths,
            snr=snr,
            mu=mu_of(snr, self.bound),
            label_epsilon=self.label_epsilon if labels else 0.0,
            label_paths=labels,
        )

    def check_silo(self, silo: Silo) -> None:
        """Check the images; a silo that may draw its own labels only must train on every class that it holds out."""
        super().check_silo(silo)
        if self.local_model.noise_shape != self.model.noise_shape:
            raise RecipeError("method.silo_model: is a model of latents, which has no step in common with the server's")
        shared = self.sends_labels and self.ask == "own" and self.labels == "share"
        step = self.step_of(silo.name)
        if not shared or step == self.diffusion.schedule.steps or silo.held_out is None:
            return
        trained, held_out = (images.labels for images in (silo.images, silo.held_out))
        if trained is None or held_out is None:
            return
        if odd := sorted(set(held_out.tolist()) - set(trained.tolist())):
            raise RecipeError(
                f"{silo.name}: holds out images of class {odd[0]} but trains on none of them, so it may not draw that "
                "class; set method.ask = 'any', or hold out nothing"
            )

    def silo_generator(self, silo: Silo) -> TrainedModel | None:
        """Return the silo's own network, for the steps below its cut."""
        step = self.step_of(silo.name)
        return self.local_method(step).silo_generator(silo) if step else None

    def generator_for(
        self, silo: str, shared: TrainedModel | None, own: TrainedModel | None, ask: ServerCall
    ) -> ImageGenerator | None:
        """Return a ``Relay``: the server denoises down to the cut, and the silo from there."""
        last = own or shared
        if not isinstance(last, DiffusionGenerator) or (own is None and self.step_of(silo)):
            return None  # half a chain draws nothing
        for generator in (own, shared):
            if isinstance(generator, DiffusionGenerator) and generator.diffusion.schedule != self.diffusion.schedule:
                schedule = generator.diffusion.schedule
                raise RecipeError(f"{silo}: a network was trained on another schedule: {schedule!r}")
        step, conditional = self.step_of(silo), bool(self.server_model.classes)
        return split_sampling.Relay(
            model=self.model if own or conditional else self.server_model,
            ask=ask,
            cut=step,
            server_stop=self.server_stop(step),
            silo_start=self.silo_start(step),
            silo_generator=own if isinstance(own, DiffusionGenerator) else None,
            sends_labels=conditional,
            silo_steps=self.steps_below_cut(step, last.sampling),
            classes=last.classes,
            sampling=last.sampling,
            device=last.device,
            ema=self.ema,
            distilled=self.distil is not None,
            norm=self.norm_at(step),
        )

    def released_by(self, silo: str) -> tuple[outgoing.OutgoingData, ...]:
        """Return what leaves a silo in its release; "" stands for every silo without a cut of its own."""
        step, chain = self.step_of(silo), self.diffusion.schedule
        if step == chain.steps:
            return ()
        silos: dict[str, Any] = {"silo": silo} if silo else {"except_silos": tuple(self.cuts)}
        images: outgoing.OutgoingData = outgoing.Images(**silos)
        if step:
            images = outgoing.NoisedImages(
                snr=float(chain.snr()[step]),
                norm=self.bound,
                fresh=outgoing.Fresh(self.rounds, self.training) if self.release == "fresh" else None,
                squeezed=self.norm == self.bound,
                delta=self.cuts.get(silo, self.cut).delta,
                **silos,
            )
        randomised = self.label_epsilon if self.labels == "randomised" else None
        return (images, *((outgoing.Labels(randomised=randomised, **silos),) if self.sends_labels else ()))

    def _release(self) -> Operation:
        pixels = (self.model.channels, self.model.size, self.model.size)
        most = images_per_message(math.prod(pixels))
        released = {"images": TensorSpec((None, *pixels), torch.float32, most)}
        if self.sends_labels:
            released["labels"] = TensorSpec((None,), torch.int64, most)
        pictures = "its images as they are" if self.cut_steps == [0] else "its images, noised up to its cut"
        labels = {"share": ", with their labels", "randomised": ", with labels that are partly replaced at random"}
        often = "once an image" if self.release == "once" else f"{self.rounds} times, with new noise each time"
        return Operation(
            f"releases {pictures}{labels[self.labels] if self.sends_labels else ''}",
            often,
            Payload(released, {"first": COUNT, "cut": self._any_step, "turn": Whole(0, self.rounds)}),
            Payload(facts={"held": COUNT}),
            outgoing=tuple(kind for name in ("", *self.cuts) for kind in self.released_by(name)),
        )

    @property
    def _any_step(self) -> Whole:
        return Whole(0, self.diffusion.schedule.steps)

    def cost_lines(self, silos: int, sampling: Sampling) -> list[str]:
        """Return sentences on each cut: as a step, an SNR and an epsilon, and what it saves a silo."""
        return costs.cost_lines(self, silos, sampling)

    def upload_bytes(self, images: int) -> int:
        """Return the bytes of the releases, and of what the networks below the cut send."""
        return costs.upload_bytes(self, images)

    def warnings(self, roster: Mapping[str, int]) -> list[str]:
        """Return warnings on repeated releases, and on a cut that sends images as they are."""
        return costs.warnings(self, roster)

    def costs(self, silo: str, images: int, sampling: Sampling) -> dict[str, float]:
        """Return what training and drawing cost a silo, beside what the whole chain would cost it."""
        return costs.costs(self, silo, images, sampling)
