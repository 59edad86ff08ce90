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

import heapq
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np

from manyhands.devices import GIGA, Fleet
from manyhands.errors import RecipeError
from manyhands.models.cut import Cut, Cuts, maps
from manyhands.models.gan import NETWORKS, Gan
from manyhands.models.work import PASSES, memory_of_blocks, of_blocks

Mode = Literal["corrected", "authors"]
SIDES = ("head", "tail")
SERVER, KINDS = "server", ("work", "wire")
MOST = 2_000_000
"""The most rows of levels that are tried for one side."""


class Bar(NamedTuple):
    """Something that somebody does for a while: ``kind`` is work, or the wire."""

    who: str
    part: str
    kind: Literal["work", "wire"]
    start: float
    end: float


class Side(NamedTuple):
    """One end of a network. A device at level l has its l + 1 outermost blocks, and the server the ``depth`` - l inner.

    Seconds of a device at each level (levels x devices): of its ``work`` and on the ``wire``, when it is gathered from
    and when it is scattered to; and those of the server in each inner block, for each device that has left it to the
    server. ``memory`` is of each block at home, ``bytes`` cross at each level.
    """

    work: tuple[np.ndarray, np.ndarray]
    wire: tuple[np.ndarray, np.ndarray]
    server: tuple[np.ndarray, np.ndarray]
    memory: np.ndarray
    bytes: np.ndarray

    @property
    def gather(self) -> np.ndarray:
        """Until what a device sends has come."""
        seconds: np.ndarray = self.work[0] + self.wire[0]
        return seconds

    @property
    def scatter(self) -> np.ndarray:
        """From what is sent to a device until it is done."""
        seconds: np.ndarray = self.work[1] + self.wire[1]
        return seconds

    @property
    def levels(self) -> int:
        """How many levels there are."""
        return len(self.memory)

    def seconds(self, levels: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Of gathering and of scattering, for rows of levels of all devices."""
        there = _there(levels, counts, self.levels)
        ready = np.zeros(len(levels))
        spent = np.zeros((len(levels), self.levels))
        for level in range(self.levels):
            if level:
                ready = ready + there[:, level] * self.server[0][level]
                spent[:, :level] += (there[:, level] * self.server[1][level])[:, None]
            came = np.where(levels == level, self.gather[level], 0).max(1)
            ready = np.maximum(ready, came)
        left = np.take_along_axis(self.scatter.T[None].repeat(len(levels), 0), levels[:, :, None], 2)[:, :, 0]
        ended = np.take_along_axis(spent, levels, 1) + left
        return np.stack([ready, ended.max(1)])


def _there(levels: np.ndarray, counts: np.ndarray, depth: int) -> np.ndarray:
    """How many devices have left each block to the server, for rows of levels."""
    return np.stack([((levels < level) * counts).sum(1) for level in range(depth)], 1)


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
        there = _there(levels[None], self._counts, side.levels)[0]
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
                "bytes": self.sent(cuts[name]), "memory": self.memory(name, cuts[name]),
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

    def memory(self, name: str, cuts: Cuts) -> int:
        """The bytes that training takes at a device."""
        return sum(
            sum(each for block, each in enumerate(memory) if cuts.of(network).at_home(block))
            for network in NETWORKS
            for memory in [memory_of_blocks(self.model, network, self.fleet.batch)]
        )

    def exact(self) -> dict[str, Cuts]:
        """The cuts under which an iteration takes least.

        Times of the four sides add up, and each is searched by itself: given how long its devices may take to send and
        to end at each level but the outermost, all who can go furthest in should, which only unburdens the server. So
        only such bounds are tried as some device attains. Where memory forbids what comes of it, the device that has
        too little must go one level out on one of its sides: each of them is tried, the most promising first.
        """
        free = {side: np.full(len(self.names), each.levels - 1) for side, each in self.sides.items()}
        best = self._solved(free)
        waiting = [(best[0], 0, free, best[1])]
        seen, count = {self._key(free)}, itertools.count(1)
        while waiting:
            _, _, caps, levels = heapq.heappop(waiting)
            over = next((i for i, name in enumerate(self.names) if self._lacks(i, levels) > 0), None)
            if over is None:
                return self._cuts(levels)
            for side in self.sides:
                lower = {name: each.copy() for name, each in caps.items()}
                lower[side][over] = levels[side][over] - 1
                if lower[side][over] >= self._least(side) and self._key(lower) not in seen:
                    seen.add(self._key(lower))
                    total, found = self._solved(lower)
                    heapq.heappush(waiting, (total, next(count), lower, found))
        raise self._too_small()

    def _solved(self, caps: dict[tuple[str, str], np.ndarray]) -> tuple[float, dict[tuple[str, str], np.ndarray]]:
        levels, total = {}, sum(map(sum, self.middles.values()))
        for name, side in self.sides.items():
            rows = _candidates(side, caps[name], self._least(name))
            each = side.seconds(rows, self._counts).sum(0)
            best = int(each.argmin())
            levels[name], total = rows[best], total + float(each[best])
        return total, levels

    def _least(self, side: tuple[str, str]) -> int:
        return self.min_head if side == ("discriminator", "head") else 0

    def _lacks(self, device: int, levels: dict[tuple[str, str], np.ndarray]) -> float:
        memory = self.fleet.devices[self.names[device]].memory
        needed = sum(int(side.memory[: levels[name][device] + 1].sum()) for name, side in self.sides.items())
        return 0 if memory is None else needed - memory

    def _too_small(self) -> RecipeError:
        least = {name: np.full(len(self.names), self._least(name)) for name in self.sides}
        lacks = {name: self._lacks(i, least) for i, name in enumerate(self.names)}
        worst = max(lacks, key=lambda name: lacks[name])
        return RecipeError(
            f"device {worst}: at the least cut it lacks {lacks[worst] / 1e6:,.1f} MB of memory for a batch of "
            f"{self.fleet.batch}"
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

    @staticmethod
    def _key(caps: Mapping[tuple[str, str], np.ndarray]) -> bytes:
        return b"".join(each.tobytes() for each in caps.values())


def _candidates(side: Side, caps: np.ndarray, least: int) -> np.ndarray:
    """Rows of levels: for all bounds that devices attain, each goes as far in as bounds and cap let it."""
    inner = list(range(least + 1, side.levels))
    bounds = [np.append(np.unique(way[level]), -np.inf) for level in inner for way in (side.gather, side.scatter)]
    if (many := math.prod(map(len, bounds))) > MOST:
        raise RecipeError(f"{len(caps)} kinds of devices make {many:,} combinations; tell those nearly alike as one")
    chosen = np.stack([each.ravel() for each in np.meshgrid(*bounds, indexing="ij")] or [np.zeros(1)], 1)
    levels = np.full((len(chosen), len(caps)), least)
    for i, level in enumerate(inner):
        here, there = (chosen[:, [2 * i + j]] for j in (0, 1))
        fits = (side.gather[level] <= here) & (side.scatter[level] <= there) & (caps >= level)
        levels[fits] = level
    return np.unique(levels, axis=0)
