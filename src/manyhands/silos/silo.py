"""A data holder: what it owns, and the machine it works on."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch

from manyhands.errors import DataError, RecipeError
from manyhands.seed import torch_rng

if TYPE_CHECKING:
    from collections.abc import Hashable

    from manyhands.data.images import Images
    from manyhands.data.latents import Latents
    from manyhands.tensors import Tensors

NAME = r"[a-z0-9][a-z0-9._-]{0,62}"
FROM_THE_SEED = "is drawn from the run's seed, and whoever knows that can remove it"
"""What is said of noise where there is no ``secret``."""
NAME_RULE = "use a-z, 0-9, '.', '_' and '-', at most 63 of them"


def is_name(name: str) -> bool:
    """Whether a silo may be called so: it is a folder's name, and part of seeds."""
    return bool(re.fullmatch(NAME, name)) and ".." not in name


class Buildable(Protocol):
    """A specification of a network: equal ones build networks that can stand in for each other."""

    def __hash__(self) -> int: ...

    def build(self, seed: int) -> torch.nn.Module:
        """The network, freshly initialised."""
        ...


class DeviceContext:
    """What silos in one process share: a device, and one working copy of each network.

    A working copy holds whatever its last user left in it: load weights into it after every yield.
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
    """What a data holder owns. None of it leaves but in a message.

    It trains on ``images``, never on those ``held_out``, which what was trained is held against. Images that come with
    marks of what is held out are divided into the two. ``memory`` holds the tensors that a method keeps at the silo
    over rounds; it is checkpointed there. ``latents`` are the images as a latent model trains on them; they are made
    anew when a run goes on. ``secret`` is what noise that must hide something is drawn from; without one it is made of
    the run's seed: a simulation, and the report says so.
    """

    name: str
    images: Images
    seed: int = 0
    device_context: DeviceContext = field(default_factory=DeviceContext)
    memory: Tensors = field(default_factory=dict, repr=False)
    held_out: Images | None = None
    latents: Latents | None = field(default=None, repr=False)
    secret: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise RecipeError(f"silo name {self.name!r}: {NAME_RULE}")

        if not isinstance(self.secret, str):
            raise RecipeError(f"{self.name}: its secret is a {type(self.secret).__name__}, not text")
        if self.images.held is not None:
            self._hold_out()

    def _hold_out(self) -> None:
        """Keep apart what the images' own marks say: whoever builds a silo, nothing trains on those."""
        train, marked = self.images.split_held_out()
        if self.held_out is not None and len(marked) and not torch.equal(marked.pixels, self.held_out.pixels):
            raise DataError(
                f"{self.name}: {len(marked)} of its images are marked as held out, and held_out has other images "
                f"({len(self.held_out)}); give either marks or held_out"
            )
        self.images, self.held_out = train, marked if self.held_out is None else self.held_out

    @property
    def noise_secret(self) -> str:
        """What noise that hides something is drawn from; without a ``secret``, whoever knows the seed can remove it."""
        return self.secret or f"simulated {self.seed} {self.name}"

    def rng(self, round_number: int) -> torch.Generator:
        """The random numbers of this silo in this round, on its device."""
        return torch_rng(self.seed, self.name, round_number, device=self.device_context.device)


def distinct(silos: list[Silo]) -> list[Silo]:
    """The silos in the order of their names, or an error where two have one name."""
    names = [silo.name for silo in silos]
    if twice := {name for name in names if names.count(name) > 1}:
        raise RecipeError(f"two silos are called {min(twice)!r}; names must differ")
    return sorted(silos, key=lambda silo: silo.name)
