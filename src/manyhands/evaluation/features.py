"""Embeddings of images: the features and the logits from which all metrics are computed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyhands.data.images import Images, as_floats
from manyhands.errors import DiskError
from manyhands.evaluation.lazy_pixels import LazyPixels, pixel_batches
from manyhands.files.cache import cache_folder
from manyhands.files.write import replace_file
from manyhands.seed import numpy_rng, seeded_globally
from manyhands.tensors import TensorInParts, Tensors, sha256, snapshot

EPOCHS, MIN_STEPS, MAX_STEPS, BATCH, WIDTH = 20, 300, 1000, 128, 128
MEASURING = (
    "features",
    "distortions",
    "lazy_pixels",
    "inception",
    "evaluator",
    "drawing",
    "metrics",
    "precision_recall",
)
VERSIONS = " ".join(f"{name} {version(name)}" for name in ("torch", "torchmetrics", "prdc", "scikit-learn", "numpy"))
CODE = hashlib.sha256(
    VERSIONS.encode() + b"".join(Path(__file__).with_name(f"{name}.py").read_bytes() for name in MEASURING)
).hexdigest()
"""The hash of everything but the images that figures depend on: the code that measures, and its libraries."""


class Extractor(Protocol):
    """A network that embeds images."""

    @property
    def name(self) -> str:
        """A name that no other network has: its kind, and a hash of its weights."""
        ...

    def __call__(self, images: Tensor | LazyPixels) -> Embedding:
        """Embed images (N, C, H, W): bytes, or floats in [-1, 1]."""
        ...


@dataclass(frozen=True)
class Embedding:
    """What a network computes from N images: features (N, D) and logits (N, K)."""

    features: Tensor
    logits: Tensor


class FeatureNetwork(nn.Module):
    """A small convolutional classifier: 32, 64, 64 ... channels, pooled to at most 7 x 7, and 128 features.

    ``scale`` divides the features so that those of the training images have a mean square of 1; figures of different
    data are then of the same order of magnitude.

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
        """Compute the features (N, 128) and the logits (N, K) of images (N, C, H, W)."""
        features = self.body(images)
        return features / self.scale, self.head(features)


@dataclass(frozen=True)
class Classifier:
    """A classifier trained on real images; ``accuracy`` is its accuracy on held-out ones."""

    network: FeatureNetwork
    name: str
    accuracy: float

    def __call__(self, images: Tensor | LazyPixels) -> Embedding:
        """Embed images (N, C, H, W)."""
        return embed(self.network, images, batch_for(images))


def embed(
    network: Callable[[Tensor], tuple[Tensor, Tensor]], images: Tensor | LazyPixels, batch: int = 256
) -> Embedding:
    """Embed images (N, C, H, W) with a network, batch by batch."""
    with torch.no_grad():
        parts = [network(as_floats(part)) for part in pixel_batches(images, batch)]
    features, logits = zip(*parts, strict=True)
    return Embedding(torch.cat(features), torch.cat(logits))


def train_features(
    pixels: Tensor | LazyPixels, labels: Tensor, classes: int, *, steps: int, batch: int, seed: int = 0
) -> FeatureNetwork:
    """Train a classifier from scratch; see ``fit``."""
    with seeded_globally(seed, "classifier"):
        network = FeatureNetwork(pixels.shape[-1], pixels.shape[1], classes)
    return fit(
        network,
        lambda numbers: (as_floats(pixels[numbers]), labels[numbers]),
        len(pixels),
        steps=steps,
        batch_size=batch,
        seed=seed,
    )


def fit(
    network: FeatureNetwork,
    batch: Callable[[Tensor], tuple[Tensor, Tensor]],
    count: int,
    *,
    steps: int,
    batch_size: int,
    seed: int,
) -> FeatureNetwork:
    """Train a network to classify, with Adam and a learning rate that falls linearly from 1e-3 to 0.

    Args:
        network: The network, which is changed and returned.
        batch: Returns images in [-1, 1] and their labels, for the numbers of a batch.
        count: How many images there are; each is used once before any is used again.
        steps: The number of steps.
        batch_size: The images of a batch.
        seed: The seed of the order of the images.
    """
    optimiser = torch.optim.Adam(network.parameters(), 1e-3, fused=True)
    rng = numpy_rng(seed, "classifier batches")
    batch_size, order = min(batch_size, count), torch.empty(0, dtype=torch.long)
    for step in range(steps):
        if len(order) < batch_size:
            order = torch.cat([order, torch.from_numpy(rng.permutation(count))])
        numbers, order = order[:batch_size], order[batch_size:]
        optimiser.param_groups[0]["lr"] = 1e-3 * (1 - step / steps)
        optimiser.zero_grad()
        images, labels = batch(numbers)
        F.cross_entropy(network(images)[1], labels).backward()
        optimiser.step()
    return network.eval()


