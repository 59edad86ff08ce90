"""Writes samples to files while they are drawn."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from manyhands.data.images import as_bytes
from manyhands.evaluation.plots import grid, picture_of
from manyhands.files.safetensors_index import LENGTH, index_of, read_index
from manyhands.files.strict_json import finite_json
from manyhands.files.write import disk_errors
from manyhands.tensors import TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from manyhands.diffusion.sampling import Sampling
    from manyhands.generators.base import ImageGenerator

SHOWN, BATCH = 100, 256
REQUEST = ".samples.json"


def write_samples(
    out: Path,
    generator: ImageGenerator,
    labels: list[int],
    seed: int,
    sampling: Sampling,
    *,
    png: bool = False,
    of: str = "",
) -> list[Path]:
    """Draw a sample for each label; write samples.safetensors and grid.png (the first 100 samples).

    Only one batch of samples is in memory at a time. A call that was interrupted continues with the batch that it had
    reached, if all arguments are the same.

    Args:
        out: The folder to write to.
        generator: The generator that draws.
        labels: The class of each sample.
        seed: The seed of the samples.
        sampling: How a diffusion model samples.
        png: Whether to write a PNG for each sample, too.
        of: The name of the run that the generator is from.
    """
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    unfinished, samples = out / ".samples.tmp", out / "samples.safetensors"
    header = _header(generator, len(labels))
    with disk_errors(samples):
        written = _drawn_before(
            out, header, {"labels": labels, "seed": seed, "sampling": sampling.model_dump(), "of": of}
        )
        with unfinished.open("r+b" if written else "wb") as file:
            size = _image_size(generator)
            file.truncate(len(header) + written * size) if written else file.write(header)
            file.seek(0, 2)
            for images, _ in generator.stream(labels, seed=seed, sampling=sampling, batch=BATCH, first=written):
                _append(file, images)
                file.flush()
            if generator.model.classes:
                _append(file, torch.tensor(labels))
        unfinished.replace(samples)
        (out / REQUEST).unlink(missing_ok=True)
    return [samples, *_pictures(out, samples, len(header), generator, len(labels), png=png)]


def _drawn_before(out: Path, header: bytes, request: dict[str, Any]) -> int:
    """How many samples of the same request are written already, in whole batches; the request is kept in a file."""
    text, unfinished = finite_json(request, sort_keys=True), out / ".samples.tmp"
    same = (out / REQUEST).exists() and (out / REQUEST).read_text() == text
    if not same or not _begins_with(unfinished, header):
        unfinished.unlink(missing_ok=True)
        (out / REQUEST).write_text(text)
        return 0
    images, _ = read_index(header[LENGTH.size :])["images"]
    count, *shape = (length or 0 for length in images.shape)
    complete: int = min((unfinished.stat().st_size - len(header)) // (4 * math.prod(shape)), count)
    return complete - complete % BATCH


def _begins_with(path: Path, header: bytes) -> bool:
    """Whether a file was begun with this header, and not by a version that writes another one."""
    if not path.exists():
        return False
    with path.open("rb") as file:
        return file.read(len(header)) == header


def _pictures(out: Path, samples: Path, start: int, generator: ImageGenerator, count: int, *, png: bool) -> list[Path]:
    """Write the grid of the first samples and, where asked for, a PNG of each, from the file of samples."""
    model, files = generator.model, [out / "grid.png"]
    with samples.open("rb") as file:
        file.seek(start)

        def read(wanted: int) -> Tensor:
            raw = bytearray(file.read(wanted * _image_size(generator)))
            return torch.frombuffer(raw, dtype=torch.float32).reshape(-1, model.channels, model.size, model.size)

        first = read(min(SHOWN, count))
        grid(files[0], first, columns=10)
        file.seek(start)
        for begin in range(0, count if png else 0, BATCH):
            images = read(min(BATCH, count - begin))
            files += [_write_png(out / f"{begin + i:05d}.png", image) for i, image in enumerate(images)]
    return files


def _image_size(generator: ImageGenerator) -> int:
    return 4 * generator.model.channels * generator.model.size**2


def _header(generator: ImageGenerator, count: int) -> bytes:
    """The index of the file of samples; its images are drawn, and written, a batch at a time."""
    model = generator.model
    images = TensorSpec((count, model.channels, model.size, model.size), torch.float32)
    labels = TensorSpec((count,), torch.int64)
    return index_of([("images", images), *[("labels", labels)] * bool(model.classes)])


def _append(file: BinaryIO, tensor: Tensor) -> None:
    file.write(tensor.contiguous().numpy().astype(tensor.numpy().dtype.newbyteorder("<")).tobytes())


def _write_png(path: Path, image: Tensor) -> Path:
    with disk_errors(path):
        picture_of(as_bytes(image)).save(path)
    return path
