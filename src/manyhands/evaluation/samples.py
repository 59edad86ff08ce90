"""Drawn images as files, written while they are drawn."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, BinaryIO

import torch

from manyhands.checkpoint import writing
from manyhands.data.images import as_bytes
from manyhands.evaluation.figures import grid, picture_of

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from manyhands.diffusion.sample import Sampling
    from manyhands.models.generator import Drawing

SHOWN = 100


def write_samples(
    out: Path, generator: Drawing, labels: list[int], seed: int, sampling: Sampling, *, png: bool = False
) -> list[Path]:
    """Draw the labels; write samples.safetensors, grid.png (of the first 100) and if asked a PNG for each image.

    However many there are, only a batch of them is in memory.
    """
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    files, done = [out / "samples.safetensors", out / "grid.png"], 0
    first: list[Tensor] = []
    beside = out / ".samples.tmp"
    try:
        with writing(files[0]), beside.open("wb") as file:
            file.write(_header(generator, len(labels)))
            for images, _ in generator.stream(labels, seed=seed, sampling=sampling):
                _append(file, images)
                first += images[: max(SHOWN - done, 0)].clone()
                if png:
                    files += [_write_png(out / f"{done + i:05d}.png", image) for i, image in enumerate(images)]
                done += len(images)
            if generator.model.classes:
                _append(file, torch.tensor(labels))
        beside.replace(files[0])
    finally:
        beside.unlink(missing_ok=True)
    grid(files[1], torch.stack(first), columns=10)
    return files


def _header(generator: Drawing, count: int) -> bytes:
    """The start of a safetensors file: what it holds, and where; the library writes only what is whole in memory."""
    model = generator.model
    shape = [count, model.channels, model.size, model.size]
    end = 4 * count * model.channels * model.size**2
    facts = {"images": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}
    if model.classes:
        facts["labels"] = {"dtype": "I64", "shape": [count], "data_offsets": [end, end + 8 * count]}
    text = json.dumps(facts).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _append(file: BinaryIO, tensor: Tensor) -> None:
    file.write(tensor.contiguous().numpy().astype(tensor.numpy().dtype.newbyteorder("<")).tobytes())


def _write_png(path: Path, image: Tensor) -> Path:
    with writing(path):
        picture_of(as_bytes(image)).save(path)
    return path
