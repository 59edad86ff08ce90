"""What images look like to a network: the features and the logits that all metrics are computed of."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyhands.data.images import Images, as_floats, checked
from manyhands.errors import DiskError
from manyhands.files.write import replace_file
from manyhands.seed import numpy_rng, seeded_globally
from manyhands.tensors import Tensors, sha256, snapshot

EPOCHS, MIN_STEPS, MAX_STEPS, BATCH, WIDTH = 20, 300, 1000, 128, 128
MEASURING = ("features", "inception", "evaluator", "metrics")
VERSIONS = " ".join(f"{name} {version(name)}" for name in ("torch", "torchmetrics", "prdc", "scikit-learn", "numpy"))
CODE = hashlib.sha256(
    VERSIONS.encode() + b"".join(Path(__file__).with_name(f"{name}.py").read_bytes() for name in MEASURING)
).hexdigest()
"""What figures depend on beside images: the code that measures, and the libraries that it asks."""


class Extractor(Protocol):
    """A network that images are shown to."""

    @property
    def name(self) -> str:
        """What tells it from all others."""
        ...

    def __call__(self, images: Tensor) -> Seen:
        """Features and logits of images: bytes, or floats in [-1, 1]."""
        ...


@dataclass(frozen=True)
class Seen:
    """N images as a network saw them: N x D features, N x K logits."""

    features: Tensor
    logits: Tensor


class Network(nn.Module):
    """A small convolutional classifier: 32, 64, 64 ... channels, halved to at most 7 x 7, and 128 features.

    ``scale`` brings the features of what it was trained on to a mean square of 1, so that figures of different data
    are of one order.

    References:
        HuSCF-GAN's evaluation uses these widths; Tawfilis, Hossam, 2025
    """

    scale: Tensor

    def __init__(self, size: int, channels: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width, wider = channels, 32
        while size > 7 or not layers:
            layers += [nn.Conv2d(width, wider, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
            width, wider, size = wider, 64, size // 2
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * size * size, WIDTH), nn.ReLU())
        self.head = nn.Linear(WIDTH, classes)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits."""
        features = self.body(images)
        return features / self.scale, self.head(features)


@dataclass(frozen=True)
class Classifier:
    """A classifier of the real images. ``accuracy`` is that on real images that it was not trained on."""

    network: Network
    name: str
    accuracy: float

    def __call__(self, images: Tensor) -> Seen:
        """Features and logits."""
        return see(self.network, images)


def see(network: Callable[[Tensor], tuple[Tensor, Tensor]], images: Tensor, batch: int = 256) -> Seen:
    """Show images to a network, batch by batch."""
    with torch.no_grad():
        parts = [network(as_floats(part)) for part in torch.split(checked(images), batch)]
    features, logits = zip(*parts, strict=True)
    return Seen(torch.cat(features), torch.cat(logits))


def trained(pixels: Tensor, labels: Tensor, classes: int, *, steps: int, batch: int, seed: int = 0) -> Network:
    """A classifier trained from nothing, by Adam with a rate that falls from 1e-3 along a line."""
    with seeded_globally(seed, "classifier"):
        network = Network(pixels.shape[-1], pixels.shape[1], classes)
    optimiser = torch.optim.Adam(network.parameters(), 1e-3, fused=True)
    rng = numpy_rng(seed, "classifier batches")
    size, left = min(batch, len(pixels)), torch.empty(0, dtype=torch.long)
    for step in range(steps):
        if len(left) < size:
            left = torch.cat([left, torch.from_numpy(rng.permutation(len(pixels)))])
        at, left = left[:size], left[size:]
        optimiser.param_groups[0]["lr"] = 1e-3 * (1 - step / steps)
        optimiser.zero_grad()
        F.cross_entropy(network(as_floats(pixels[at]))[1], labels[at]).backward()
        optimiser.step()
    return network.eval()


def classifier(train: Images, held: Images) -> Classifier:
    """The classifier of a run's real images, trained once: it is kept by the hash of the images and of this code.

    Images without labels are told apart by which way up they are: 0, 90, 180 or 270 degrees.
    """
    pixels, labels, classes = _task(train)
    key = f"{fingerprint(train, held)} {classes}"
    kept = recall("classifier", key)
    network = Network(pixels.shape[-1], pixels.shape[1], classes)
    if kept is not None:
        accuracy = float(kept.pop("accuracy"))
        network.load_state_dict(kept)
        network.eval()
    else:
        steps = min(max(EPOCHS * len(pixels) // BATCH, MIN_STEPS), MAX_STEPS)
        network = trained(pixels, labels, classes, steps=steps, batch=BATCH)
        some = pixels[:: max(1, len(pixels) // 5000)]
        network.scale = see(network, some).features.square().mean().sqrt()
        accuracy = _accuracy(network, held)
        remember(
            "classifier",
            key,
            {**snapshot(network.state_dict()), "accuracy": torch.tensor(accuracy, dtype=torch.float64)},
        )
    return Classifier(network, f"classifier {sha256(snapshot(network.state_dict()))[:8]}", accuracy)


def reference(extractor: Extractor, images: Images) -> Seen:
    """What an extractor sees in the real images, kept by the hash of both."""
    key = f"{extractor.name} {fingerprint(images)}"
    kept = recall("seen", key)
    if kept is not None:
        return Seen(kept["features"], kept["logits"])
    seen = extractor(images.pixels)
    remember("seen", key, {"features": seen.features, "logits": seen.logits})
    return seen


def cache() -> Path:
    """Where what is costly is kept between runs; it may be deleted at any time."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "manyhands"


def recall(kind: str, key: str) -> Tensors | None:
    """What was kept, or None where it is not there or not whole."""
    try:
        return dict(safetensors.torch.load_file(_place(kind, key)))
    except (OSError, safetensors.SafetensorError):
        return None


def remember(kind: str, key: str, tensors: Tensors) -> None:
    """Keep tensors, if that can be."""
    try:
        cache().mkdir(parents=True, exist_ok=True)
        replace_file(_place(kind, key), safetensors.torch.save(tensors))
    except (OSError, DiskError):
        return  # a cache that cannot be written costs time, nothing else


def _task(images: Images) -> tuple[Tensor, Tensor, int]:
    """What the classifier learns: the classes, or where there are none which way up an image is."""
    if images.labels is not None and len(images.classes) > 1:
        return images.pixels, images.labels, len(images.classes)
    turned = [torch.rot90(images.pixels, turns, (2, 3)) for turns in range(4)]
    return torch.cat(turned), torch.arange(4).repeat_interleave(len(images)), 4


def _accuracy(network: Network, held: Images) -> float:
    pixels, labels, _ = _task(held)
    return (see(network, pixels).logits.argmax(1) == labels).double().mean().item()


def fingerprint(*sets: Images) -> str:
    """The first letters of the hash of images and their labels."""
    tensors = {f"{i}.pixels": images.pixels for i, images in enumerate(sets)}
    tensors |= {f"{i}.labels": images.labels for i, images in enumerate(sets) if images.labels is not None}
    return hash_of(**tensors)


def hash_of(**tensors: Tensor) -> str:
    """The first letters of the hash of tensors."""
    return sha256(tensors)[:16]


def _place(kind: str, key: str) -> Path:
    """What is kept is of no use to other code, so that has a part in its name."""
    return cache() / f"{kind}-{hashlib.sha256(f'{CODE} {key}'.encode()).hexdigest()[:24]}.safetensors"
