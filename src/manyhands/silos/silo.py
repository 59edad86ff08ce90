"""A silo: a holder of images, and the device that it works on."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch

from manyhands.data.images import Images
from manyhands.errors import DataError, RecipeError
from manyhands.seed import torch_rng
from manyhands.silos.silo_memory import SiloMemory

if TYPE_CHECKING:
    from collections.abc import Hashable

    from manyhands.data.latents import Latents

NAME = r"[a-z0-9][a-z0-9._-]{0,62}"
FROM_THE_SEED = "is generated from the run's seed, and anyone who knows the seed can remove the noise"
"""The warning about noise of a silo without a ``secret``."""
NAME_RULE = "use a-z, 0-9, '.', '_' and '-', at most 63 of them"


def is_name(name: str) -> bool:
    """Whether this is a valid name of a silo: it names a folder, and is part of seeds."""
    return bool(re.fullmatch(NAME, name)) and ".." not in name


class Buildable(Protocol):
    """A specification of a network: equal specifications build interchangeable networks."""

    def __hash__(self) -> int: ...

    def build(self, seed: int) -> torch.nn.Module:
        """Build the network with the initial weights of this seed."""
        ...


class DeviceContext:
    """What silos in one process share: a device, and one working copy of each network.

    A working copy holds whatever its last user left in it: load weights into it after every yield.

    Args:
        device: The name of the device.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.known_flops: dict[Hashable, int] = {}
        self._networks: dict[Hashable, torch.nn.Module] = {}

    def network(self, spec: Buildable, role: str = "") -> Any:
        """The working copy for a specification; another role has another one."""
        if (spec, role) not in self._networks:
            self._networks[spec, role] = spec.build(seed=0).to(self.device)
        return self._networks[spec, role]


@dataclass
class Silo:
    """A holder of images. Nothing of it leaves except in a message.

    Args:
        name: The name, of a-z, 0-9, '.', '_' and '-', at most 63 characters.
        images: The images to train on. Those that are marked as held out are moved to ``held_out``.
        seed: The seed of the run.
        device_context: The device, and the networks that silos in this process share.
        memory: The tensors that a method keeps at the silo between rounds; they are its checkpoint.
        held_out: The images that trained models are evaluated on; nothing trains on them.
        latents: The images as latents, for latent models; they are encoded again when a run is resumed.
        secret: What private noise is drawn from. Without it, noise is drawn from the seed of the run: that is a
            simulation, and the report says so.
    """

    name: str
    images: Images
    seed: int = 0
    device_context: DeviceContext = field(default_factory=DeviceContext)
    memory: SiloMemory = field(default_factory=SiloMemory, repr=False)
    held_out: Images | None = None
    latents: Latents | None = field(default=None, repr=False)
    secret: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise RecipeError(f"silo name {self.name!r}: {NAME_RULE}")
        if not isinstance(self.images, Images):
            raise DataError(
                f"{self.name}: its images are of type {type(self.images).__name__}, Images are expected: "
                "Images.from_arrays(...)"
            )
        if not isinstance(self.secret, str):
            raise RecipeError(f"{self.name}: its secret is of type {type(self.secret).__name__}, not str")
        if self.images.held is not None:
            self._hold_out()

    def _hold_out(self) -> None:
        """Move the images that are marked as held out to ``held_out``, so that nothing trains on them."""
        train, marked = self.images.split_held_out()
        if self.held_out is not None and len(marked) and not marked.has_pixels_of(self.held_out):
            raise DataError(
                f"{self.name}: {len(marked)} of its images are marked as held out, but held_out has other images "
                f"({len(self.held_out)}); give either marks or held_out"
            )
        self.images, self.held_out = train, marked if self.held_out is None else self.held_out

    @property
    def noise_secret(self) -> str:
        """What private noise is drawn from; without a ``secret``, whoever knows the seed can remove the noise."""
        return self.secret or f"simulated {self.seed} {self.name}"

    def rng(self, round_number: int) -> torch.Generator:
        """Return the random numbers of this silo in this round, on its device."""
        return torch_rng(self.seed, self.name, round_number, device=self.device_context.device)


def distinct(silos: list[Silo]) -> list[Silo]:
    """Sort silos by name, and raise an error if two have the same name."""
    names = [silo.name for silo in silos]
    if twice := {name for name in names if names.count(name) > 1}:
        raise RecipeError(f"two silos are called {min(twice)!r}; each needs its own name")
    return sorted(silos, key=lambda silo: silo.name)
