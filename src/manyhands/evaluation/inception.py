"""The Inception network of FID, with the weights that every published FID uses; the user provides their file.

By hand: torchmetrics takes the network from torch-fidelity, which needs torchvision.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyhands.errors import DataError
from manyhands.evaluation.features import Embedding, embed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from manyhands.evaluation.lazy_pixels import LazyPixels

SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
FROM = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
SIDE = 299

Step = tuple[str, int, tuple[int, int], int]
"""A convolution: its name, channels, kernel, and stride (1 keeps the size, 2 halves it without padding)."""


@dataclass(frozen=True)
class Inception:
    """Features after the last pooling, and logits without the bias, as the Inception score uses them.

    References:
        GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium, Heusel et al., 2017,
            arXiv 1706.08500
        Rethinking the Inception Architecture for Computer Vision, Szegedy et al., 2016, arXiv 1512.00567
    """

    network: InceptionNetwork
    device: str = "cpu"
    name: str = f"inception {SHA256[:8]}"

    def __call__(self, images: Tensor | LazyPixels) -> Embedding:
        """Embed images (N, C, H, W): grey ones as RGB, all enlarged to 299 x 299."""
        return embed(self._embed, images, batch=64)

    def _embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        rgb = images.to(self.device).expand(-1, 3, -1, -1)
        features, logits = self.network(enlarged(rgb * (127.5 / 128) - 0.5 / 128))
        return features.cpu(), logits.cpu()


def load(path: Path, device: str = "cpu") -> Inception:
    """Read the weights, after ``check_weights_file`` has checked them."""
    check_weights_file(path)
    network = InceptionNetwork()
    weights = torch.load(path, map_location="cpu", weights_only=True)  # a pickle, but only one with the hash above
    network.load_state_dict(weights)
    return Inception(network.eval().to(device), device)


def check_weights_file(path: Path) -> None:
    """Raise ``DataError`` where the file is missing or holds other weights."""
    if not path.is_file():
        raise DataError(
            f"{path}: there are no Inception weights here; download {FROM} and give its path: inception:PATH"
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise DataError(
            f"{path}: these are not the Inception weights: its SHA-256 begins with {digest[:16]}, {SHA256[:16]} is "
            f"expected, that of {FROM}"
        )


def enlarged(images: Tensor) -> Tensor:
    """Resize to 299 x 299, bilinearly and with corners aligned as in TensorFlow 1, as the network was trained."""
    for axis in (2, 3):
        side = images.shape[axis]
        position = torch.arange(SIDE, device=images.device, dtype=torch.float32) * (side / SIDE)
        low = position.floor().long()
        share = (position - low).reshape([-1 if i == axis else 1 for i in range(4)])
        images = torch.lerp(
            images.index_select(axis, low), images.index_select(axis, (low + 1).clamp(max=side - 1)), share
        )
    return images


class InceptionNetwork(nn.Module):
    """Inception v3 of 2015-12-05; its modules have the names that the file of weights uses."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, (3, 3), 2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, (3, 3), 1, padded=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, (3, 3), 1)
        self.Conv2d_3b_1x1 = Convolution(64, 80, (1, 1), 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, (3, 3), 1, padded=False)
        for name, width, pool in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
            setattr(self, f"Mixed_{name}", Block(width, _block_5(pool)))
        self.Mixed_6a = Block(288, _BLOCK_6A, pool="max", halves=True)
        for name, narrow in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            setattr(self, f"Mixed_{name}", Block(768, _block_6(narrow)))
        self.Mixed_7a = Block(768, _BLOCK_7A, pool="max", halves=True)
        self.Mixed_7b = Block(1280, _BLOCK_7)
        self.Mixed_7c = Block(2048, _BLOCK_7, pool="max")
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the features (N, 2048) and the logits (N, 1008) of images (N, 3, 299, 299) in [-1, 1]."""
        for name, layer in self.named_children():
            if name == "fc":
                break
            x = layer(x)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                x = F.max_pool2d(x, 3, 2)
        features = x.mean((2, 3))
        return features, features @ self.fc.weight.T


class Convolution(nn.Module):
    """A convolution without bias, with batch normalisation and ReLU."""

    def __init__(self, width: int, out: int, kernel: tuple[int, int], stride: int, *, padded: bool = True) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if stride == 1 and padded else (0, 0)
        self.conv = nn.Conv2d(width, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalise, rectify."""
        return F.relu(self.bn(self.conv(x)))


