"""Features that see shapes, not only what tells classes apart: a network that tells how real images were distorted.

A classifier of three kinds of cells need not see whether a cell has an outline. One that is asked whether an image was
bent, or its halves were swapped, must. Noise and blur are not among the distortions: a network that is asked about them
sees little but grain, and takes sharp noise for better than a smooth cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from manyhands.data.images import Images, as_floats
from manyhands.evaluation import features
from manyhands.evaluation.features import Embedding, FeatureNetwork
from manyhands.evaluation.lazy_pixels import LazyPixels
from manyhands.seed import seeded_globally, torch_rng
from manyhands.tensors import sha256, snapshot

STEPS = 1200
BEND, BEND_POINTS = 0.12, 6
"""The deviation of how far the points of a grid are moved, in half sides; the points on a side."""


@dataclass(frozen=True)
class DistortionFeatures:
    """Embeds images by a network that tells the class of an image and which of three things was done to it.

    The three are: nothing, swapped halves, bending. Real, drawn and held-out images are embedded as they are.

    References:
        Revisiting Self-Supervised Visual Representation Learning, Kolesnikov et al., 2019, arXiv 1901.09005
        The Role of ImageNet Classes in Frechet Inception Distance, Kynkaanniemi et al., 2022, arXiv 2203.06026
    """

    network: FeatureNetwork

    @property
    def name(self) -> str:
        """A name that no other network has."""
        return f"distortions {sha256(snapshot(self.network.state_dict()))[:8]}"

    def __call__(self, images: Tensor | LazyPixels) -> Embedding:
        """Embed images (N, C, H, W)."""
        return features.embed(self.network, images, features.batch_for(images))


def distortion_features(train: Images) -> DistortionFeatures:
    """Return the network for these real images, trained once and cached under the hash of the images and of this code.

    Args:
        train: The images that silos train on.
    """
    size, channels, outputs = train.shape[-1], train.shape[1], max(1, len(train.classes)) * len(DISTORTIONS)
    key = f"{features.fingerprint(train)} {outputs}"
    if (cached := features.recall("distortions", key)) is not None:
        network = FeatureNetwork(size, channels, outputs)
        network.load_state_dict(cached)
        return DistortionFeatures(network.eval())
    with seeded_globally(0, "distortions"):
        network = FeatureNetwork(size, channels, outputs)
    rng = torch_rng(0, "distortions")

    def batch(numbers: Tensor) -> tuple[Tensor, Tensor]:
        kinds = torch.randint(len(DISTORTIONS), (len(numbers),), generator=rng)
        labels = train.labels[numbers] if train.labels is not None else 0
        return distorted(as_floats(train.read(numbers)), kinds, rng), labels * len(DISTORTIONS) + kinds

    features.fit(network, batch, len(train), steps=STEPS, batch_size=features.BATCH, seed=0)
    features.scale_to(network, LazyPixels(train))
    features.remember("distortions", key, snapshot(network.state_dict()))
    return DistortionFeatures(network)


def distorted(x: Tensor, kinds: Tensor, rng: torch.Generator) -> Tensor:
    """Return images in [-1, 1], (B, C, H, W), each distorted in its way.

    Args:
        x: The images.
        kinds: The numbers of the distortions, (B,); 0 leaves an image as it is.
        rng: The random numbers.
    """
    out = x.clone()
    for kind, distort in enumerate(DISTORTIONS):
        if (chosen := kinds == kind).any():
            out[chosen] = distort(x[chosen], rng)
    return out


def _same(x: Tensor, _: torch.Generator) -> Tensor:
    return x


def _swapped(x: Tensor, rng: torch.Generator) -> Tensor:
    """Upper and lower halves change places, or left and right ones, or both."""
    half, way = x.shape[-1] // 2, int(torch.randint(3, (), generator=rng))
    return x.roll(((half, 0), (0, half), (half, half))[way], (2, 3))


def _bent(x: Tensor, rng: torch.Generator) -> Tensor:
    moves = BEND * torch.randn(len(x), 2, BEND_POINTS, BEND_POINTS, generator=rng)
    moved = F.interpolate(moves, size=x.shape[-2:], mode="bicubic").permute(0, 2, 3, 1)
    still = F.affine_grid(torch.eye(2, 3).expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, still + moved, padding_mode="reflection", align_corners=False)


DISTORTIONS = (_same, _swapped, _bent)
