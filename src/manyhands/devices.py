"""The machines of a federation, as a TOML file tells of them: how fast each kind is, and what it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from manyhands.models.gan import Gan
from manyhands.recipe import read
from manyhands.spec import Float, Int, Spec

GIGA = 1e9


class Device(Spec):
    """So many devices of a kind: GFLOP/s, bytes a second towards the server, and bytes of memory for training.

    ``blocks`` are measured GFLOP/s of each block of a network, where they were.
    """

    count: Int = Field(default=1, ge=1, le=1_000_000)
    gflops: Float = Field(gt=0)
    rate: Float = Field(gt=0)
    memory: Float | None = Field(default=None, gt=0)
    blocks: dict[Literal["generator", "discriminator"], tuple[Float, ...]] = Field(default_factory=dict)

    def speed(self, network: str, block: int) -> float:
        """Operations a second in a block."""
        told = self.blocks.get(network)  # type: ignore[call-overload]
        return GIGA * float(told[block] if told else self.gflops)


class Central(Spec):
    """The server: GFLOP/s, and bytes a second towards each device."""

    gflops: Float = Field(gt=0)
    rate: Float = Field(gt=0)


class Fleet(Spec):
    """A server, its devices, and how many images each of them takes in an iteration."""

    batch: Int = Field(default=64, ge=1)
    server: Central
    devices: dict[str, Device] = Field(min_length=1)

    @property
    def total(self) -> int:
        """How many devices there are."""
        return sum(device.count for device in self.devices.values())


class Advice(Fleet):
    """What is asked of an advisor, as a TOML file: devices, and the networks that are to be cut."""

    model: Gan = Gan(size=28, channels=1, classes=10)


def load_devices(path: Path) -> Advice:
    """The devices of a file."""
    return read(Advice, path, "device file")
