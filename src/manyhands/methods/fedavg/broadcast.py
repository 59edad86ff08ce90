"""How the shared weights are sent to silos, and which weights each side has afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from manyhands.messages.codec.codec import MAX_WEIGHT, Codec, Float16, max_wire_bytes
from manyhands.seed import torch_rng
from manyhands.tensors import StateSpec, Tensors, round_to_float16, zeros

DownlinkKind = Literal["step", "shared", "whole"]
"""``step``: the shared weights, or their difference from the last round where the codec sends differences. ``shared``:
the shared weights themselves, for a silo without those of the last round. ``whole``: all weights, for a new silo."""


@dataclass(frozen=True)
class Downlink:
    """How weights travel from the server to silos; both sides know it.

    Args:
        codec: The codec of the shared weights.
        every: The names, shapes and types of all weights of the network.
        shared: Those that are averaged; the others stay at their silo.
    """

    codec: Codec
    every: StateSpec
    shared: StateSpec

    @property
    def tracks(self) -> bool:
        """Whether what a silo is sent depends on the weights that it has, so that it must tell the server."""
        return self.codec.relative or len(self.shared) < len(self.every)

    @property
    def absolute(self) -> Codec:
        """The codec for a silo that does not have the weights of the last round."""
        return Float16() if self.codec.relative else self.codec

    def wire_specs(self) -> dict[DownlinkKind, StateSpec]:
        """Return the tensors that may come down, by kind."""
        step: dict[DownlinkKind, StateSpec] = {"step": self.codec.wire_spec(self.shared)}
        if not self.tracks:
            return step
        return {**step, "shared": self.absolute.wire_spec(self.shared), "whole": self.absolute.wire_spec(self.every)}

    def kind(self, holds: int, number: int) -> DownlinkKind:
        """Return what a silo must be sent in a round.

        Args:
            holds: The round whose weights the silo has; -1 for none.
            number: The round that is open.
        """
        if not self.tracks:
            return "step"
        return "whole" if holds < 0 else "shared" if self.codec.relative and holds != number - 1 else "step"

    def received(self, kind: DownlinkKind, wire: Mapping[str, Tensor], held: Tensors) -> Tensors:
        """Return all weights as a silo has them after it was sent some.

        Args:
            kind: What was sent.
            wire: The tensors that were sent.
            held: The weights that the silo had before.
        """
        if kind != "step":
            return held | dict(self.absolute.decode(wire, zeros(self.shared if kind == "shared" else self.every)))
        if not self.codec.relative:
            return held | dict(self.codec.decode(wire, zeros(self.shared)))
        return held | round_to_float16(self.codec.decode(wire, {name: held[name] for name in self.shared}))

    def start(self, held: Tensors, number: int) -> Tensors:
        """Return what a silo trains in a round: the weights that it has."""
        return held

    def bytes(self, ready: float, silos: int) -> float:
        """Return the most bytes that a silo is sent in a round, on average over silos.

        Args:
            ready: The share of the silos that have the weights of the last round.
            silos: The silos of a round.
        """
        step = max_wire_bytes(self.codec, self.shared)
        return ready * step + (1 - ready) * max_wire_bytes(self.absolute, self.shared) if self.codec.relative else step


class Broadcast:
    """What the server sends in the open round.

    ``weights`` are the server's own; ``silo_weights`` are those that silos have, which differ by the codec's rounding.
    A codec that sends differences (from ``base``) makes up for that in the next round, so that no error adds up.

    Args:
        downlink: How weights travel.
        seed: The seed of the run.
        weights: The server's weights.
        base: The silos' shared weights of the last round, for a codec that sends differences.
        number: The round that is open.
    """

    def __init__(
        self, downlink: Downlink, seed: int, weights: Tensors, base: Tensors | None = None, number: int = 0
    ) -> None:
        self.downlink, self.seed, self.number = downlink, seed, number
        self.weights, self.base = weights, base or {}
        self._wires: dict[DownlinkKind, Tensors] = {}
        if downlink.codec.relative and not self.base:
            self.silo_weights = round_to_float16(weights)
            return
        shared = {name: weights[name] for name in downlink.shared}
        step = downlink.codec.encode(shared, self.base, {}, torch_rng(seed, "down", number)).wire
        self._wires["step"] = step
        self.silo_weights = weights | downlink.received("step", step, self.base or {})
        if downlink.codec.loses_rounding:
            self.weights = self.silo_weights

    def next(self, moved: Mapping[str, Tensor]) -> Broadcast:
        """Return the broadcast of the next round, with weights clamped to the range of 16-bit floats."""
        weights = self.weights | {name: _bounded(tensor) for name, tensor in moved.items()}
        base = {name: self.silo_weights[name] for name in self.downlink.shared} if self.downlink.codec.relative else {}
        return Broadcast(self.downlink, self.seed, weights, base, self.number + 1)

    def restarted(self) -> Broadcast:
        """Return the next round's broadcast after a run went back: the weights themselves, no difference."""
        return Broadcast(self.downlink, self.seed, self.weights, None, self.number + 1)

    def kind(self, holds: int) -> DownlinkKind:
        """Return what a silo is sent that has the weights of round ``holds`` (-1: none)."""
        kind = self.downlink.kind(holds, self.number)
        return "shared" if kind == "step" and self.downlink.codec.relative and not self.base else kind

    def wire(self, kind: DownlinkKind) -> Tensors:
        """Return the encoded tensors of a kind; they are encoded once for all silos."""
        if kind not in self._wires:
            weights = self.silo_weights
            if kind == "shared":
                weights = {name: weights[name] for name in self.downlink.shared}
            rng = torch_rng(self.seed, kind, self.number)
            self._wires[kind] = self.downlink.absolute.encode(weights, {}, {}, rng).wire
        return self._wires[kind]


def _bounded(tensor: Tensor) -> Tensor:
    """Clamp to the range of 16-bit floats, without a copy where nothing lies outside."""
    within = not tensor.numel() or float(tensor.abs().max()) <= MAX_WEIGHT
    return tensor if within else tensor.clamp(-MAX_WEIGHT, MAX_WEIGHT)
