"""How the shared weights go down to silos, and what each side then holds of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from manyhands.messages.codec.codec import MAX_WEIGHT, Codec, Float16, max_wire_bytes
from manyhands.seed import torch_rng
from manyhands.tensors import StateSpec, Tensors, round_to_float16, zeros

DownlinkKind = Literal["step", "shared", "whole"]


@dataclass(frozen=True)
class Downlink:
    """The ``shared`` ones of ``every`` weight, by a codec; both sides know it.

    A silo is sent a ``step``: the shared weights or, where the codec is relative, their difference to the round before.
    One that does not hold the round before is sent the ``shared`` weights by themselves instead, and one that holds
    nothing the ``whole``: with the start of its private parts.
    """

    codec: Codec
    every: StateSpec
    shared: StateSpec

    @property
    def tracks(self) -> bool:
        """Whether what a silo is sent depends on what it holds, so that it must say so."""
        return self.codec.relative or len(self.shared) < len(self.every)

    @property
    def alone(self) -> Codec:
        """How weights travel to a silo that does not hold the last ones."""
        return Float16() if self.codec.relative else self.codec

    def forms(self) -> dict[DownlinkKind, StateSpec]:
        """What may come down."""
        step: dict[DownlinkKind, StateSpec] = {"step": self.codec.wire_spec(self.shared)}
        if not self.tracks:
            return step
        return {**step, "shared": self.alone.wire_spec(self.shared), "whole": self.alone.wire_spec(self.every)}

    def form(self, holds: int, number: int) -> DownlinkKind:
        """What a silo that holds the weights of a round (-1: none) needs for round ``number``."""
        if not self.tracks:
            return "step"
        return "whole" if holds < 0 else "shared" if self.codec.relative and holds != number - 1 else "step"

    def received(self, form: DownlinkKind, wire: Mapping[str, Tensor], held: Tensors) -> Tensors:
        """All weights as they are at a silo that held others before."""
        if form != "step":
            return held | dict(self.alone.decode(wire, zeros(self.shared if form == "shared" else self.every)))
        if not self.codec.relative:
            return held | dict(self.codec.decode(wire, zeros(self.shared)))
        return held | round_to_float16(self.codec.decode(wire, {name: held[name] for name in self.shared}))

    def bytes(self, ready: float) -> float:
        """What a silo is sent in a round at most, where a share ``ready`` of the silos hold the round before."""
        step = max_wire_bytes(self.codec, self.shared)
        return ready * step + (1 - ready) * max_wire_bytes(self.alone, self.shared) if self.codec.relative else step


class Broadcast:
    """The server's side: ``weights`` are its own, ``given`` what silos of the open round hold of them.

    They differ by what the codec rounds. Where that is relative, to ``base``, the difference is in the next round's
    step: nothing is lost in the long run.
    """

    def __init__(
        self, link: Downlink, seed: int, weights: Tensors, base: Tensors | None = None, number: int = 0
    ) -> None:
        self.link, self.seed, self.number = link, seed, number
        self.weights, self.base = weights, base or {}
        self._wires: dict[DownlinkKind, Tensors] = {}
        if link.codec.relative and not self.base:
            self.given = round_to_float16(weights)
            return
        shared = {name: weights[name] for name in link.shared}
        step = link.codec.encode(shared, self.base, {}, torch_rng(seed, "down", number)).wire
        self._wires["step"] = step
        self.given = weights | link.received("step", step, self.base or {})
        if link.codec.loses_rounding:
            self.weights = self.given

    def next(self, moved: Mapping[str, Tensor]) -> Broadcast:
        """The handout of the next round; weights stay in the bounds of what 16 bits can say."""
        weights = self.weights | {name: _bounded(tensor) for name, tensor in moved.items()}
        base = {name: self.given[name] for name in self.link.shared} if self.link.codec.relative else {}
        return Broadcast(self.link, self.seed, weights, base, self.number + 1)

    def anew(self) -> Broadcast:
        """The next round's handout where silos hold weights that nothing must be said against: these, by themselves."""
        return Broadcast(self.link, self.seed, self.weights, None, self.number + 1)

    def form(self, holds: int) -> DownlinkKind:
        """What a silo that holds the weights of a round (-1: none) is sent."""
        form = self.link.form(holds, self.number)
        return "shared" if form == "step" and self.link.codec.relative and not self.base else form

    def wire(self, form: DownlinkKind) -> Tensors:
        """What is sent: one copy, whoever asks for it."""
        if form not in self._wires:
            told = {name: self.given[name] for name in self.link.shared} if form == "shared" else self.given
            rng = torch_rng(self.seed, form, self.number)
            self._wires[form] = self.link.alone.encode(told, {}, {}, rng).wire
        return self._wires[form]


def _bounded(tensor: Tensor) -> Tensor:
    """No copy of what is within bounds already."""
    within = not tensor.numel() or float(tensor.abs().max()) <= MAX_WEIGHT
    return tensor if within else tensor.clamp(-MAX_WEIGHT, MAX_WEIGHT)
