"""A trained generator: weights, and all that is needed to draw images from them; kept in the diffusers layout."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import Field, TypeAdapter
from torch import Tensor

from manyhands.diffusion.objective import Diffusion
from manyhands.diffusion.sample import Sampling, guided
from manyhands.diffusion.squeeze import stretched
from manyhands.errors import RunFolderError
from manyhands.files.strict_json import finite_json
from manyhands.files.write import replace_folder
from manyhands.generators.base import ImageGenerator
from manyhands.models.autoencoder import FACTS, TrainedAutoencoder
from manyhands.models.latent import Latent
from manyhands.models.unet import UNet
from manyhands.tensors import Tensors

DIFFUSERS_NAME = {"cosine": "squaredcos_cap_v2", "linear": "linear", "scaled-linear": "scaled_linear"}
Denoiser = Annotated[UNet | Latent, Field(discriminator="kind")]


@dataclass(frozen=True)
class DiffusionGenerator(ImageGenerator):
    """Draws images from a network that knows the whole chain, or an interval of it.

    ``ema`` is the decay of the average over rounds that its weights are; 0 for the last weights themselves. A latent
    model has its ``autoencoder``, and the ``scale`` by which the latents that it learnt from were multiplied.
    """

    model: UNet | Latent
    diffusion: Diffusion
    weights: Tensors
    classes: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    device: str = "cpu"
    ema: float = 0.0
    autoencoder: TrainedAutoencoder | None = None
    scale: float = 1.0

    def save(self, folder: Path | str) -> None:
        """Write the folder that diffusers and ``from_pretrained`` load; an older one is replaced when all is there."""
        with replace_folder(Path(folder)) as fresh:
            self._write(fresh)

    def _write(self, fresh: Path) -> None:
        self.network.inner.save_pretrained(fresh / "unet")
        self._scheduler().save_pretrained(fresh / "scheduler")
        index: dict[str, Any] = {
            "_class_name": "DDIMPipeline",
            "unet": ["diffusers", "UNet2DModel"],
            "scheduler": ["diffusers", "DDIMScheduler"],
        }
        if self.autoencoder:
            self.autoencoder.write(fresh / "vae", self.scale)
            index["vae"] = ["diffusers", "AutoencoderKL"]
        if self.autoencoder or self.model.classes:
            index["_class_name"] = ["pipeline", "ImagePipeline"]
            shutil.copy(Path(__file__).with_name("pipeline.py"), fresh / "pipeline.py")
        (fresh / "model_index.json").write_text(finite_json(index, indent=1))
        (fresh / FACTS).write_text(finite_json(self._facts(), indent=1))

    @classmethod
    def from_pretrained(cls, folder: Path | str, device: str = "cpu") -> Self:
        """Load what ``save`` wrote."""
        import safetensors.torch

        folder = Path(folder)
        try:
            facts = json.loads((folder / FACTS).read_text())
            raw = safetensors.torch.load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
            model: UNet | Latent = TypeAdapter(Denoiser).validate_python(facts["model"])
            frozen = None
            if isinstance(model, Latent):
                frozen = TrainedAutoencoder.from_pretrained(folder / "vae", model.autoencoder, device)
            loaded = cls(
                model,
                Diffusion(**facts["diffusion"]),
                {f"inner.{name}": tensor for name, tensor in raw.items()},
                tuple(facts["classes"]),
                Sampling(**facts["sampling"]),
                device,
                facts["ema"],
                frozen,
                facts["scale"],
            )
            _ = loaded.network  # a file of other weights is noticed here
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
            raise RunFolderError(f"{folder}: holds no trained generator: {error}") from None
        return loaded

    @cached_property
    def network(self) -> Any:
        """The network itself, ready to be asked."""
        network = self.model.build(seed=0)
        network.load_state_dict(self.weights)
        return network.to(self.device).eval()

    def _sample(self, labels: Tensor, rng: torch.Generator, sampling: Sampling) -> Tensor:
        x = self.denoised(self.noise(len(labels), rng), labels, 0, rng, sampling)
        return self._decoder.decode(x / self.scale) if self._decoder else stretched(x, self.diffusion.norm)

    def noise(self, count: int, rng: torch.Generator) -> Tensor:
        """What the chain ends in."""
        unet = self.model.unet if isinstance(self.model, Latent) else self.model
        return torch.randn(count, unet.channels, unet.size, unet.size, generator=rng, device=self.device)

    def denoised(
        self,
        x: Tensor,
        labels: Tensor,
        t_to: int,
        rng: torch.Generator,
        sampling: Sampling,
        t_from: int | None = None,
        steps: int | None = None,
    ) -> Tensor:
        """Take x down the chain from ``t_from``, its end if not told, to ``t_to``."""
        model, schedule = self.model, self.diffusion.schedule
        known = labels if model.classes else None
        denoiser = guided(self.network, self.diffusion, known, model.classes, sampling.guidance)
        t_from = schedule.steps if t_from is None else t_from
        return self._bounded(sampling).denoise(denoiser, x, schedule, t_from, t_to, rng, steps)

    def _bounded(self, sampling: Sampling) -> Sampling:
        """Latents have no bounds that an estimate could be held to."""
        return sampling.model_copy(update={"clip": None}) if self.autoencoder else sampling

    @cached_property
    def _decoder(self) -> TrainedAutoencoder | None:
        return replace(self.autoencoder, device=self.device) if self.autoencoder else None

    def _facts(self) -> dict[str, Any]:
        told = {"model": self.model, "diffusion": self.diffusion, "sampling": self.sampling}
        plain = {name: spec.model_dump(mode="json") for name, spec in told.items()}
        return {**plain, "classes": self.classes, "ema": self.ema, "scale": self.scale}

    def _scheduler(self) -> Any:
        from diffusers import DDIMScheduler

        schedule, clip = self.diffusion.schedule, self._bounded(self.sampling).clip
        return DDIMScheduler(
            num_train_timesteps=schedule.steps,
            beta_schedule=DIFFUSERS_NAME[schedule.kind],
            beta_start=schedule.beta_start,
            beta_end=schedule.beta_end,
            prediction_type="epsilon" if self.diffusion.target == "eps" else "v_prediction",
            timestep_spacing="trailing",
            clip_sample=clip is not None,
            clip_sample_range=clip or 1.0,
        )
