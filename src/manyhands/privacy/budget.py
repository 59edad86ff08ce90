"""A site's privacy budget: what it has released of each image, over all runs and servers.

Releases of one image whose noise is on one path reveal what the least noisy of them reveals (``privacy/noise.py``);
releases of different paths add up. The file is append-only, and an entry is on the disk before its release is sent. The
file identifies no image: it holds records and paths as hashes, keyed with the site's secret.
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

RELEASES_FILE = "released.jsonl"
HASH_BYTES = 16
"""Bytes of a hash in the file."""
SEVERAL_RELEASES_FACTOR = 2 ** (1 / 8)
"""Several releases of one path reveal at most this factor, 3/8 dB, more than the least noisy of them."""


class Limits(NamedTuple):
    """The most that may be released of one image over all runs.

    Args:
        epsilon: The largest epsilon, at ``delta``; ``None`` for no limit.
        snr_db: The largest signal-to-noise ratio in dB; ``None`` for no limit.
        releases: The most releases; ``None`` for no limit.
        delta: The delta at which ``epsilon`` is computed.
    """

    epsilon: float | None = None
    snr_db: float | None = None
    releases: int | None = None
    delta: float = 1e-5


class Cost(NamedTuple):
    """The privacy cost of all releases of one image, composed.

    Args:
        mu_squared: The sum of mu squared of the releases with Gaussian noise; infinite for an image without noise.
        snr: The sum of their signal-to-noise ratios.
        releases: How many there are.
        labels: The sum of the epsilons of its released labels.
    """

    mu_squared: float = 0.0
    snr: float = 0.0
    releases: int = 0
    labels: float = 0.0

    def add(self, other: Cost) -> Cost:
        """The cost of both, with independent noise: every field adds up."""
        return Cost(
            self.mu_squared + other.mu_squared, self.snr + other.snr,
            self.releases + other.releases, self.labels + other.labels,
        )  # fmt: skip

    def maximum(self, other: Cost) -> Cost:
        """The larger value of each field."""
        return Cost(
            max(self.mu_squared, other.mu_squared), max(self.snr, other.snr),
            max(self.releases, other.releases), max(self.labels, other.labels),
        )  # fmt: skip

    def epsilon(self, delta: float) -> float:
        """The epsilon of all releases together; infinite if an image was released without noise."""
        return _epsilon(self.mu_squared, delta) + self.labels

    def excess(self, limits: Limits) -> list[tuple[str, float, float]]:
        """Each limit that is exceeded: its name, the cost, and the limit."""
        costs = {"epsilon": self.epsilon(limits.delta), "snr_db": decibel(self.snr), "releases": float(self.releases)}
        maxima = {"epsilon": limits.epsilon, "snr_db": limits.snr_db, "releases": limits.releases}
        return [
            (name, costs[name], limit) for name, limit in maxima.items() if limit is not None and costs[name] > limit
        ]

    def words(self, delta: float) -> str:
        """Describe the cost in words."""
        return f"{self.releases} releases, epsilon {self.epsilon(delta):,.3g}, {decibel(self.snr):.1f} dB"


NO_COST = Cost()


class PathCost(NamedTuple):
    """The privacy cost of all releases of one path.

    Args:
        top: The largest value of each field of ``Cost`` among them.
        several: Whether there were releases of different noise levels.
    """

    top: Cost
    several: bool = False

    def with_release(self, cost: Cost) -> PathCost:
        """The cost after one more release; repeating a release, or adding noise to an earlier one, costs nothing."""
        top = self.top.maximum(cost)
        return self if top == self.top and (self.several or cost == top) else PathCost(top, several=True)

    @property
    def cost(self) -> Cost:
        """The cost of all releases of the path."""
        factor = SEVERAL_RELEASES_FACTOR if self.several else 1.0
        return self.top._replace(mu_squared=self.top.mu_squared * factor, snr=self.top.snr * factor)


class Budget:
    """The ledger of a site's releases; several processes may share it.

    Args:
        folder: The folder of the ledger's file.
        secret: The site's secret, which keys all hashes in the ledger.
    """

    def __init__(self, folder: Path, secret: str) -> None:
        self.path, self._key = folder / RELEASES_FILE, secret.encode()[:64]
        self._read = 0
        self._released: defaultdict[bytes, dict[bytes, PathCost]] = defaultdict(dict)

    def charge(
        self, records: Sequence[bytes], paths: Sequence[bytes], cost: Cost, limits: Limits,
        label_paths: Sequence[bytes] = (), **run: str,
    ) -> None:  # fmt: skip
        """Enter what is about to be released, or raise ``BudgetError`` if that would exceed the limits.

        Repeating a release costs nothing, since it reveals nothing new.

        Args:
            records: The identity of each record.
            paths: The path of each record's noise.
            cost: The cost of one record's release.
            limits: What may be released of one image in all.
            label_paths: The path of each record's randomised label, which may be redrawn while the noise is not.
            run: What is noted of the run, in the ledger.
        """
        parts = {cost: paths}
        if label_paths:
            parts = {cost._replace(labels=0.0): paths, Cost(labels=cost.labels): label_paths}
        marks = [self._mark(b"record", record) for record in records]
        with locked_file(self.path) as file:
            self._catch_up(file)
            charges = {
                part: self._new_costs(self._pairs(marks, part_paths), part) for part, part_paths in parts.items()
            }
            self._check(_merged(charges.values()), limits)
            for part, new in charges.items():
                if new:
                    self._append(
                        file, [(mark, path) for mark, new_paths in new.items() for path in new_paths], part, run
                    )

    def worst(self) -> Cost:
        """The cost of the image with the largest cost; zero if nothing was released."""
        if self.path.exists():
            with locked_file(self.path) as file:
                self._catch_up(file)
        spent = [_sum(paths) for paths in self._released.values()]
        return max(spent, key=lambda cost: (cost.epsilon(1e-5), cost), default=NO_COST)

    def _pairs(self, marks: list[bytes], paths: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        return [(mark, self._mark(b"path", mark + path)) for mark, path in zip(marks, paths, strict=True)]

    def _new_costs(self, pairs: list[tuple[bytes, bytes]], cost: Cost) -> dict[bytes, dict[bytes, PathCost]]:
        """For each record, the paths whose cost would grow, with their new cost."""
        new: dict[bytes, dict[bytes, PathCost]] = {}
        for mark, path in pairs:
            before = self._released.get(mark, {}).get(path)
            after = before.with_release(cost) if before else PathCost(cost)
            if after != before:
                new.setdefault(mark, {})[path] = after
        return new

    def _check(self, new: dict[bytes, dict[bytes, PathCost]], limits: Limits) -> None:
        over = [
            (mark, excess)
            for mark, paths in new.items()
            if (excess := _sum(self._released.get(mark, {}) | paths).excess(limits))
        ]
        if not over:
            return
        mark, ((name, cost, limit), *_) = max(over, key=lambda image: image[1][0][1])
        spent = _sum(self._released.get(mark, {}))
        raise BudgetError(
            f"this site's policy: {len(over):,} of its images would be released at {name} {cost:,.4g} over all runs; "
            f"at most {limit:,.4g} is allowed (delta {limits.delta:g}); spent: {spent.words(limits.delta)}; left: "
            f"{_left(spent, limits)}"
        )

    def _append(self, file: BinaryIO, pairs: list[tuple[bytes, bytes]], cost: Cost, run: dict[str, str]) -> None:
        fields = {name: None if math.isinf(value) else value for name, value in cost._asdict().items()}
        line = {**run, "cost": fields, "images": "".join((mark + path).hex() for mark, path in pairs)}
        file.write((b"" if self._read else self._line({"of": self._secret_hash()})) + self._line(line))
        file.flush()
        os.fsync(file.fileno())
        self._catch_up(file)

    def _catch_up(self, file: BinaryIO) -> None:
        """Read what any process has appended. A line that a kill cut short is of a release that was not sent."""
        file.seek(self._read)
        whole, end, _ = file.read().rpartition(b"\n")
        for line in whole.split(b"\n") if end else ():
            try:
                self._take(json.loads(line), first=self._read == 0)
            except (ValueError, TypeError, KeyError) as error:
                raise BudgetError(
                    f"{self.path}: cannot be read after {self._read:,} bytes ({error}): nothing is released until "
                    "the file is repaired"
                ) from None
            self._read += len(line) + 1
        file.truncate(self._read)
        file.seek(self._read)

    def _take(self, entry: dict[str, Any], *, first: bool) -> None:
        if first:
            if entry["of"] != self._secret_hash():
                raise ValueError("it was written with another secret")
            return
        fields: dict[str, Any] = {name: math.inf if value is None else value for name, value in entry["cost"].items()}
        cost, raw = Cost(**fields), bytes.fromhex(entry["images"])
        if len(raw) % (2 * HASH_BYTES):
            raise ValueError("an entry of an image is incomplete")
        for at in range(0, len(raw), 2 * HASH_BYTES):
            mark, path = raw[at : at + HASH_BYTES], raw[at + HASH_BYTES : at + 2 * HASH_BYTES]
            before = self._released[mark].get(path)
            self._released[mark][path] = before.with_release(cost) if before else PathCost(cost)

    def _mark(self, kind: bytes, value: bytes) -> bytes:
        return hashlib.blake2b(value, digest_size=HASH_BYTES, key=self._key, person=kind).digest()

    def _secret_hash(self) -> str:
        return self._mark(b"ledger", b"").hex()

    def _line(self, entry: dict[str, Any]) -> bytes:
        return strict_json(entry).encode() + b"\n"


def _left(spent: Cost, limits: Limits) -> str:
    words = []
    if limits.epsilon is not None:
        words.append(f"epsilon {max(limits.epsilon - spent.epsilon(limits.delta), 0):,.3g}")
    if limits.snr_db is not None:
        words.append(f"an SNR of {max(10 ** (limits.snr_db / 10) - spent.snr, 0):.3g}")
    if limits.releases is not None:
        words.append(f"{max(limits.releases - spent.releases, 0)} releases")
    return ", ".join(words)


def _merged(parts: Iterable[dict[bytes, dict[bytes, PathCost]]]) -> dict[bytes, dict[bytes, PathCost]]:
    merged: dict[bytes, dict[bytes, PathCost]] = {}
    for part in parts:
        for mark, paths in part.items():
            merged[mark] = merged.get(mark, {}) | paths
    return merged


def _sum(paths: dict[bytes, PathCost]) -> Cost:
    total = NO_COST
    for path in paths.values():
        total = total.add(path.cost)
    return total


@cache
def _epsilon(mu_squared: float, delta: float) -> float:
    return math.inf if math.isinf(mu_squared) else epsilon(math.sqrt(mu_squared), delta)
