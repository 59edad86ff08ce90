"""Drawn images as files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import safetensors.torch
import torch
from PIL import Image

from manyhands.checkpoint import writing
from manyhands.data.images import as_bytes
from manyhands.evaluation.figures import grid

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from manyhands.diffusion.sample import Sampling
    from manyhands.models.generator import Generator


def write_samples(
    out: Path, generator: Generator, labels: list[int], seed: int, sampling: Sampling, *, png: bool = False
) -> list[Path]:
    """Draw the labels; write samples.safetensors, grid.png (of the first 100) and if asked a PNG for each image."""
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    drawn, asked = zip(*generator.stream(labels, seed=seed, sampling=sampling), strict=True)
    images = torch.cat(drawn)
    kept = {"images": images, **({"labels": torch.cat(asked)} if generator.model.classes else {})}
    with writing(out / "samples.safetensors"):
        (out / "samples.safetensors").write_bytes(safetensors.torch.save(kept))
    grid(out / "grid.png", images[:100], columns=10)
    files = [out / "samples.safetensors", out / "grid.png"]
    return files + [_write_png(out / f"{i:05d}.png", image) for i, image in enumerate(images)] if png else files


def _write_png(path: Path, image: Tensor) -> Path:
    array = as_bytes(image).permute(1, 2, 0).numpy()
    with writing(path):
        Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(path)
    return path
