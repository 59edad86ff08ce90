"""The seconds of a megabyte up and one down, two sites: as a job of FLARE, hop by hop, and over gRPC alone."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import federations, rate_job
from harness.fork_server import ForkedModule
from harness.proxy import proxy
from manyhands.federation.admin import Admin
from manyhands.federation.demo import LocalFederation, free_port
from manyhands.federation.kit import SERVER

NUMBERS = 250_000
"""The float32 of a megabyte."""
SITES = ("silo-0", "silo-1")
WARM = 0.1
"""The share of the operations that are not counted, at the beginning."""
HOPS = ("site writes", "to FLARE's server", "on to the job", "server sums up, other site", "to FLARE's server again",
        "back to the site", "site reads")  # fmt: skip
DIRECT_HOPS = (*HOPS[:1], "to the job", HOPS[3], *HOPS[5:])


def counted(taken: Sequence[float]) -> float:
    """The median but for the first ones."""
    return statistics.median(taken[int(WARM * len(taken)) :])


def bare_seconds(federation: LocalFederation, count: int, delay: float = 0.0) -> float:
    """Of gRPC alone, with the kits of a federation, the slower site's."""
    port = free_port()

    def start(role: str, party: str, at: int) -> ForkedModule:
        startup = str(federation.kits / party / "startup")
        return ForkedModule("harness.bare_grpc", role, startup, str(at), str(NUMBERS), str(count))

    with proxy(port, delay) as stretch:
        parties = [
            start("serve", SERVER, port),
            *(start("call", site, stretch.port if delay else port) for site in SITES),
        ]
        said = [party.stdout.read() for party in parties]
    return max(counted(json.loads(each)) for each in said[1:])


def job_seconds(federation: LocalFederation, admin: Admin, count: int) -> tuple[float, dict[str, float]]:
    """Of a job, the slower site's; and where the time of the slower site goes, in milliseconds."""
    folder = federation.folder / f"rate-{free_port()}"
    job = federations.submit(federation, rate_job.write_job(folder, NUMBERS, count))
    federations.completed(federation, admin, job)
    notes = {party: json.loads((federation.kits / party / rate_job.RESULT).read_text()) for party in (SERVER, *SITES)}
    return max((_hops(notes[SERVER]["routes"][site], notes[site]) for site in SITES), key=lambda found: found[0])


def _hops(up: list[list[float]], site: dict[str, Any]) -> tuple[float, dict[str, float]]:
    """The seconds of an operation of one site, and of each of its steps."""
    down, moments = site["routes"]["server"], site["moments"]
    if not len(up) == len(down) == len(moments):
        raise SystemExit(f"parts were sent again: {len(up)} up, {len(down)} down, {len(moments)} operations")
    rows = [[began, *mine, *theirs, end] for (began, end), mine, theirs in zip(moments, up, down, strict=True)]
    taken = [row[-1] - row[0] for row in rows]
    names = HOPS if len(rows[-1]) == len(HOPS) + 1 else DIRECT_HOPS
    alike = [row for row in rows[int(WARM * len(rows)) :] if len(row) == len(names) + 1]
    steps = zip(*([end - begin for begin, end in itertools.pairwise(row)] for row in alike), strict=True)
    shown = {name: round(1e3 * statistics.median(step), 2) for name, step in zip(names, steps, strict=True)}
    return counted(taken), shown


def direct(kits: Path, parties: Sequence[str]) -> None:
    """Let the processes of a job open connections of their own, with mutual TLS; FLARE's default has none."""
    line = {"scheme": "tcp", "resources": {"host": "127.0.0.1", "secure": True}}
    for party in parties:
        (kits / party / "local" / "comm_config.json").write_text(json.dumps({"allow_adhoc_conns": True, "adhoc": line}))
