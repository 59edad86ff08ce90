"""What an iteration of a cut GAN takes on given devices, and where each of them is best cut.

The model of time is that of HuSCF-GAN: devices work side by side, the server serves one after another, block by block.
``authors`` has its slips: transposed convolutions count as if their output were their input, the server's way back
through the generator's head and the discriminator's takes the time of its tail, and the discriminator's server part
runs once where it runs three times. ``corrected`` has none.

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
from manyhands.models.gan import NETWORKS, Gan
from manyhands.models.layer_cut import LayerCut, LayerCuts, block_outputs
from manyhands.models.work import PASSES, block_flops, block_memory
from manyhands.placement.devices import Fleet
from manyhands.placement.solver import End, Problem, Side, exact, held

Mode = Literal["corrected", "authors"]
Solver = Literal["exact", "genetic"]
SIDES = ("head", "tail")


@dataclass(frozen=True)
class Planner:
    """Knows what devices and blocks cost, and finds the cuts under which an iteration takes least.

    ``min_head`` is the least last block of the discriminator's head, which sees the images.
    """

    model: Gan
    fleet: Fleet
    mode: Mode = "corrected"
    min_head: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.min_head < self.model.middle:
            raise RecipeError(
                f"min_head is {self.min_head}: a head ends before block {self.model.middle}, which is the server's"
            )

    @cached_property
    def names(self) -> list[str]:
        """Those of the kinds of devices."""
        return list(self.fleet.devices)

    @cached_property
    def sides(self) -> dict[End, Side]:
        """Head and tail of both networks."""
        return {(network, side): self._side(network, side) for network in NETWORKS for side in SIDES}

    @cached_property
    def middles(self) -> dict[str, tuple[float, float]]:
        """Seconds of the server in the middle block of each network, forward and backward."""
        found = {}
        for network in NETWORKS:
            there, back = self._server_seconds(network, self.model.middle)
            found[network] = (there * self.fleet.total, back * self.fleet.total)
        return found

    def seconds(self, cuts: Mapping[str, LayerCuts]) -> float:
        """One iteration with these cuts."""
        return sum(seconds for _, seconds in self.parts(cuts))

    def parts(self, cuts: Mapping[str, LayerCuts]) -> list[tuple[str, float]]:
        """The parts of an iteration one after another: name and seconds."""
        found = []
        for network in NETWORKS:
            first, last = (self._times((network, side), cuts) for side in SIDES)
            there, back = self.middles[network]
            found += [(f"{network}: heads forward", first[0]), (f"{network}: middle forward", there)]
            found += [(f"{network}: tails forward", last[1]), (f"{network}: tails backward", last[0])]
            found += [(f"{network}: middle backward", back), (f"{network}: heads backward", first[1])]
        return found

    def sent(self, cuts: LayerCuts) -> int:
        """What a device sends in an iteration; it gets as much."""
        return sum(
            int(self.sides[network, side].bytes[self._level(network, side, cuts)])
            for network in NETWORKS
            for side in SIDES
        )

    def memory(self, cuts: LayerCuts) -> int:
        """The bytes that training takes at a device."""
        levels = {(network, side): np.array(self._level(network, side, cuts)) for network, side in self.sides}
        return int(held(self.sides, levels))

    def cuts(self, solver: Solver = "exact", seed: int = 0) -> dict[str, LayerCuts]:
        """The cuts under which an iteration takes least; those of ``genetic`` may take more."""
        if solver == "exact":
            found = exact(self.problem)
        else:
            from manyhands.placement.genetic import genetic

            found = genetic(self.problem, seed)
        if found is None:
            raise self._too_small()
        return self.cuts_of(found)

    @cached_property
    def problem(self) -> Problem:
        """What a solver needs to know."""
        memory = [np.inf if device.memory is None else device.memory for device in self.fleet.devices.values()]
        least = {end: self.min_head if end == ("discriminator", "head") else 0 for end in self.sides}
        return Problem(self.sides, self.counts, np.array(memory), least)

    def _too_small(self) -> RecipeError:
        lacks = self.problem.lacks(self.problem.outermost())
        worst = int(lacks.argmax())
        if lacks[worst] <= 0:
            return RecipeError("no cuts were met that fit into memory; say --solver exact")
        return RecipeError(
            f"device {self.names[worst]}: at the least cut it lacks {lacks[worst] / 1e6:,.1f} MB of memory for a batch "
            f"of {self.fleet.batch}"
        )

    @property
    def counts(self) -> np.ndarray:
        """How many devices there are of each kind."""
        return np.array([device.count for device in self.fleet.devices.values()])

    def cuts_of(self, levels: Mapping[End, np.ndarray]) -> dict[str, LayerCuts]:
        """The cuts that levels stand for."""
        last = self.model.depth - 1
        return {
            name: LayerCuts(**{
                network: LayerCut(head=int(levels[network, "head"][i]), tail=last - int(levels[network, "tail"][i]))
                for network in NETWORKS
            })
            for i, name in enumerate(self.names)
        }  # fmt: skip

    def levels(self, end: End, cuts: Mapping[str, LayerCuts]) -> np.ndarray:
        """Those that cuts put each kind of device at."""
        if missing := [name for name in self.names if name not in cuts]:
            raise RecipeError(f"device {missing[0]}: there are no cuts for it")
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
        """Of the server in a block, forward and backward, for the images of one device."""
        mirrored = self.mode == "authors" and block < self.model.middle
        works = block_flops(self.model, network, authors=self.mode == "authors")
        times = 1 if self.mode == "authors" else PASSES[network]
        unit = times * self.fleet.batch / self.fleet.server.speed(network, block)
        back = works[self.model.depth - 1 - block if mirrored else block].backward
        return works[block].forward * unit, back * unit

    def _side(self, network: str, side: str) -> Side:
        model, times, batch = self.model, PASSES[network], self.fleet.batch
        works = block_flops(model, network, authors=self.mode == "authors")
        head = side == "head"
        blocks = list(range(model.middle)) if head else list(range(model.depth - 1, model.middle, -1))
        devices = self.fleet.devices.values()
        crossed = (
            4.0 * times * batch * np.array([block_outputs(model, network)[b if head else b - 1].size for b in blocks])
        )

        def work(*, backward: bool) -> np.ndarray:
            """Seconds of each device at each level, block by block."""
            each = [works[b].backward if backward else works[b].forward for b in blocks]
            rows = [[each[i] / device.speed(network, b) for device in devices] for i, b in enumerate(blocks)]
            return times * batch * np.cumsum(rows, 0)

        there = np.array([self._server_seconds(network, b) for b in blocks])
        inward, outward = there.T if head else there.T[::-1]
        memory = block_memory(model, network, batch)
        late = [times * device.latency for device in devices]
        up, down = [device.rate for device in devices], [self.fleet.down(device) for device in devices]
        return Side(
            (work(backward=not head), work(backward=head)),
            (late + crossed[:, None] / up, late + crossed[:, None] / down),
            (inward, outward),
            np.array([memory[b] for b in blocks]),
            crossed,
        )
