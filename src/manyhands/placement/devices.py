"""The machines of a federation, read from TOML files: how fast each kind of device is, and how much memory it has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from manyhands.errors import RecipeError
from manyhands.models.gan import Gan
from manyhands.runs.recipe_file import read
from manyhands.spec import Float, Int, Spec

GIGA = 1e9
Speed = Annotated[Float, Field(gt=0)]


class Machine(Spec):
    """A machine that runs blocks of a network."""

    gflops: Float = Field(gt=0, description="The speed of training in GFLOP/s.")
    blocks: dict[Literal["generator", "discriminator"], tuple[Speed, ...]] = Field(
        default_factory=dict,
        description="The measured speed of each block of a network in GFLOP/s; gflops where it is left out.",
    )

    def speed(self, network: str, block: int) -> float:
        """Return the operations per second in a block."""
        speeds = self.blocks.get(network)  # type: ignore[call-overload]
        return GIGA * float(speeds[block] if speeds else self.gflops)


class Device(Machine):
    """A kind of device, with its link to the server."""

    count: Int = Field(default=1, ge=1, le=1_000_000, description="The number of devices of this kind.")
    rate: Float = Field(gt=0, description="The upload rate to the server in bytes per second.")
    down: Float | None = Field(
        default=None,
        gt=0,
        description="The download rate from the server in bytes per second; None for the rate of the server.",
    )
    latency: Float = Field(default=0.0, ge=0, description="The seconds that any message takes, however small.")
    memory: Float | None = Field(default=None, gt=0, description="The bytes of memory for training; None for no limit.")


class ServerMachine(Machine):
    """The server."""

    rate: Float | None = Field(
        default=None,
        gt=0,
        description="The download rate of each device in bytes per second; None where every device has its own (down).",
    )


class Fleet(Spec):
    """A server and its devices."""

    batch: Int = Field(default=64, ge=1, description="The images that each device trains on in an iteration.")
    server: ServerMachine = Field(description="The server.")
    devices: dict[str, Device] = Field(min_length=1, description="The kinds of devices by name.")

    @model_validator(mode="after")
    def _has_download_rates(self) -> Self:
        for name, device in self.devices.items():
            if device.down is None and self.server.rate is None:
                raise ValueError(f"neither devices.{name}.down nor server.rate gives its download rate")
        return self

    @property
    def total(self) -> int:
        """The number of devices of all kinds."""
        return sum(device.count for device in self.devices.values())

    def down(self, device: Device) -> float:
        """Return the bytes per second from the server to a device."""
        return float(device.down or self.server.rate or 0)


class PlacementSpec(Fleet):
    """What a planner needs: a fleet of devices, and the GAN whose cuts it looks for."""

    model: Gan = Field(default=Gan(size=28, channels=1, classes=10), description="The GAN that is to be cut.")

    @model_validator(mode="after")
    def _blocks_are_the_models(self) -> Self:
        machines: dict[str, Machine] = {f"devices.{name}": device for name, device in self.devices.items()}
        for name, machine in (machines | {"server": self.server}).items():
            for network, speeds in machine.blocks.items():
                if len(speeds) != self.model.depth:
                    raise ValueError(
                        f"{name}.blocks.{network} has {len(speeds)} speeds, but the model has {self.model.depth} blocks"
                    )
        return self


class Profile(Spec):
    """The content of one devices file, which may be a part of the whole: for example one measured machine."""

    batch: Int = Field(default=64, ge=1, description="The images that each device trains on in an iteration.")
    model: Gan = Field(default=Gan(size=28, channels=1, classes=10), description="The GAN that is to be cut.")
    server: ServerMachine | None = Field(default=None, description="The server; None where another file has it.")
    devices: dict[str, Device] = Field(default_factory=dict, description="The kinds of devices by name.")


def load_devices(paths: Sequence[Path]) -> PlacementSpec:
    """Read one devices file, or several that complete each other.

    Args:
        paths: The files.

    Raises:
        RecipeError: A file is wrong, two disagree, or something is missing.
    """
    profiles = {path: read(Profile, path, "device file") for path in paths}
    where = ", ".join(map(str, paths))
    devices: dict[str, Device] = {}
    for path, profile in profiles.items():
        if twice := sorted(devices.keys() & profile.devices.keys()):
            raise RecipeError(f"{path}: devices.{twice[0]}: is in another file, too; give it another name")
        devices |= profile.devices
    if not devices:
        raise RecipeError(f"{where}: devices: there is no device")
    if (server := _one(profiles, "server")) is None:
        raise RecipeError(f"{where}: server: is missing; `manyhands profile --server N` measures it")
    batch, model = _one(profiles, "batch"), _one(profiles, "model")
    try:
        return PlacementSpec.model_validate({"batch": batch, "server": server, "devices": devices, "model": model})
    except ValidationError as error:
        details = error.errors()
        message = "; ".join(detail["msg"].removeprefix("Value error, ") for detail in details)
        raise RecipeError(f"{where}: {message}") from None


def load_model(path: Path) -> Profile:
    """Read the batch and the model of a devices file, which need not have any devices."""
    return read(Profile, path, "device file")


def _one(profiles: dict[Path, Profile], name: str) -> Any:
    """Return the value of a field on which all files that set it agree, or its default."""
    values = [(path, getattr(profile, name)) for path, profile in profiles.items() if name in profile.model_fields_set]
    for path, value in values[1:]:
        if value != values[0][1]:
            raise RecipeError(f"{path}: {name}: differs from that of {values[0][0]}")
    return values[0][1] if values else Profile.model_fields[name].default
