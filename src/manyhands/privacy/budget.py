"""What a site has released of each of its images, over all runs and servers, composed into one release.

Releases of one image whose noise lies on one path reveal what the least noisy of them reveals (``methods/noise.py``);
those of different paths add up. The file is append-only, and an entry is on the disk before its release is sent. It
names no image: records and paths stand in it as hashes that are keyed with the site's secret.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import defaultdict
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from manyhands.errors import BudgetError
from manyhands.files.strict_json import strict_json
from manyhands.files.write import locked_file
from manyhands.privacy.accountant import decibel, epsilon

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path
    from typing import BinaryIO

FILE = "released.jsonl"
HASH_BYTES = 16
"""Bytes of a hash in the file."""
SEVERAL_RELEASES_FACTOR = 2 ** (1 / 8)
"""By so much, 3/8 dB, may several releases of one path tell more than the least noisy of them."""


class Limits(NamedTuple):
    """What may be released of an image in all; what is None is not limited."""

    epsilon: float | None = None
    snr_db: float | None = None
    releases: int | None = None
    delta: float = 1e-5


class Cost(NamedTuple):
    """What releases of one image cost: Gaussian ones as one of so much ``snr``, with ``mu`` squared, and labels."""

    mu_squared: float = 0.0
    snr: float = 0.0
    releases: int = 0
    labels: float = 0.0

    def plus(self, other: Cost) -> Cost:
        """Both, apart: sensitivities over deviations add in squares, epsilons of labels as such."""
        return Cost(
            self.mu_squared + other.mu_squared, self.snr + other.snr,
            self.releases + other.releases, self.labels + other.labels,
        )  # fmt: skip

    def most(self, other: Cost) -> Cost:
        """The larger of each."""
        return Cost(
            max(self.mu_squared, other.mu_squared), max(self.snr, other.snr),
            max(self.releases, other.releases), max(self.labels, other.labels),
        )  # fmt: skip

    def epsilon(self, delta: float) -> float:
        """By composition of all; infinite where an image left as it is."""
        return _epsilon(self.mu_squared, delta) + self.labels

    def excess(self, limits: Limits) -> list[tuple[str, float, float]]:
        """Each limit that it is beyond: its name, what it has, and what it may."""
        found = {"epsilon": self.epsilon(limits.delta), "snr_db": decibel(self.snr), "releases": float(self.releases)}
        told = {"epsilon": limits.epsilon, "snr_db": limits.snr_db, "releases": limits.releases}
        return [(name, found[name], most) for name, most in told.items() if most is not None and found[name] > most]

    def words(self, delta: float) -> str:
        """For people."""
        return f"{self.releases} releases, epsilon {self.epsilon(delta):,.3g}, {decibel(self.snr):.1f} dB"


NO_COST = Cost()


class PathCost(NamedTuple):
    """What was released of one path: the most of it, and whether there were several releases."""

    top: Cost
    several: bool = False

    def also(self, cost: Cost) -> PathCost:
        """With one more; the same again, or after several ones one that tells no more, changes nothing."""
        top = self.top.most(cost)
        return self if top == self.top and (self.several or cost == top) else PathCost(top, several=True)

    @property
    def cost(self) -> Cost:
        """Of all of it."""
        more = SEVERAL_RELEASES_FACTOR if self.several else 1.0
        return self.top._replace(mu_squared=self.top.mu_squared * more, snr=self.top.snr * more)


class Budget:
    """The ledger in a folder. Several processes may share it; ``secret`` is the site's, and a ledger has only one."""

    def __init__(self, folder: Path, secret: str) -> None:
        self.path, self._key = folder / FILE, secret.encode()[:64]
        self._read = 0
        self._told: defaultdict[bytes, dict[bytes, PathCost]] = defaultdict(dict)

    def charge(
        self, records: Sequence[bytes], paths: Sequence[bytes], cost: Cost, limits: Limits,
        label_paths: Sequence[bytes] = (), **of: str,
    ) -> None:  # fmt: skip
        """Note what is about to be released of each record, or raise ``BudgetError`` where that is beyond the limits.

        The same release again tells nobody anything new: it costs nothing. Labels told at random have paths of their
        own: they may be drawn anew where the noise of their image is not.
        """
        parts = {cost: paths}
        if label_paths:
            parts = {cost._replace(labels=0.0): paths, Cost(labels=cost.labels): label_paths}
        marks = [self._mark(b"record", record) for record in records]
        with locked_file(self.path) as file:
            self._catch_up(file)
            each = {part: self._fresh(self._pairs(marks, named), part) for part, named in parts.items()}
            self._check(_joined(each.values()), limits)
            for part, fresh in each.items():
                if fresh:
                    self._append(file, [(mark, path) for mark, mine in fresh.items() for path in mine], part, of)

    def worst(self) -> Cost:
        """Of the image of which most was released; nothing where there is none."""
        if self.path.exists():
            with locked_file(self.path) as file:
                self._catch_up(file)
        spent = [_sum(paths) for paths in self._told.values()]
        return max(spent, key=lambda each: (each.epsilon(1e-5), each), default=NO_COST)

    def _pairs(self, marks: list[bytes], paths: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        return [(mark, self._mark(b"path", mark + path)) for mark, path in zip(marks, paths, strict=True)]

    def _fresh(self, pairs: list[tuple[bytes, bytes]], cost: Cost) -> dict[bytes, dict[bytes, PathCost]]:
        """The paths of each record of which something new would be told, as they would be then."""
        fresh: dict[bytes, dict[bytes, PathCost]] = {}
        for mark, path in pairs:
            before = self._told.get(mark, {}).get(path)
            after = before.also(cost) if before else PathCost(cost)
            if after != before:
                fresh.setdefault(mark, {})[path] = after
        return fresh

    def _check(self, fresh: dict[bytes, dict[bytes, PathCost]], limits: Limits) -> None:
        over = [
            (mark, found)
            for mark, paths in fresh.items()
            if (found := _sum(self._told.get(mark, {}) | paths).excess(limits))
        ]
        if not over:
            return
        mark, ((what, asked, most), *_) = max(over, key=lambda each: each[1][0][1])
        spent = _sum(self._told.get(mark, {}))
        raise BudgetError(
            f"this site's policy: {len(over):,} of its images would be released at {what} {asked:,.4g} over all runs, "
            f"{most:,.4g} is the most (delta {limits.delta:g}); spent: {spent.words(limits.delta)}; left: "
            f"{_left(spent, limits)}"
        )

    def _append(self, file: BinaryIO, pairs: list[tuple[bytes, bytes]], cost: Cost, of: dict[str, str]) -> None:
        told = {name: None if math.isinf(value) else value for name, value in cost._asdict().items()}
        line = {**of, "cost": told, "images": "".join((mark + path).hex() for mark, path in pairs)}
        file.write((b"" if self._read else self._line({"of": self._whose()})) + self._line(line))
        file.flush()
        os.fsync(file.fileno())
        self._catch_up(file)

    def _catch_up(self, file: BinaryIO) -> None:
        """Take in what was added, by whomever. A line that a kill cut short told of nothing that was sent."""
        file.seek(self._read)
        whole, end, _ = file.read().rpartition(b"\n")
        for line in whole.split(b"\n") if end else ():
            try:
                self._take(json.loads(line), first=self._read == 0)
            except (ValueError, TypeError, KeyError) as error:
                raise BudgetError(
                    f"{self.path}: cannot be read after {self._read:,} bytes ({error}): nothing is released until it "
                    "is put right"
                ) from None
            self._read += len(line) + 1
        file.truncate(self._read)
        file.seek(self._read)

    def _take(self, told: dict[str, Any], *, first: bool) -> None:
        if first:
            if told["of"] != self._whose():
                raise ValueError("it is of another secret")
            return
        read: dict[str, Any] = {name: math.inf if value is None else value for name, value in told["cost"].items()}
        cost, raw = Cost(**read), bytes.fromhex(told["images"])
        if len(raw) % (2 * HASH_BYTES):
            raise ValueError("it has half an image")
        for at in range(0, len(raw), 2 * HASH_BYTES):
            mark, path = raw[at : at + HASH_BYTES], raw[at + HASH_BYTES : at + 2 * HASH_BYTES]
            before = self._told[mark].get(path)
            self._told[mark][path] = before.also(cost) if before else PathCost(cost)

    def _mark(self, what: bytes, of: bytes) -> bytes:
        return hashlib.blake2b(of, digest_size=HASH_BYTES, key=self._key, person=what).digest()

    def _whose(self) -> str:
        return self._mark(b"ledger", b"").hex()

    def _line(self, told: dict[str, Any]) -> bytes:
        return strict_json(told).encode() + b"\n"


def _left(spent: Cost, limits: Limits) -> str:
    words = []
    if limits.epsilon is not None:
        words.append(f"epsilon {max(limits.epsilon - spent.epsilon(limits.delta), 0):,.3g}")
    if limits.snr_db is not None:
        words.append(f"an SNR of {max(10 ** (limits.snr_db / 10) - spent.snr, 0):.3g}")
    if limits.releases is not None:
        words.append(f"{max(limits.releases - spent.releases, 0)} releases")
    return ", ".join(words)


def _joined(parts: Iterable[dict[bytes, dict[bytes, PathCost]]]) -> dict[bytes, dict[bytes, PathCost]]:
    found: dict[bytes, dict[bytes, PathCost]] = {}
    for part in parts:
        for mark, mine in part.items():
            found[mark] = found.get(mark, {}) | mine
    return found


def _sum(paths: dict[bytes, PathCost]) -> Cost:
    total = NO_COST
    for each in paths.values():
        total = total.plus(each.cost)
    return total


@cache
def _epsilon(mu_squared: float, delta: float) -> float:
    return math.inf if math.isinf(mu_squared) else epsilon(math.sqrt(mu_squared), delta)