class Block(nn.Module):
    """Parallel branches of convolutions, one of them pooled, concatenated along the channels.

    A convolution whose name ends in ``a`` and the next, in ``b``, have the same input.
    """

    def __init__(
        self, width: int, chains: Sequence[Sequence[Step]], *, pool: str = "mean", halves: bool = False
    ) -> None:
        super().__init__()
        self.pool, self.halves = pool, halves
        self.chains = [[name for name, *_ in chain] for chain in chains]
        for chain in chains:
            before = width
            for name, out, kernel, stride in chain:
                setattr(self, name, Convolution(before, out, kernel, stride))
                before = before if name.endswith("a") else out

    def forward(self, x: Tensor) -> Tensor:
        """Run every branch and concatenate the results."""
        return torch.cat([y for chain in self.chains for y in self._along(chain, x)] + self._unchanged(x), 1)

    def _along(self, chain: Sequence[str], x: Tensor) -> list[Tensor]:
        x = self._pooled(x) if chain == ["branch_pool"] else x
        ends = [name for name in chain if name[-1] in "ab"]
        for name in chain[: len(chain) - len(ends)]:
            x = getattr(self, name)(x)
        return [getattr(self, name)(x) for name in ends] or [x]

    def _unchanged(self, x: Tensor) -> list[Tensor]:
        return [F.max_pool2d(x, 3, 2)] if self.halves else []

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pool == "max":
            return F.max_pool2d(x, 3, 1, 1)
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def _block_5(pool: int) -> list[list[Step]]:
    return [
        [("branch1x1", 64, (1, 1), 1)],
        [("branch5x5_1", 48, (1, 1), 1), ("branch5x5_2", 64, (5, 5), 1)],
        [("branch3x3dbl_1", 64, (1, 1), 1), ("branch3x3dbl_2", 96, (3, 3), 1), ("branch3x3dbl_3", 96, (3, 3), 1)],
        [("branch_pool", pool, (1, 1), 1)],
    ]


def _block_6(narrow: int) -> list[list[Step]]:
    return [
        [("branch1x1", 192, (1, 1), 1)],
        [("branch7x7_1", narrow, (1, 1), 1), ("branch7x7_2", narrow, (1, 7), 1), ("branch7x7_3", 192, (7, 1), 1)],
        [
            ("branch7x7dbl_1", narrow, (1, 1), 1),
            ("branch7x7dbl_2", narrow, (7, 1), 1),
            ("branch7x7dbl_3", narrow, (1, 7), 1),
            ("branch7x7dbl_4", narrow, (7, 1), 1),
            ("branch7x7dbl_5", 192, (1, 7), 1),
        ],
        [("branch_pool", 192, (1, 1), 1)],
    ]


_BLOCK_6A: list[list[Step]] = [
    [("branch3x3", 384, (3, 3), 2)],
    [("branch3x3dbl_1", 64, (1, 1), 1), ("branch3x3dbl_2", 96, (3, 3), 1), ("branch3x3dbl_3", 96, (3, 3), 2)],
]
_BLOCK_7A: list[list[Step]] = [
    [("branch3x3_1", 192, (1, 1), 1), ("branch3x3_2", 320, (3, 3), 2)],
    [
        ("branch7x7x3_1", 192, (1, 1), 1),
        ("branch7x7x3_2", 192, (1, 7), 1),
        ("branch7x7x3_3", 192, (7, 1), 1),
        ("branch7x7x3_4", 192, (3, 3), 2),
    ],
]
_BLOCK_7: list[list[Step]] = [
    [("branch1x1", 320, (1, 1), 1)],
    [("branch3x3_1", 384, (1, 1), 1), ("branch3x3_2a", 384, (1, 3), 1), ("branch3x3_2b", 384, (3, 1), 1)],
    [
        ("branch3x3dbl_1", 448, (1, 1), 1),
        ("branch3x3dbl_2", 384, (3, 3), 1),
        ("branch3x3dbl_3a", 384, (1, 3), 1),
        ("branch3x3dbl_3b", 384, (3, 1), 1),
    ],
    [("branch_pool", 192, (1, 1), 1)],
]
