"""The machines of a federation, as TOML files tell of them: how fast each kind is, and what it holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from manyhands.errors import RecipeError
from manyhands.models.gan import Gan
from manyhands.runs.recipe import read
from manyhands.spec import Float, Int, Spec

GIGA = 1e9
Speed = Annotated[Float, Field(gt=0)]


class Machine(Spec):
    """What works: GFLOP/s. ``blocks`` are those of each block of a network, where they were measured."""

    gflops: Float = Field(gt=0)
    blocks: dict[Literal["generator", "discriminator"], tuple[Speed, ...]] = Field(default_factory=dict)

    def speed(self, network: str, block: int) -> float:
        """Operations a second in a block."""
        told = self.blocks.get(network)  # type: ignore[call-overload]
        return GIGA * float(told[block] if told else self.gflops)


class Device(Machine):
    """So many devices of a kind, with bytes a second towards the server (``rate``) and of memory for training.

    ``down`` is the rate from the server, where it was measured, else the server's own; ``latency`` the seconds that
    any message takes, however small.
    """

    count: Int = Field(default=1, ge=1, le=1_000_000)
    rate: Float = Field(gt=0)
    down: Float | None = Field(default=None, gt=0)
    latency: Float = Field(default=0.0, ge=0)
    memory: Float | None = Field(default=None, gt=0)


class Central(Machine):
    """The server, with bytes a second towards each device; of no use where all devices tell theirs."""

    rate: Float | None = Field(default=None, gt=0)


class Fleet(Spec):
    """A server, its devices, and how many images each of them takes in an iteration."""

    batch: Int = Field(default=64, ge=1)
    server: Central
    devices: dict[str, Device] = Field(min_length=1)

    @model_validator(mode="after")
    def _hears_the_server(self) -> Self:
        for name, device in self.devices.items():
            if device.down is None and self.server.rate is None:
                raise ValueError(f"neither devices.{name}.down nor server.rate says how fast it hears the server")
        return self

    @property
    def total(self) -> int:
        """How many devices there are."""
        return sum(device.count for device in self.devices.values())

    def down(self, device: Device) -> float:
        """Bytes a second from the server to a device."""
        return float(device.down or self.server.rate or 0)


class PlacementSpec(Fleet):
    """What a planner needs: a fleet of devices, and the GAN whose cuts it looks for."""

    model: Gan = Gan(size=28, channels=1, classes=10)

    @model_validator(mode="after")
    def _blocks_are_the_models(self) -> Self:
        machines: dict[str, Machine] = {f"devices.{name}": each for name, each in self.devices.items()}
        for name, machine in (machines | {"server": self.server}).items():
            for network, speeds in machine.blocks.items():
                if len(speeds) != self.model.depth:
                    raise ValueError(
                        f"{name}.blocks.{network} has {len(speeds)} speeds, the model has {self.model.depth} blocks"
                    )
        return self


class Profile(Spec):
    """What one file tells, which may be a part of all: what was measured on one machine."""

    batch: Int = Field(default=64, ge=1)
    model: Gan = Gan(size=28, channels=1, classes=10)
    server: Central | None = None
    devices: dict[str, Device] = Field(default_factory=dict)


def load_devices(paths: Sequence[Path]) -> PlacementSpec:
    """The devices of a file, or of several together."""
    told = {path: read(Profile, path, "device file") for path in paths}
    where = ", ".join(map(str, paths))
    devices: dict[str, Device] = {}
    for path, each in told.items():
        if twice := sorted(devices.keys() & each.devices.keys()):
            raise RecipeError(f"{path}: devices.{twice[0]}: is told of in another file, too; give it another name")
        devices |= each.devices
    if not devices:
        raise RecipeError(f"{where}: devices: no device is told of")
    if (server := _one(told, "server")) is None:
        raise RecipeError(f"{where}: server: is not told of; `manyhands profile --server N` measures it")
    try:
        return PlacementSpec(batch=_one(told, "batch"), server=server, devices=devices, model=_one(told, "model"))
    except ValueError as error:
        words = "; ".join(each["msg"].removeprefix("Value error, ") for each in error.errors())  # type: ignore[attr-defined]
        raise RecipeError(f"{where}: {words}") from None


def load_model(path: Path) -> Profile:
    """The batch and the networks of a file of devices, or of one that says nothing else."""
    return read(Profile, path, "device file")


def _one(told: dict[Path, Profile], name: str) -> Any:
    """What all who say something of it agree on, or what it is if nobody does."""
    said = [(path, getattr(each, name)) for path, each in told.items() if name in each.model_fields_set]
    for path, value in said[1:]:
        if value != said[0][1]:
            raise RecipeError(f"{path}: {name}: is another than that of {said[0][0]}")
    return said[0][1] if said else Profile.model_fields[name].default
