"""Which cuts take least: four ends of networks whose times add up, searched exactly."""

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
"""The most rows of levels that are tried for one side."""


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
        there = left_to_server(levels, counts, self.levels)
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


def left_to_server(levels: np.ndarray, counts: np.ndarray, depth: int) -> np.ndarray:
    """How many devices have left each block to the server, for rows of levels."""
    return np.stack([((levels < level) * counts).sum(1) for level in range(depth)], 1)


def held(sides: Mapping[End, Side], levels: Mapping[End, np.ndarray]) -> np.ndarray:
    """The bytes that training takes at each device, for levels of any shape."""
    each = [side.memory.cumsum()[levels[name]] for name, side in sides.items()]
    total: np.ndarray = sum(each[1:], each[0])
    return total


@dataclass(frozen=True)
class Problem:
    """Ends of networks, and so many devices of each kind; none may hold more than its ``memory`` (inf: no limit).

    ``least`` is the least level of each end.
    """

    sides: Mapping[End, Side]
    counts: np.ndarray
    memory: np.ndarray
    least: Mapping[End, int]

    def lacks(self, levels: Mapping[End, np.ndarray]) -> np.ndarray:
        """The bytes that each kind of device has too little, below 0 where it has enough."""
        missing: np.ndarray = held(self.sides, levels) - self.memory
        return missing

    def outermost(self) -> Levels:
        """As little at home as may be."""
        return {end: np.full(len(self.counts), self.least[end]) for end in self.sides}

    def innermost(self) -> Levels:
        """As much at home as may be, memory aside."""
        return {end: np.full(len(self.counts), side.levels - 1) for end, side in self.sides.items()}

    def seconds(self, levels: Mapping[End, np.ndarray]) -> float:
        """What depends on the levels, of one iteration."""
        return sum(float(side.seconds(levels[end][None], self.counts).sum()) for end, side in self.sides.items())


def exact(problem: Problem) -> Levels | None:
    """The levels that take least, or None where memory forbids all of them.

    Times of the ends add up, and each is searched by itself: given how long its devices may take to send and to end
    at each level but the outermost, all who can go furthest in should, which only unburdens the server. So only such
    bounds are tried as some device attains. Where memory forbids what comes of it, the device that has too little must
    go one level out at one of its ends: each of them is tried, the most promising first. The proof is in docs/cuts.md.
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
            lower = {name: each.copy() for name, each in caps.items()}
            lower[end][over] = levels[end][over] - 1
            if lower[end][over] >= problem.least[end] and _key(lower) not in seen:
                seen.add(_key(lower))
                total, found = _within(problem, lower)
                heapq.heappush(waiting, (total, next(count), lower, found))
    return None


def _within(problem: Problem, caps: Levels) -> tuple[float, Levels]:
    """The least seconds at levels up to ``caps``, memory aside, and those levels."""
    levels, total = {}, 0.0
    for end, side in problem.sides.items():
        rows = _candidates(side, caps[end], problem.least[end])
        each = side.seconds(rows, problem.counts).sum(0)
        best = int(each.argmin())
        levels[end], total = rows[best], total + float(each[best])
    return total, levels


def _candidates(side: Side, caps: np.ndarray, least: int) -> np.ndarray:
    """Rows of levels: for all bounds that devices attain, each goes as far in as bounds and cap let it."""
    inner = list(range(least + 1, side.levels))
    bounds = [np.append(np.unique(way[level]), -np.inf) for level in inner for way in (side.gather, side.scatter)]
    if (many := math.prod(map(len, bounds))) > MAX_COMBINATIONS:
        raise RecipeError(f"{len(caps)} kinds of devices make {many:,} combinations; tell those nearly alike as one")
    chosen = np.stack([each.ravel() for each in np.meshgrid(*bounds, indexing="ij")] or [np.zeros(1)], 1)
    levels = np.full((len(chosen), len(caps)), least)
    for i, level in enumerate(inner):
        here, there = (chosen[:, [2 * i + j]] for j in (0, 1))
        fits = (side.gather[level] <= here) & (side.scatter[level] <= there) & (caps >= level)
        levels[fits] = level
    return np.unique(levels, axis=0)


def _key(caps: Mapping[End, np.ndarray]) -> bytes:
    return b"".join(each.tobytes() for each in caps.values())
