"""A conditional GAN as two lists of blocks, which can be cut between any two blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from manyhands.models.base import Model
from manyhands.seed import seeded_globally
from manyhands.spec import Int

NETWORKS = ("generator", "discriminator")
GROUPS = 8
SLOPE = 0.2
MAX_INNER_SIDE = 8
"""The largest side of the first features of a generator and of the innermost features of a discriminator."""


class Gan(Model):
    """A convolutional GAN for square images.

    A generator is a linear block, blocks that double the side, one that keeps it (the ``middle`` one), another that
    doubles it and one that makes the image. A discriminator has the same blocks in reverse order. At 28 x 28 x 1 they
    have exactly the parameters of HuSCF-GAN; other sizes follow the same rule.

    References:
        Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks, Radford, Metz,
            Chintala, 2015, arXiv 1511.06434
        Conditional Generative Adversarial Nets, Mirza, Osindero, 2014, arXiv 1411.1784
    """

    has_parts: ClassVar[bool] = True
    weights_of: ClassVar[str] = "both of its networks"

    kind: Literal["gan"] = Field(default="gan", description="Selects this kind of model.")
    size: Int = Field(ge=8, le=1024, description="The side of the square images in pixels.")
    channels: Int = Field(ge=1, le=16, description="The number of image channels: 1 for grey, 3 for RGB.")
    classes: Int = Field(ge=0, le=100_000, description="The number of classes; 0 for an unconditional model.")
    latent: Int = Field(
        default=100, ge=1, le=65_536, description="The number of noise values that the generator starts from."
    )
    width: Int = Field(default=64, ge=1, le=4096, description="The number of features at the largest side.")
    norm: Literal["batch", "group"] = Field(default="batch", description="The normalization: batch norm or group norm.")
    loss: Literal["bce", "hinge"] = Field(
        default="bce", description="The adversarial loss: binary cross-entropy (bce) or hinge."
    )
    spectral: bool = Field(default=False, description="Whether the discriminator has spectral normalization.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.size % 2**self.halvings:
            raise ValueError(f"size {self.size} is not a multiple of {2**self.halvings}")
        if self.norm == "group" and self.width % GROUPS:
            raise ValueError(f"width {self.width} is not a multiple of {GROUPS}, the groups of norm = 'group'")
        return self

    @property
    def noun(self) -> str:
        """What errors call it."""
        return "a GAN"

    @property
    def halvings(self) -> int:
        """How often the side of an image is halved before the middle block of the discriminator, at least twice."""
        count = 2
        while self.size / 2**count > MAX_INNER_SIDE:
            count += 1
        return count

    @property
    def middle(self) -> int:
        """The number of the middle block of both networks, counted from 0."""
        return self.halvings

    @property
    def depth(self) -> int:
        """The number of blocks of each network."""
        return self.halvings + 3

    def build(self, seed: int) -> GanModule:
        """Build both networks with the initial weights of this seed."""
        with seeded_globally(seed, "gan"):
            return GanModule(self)

    def part_of(self, name: str) -> Literal["down", "up"]:
        """Return where a weight is: the discriminator is the way down, the generator the way up."""
        return "down" if name.startswith("discriminator") else "up"

    def discriminator_loss(self, logits: Tensor, *, real: bool) -> Tensor:
        """Return the loss of the discriminator from its logits of real or of generated images, (B, 1)."""
        if self.loss == "hinge":
            return (1 - logits if real else 1 + logits).relu().mean()
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))

    def generator_loss(self, logits: Tensor) -> Tensor:
        """Return the loss of the generator from the discriminator's logits of its images, (B, 1)."""
        return -logits.mean() if self.loss == "hinge" else self.discriminator_loss(logits, real=True)


class GanModule(nn.Module):
    """Generator and discriminator as lists of blocks. The first block of each takes the labels, too."""

    def __init__(self, spec: Gan) -> None:
        super().__init__()
        self.generator = nn.ModuleList(_generator(spec))
        self.discriminator = nn.ModuleList(_discriminator(spec))

    def keep(self, kept: Callable[[str, int], bool]) -> Self:
        """Keep the blocks for which ``kept(network, number)`` is true, with their names, and remove the others."""
        for network in NETWORKS:
            blocks = getattr(self, network)
            for number in range(len(blocks)):
                if not kept(network, number):
                    blocks[number] = nn.Identity()
        return self


def iteration(
    spec: Gan, networks: GanModule, optimiser: torch.optim.Optimizer, x: Tensor, labels: Tensor | None, z: Tensor
) -> tuple[Tensor, Tensor]:
    """Take one step of the discriminator and one of the generator on the same generated images.

    Args:
        spec: The specification of the GAN.
        networks: Both networks.
        optimiser: One optimiser of both networks; it leaves weights without a gradient alone.
        x: Real images in [-1, 1], (B, C, H, W).
        labels: The class numbers, (B,), or None for an unconditional GAN.
        z: The noise that images are generated from, (B, latent).

    Returns:
        The losses of the discriminator and of the generator.
    """
    generated = run_blocks(networks.generator, z, labels)
    optimiser.zero_grad(set_to_none=True)
    fake_loss = spec.discriminator_loss(run_blocks(networks.discriminator, generated.detach(), labels), real=False)
    fake_loss.backward()
    real_loss = spec.discriminator_loss(run_blocks(networks.discriminator, x, labels), real=True)
    real_loss.backward()
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    loss = spec.generator_loss(run_blocks(networks.discriminator, generated, labels))
    loss.backward()
    networks.discriminator.zero_grad(set_to_none=True)
    optimiser.step()
    return (fake_loss + real_loss).detach(), loss.detach()


