"""A trained generator: weights, and all that is needed to draw images from them; kept in the diffusers layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from manyhands.checkpoint import writing
from manyhands.diffusion.objective import Diffusion
from manyhands.diffusion.sample import Sampling, guided
from manyhands.errors import RecipeError, RunFolderError
from manyhands.models.unet import UNet
from manyhands.seed import torch_rng
from manyhands.tensors import Tensors

FACTS = "manyhands.json"


@dataclass(frozen=True)
class Generator:
    """Draws images in [-1, 1], of the asked classes where it knows any.

    ``ema`` is the decay of the average over rounds that its weights are; 0 for the last weights themselves.
    """

    model: UNet
    diffusion: Diffusion
    weights: Tensors
    classes: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    device: str = "cpu"
    ema: float = 0.0

    def sample(
        self,
        count: int | None = None,
        *,
        labels: Sequence[int] | None = None,
        seed: int = 0,
        sampling: Sampling | None = None,
        batch: int = 256,
    ) -> Tensor:
        """``count`` images with the classes in turn, or one image for each label: N x C x H x W."""
        wanted = self.labels(count, labels)
        return torch.cat([images for images, _ in self.stream(wanted, seed=seed, sampling=sampling, batch=batch)])

    def labels(self, count: int | None = None, labels: Sequence[int] | None = None) -> list[int]:
        """The labels to draw: as asked, or the classes in turn; a generator without classes has only 0."""
        known = max(self.model.classes, 1)
        wanted = list(labels) if labels is not None else [i % known for i in range(known if count is None else count)]
        if bad := [label for label in wanted if label not in range(known)]:
            raise RecipeError(f"label {bad[0]} is not in 0 to {known - 1}")
        if not wanted or (labels is not None and count not in (None, len(wanted))):
            raise RecipeError(f"{count} images of {len(wanted)} labels cannot be drawn")
        return [int(label) for label in wanted]

    def stream(
        self, labels: Sequence[int], *, seed: int = 0, sampling: Sampling | None = None, batch: int = 256
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of images and their labels; memory does not grow with their number."""
        for start in range(0, len(labels), batch):
            part = torch.tensor(labels[start : start + batch], device=self.device)
            rng = torch_rng(seed, "sample", start, device=self.device)
            yield self._draw(part, rng, sampling or self.sampling).cpu(), part.cpu()

    def save(self, folder: Path | str) -> None:
        """Write the folder that diffusers and ``from_pretrained`` load; an older one is replaced when all is there."""
        folder = Path(folder)
        fresh = folder.with_name(f".{folder.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            with writing(folder):
                fresh.mkdir(parents=True)
                self._write(fresh)
                shutil.rmtree(folder, ignore_errors=True)
                fresh.rename(folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def _write(self, fresh: Path) -> None:
        self._network.inner.save_pretrained(fresh / "unet")
        self._scheduler().save_pretrained(fresh / "scheduler")
        pipeline: Any = "DDIMPipeline"
        if self.model.classes:
            pipeline = ["pipeline", "ClassConditionalPipeline"]
            shutil.copy(Path(__file__).with_name("pipeline.py"), fresh / "pipeline.py")
        index = {
            "_class_name": pipeline,
            "unet": ["diffusers", "UNet2DModel"],
            "scheduler": ["diffusers", "DDIMScheduler"],
        }
        (fresh / "model_index.json").write_text(json.dumps(index, indent=1))
        (fresh / FACTS).write_text(json.dumps(self._facts(), indent=1))

    @classmethod
    def from_pretrained(cls, folder: Path | str, device: str = "cpu") -> Self:
        """Load what ``save`` wrote."""
        import safetensors.torch

        folder = Path(folder)
        try:
            facts = json.loads((folder / FACTS).read_text())
            raw = safetensors.torch.load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
            told = UNet(**facts["model"]), Diffusion(**facts["diffusion"]), Sampling(**facts["sampling"])
            weights = {f"inner.{name}": tensor for name, tensor in raw.items()}
            loaded = cls(told[0], told[1], weights, tuple(facts["classes"]), told[2], device, facts["ema"])
            _ = loaded._network  # a file of other weights is noticed here
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
            raise RunFolderError(f"{folder}: holds no trained generator: {error}") from None
        return loaded

    @cached_property
    def _network(self) -> Any:
        network = self.model.build(seed=0)
        network.load_state_dict(self.weights)
        return network.to(self.device).eval()

    def _draw(self, labels: Tensor, rng: torch.Generator, sampling: Sampling) -> Tensor:
        model, schedule = self.model, self.diffusion.schedule
        x = torch.randn(len(labels), model.channels, model.size, model.size, generator=rng, device=labels.device)
        known = labels if model.classes else None
        denoiser = guided(self._network, self.diffusion, known, model.classes, sampling.guidance)
        return sampling.walk(denoiser, x, schedule, schedule.steps, 0, rng).clamp(-1, 1)

    def _facts(self) -> dict[str, Any]:
        told = {"model": self.model, "diffusion": self.diffusion, "sampling": self.sampling}
        plain = {name: spec.model_dump(mode="json") for name, spec in told.items()}
        return {**plain, "classes": self.classes, "ema": self.ema}

    def _scheduler(self) -> Any:
        from diffusers import DDIMScheduler

        schedule = self.diffusion.schedule
        return DDIMScheduler(
            num_train_timesteps=schedule.steps,
            beta_schedule="squaredcos_cap_v2" if schedule.kind == "cosine" else "linear",
            beta_start=schedule.beta_start,
            beta_end=schedule.beta_end,
            prediction_type="epsilon" if self.diffusion.target == "eps" else "v_prediction",
            timestep_spacing="trailing",
            clip_sample=self.sampling.clip is not None,
            clip_sample_range=self.sampling.clip or 1.0,
        )
