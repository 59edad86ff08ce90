"""How stacked adapters travel: silos send their factors, and get all of them as one adapter, which each adds up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from manyhands.messages.codec.codec import max_wire_bytes
from manyhands.models.adapters import DELTA, A, B, is_factor, layers_of, product, stacked
from manyhands.seed import torch_rng
from manyhands.tensors import StateSpec, Tensors, TensorSpec, zeros

if TYPE_CHECKING:
    from torch import Tensor

    from manyhands.messages.codec.codec import Codec
    from manyhands.methods.fedavg.broadcast import DownlinkKind
    from manyhands.models.adapters import Adapter


class StackedMean:
    """The exact mean of the products of adapters, as one adapter whose rank is the sum of theirs."""

    def __init__(self) -> None:
        self._factors: list[Mapping[str, Tensor]] = []
        self._weights: list[int] = []

    def add(self, tensors: Mapping[str, Tensor], weight: int) -> None:
        """Add the factors of a silo."""
        self._factors.append(dict(tensors))
        self._weights.append(weight)

    def value(self) -> Tensors:
        """Return the factors of the mean; empty where none were added."""
        return stacked(self._factors, self._weights)


@dataclass(frozen=True)
class StackedDownlink:
    """How the products of adapters travel from the server to silos.

    A silo that has the products of the last round is sent the adapter of all silos (``step``), and adds its product.
    Any other is sent the sum of all products (``whole``), and so are all where that is smaller: many ranks together
    are as large as the layers themselves.

    Args:
        codec: The codec of what is sent, which has no memory and takes any rank.
        adapter: The adapters.
        network: The names, shapes and types of what is trained at a silo.
    """

    codec: Codec
    adapter: Adapter
    network: StateSpec
    tracks = True

    @property
    def every(self) -> StateSpec:
        """The sums of products, which are what a silo holds."""
        return {name: spec for name, spec in self.network.items() if name.endswith(DELTA)}

    @property
    def factors(self) -> StateSpec:
        """The factors of one silo's adapters, which it sends."""
        return {name: spec for name, spec in self.network.items() if is_factor(name)}

    @property
    def max_rank(self) -> int:
        """The largest rank of an adapter of all silos that takes fewer numbers than the layers themselves."""
        of_rank_one = sum(spec.size for spec in self.factors.values()) // self.adapter.rank
        return max((sum(spec.size for spec in self.every.values()) - 1) // of_rank_one, 0)

    def stack_spec(self) -> StateSpec:
        """Return the factors of an adapter of all silos, whose rank is not known before."""
        spec = {}
        for name, tensor in self.factors.items():
            rank = 0 if name.endswith(A) else 1
            shape = tuple(None if i == rank else length for i, length in enumerate(tensor.shape))
            spec[name] = TensorSpec(shape, tensor.dtype, self.max_rank)
        return spec

    def nothing(self) -> Tensors:
        """Return an adapter of rank 0, whose products are 0."""
        none = {name: spec._replace(max_size=0) for name, spec in self.stack_spec().items()}
        return self.codec.encode(zeros(none), {}, {}, torch_rng(0)).wire

    def wire_specs(self) -> dict[DownlinkKind, StateSpec]:
        """Return the tensors that may come down, by kind."""
        return {"step": self.codec.wire_spec(self.stack_spec()), "whole": self.codec.wire_spec(self.every)}

    def received(self, kind: DownlinkKind, wire: Mapping[str, Tensor], held: Tensors) -> Tensors:
        """Return the sums of products as a silo has them after it was sent some.

        Args:
            kind: What was sent.
            wire: The tensors that were sent.
            held: The sums that the silo had before.
        """
        if kind == "whole":
            return dict(self.codec.decode(wire, zeros(self.every)))
        return self.added(self.codec.decode(wire, {}), held)

    def added(self, stack: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> Tensors:
        """Return the sums of products with those of one more adapter; of nothing held, those of the adapter alone."""
        scaling = self.adapter.scaling
        sums = {}
        for layer in layers_of(stack):
            change = scaling * product(stack[layer + A], stack[layer + B])
            sums[layer + DELTA] = (held[layer + DELTA].double() + change).float() if held else change.float()
        return sums

    def start(self, held: Tensors, number: int) -> Tensors:
        """Return what a silo trains in a round: new factors on the sums of products that it has."""
        return held | self.adapter.fresh(self.network, number)

    def bytes(self, ready: float, silos: int) -> float:
        """Return the most bytes that a silo is sent in a round, on average over silos.

        Args:
            ready: The share of the silos that have the sums of the last round.
            silos: The silos of a round.
        """
        whole, rank = max_wire_bytes(self.codec, self.every), silos * self.adapter.rank
        if rank > self.max_rank:
            return whole
        return ready * max_wire_bytes(self.codec, self.factors) * silos + (1 - ready) * whole


class StackedBroadcast:
    """What the server sends in the open round.

    Args:
        downlink: How adapters travel.
        seed: The seed of the run.
        weights: The sums of all products.
        base: The factors of the adapter of all silos of the last round, which are in the sums already.
        number: The round that is open.
    """

    def __init__(
        self, downlink: StackedDownlink, seed: int, weights: Tensors, base: Tensors | None = None, number: int = 0
    ) -> None:
        self.downlink, self.seed, self.number = downlink, seed, number
        self.weights = {name: weights[name] for name in downlink.every}
        self.base = base or ({} if number else downlink.nothing())

    @property
    def silo_weights(self) -> Tensors:
        """The sums as silos have them: those of the server."""
        return self.weights

    def next(self, moved: Mapping[str, Tensor]) -> StackedBroadcast:
        """Return the broadcast of the next round, in which silos begin from the sums with this adapter added."""
        rng = torch_rng(self.seed, "down", self.number)
        stack = dict(self.downlink.codec.encode(moved, {}, {}, rng).wire)
        weights = self.downlink.received("step", stack, self.weights) if stack else self.weights
        return StackedBroadcast(self.downlink, self.seed, weights, stack, self.number + 1)

    def restarted(self) -> StackedBroadcast:
        """Return the next round's broadcast after a run went back: the sums themselves."""
        return StackedBroadcast(self.downlink, self.seed, self.weights, None, self.number + 1)

    def kind(self, holds: int) -> DownlinkKind:
        """Return what a silo is sent that has the sums of round ``holds`` (-1: none)."""
        ranks = [tensor.shape[0] for name, tensor in self.base.items() if name.endswith(A)]
        fits = bool(ranks) and max(ranks) <= self.downlink.max_rank
        return "step" if fits and holds == self.number - 1 else "whole"

    def wire(self, kind: DownlinkKind) -> Tensors:
        """Return the encoded tensors of a kind."""
        if kind == "step":
            return self.base
        return self.downlink.codec.encode(self.weights, {}, {}, torch_rng(self.seed, kind, self.number)).wire
