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
from typing import Any, Literal, NamedTuple

import numpy as np

from manyhands.devices import GIGA, Fleet
from manyhands.errors import RecipeError
from manyhands.models.cut import Cut, Cuts, maps
from manyhands.models.gan import NETWORKS, Gan
from manyhands.models.work import memory_of_blocks, of_blocks
from manyhands.solver import Problem, Side, exact, held, left_to_server

Mode = Literal["corrected", "authors"]
Solver = Literal["exact", "genetic"]
PASSES = {"generator": 1, "discriminator": 3}
"""How often each network is run, forward and backward, in an iteration."""
SIDES = ("head", "tail")
SERVER, KINDS = "server", ("work", "wire")


class Bar(NamedTuple):
    """Something that somebody does for a while: ``kind`` is work, or the wire."""

    who: str
    part: str
    kind: Literal["work", "wire"]
    start: float
    end: float


@dataclass(frozen=True)
class Advisor:
    """Knows what devices and blocks cost, and finds the cuts under which an iteration takes least.

    ``min_head`` is the least last block of the discriminator's head, which sees the images.
    """

    model: Gan
    fleet: Fleet
    mode: Mode = "corrected"
    min_head: int = 1

    @cached_property
    def names(self) -> list[str]:
        """Those of the kinds of devices."""
        return list(self.fleet.devices)

    @cached_property
    def sides(self) -> dict[tuple[str, str], Side]:
        """Head and tail of both networks."""
        return {(network, side): self._side(network, side) for network in NETWORKS for side in SIDES}

    @cached_property
    def middles(self) -> dict[str, tuple[float, float]]:
        """Seconds of the server in the middle block of each network, forward and backward."""
        found = {}
        for network in NETWORKS:
            work = of_blocks(self.model, network, authors=self.mode == "authors")[self.model.middle]
            unit = self._server_unit(network) * self.fleet.total
            found[network] = (work.forward * unit, work.backward * unit)
        return found

    def seconds(self, cuts: Mapping[str, Cuts]) -> float:
        """One iteration with these cuts."""
        return sum(seconds for _, seconds in self.parts(cuts))

    def parts(self, cuts: Mapping[str, Cuts]) -> list[tuple[str, float]]:
        """The parts of an iteration one after another: name and seconds."""
        found = []
        for network in NETWORKS:
            first, last = (self._times(network, side, cuts) for side in SIDES)
            there, back = self.middles[network]
            found += [(f"{network}: heads forward", first[0]), (f"{network}: middle forward", there)]
            found += [(f"{network}: tails forward", last[1]), (f"{network}: tails backward", last[0])]
            found += [(f"{network}: middle backward", back), (f"{network}: heads backward", first[1])]
        return found

    def timeline(self, cuts: Mapping[str, Cuts]) -> list[Bar]:
        """Who does what when, over one iteration; those of a kind do the same."""
        bars: list[Bar] = []
        now = 0.0
        for network in NETWORKS:
            there, back = self.middles[network]
            for side, way, middle in (("head", 0, there), ("tail", 1, 0.0), ("tail", 0, back), ("head", 1, 0.0)):
                part = f"{network}: {side}s {'forward' if (side == 'head') == (way == 0) else 'backward'}"
                mine, now = self._bars(network, side, way, part, cuts, now)
                bars += mine
                if middle:
                    name = f"{network}: middle {'forward' if side == 'head' else 'backward'}"
                    bars.append(Bar(SERVER, name, "work", now, now + middle))
                    now += middle
        return bars

    def _bars(
        self, network: str, name: str, way: int, part: str, cuts: Mapping[str, Cuts], now: float
    ) -> tuple[list[Bar], float]:
        """Those of one part, and when it ends."""
        side, levels, bars = self.sides[network, name], self._levels(network, name, cuts)[0], []
        there = left_to_server(levels[None], self._counts, side.levels)[0]
        work, wire = (each[way][levels, range(len(levels))] for each in (side.work, side.wire))
        if way == 0:
            ready = now
            for level in range(side.levels):
                spent = there[level] * side.server[0][level] if level else 0.0
                if spent:
                    bars.append(Bar(SERVER, part, "work", ready, ready + spent))
                came = [now + work[i] + wire[i] for i in range(len(levels)) if levels[i] == level]
                ready = max([ready + spent, *came])
            for i, device in enumerate(self.names):
                sent = now + work[i]
                bars += [Bar(device, part, "work", now, sent), Bar(device, part, "wire", sent, sent + wire[i])]
            return bars, ready
        begins = np.full(len(levels), now)
        for level in range(side.levels - 1, 0, -1):
            spent = there[level] * side.server[1][level]
            start = float(begins[levels < level].max(initial=now))
            if spent:
                bars.append(Bar(SERVER, part, "work", start, start + spent))
                begins[levels < level] = start + spent
        for i, device in enumerate(self.names):
            came = begins[i] + wire[i]
            bars += [Bar(device, part, "wire", begins[i], came), Bar(device, part, "work", came, came + work[i])]
        return bars, max(bar.end for bar in bars)

    def rows(self, cuts: Mapping[str, Cuts]) -> list[dict[str, Any]]:
        """Of each kind of device: its cuts, how long it works, sends and waits, and what it sends and holds."""
        bars, total, found = self.timeline(cuts), self.seconds(cuts), []
        for name, device in self.fleet.devices.items():
            spent = {kind: sum(b.end - b.start for b in bars if b.who == name and b.kind == kind) for kind in KINDS}
            cut = {network: {"head": c.head, "tail": c.tail} for network in NETWORKS for c in [cuts[name].of(network)]}
            found.append({
                "device": name, "count": device.count, **cut, **spent, "waits": total - sum(spent.values()),
                "bytes": self.sent(cuts[name]), "memory": self.memory(cuts[name]),
            })  # fmt: skip
        return found

    def bottlenecks(self, cuts: Mapping[str, Cuts]) -> list[tuple[str, float, str]]:
        """Of each part of an iteration, who ends it last."""
        bars = self.timeline(cuts)
        last = {bar.part: bar.who for bar in sorted(bars, key=lambda bar: bar.end)}
        return [(part, seconds, last[part]) for part, seconds in self.parts(cuts)]

    def sent(self, cuts: Cuts) -> int:
        """What a device sends in an iteration; it gets as much."""
        return sum(
            int(self.sides[network, side].bytes[self._level(network, side, cuts)])
            for network in NETWORKS
            for side in SIDES
        )

    def memory(self, cuts: Cuts) -> int:
        """The bytes that training takes at a device."""
        levels = {(network, side): np.array(self._level(network, side, cuts)) for network, side in self.sides}
        return int(held(self.sides, levels))

    def cuts(self, solver: Solver = "exact", seed: int = 0) -> dict[str, Cuts]:
        """The cuts under which an iteration takes least; those of ``genetic`` may take more."""
        if solver == "exact":
            found = exact(self.problem)
        else:
            from manyhands.genetic import genetic

            found = genetic(self.problem, seed)
        if found is None:
            raise self._too_small()
        return self._cuts(found)

    def exact(self) -> dict[str, Cuts]:
        """The cuts under which an iteration takes least."""
        return self.cuts()

    @cached_property
    def problem(self) -> Problem:
        """What a solver needs to know."""
        memory = [np.inf if device.memory is None else device.memory for device in self.fleet.devices.values()]
        least = {end: self.min_head if end == ("discriminator", "head") else 0 for end in self.sides}
        return Problem(self.sides, self._counts, np.array(memory), least)

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
    def _counts(self) -> np.ndarray:
        return np.array([device.count for device in self.fleet.devices.values()])

    def _cuts(self, levels: Mapping[tuple[str, str], np.ndarray]) -> dict[str, Cuts]:
        last = self.model.depth - 1
        return {
            name: Cuts(**{
                network: Cut(head=int(levels[network, "head"][i]), tail=last - int(levels[network, "tail"][i]))
                for network in NETWORKS
            })
            for i, name in enumerate(self.names)
        }  # fmt: skip

    def _times(self, network: str, side: str, cuts: Mapping[str, Cuts]) -> tuple[float, float]:
        levels = self._levels(network, side, cuts)
        gather, scatter = self.sides[network, side].seconds(levels, self._counts)
        return float(gather[0]), float(scatter[0])

    def _levels(self, network: str, side: str, cuts: Mapping[str, Cuts]) -> np.ndarray:
        return np.array([[self._level(network, side, cuts[name]) for name in self.names]])

    def _level(self, network: str, side: str, cuts: Cuts) -> int:
        cut = cuts.of(network)
        return cut.head if side == "head" else self.model.depth - 1 - cut.tail

    def _server_unit(self, network: str) -> float:
        """Seconds of the server for an operation on each image of one device."""
        times = 1 if self.mode == "authors" else PASSES[network]
        return times * self.fleet.batch / (self.fleet.server.gflops * GIGA)

    def _side(self, network: str, side: str) -> Side:
        model, times, batch = self.model, PASSES[network], self.fleet.batch
        works = of_blocks(model, network, authors=self.mode == "authors")
        head = side == "head"
        blocks = list(range(model.middle)) if head else list(range(model.depth - 1, model.middle, -1))
        devices = self.fleet.devices.values()
        crossed = 4.0 * times * batch * np.array([maps(model, network)[b if head else b - 1].size for b in blocks])

        def work(*, backward: bool) -> np.ndarray:
            """Seconds of each device at each level, block by block."""
            each = [works[b].backward if backward else works[b].forward for b in blocks]
            rows = [[each[i] / device.speed(network, b) for device in devices] for i, b in enumerate(blocks)]
            return times * batch * np.cumsum(rows, 0)

        unit, mirrored = self._server_unit(network), self.mode == "authors" and head
        back = [model.depth - 1 - block if mirrored else block for block in blocks]
        inward = np.array([(works[b].forward if head else works[b].backward) * unit for b in blocks])
        outward = np.array([(works[b].backward if head else works[b].forward) * unit for b in back])
        held = memory_of_blocks(model, network, batch)
        down = self.fleet.server.rate
        return Side(
            (work(backward=not head), work(backward=head)),
            (crossed[:, None] / [device.rate for device in devices], crossed[:, None] / [down for _ in devices]),
            (inward, outward),
            np.array([held[b] for b in blocks]),
            crossed,
        )