def run_blocks(blocks: Sequence[nn.Module] | nn.ModuleList, x: Tensor, labels: Tensor | None = None) -> Tensor:
    """Run blocks one after another on x, (B, ...); labels are for the first block of a whole network."""
    for block in blocks:
        x = block(x, labels) if isinstance(block, Conditioned) else block(x)
    return x


class Conditioned(nn.Module):
    """The first block of a network, which takes the labels, too."""


class FromNoise(Conditioned):
    """The first block of the generator: it turns noise and the embedding of the label into features."""

    def __init__(self, spec: Gan, width: int, side: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(spec.classes, spec.classes) if spec.classes else None
        self.linear = nn.Linear(spec.latent + spec.classes, width * side * side)
        self.map = nn.Unflatten(1, (width, side, side))
        flat = spec.norm == "batch"
        self.norm = BatchNorm(width * side * side) if flat else nn.GroupNorm(GROUPS, width)
        self.relu = nn.ReLU()

    def forward(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Turn noise, (B, latent), and labels, (B,), into features, (B, width, side, side)."""
        if self.embedding is not None:
            z = torch.cat([z, self.embedding(labels)], 1)
        x = self.linear(z)
        x = self.norm(self.map(x)) if isinstance(self.norm, nn.GroupNorm) else self.map(self.norm(x))
        out: Tensor = self.relu(x)
        return out


class FromImage(Conditioned):
    """The first block of the discriminator: the label is embedded as another channel of the image."""

    def __init__(self, spec: Gan) -> None:
        super().__init__()
        self.size = spec.size
        self.embedding = nn.Embedding(spec.classes, spec.size**2) if spec.classes else None
        self.block = _down(spec, spec.channels + bool(spec.classes), spec.width)

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """Turn images, (B, C, H, W), and labels, (B,), into features, (B, width, H / 2, W / 2)."""
        if self.embedding is not None:
            x = torch.cat([x, self.embedding(labels).reshape(-1, 1, self.size, self.size)], 1)
        out: Tensor = self.block(x)
        return out


def _generator(spec: Gan) -> list[nn.Module]:
    width, side = spec.width * 2**spec.halvings, spec.size // 2**spec.halvings
    blocks: list[nn.Module] = [FromNoise(spec, width, side)]
    for _ in range(spec.halvings - 1):
        blocks.append(_up(spec, width, width // 2))
        width //= 2
    same = nn.ConvTranspose2d(width, width, 3, 1, 1)
    image = nn.ConvTranspose2d(width // 2, spec.channels, 3, 1, 1)
    last = nn.Sequential(image, nn.Tanh())
    return [*blocks, nn.Sequential(same, _norm(spec, width), nn.ReLU()), _up(spec, width, width // 2), last]


def _discriminator(spec: Gan) -> list[nn.Module]:
    blocks: list[nn.Module] = [FromImage(spec)]
    width, side = spec.width, spec.size // 2
    for _ in range(spec.halvings - 1):
        blocks.append(_down(spec, width, width * 2))
        width, side = width * 2, side // 2
    same = _bounded(spec, nn.Conv2d(width, width, 3, 1, 1))
    middle = nn.Sequential(same, _norm(spec, width), nn.LeakyReLU(SLOPE))
    logits = _bounded(spec, nn.Linear(width * 2 * (side // 2) ** 2, 1))
    return [*blocks, middle, _down(spec, width, width * 2), nn.Sequential(nn.Flatten(), logits)]


def _up(spec: Gan, width: int, out: int) -> nn.Module:
    return nn.Sequential(nn.ConvTranspose2d(width, out, 4, 2, 1), _norm(spec, out), nn.ReLU())


def _down(spec: Gan, width: int, out: int) -> nn.Module:
    conv = _bounded(spec, nn.Conv2d(width, out, 4, 2, 1))
    return nn.Sequential(conv, _norm(spec, out), nn.LeakyReLU(SLOPE))


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm that does not count its batches: its momentum is fixed, and counts could not be averaged."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.num_batches_tracked = None

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 - the name in PyTorch
        pass

    def _load_from_state_dict(self, *args: Any) -> None:
        nn.Module._load_from_state_dict(self, *args)  # without the count that batch norm adds here


def _norm(spec: Gan, width: int) -> nn.Module:
    return BatchNorm(width) if spec.norm == "batch" else nn.GroupNorm(GROUPS, width)


def _bounded(spec: Gan, layer: nn.Module) -> nn.Module:
    return nn.utils.parametrizations.spectral_norm(layer) if spec.spectral else layer