def scale_to(network: FeatureNetwork, pixels: LazyPixels) -> None:
    """Set the scale of a network, so that the features of these images have a mean square of 1."""
    some = pixels[torch.arange(0, len(pixels), max(1, len(pixels) // 5000))]
    network.scale = embed(network, some).features.square().mean().sqrt()


def batch_for(images: Tensor | LazyPixels) -> int:
    """Return how many images are embedded at a time, of large ones fewer: the first layer gives 32 maps of each."""
    return max(1, min(256, 256 * 32**2 // (images.shape[-1] * images.shape[-2])))


def classifier(train: Images, held: Images) -> Classifier:
    """The classifier of a run's real images, trained once and cached under the hash of the images and of this code.

    Where images have no labels, it learns to classify rotations by 0, 90, 180 and 270 degrees.
    """
    pixels, labels, classes = _task(train)
    key = f"{fingerprint(train, held)} {classes}"
    cached = recall("classifier", key)
    network = FeatureNetwork(pixels.shape[-1], pixels.shape[1], classes)
    if cached is not None:
        accuracy = float(cached.pop("accuracy"))
        network.load_state_dict(cached)
        network.eval()
    else:
        steps = min(max(EPOCHS * len(pixels) // BATCH, MIN_STEPS), MAX_STEPS)
        network = train_features(pixels, labels, classes, steps=steps, batch=BATCH)
        scale_to(network, pixels)
        accuracy = _accuracy(network, held)
        remember(
            "classifier",
            key,
            {**snapshot(network.state_dict()), "accuracy": torch.tensor(accuracy, dtype=torch.float64)},
        )
    return Classifier(network, f"classifier {sha256(snapshot(network.state_dict()))[:8]}", accuracy)


def reference(extractor: Extractor, images: Images) -> Embedding:
    """The embedding of real images, cached under the hash of the extractor and the images."""
    key = f"{extractor.name} {fingerprint(images)}"
    cached = recall("embedding", key)
    if cached is not None:
        return Embedding(cached["features"], cached["logits"])
    embedding = extractor(LazyPixels(images))
    remember("embedding", key, {"features": embedding.features, "logits": embedding.logits})
    return embedding


def recall(kind: str, key: str) -> Tensors | None:
    """Read tensors from the cache; None where they are not there or the file is damaged."""
    try:
        return dict(safetensors.torch.load_file(_place(kind, key)))
    except (OSError, safetensors.SafetensorError):
        return None


def remember(kind: str, key: str, tensors: Tensors) -> None:
    """Write tensors to the cache, if it can be written."""
    try:
        cache_folder().mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_file(_place(kind, key), safetensors.torch.save(tensors))
    except (OSError, DiskError):
        return  # without a cache the same is computed again next time


def _task(images: Images) -> tuple[LazyPixels, Tensor, int]:
    """What the classifier learns: images, labels and their number; rotations where the images have no classes."""
    if images.labels is not None and len(images.classes) > 1:
        return LazyPixels(images), images.labels, len(images.classes)
    return LazyPixels(images, turned=True), torch.arange(4).repeat_interleave(len(images)), 4


def _accuracy(network: FeatureNetwork, held: Images) -> float:
    pixels, labels, _ = _task(held)
    return (Classifier(network, "", 0)(pixels).logits.argmax(1) == labels).double().mean().item()


def fingerprint(*sets: Images) -> str:
    """The first 16 letters of the hash of images and their labels."""
    tensors: dict[str, Tensor | TensorInParts] = {f"{i}.pixels": images.stored for i, images in enumerate(sets)}
    tensors |= {f"{i}.labels": images.labels for i, images in enumerate(sets) if images.labels is not None}
    return hash_of(**tensors)


def hash_of(**tensors: Tensor | TensorInParts) -> str:
    """The first 16 letters of the hash of tensors."""
    return sha256(tensors)[:16]


def _place(kind: str, key: str) -> Path:
    """The file of a cache entry; the hash of the code is part of its name, since other code must not use it."""
    return cache_folder() / f"{kind}-{hashlib.sha256(f'{CODE} {key}'.encode()).hexdigest()[:24]}.safetensors"
