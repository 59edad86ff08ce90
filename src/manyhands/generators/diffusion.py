"""A trained diffusion model and everything needed to sample from it, stored in the layout of diffusers."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor

from manyhands.diffusion.norm_bound import stretched
from manyhands.diffusion.objective import Diffusion
from manyhands.diffusion.sampling import Sampling, guided
from manyhands.errors import RecipeError, RunFolderError
from manyhands.files.strict_json import finite_json
from manyhands.files.write import replace_folder
from manyhands.generators.base import ImageGenerator
from manyhands.generators.pretrained import (
    begun_from,
    check_frozen,
    has_adapters,
    plain_unet,
    stored_adapters,
    takes_text,
    write_adapters,
    write_text_parts,
)
from manyhands.models.autoencoder import FACTS, TrainedAutoencoder, stored_facts
from manyhands.models.base import Denoiser
from manyhands.registry import MODELS, OneOf
from manyhands.spec import problems_of
from manyhands.tensors import Tensors, snapshot

DENOISER = "denoiser/model.safetensors"
"""The weights of a denoiser that diffusers does not know."""
UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError)
"""What is raised where files of a generator are missing, damaged or of something else."""
DIFFUSERS_NAME = {"cosine": "squaredcos_cap_v2", "linear": "linear", "scaled-linear": "scaled_linear"}


@dataclass(frozen=True)
class DiffusionGenerator(ImageGenerator):
    """Samples images from a denoiser of all timesteps, or of an interval of them.

    Args:
        model: The specification of the denoiser.
        diffusion: The objective that it was trained with.
        weights: Its weights by name.
        classes: The names of the classes; empty for an unconditional model.
        sampling: The sampler and its settings.
        device: The device to sample on.
        ema: The decay of the average over rounds that the weights are; 0 for the weights of the last round.
        autoencoder: The autoencoder of a latent model, else None.
        scale: What the latents that the model was trained on were multiplied by.
    """

    model: Denoiser
    diffusion: Diffusion
    weights: Tensors
    classes: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    device: str = "cpu"
    ema: float = 0.0
    autoencoder: TrainedAutoencoder | None = None
    scale: float = 1.0

    def save(self, folder: Path | str) -> None:
        """Write a folder that diffusers and ``from_pretrained`` load.

        Args:
            folder: The folder; an older one is replaced once everything is written.
        """
        with replace_folder(Path(folder)) as fresh:
            self._write(fresh)

    def _write(self, fresh: Path) -> None:
        (fresh / FACTS).write_text(finite_json(self._facts(), indent=1))
        if has_adapters(self.model):
            write_adapters(self.network, fresh)
            self._scheduler().save_pretrained(fresh / "scheduler")
        elif self.model.diffusers_folder:
            self._write_for_diffusers(fresh)
        else:
            (fresh / DENOISER).parent.mkdir()
            safetensors.torch.save_file(snapshot(self.weights), fresh / DENOISER)

    def _write_for_diffusers(self, fresh: Path) -> None:
        network, scheduler, part = plain_unet(self.network), self._scheduler(), self.model.diffusers_folder
        network.save_pretrained(fresh / part)
        scheduler.save_pretrained(fresh / "scheduler")
        index: dict[str, Any] = {
            "_class_name": "DDIMPipeline",
            part: ["diffusers", type(network).__name__],
            "scheduler": ["diffusers", type(scheduler).__name__],
        }
        if self.autoencoder:
            self.autoencoder.write(fresh / "vae", self.scale)
            index["vae"] = ["diffusers", "AutoencoderKL"]
        if self._needs_pipeline:
            index["_class_name"] = ["pipeline", "ImagePipeline"]
        if takes_text(self.model):
            index |= write_text_parts(self.network, fresh)
        elif self._needs_pipeline:
            shutil.copy(Path(__file__).with_name("pipeline.py"), fresh / "pipeline.py")
        (fresh / "model_index.json").write_text(finite_json(index, indent=1))

    @property
    def _needs_pipeline(self) -> bool:
        """Whether no pipeline of diffusers samples it: it has classes or latents, is a transformer or a flow."""
        other = self.model.diffusers_folder != "unet" or self.diffusion.target == "flow"
        return other or self.autoencoder is not None or self.model.classes > 0

    @classmethod
    def from_pretrained(cls, folder: Path | str, device: str = "cpu", model: Denoiser | None = None) -> Self:
        """Load a folder that ``save`` wrote.

        Args:
            folder: The folder.
            device: The device to sample on.
            model: The specification of the denoiser, where it is a ``Network`` from Python, which cannot be stored;
                None takes the stored one.

        Raises:
            RunFolderError: The folder holds no trained generator, or one of another model.
        """
        folder = Path(folder)
        try:
            facts = stored_facts(folder)
            spec = begun_from(_denoiser(facts["model"], model), folder)
            loaded = cls(
                spec,
                Diffusion(**facts["diffusion"]),
                _stored_weights(folder, spec),
                classes=tuple(facts["classes"]),
                sampling=Sampling(**facts["sampling"]),
                device=device,
                ema=facts["ema"],
                autoencoder=spec.load_decoder(folder, device),
                scale=facts["scale"],
            )
            check_frozen(loaded.network, facts.get("frozen"))  # raises an error if the weights do not fit the model
        except (*UNREADABLE, RecipeError) as error:
            raise RunFolderError(f"{folder}: holds no trained generator: {error}") from None
        return loaded

    @cached_property
    def network(self) -> Any:
        """The denoiser with its weights, in evaluation mode."""
        network = self.model.build(seed=0)
        network.load_state_dict(self.weights)
        return network.to(self.device).eval()

    def _sample(self, labels: Tensor, rng: torch.Generator, sampling: Sampling) -> Tensor:
        x = self.denoised(self.noise(len(labels), rng), labels, 0, rng, sampling)
        return self._decoder.decode(x / self.scale) if self._decoder else stretched(x, self.diffusion.norm)

    def noise(self, count: int, rng: torch.Generator) -> Tensor:
        """Sample the noise that denoising starts from, (count, C, H, W)."""
        return torch.randn(count, *self.model.noise_shape, generator=rng, device=self.device)

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
        """Denoise x to timestep ``t_to``.

        Args:
            x: Noised images or latents, (B, C, H, W).
            labels: The class numbers, (B,).
            t_to: The timestep of the result; 0 for clean images.
            rng: The random numbers of new noise.
            sampling: The sampler and its settings.
            t_from: The timestep of x; None for the last one.
            steps: The number of steps; None for the steps of the whole schedule that are in between.
        """
        model, schedule = self.model, self.diffusion.schedule
        known = labels if model.classes else None
        denoiser = guided(self.network, self.diffusion, known, model.classes, sampling.guidance)
        t_from = schedule.steps if t_from is None else t_from
        return self._bounded(sampling).denoise(denoiser, x, schedule, t_from=t_from, t_to=t_to, rng=rng, steps=steps)

    def _bounded(self, sampling: Sampling) -> Sampling:
        """Return the settings without ``clip`` for latents, which have no bounds."""
        return sampling.model_copy(update={"clip": None}) if self.autoencoder else sampling

    @cached_property
    def _decoder(self) -> TrainedAutoencoder | None:
        return replace(self.autoencoder, device=self.device) if self.autoencoder else None

    def _facts(self) -> dict[str, Any]:
        specs = {"model": self.model, "diffusion": self.diffusion, "sampling": self.sampling}
        plain = {name: spec.model_dump(mode="json") for name, spec in specs.items()}
        frozen = {"frozen": self.network.frozen_hash} if has_adapters(self.model) else {}
        return {**plain, "classes": self.classes, "ema": self.ema, "scale": self.scale, **frozen}

    def _scheduler(self) -> Any:
        from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

        if self.diffusion.target == "flow":
            return FlowMatchEulerDiscreteScheduler(num_train_timesteps=self.diffusion.schedule.steps)
        schedule, clip = self.diffusion.schedule, self._bounded(self.sampling).clip
        return DDIMScheduler(
            num_train_timesteps=schedule.steps,
            beta_schedule=DIFFUSERS_NAME[schedule.kind],
            beta_start=schedule.beta_start,
            beta_end=schedule.beta_end,
            prediction_type="epsilon" if self.diffusion.target == "eps" else "v_prediction",
            timestep_spacing="trailing",
            steps_offset=int(takes_text(self.model)),  # which trailing steps ignore, and Stable Diffusion asks for
            clip_sample=clip is not None,
            clip_sample_range=clip or 1.0,
        )


def _denoiser(stored: dict[str, Any], model: Denoiser | None) -> Denoiser:
    """Return the specification that is stored, or the one from Python if that is for the same images and classes."""
    try:
        spec = model or OneOf(MODELS).validate(stored)
    except ValidationError as error:
        raise ValueError("; ".join(f"model.{place}: {text}" for place, text in problems_of(error, stored))) from None
    if not isinstance(spec, Denoiser):
        raise ValueError(f"it holds a model of kind {stored['kind']!r}, no denoiser")
    for name in ("size", "channels", "classes"):
        if getattr(spec, name) != stored[name]:
            raise ValueError(f"its {name} is {stored[name]}, but that of the model is {getattr(spec, name)}")
    return spec


def _stored_weights(folder: Path, model: Denoiser) -> Tensors:
    if has_adapters(model):
        return stored_adapters(folder, model)
    if not model.diffusers_folder:
        return safetensors.torch.load_file(folder / DENOISER)
    raw = safetensors.torch.load_file(folder / model.diffusers_folder / "diffusion_pytorch_model.safetensors")
    return {f"inner.{name}": tensor for name, tensor in raw.items()}
