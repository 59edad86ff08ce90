"""Finds the fastest cuts exactly: the times of the four ends (head and tail of both networks) add up."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from manyhands.errors import RecipeError

End: TypeAlias = tuple[str, str]
"""A network and one of its sides."""
Levels: TypeAlias = dict[End, np.ndarray]
"""The level of each kind of device at each end."""
MAX_COMBINATIONS = 2_000_000
"""The most combinations of levels that are tried for one side."""


class Side(NamedTuple):
    """The costs of one end of a network. A device at level l has the l + 1 outermost blocks, and the server the others.

    Args:
        work: The seconds of computing at each level, (levels, devices), for gathering from and scattering to devices.
        wire: The seconds of sending at each level, (levels, devices), for gathering and scattering.
        server: The seconds of the server in each block for one device, (levels,), for gathering and scattering.
        memory: The bytes of memory of each block at a device, (levels,).
        bytes: The bytes that cross the cut at each level, (levels,).
    """

    work: tuple[np.ndarray, np.ndarray]
    wire: tuple[np.ndarray, np.ndarray]
    server: tuple[np.ndarray, np.ndarray]
    memory: np.ndarray
    bytes: np.ndarray

    @property
    def gather(self) -> np.ndarray:
        """The seconds until the data of a device has arrived, (levels, devices)."""
        seconds: np.ndarray = self.work[0] + self.wire[0]
        return seconds

    @property
    def scatter(self) -> np.ndarray:
        """The seconds from sending to a device until it is done, (levels, devices)."""
        seconds: np.ndarray = self.work[1] + self.wire[1]
        return seconds

    @property
    def levels(self) -> int:
        """The number of levels."""
        return len(self.memory)

    def seconds(self, levels: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Return the seconds of gathering and of scattering, (2, rows), for rows of the levels of all devices."""
        served = served_devices(levels, counts, self.levels)
        ready = np.zeros(len(levels))
        spent = np.zeros((len(levels), self.levels))
        for level in range(self.levels):
            if level:
                ready = ready + served[:, level] * self.server[0][level]
                spent[:, :level] += (served[:, level] * self.server[1][level])[:, None]
            arrived = np.where(levels == level, self.gather[level], 0).max(1)
            ready = np.maximum(ready, arrived)
        scatter = np.take_along_axis(self.scatter.T[None].repeat(len(levels), 0), levels[:, :, None], 2)[:, :, 0]
        ended = np.take_along_axis(spent, levels, 1) + scatter
        return np.stack([ready, ended.max(1)])


def served_devices(levels: np.ndarray, counts: np.ndarray, depth: int) -> np.ndarray:
    """Return for how many devices the server runs each block, (rows, depth), for rows of levels."""
    return np.stack([((levels < level) * counts).sum(1) for level in range(depth)], 1)


def memory_at(sides: Mapping[End, Side], levels: Mapping[End, np.ndarray]) -> np.ndarray:
    """Return the bytes of memory that training takes at each device, for levels of any shape."""
    parts = [side.memory.cumsum()[levels[name]] for name, side in sides.items()]
    total: np.ndarray = sum(parts[1:], parts[0])
    return total


@dataclass(frozen=True)
class Problem:
    """What a solver needs to know.

    Args:
        sides: The costs of each end of the networks.
        counts: The number of devices of each kind, (kinds,).
        memory: The bytes of memory of a device of each kind, (kinds,); inf for no limit.
        least: The least level of each end.
    """

    sides: Mapping[End, Side]
    counts: np.ndarray
    memory: np.ndarray
    least: Mapping[End, int]

    def lacks(self, levels: Mapping[End, np.ndarray]) -> np.ndarray:
        """Return the bytes of memory that each kind of device lacks; below 0 where it has enough."""
        missing: np.ndarray = memory_at(self.sides, levels) - self.memory
        return missing

    def outermost(self) -> Levels:
        """Return the levels with the fewest blocks at the devices."""
        return {end: np.full(len(self.counts), self.least[end]) for end in self.sides}

    def innermost(self) -> Levels:
        """Return the levels with the most blocks at the devices, without regard to memory."""
        return {end: np.full(len(self.counts), side.levels - 1) for end, side in self.sides.items()}

    def seconds(self, levels: Mapping[End, np.ndarray]) -> float:
        """Return the seconds of an iteration that depend on the levels."""
        return sum(float(side.seconds(levels[end][None], self.counts).sum()) for end, side in self.sides.items())


def exact(problem: Problem) -> Levels | None:
    """Return the levels with the shortest iteration, or None if memory allows none.

    The times of the ends add up, so each end is searched by itself. For given bounds on how long devices at each level
    but the outermost may take to send and to finish, every device should go as far in as the bounds allow, because that
    only relieves the server. So only bounds that some device attains are tried. If the result does not fit into memory,
    the device that lacks memory must go one level out at one of its ends: all of them are tried, the most promising
    first. The proof is in docs/cuts.md.
    """
    free = problem.innermost()
    total, levels = _within(problem, free)
    waiting = [(total, 0, free, levels)]
    seen, count = {_key(free)}, itertools.count(1)
    while waiting:
        _, _, caps, levels = heapq.heappop(waiting)
        lacks = problem.lacks(levels)
        if lacks.max() <= 0:
            return levels
        over = int(np.flatnonzero(lacks > 0)[0])
        for end in problem.sides:
            lower = {name: cap.copy() for name, cap in caps.items()}
            lower[end][over] = levels[end][over] - 1
            if lower[end][over] >= problem.least[end] and _key(lower) not in seen:
                seen.add(_key(lower))
                total, best = _within(problem, lower)
                heapq.heappush(waiting, (total, next(count), lower, best))
    return None


def _within(problem: Problem, caps: Levels) -> tuple[float, Levels]:
    """Return the shortest seconds at levels up to ``caps``, without regard to memory, and those levels."""
    levels, total = {}, 0.0
    for end, side in problem.sides.items():
        rows = _candidates(side, caps[end], problem.least[end])
        seconds = side.seconds(rows, problem.counts).sum(0)
        best = int(seconds.argmin())
        levels[end], total = rows[best], total + float(seconds[best])
    return total, levels


def _candidates(side: Side, caps: np.ndarray, least: int) -> np.ndarray:
    """Return rows of levels: for all bounds that devices attain, each device goes as far in as bounds and cap allow."""
    inner = list(range(least + 1, side.levels))
    bounds = [np.append(np.unique(way[level]), -np.inf) for level in inner for way in (side.gather, side.scatter)]
    if (many := math.prod(map(len, bounds))) > MAX_COMBINATIONS:
        raise RecipeError(f"{len(caps)} kinds of devices make {many:,} combinations; merge kinds that are nearly equal")
    chosen = np.stack([axis.ravel() for axis in np.meshgrid(*bounds, indexing="ij")] or [np.zeros(1)], 1)
    levels = np.full((len(chosen), len(caps)), least)
    for i, level in enumerate(inner):
        gather, scatter = (chosen[:, [2 * i + j]] for j in (0, 1))
        fits = (side.gather[level] <= gather) & (side.scatter[level] <= scatter) & (caps >= level)
        levels[fits] = level
    return np.unique(levels, axis=0)


def _key(caps: Mapping[End, np.ndarray]) -> bytes:
    return b"".join(cap.tobytes() for cap in caps.values())
