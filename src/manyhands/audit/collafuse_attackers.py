"""Who attacks the releases of CollaFuse: what is trained before a release is seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from manyhands.audit.attacks import attributes, reconstruction
from manyhands.audit.attacks.reconstruction import Attack
from manyhands.audit.effort import MAX_RECONSTRUCTED_IMAGES, Effort
from manyhands.audit.expected_identification import Cloud, clouds_of
from manyhands.data.images import Images, as_floats
from manyhands.diffusion.objective import Diffusion, NoisePredictor
from manyhands.diffusion.sampling import guided
from manyhands.diffusion.solvers import DenoisingFunction
from manyhands.models.unet import UNet
from manyhands.seed import torch_rng

if TYPE_CHECKING:
    from manyhands.evaluation.features import Extractor


@dataclass(frozen=True)
class ServerDenoiser:
    """The server's denoiser.

    Args:
        network: Its network.
        cut: The lowest step of the chain that it was trained on.
        no_label: The label that means "no class", where the network is class-conditional.
        labels: Whether the server knows the labels of the releases, as a run may allow, and uses them.
    """

    network: NoisePredictor
    cut: int
    no_label: int | None = None
    labels: bool = False

    def denoiser(self, diffusion: Diffusion, images: Images) -> DenoisingFunction:
        """The denoiser as it is used on these images."""
        if self.no_label is None:
            return guided(reconstruction.in_parts(self.network), diffusion, None, 0, 1.0)
        own_labels = images.labels if self.labels else None
        labels = torch.full((len(images),), self.no_label) if own_labels is None else own_labels
        return guided(reconstruction.in_parts(self.network), diffusion, labels, self.no_label, 1.0)


@dataclass(frozen=True)
class Attackers:
    """Everything that is trained or fitted before a release is seen, and the images that are attacked.

    Args:
        diffusion: The noise schedule and the target of the denoiser.
        private: The images that are attacked.
        public: The images of the attackers.
        extractor: A network for the feature distance; None leaves this out.
        server_denoiser: The denoiser of the server, where it attacks.
        attacks: The reconstruction attacks, by name.
        guess: What is guessed without any release.
        questions: What is inferred about an image: its class, its attributes.
        clouds: The public images of each class, as theory needs them.
        x_0: The private images in [-1, 1] (N, C, H, W).
    """

    diffusion: Diffusion
    private: Images
    public: Images
    extractor: Extractor | None
    server_denoiser: ServerDenoiser | None
    attacks: dict[str, Attack]
    guess: Attack
    questions: dict[str, attributes.Question]
    clouds: list[Cloud]
    x_0: Tensor = field(repr=False)

    @property
    def shown(self) -> Images:
        """The private images that reconstruction attacks try."""
        return self.private.subset(torch.arange(min(MAX_RECONSTRUCTED_IMAGES, len(self.private))).numpy())

    def of(self, indices: np.ndarray) -> Attackers:
        """The same attackers, of some of the private images only."""
        index_tensor = torch.from_numpy(indices)
        questions = {
            name: question._replace(answers=question.answers[index_tensor]) for name, question in self.questions.items()
        }
        return replace(self, private=self.private.subset(indices), x_0=self.x_0[index_tensor], questions=questions)

    def at(self, t: int) -> dict[str, Attack]:
        """All reconstruction attacks on images at one noise level; the server's denoiser was not trained on all."""
        if self.server_denoiser is None or t < self.server_denoiser.cut:
            return self.attacks
        denoiser = self.server_denoiser.denoiser(self.diffusion, self.shown)
        return self.attacks | {
            "own_denoised": reconstruction.denoised(denoiser),
            "own_walked": reconstruction.sampled(denoiser, self.diffusion.schedule),
        }


def trained_attackers(
    private: Images,
    public: Images,
    diffusion: Diffusion,
    cuts: Sequence[int],
    *,
    releases: int,
    server_denoiser: ServerDenoiser | None,
    extractor: Extractor | None,
    known_attributes: attributes.KnownAttributes | None,
    effort: Effort,
    seed: int,
) -> Attackers:
    """Train the attackers on their public images; see ``attack_releases`` for the arguments."""
    schedule, public_images = diffusion.schedule, as_floats(public.pixels)
    levels = [*cuts, *(_equivalent_step(diffusion, cut, releases) for cut in cuts)]
    model = UNet(size=public_images.shape[-1], channels=public_images.shape[1], classes=0, widths=effort.widths)
    denoiser = reconstruction.public_denoiser(
        public_images, diffusion, model, effort.training(effort.denoiser), torch_rng(seed, "public denoiser")
    )
    attacks = {
        "linear": reconstruction.linear(schedule),
        "wiener": reconstruction.wiener(schedule, public_images),
        "regressor": reconstruction.regressor(
            public_images, schedule, levels, model, effort.training(effort.regressor), torch_rng(seed, "regressor")
        ),
        "denoised": reconstruction.denoised(denoiser),
        "walked": reconstruction.sampled(denoiser, schedule),
    }

    def reader(answers: Tensor, outputs: int, seed_name: str) -> attributes.NoisyClassifier:
        rng, all_levels = torch_rng(seed, seed_name), [0, *levels]
        return attributes.classifier(
            public_images,
            answers,
            outputs=outputs,
            schedule=schedule,
            levels=all_levels,
            steps=effort.classifier,
            rng=rng,
        )

    return Attackers(
        diffusion=diffusion,
        private=private,
        public=public,
        extractor=extractor,
        server_denoiser=server_denoiser,
        attacks=attacks,
        guess=reconstruction.mean_of(public_images),
        questions=attributes.questions(private, public, known_attributes, reader),
        clouds=clouds_of(public_images, public.labels),
        x_0=as_floats(private.pixels),
    )


def _equivalent_step(diffusion: Diffusion, cut: int, releases: int) -> int:
    return reconstruction.level_of(diffusion.schedule, float(diffusion.schedule.snr()[cut]) * releases)
