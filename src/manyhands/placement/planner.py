"""How long an iteration of a cut GAN takes on given devices, and which cuts make it fastest.

The time model is that of HuSCF-GAN: devices work in parallel, and the server runs block by block, for one device after
another. ``authors`` repeats the errors of its code: transposed convolutions count their output positions instead of
their input positions, the server's backward pass through the heads takes the time of the tail, and the server part of
the discriminator runs once instead of three times. ``corrected`` has none of these errors.

References:
    A Distributed Generative AI Approach for Heterogeneous Multi-Domain Environments under Data Sharing constraints,
        Tawfilis et al., 2025, arXiv 2507.12979
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from manyhands.errors import RecipeError
from manyhands.models.block_cost import PASSES, block_flops, block_memory
from manyhands.models.gan import NETWORKS, Gan
from manyhands.models.layer_cut import LayerCut, LayerCuts, block_outputs
from manyhands.placement.devices import Fleet
from manyhands.placement.exact_search import End, Problem, Side, exact, memory_at

Mode = Literal["corrected", "authors"]
Solver = Literal["exact", "genetic"]
SIDES = ("head", "tail")


@dataclass(frozen=True)
class Planner:
    """Computes the time of an iteration, and finds the cuts with the shortest one.

    Args:
        model: The GAN that is to be cut.
        fleet: The server, the devices and the batch.
        mode: The time model: "corrected", or "authors" for that of HuSCF-GAN's code.
        min_head: The least ``head`` of the discriminator's cut; this head sees the images.
    """

    model: Gan
    fleet: Fleet
    mode: Mode = "corrected"
    min_head: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.min_head < self.model.middle:
            raise RecipeError(
                f"min_head is {self.min_head}, but must be below block {self.model.middle}, which is on the server"
            )

    @cached_property
    def names(self) -> list[str]:
        """The names of the kinds of devices."""
        return list(self.fleet.devices)

    @cached_property
    def sides(self) -> dict[End, Side]:
        """The costs of head and tail of both networks."""
        return {(network, side): self._side(network, side) for network in NETWORKS for side in SIDES}

    @cached_property
    def middles(self) -> dict[str, tuple[float, float]]:
        """The seconds of the server in the middle block of each network, forward and backward."""
        seconds = {}
        for network in NETWORKS:
            forward, backward = self._server_seconds(network, self.model.middle)
            seconds[network] = (forward * self.fleet.total, backward * self.fleet.total)
        return seconds

    def seconds(self, cuts: Mapping[str, LayerCuts]) -> float:
        """Return the seconds of one iteration with these cuts."""
        return sum(seconds for _, seconds in self.parts(cuts))

    def parts(self, cuts: Mapping[str, LayerCuts]) -> list[tuple[str, float]]:
        """Return the parts of an iteration in order, with name and seconds."""
        parts = []
        for network in NETWORKS:
            head, tail = (self._times((network, side), cuts) for side in SIDES)
            forward, backward = self.middles[network]
            parts += [(f"{network}: heads forward", head[0]), (f"{network}: middle forward", forward)]
            parts += [(f"{network}: tails forward", tail[1]), (f"{network}: tails backward", tail[0])]
            parts += [(f"{network}: middle backward", backward), (f"{network}: heads backward", head[1])]
        return parts

    def sent(self, cuts: LayerCuts) -> int:
        """Return the bytes that a device sends in an iteration; it receives as many."""
        return sum(
            int(self.sides[network, side].bytes[self._level(network, side, cuts)])
            for network in NETWORKS
            for side in SIDES
        )

    def memory(self, cuts: LayerCuts) -> int:
        """Return the bytes of memory that training takes at a device."""
        levels = {(network, side): np.array(self._level(network, side, cuts)) for network, side in self.sides}
        return int(memory_at(self.sides, levels))

    def cuts(self, solver: Solver = "exact", seed: int = 0) -> dict[str, LayerCuts]:
        """Return the cuts of each kind of device with the shortest iteration.

        Args:
            solver: "exact", or "genetic" for the search of HuSCF-GAN, whose cuts may be slower.
            seed: The seed of the genetic search.

        Raises:
            RecipeError: No cuts fit into the memory of the devices.
        """
        if solver == "exact":
            levels = exact(self.problem)
        else:
            from manyhands.placement.genetic_search import genetic

            levels = genetic(self.problem, seed)
        if levels is None:
            raise self._too_small()
        return self.cuts_of(levels)

    @cached_property
    def problem(self) -> Problem:
        """The problem that a solver solves."""
        memory = [np.inf if device.memory is None else device.memory for device in self.fleet.devices.values()]
        least = {end: self.min_head if end == ("discriminator", "head") else 0 for end in self.sides}
        return Problem(self.sides, self.counts, np.array(memory), least)

    def _too_small(self) -> RecipeError:
        lacks = self.problem.lacks(self.problem.outermost())
        worst = int(lacks.argmax())
        if lacks[worst] <= 0:
            return RecipeError("the search met no cuts that fit into memory; use --solver exact")
        return RecipeError(
            f"device {self.names[worst]}: with the smallest cut it lacks {lacks[worst] / 1e6:,.1f} MB of memory for a "
            f"batch of {self.fleet.batch}"
        )

    @property
    def counts(self) -> np.ndarray:
        """The number of devices of each kind, (kinds,)."""
        return np.array([device.count for device in self.fleet.devices.values()])

    def cuts_of(self, levels: Mapping[End, np.ndarray]) -> dict[str, LayerCuts]:
        """Return the cuts of each kind of device at these levels."""
        last = self.model.depth - 1
        return {
            name: LayerCuts(**{
                network: LayerCut(head=int(levels[network, "head"][i]), tail=last - int(levels[network, "tail"][i]))
                for network in NETWORKS
            })
            for i, name in enumerate(self.names)
        }  # fmt: skip

    def levels(self, end: End, cuts: Mapping[str, LayerCuts]) -> np.ndarray:
        """Return the level of each kind of device with these cuts, (kinds,)."""
        if missing := [name for name in self.names if name not in cuts]:
            raise RecipeError(f"device {missing[0]}: has no cuts")
        return np.array([self._level(*end, cuts[name]) for name in self.names])

    def _times(self, end: End, cuts: Mapping[str, LayerCuts]) -> tuple[float, float]:
        gather, scatter = self.sides[end].seconds(self.levels(end, cuts)[None], self.counts)
        return float(gather[0]), float(scatter[0])

    def _level(self, network: str, side: str, cuts: LayerCuts) -> int:
        cut = cuts.of(network)
        try:
            cut.check(self.model, network)
        except ValueError as error:
            raise RecipeError(str(error)) from None
        return cut.head if side == "head" else self.model.depth - 1 - cut.tail

    def _server_seconds(self, network: str, block: int) -> tuple[float, float]:
        """Return the seconds of the server in a block, forward and backward, for the images of one device."""
        mirrored = self.mode == "authors" and block < self.model.middle
        works = block_flops(self.model, network, authors=self.mode == "authors")
        times = 1 if self.mode == "authors" else PASSES[network]
        unit = times * self.fleet.batch / self.fleet.server.speed(network, block)
        backward = works[self.model.depth - 1 - block if mirrored else block].backward
        return works[block].forward * unit, backward * unit

    def _side(self, network: str, side: str) -> Side:
        model, times, batch = self.model, PASSES[network], self.fleet.batch
        works = block_flops(model, network, authors=self.mode == "authors")
        head = side == "head"
        blocks = list(range(model.middle)) if head else list(range(model.depth - 1, model.middle, -1))
        devices = self.fleet.devices.values()
        sent = (
            4.0 * times * batch * np.array([block_outputs(model, network)[b if head else b - 1].size for b in blocks])
        )

        def work(*, backward: bool) -> np.ndarray:
            """Return the seconds of each device at each level, (levels, devices)."""
            flops = [works[b].backward if backward else works[b].forward for b in blocks]
            rows = [[flops[i] / device.speed(network, b) for device in devices] for i, b in enumerate(blocks)]
            return times * batch * np.cumsum(rows, 0)

        server = np.array([self._server_seconds(network, b) for b in blocks])
        inward, outward = server.T if head else server.T[::-1]
        memory = block_memory(model, network, batch)
        latency = [times * device.latency for device in devices]
        up, down = [device.rate for device in devices], [self.fleet.down(device) for device in devices]
        return Side(
            (work(backward=not head), work(backward=head)),
            (latency + sent[:, None] / up, latency + sent[:, None] / down),
            (inward, outward),
            np.array([memory[b] for b in blocks]),
            sent,
        )
