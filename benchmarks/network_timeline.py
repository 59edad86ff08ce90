"""A GAN that is cut over two sites, and where the time of an iteration goes: who works, what is on the wire, who waits.

Both sites and the server are processes of their own, whose lines note when each call was made, came and was answered,
and when its answer was received.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from harness import bench
from harness.federations import alone_seconds, recipe
from harness.fork_server import ForkedModule
from manyhands.errors import Refused
from manyhands.evaluation import plots
from manyhands.federation.demo import LOOPBACK, connect_admin, free_port, watch
from manyhands.federation.kit import ADMIN, SERVER, load_kit, new_kits
from manyhands.federation.policy import Policy
from manyhands.federation.run_session import OVER
from manyhands.federation.server import FederationServer
from manyhands.federation.server_connection import ServerConnection
from manyhands.federation.site import Site
from manyhands.federation.site_connections import ReceivedCall, SiteConnections
from manyhands.messages.message import Message
from manyhands.methods.huscf.operations import BACKWARD, ORDER

BARS = {"u_gan": ">= 3.5"}
EACH = frozenset(ORDER)
LARGE = ("data.size=28", "method.model.width=16", "method.training.batch=32")
SMALL = ("data.size=16", "method.model.width=4", "method.training.batch=8")


class Call(NamedTuple):
    """When a site made it, when it had come, when it was answered, and when the site had the answer."""

    op: str
    made: float
    came: float
    answered: float
    received: float


class TimedCalls(ServerConnection):
    """Notes when a call was made and when its answer was there."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.noted: list[tuple[str, float, float]] = []

    def __call__(self, message: Message) -> Message:
        """The same, noted."""
        began = time.time()
        answer = super().__call__(message)
        self.noted.append((message.op, began, time.time()))
        return answer


class TimedConnections(SiteConnections):
    """Notes when a call had come and when it was answered."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.noted: dict[str, list[list[float]]] = {}

    def next(self, timeout: float) -> ReceivedCall | None:
        """The same, noted."""
        if call := super().next(timeout):
            self.noted.setdefault(call.peer, []).append([time.time()])
        return call

    def answer(self, peer: str, answer: Message | Refused) -> None:
        """The same, noted."""
        self.noted[peer][-1].append(time.time())
        super().answer(peer, answer)


def site(kit: Path, out: Path) -> None:
    """A site that takes part in one run."""
    loaded, out = load_kit(kit, "site"), out / kit.name
    calls = TimedCalls(loaded.connect())
    policy = Policy(approve="limits", labels=True, computable=True, data="recipe")
    worker = Site(loaded.about.party, policy, out, calls, lambda _: None)
    worker.work(lambda: all(op != "ended" for op, *_ in calls.noted))
    (out / "noted.json").write_text(json.dumps(calls.noted))
    calls.close()


def serve(kit: Path, out: Path) -> None:
    """A server of one run."""
    loaded, out = load_kit(kit, "server"), out / kit.name
    out.mkdir()
    connections = TimedConnections(loaded.connect(LOOPBACK), [*loaded.about.sites, ADMIN])
    server = FederationServer(loaded.about.sites, connections, out=out, device="cpu", log=lambda _: None)
    while server.run_session is None or server.run_session.stage not in OVER:
        server.step()
    (out / "noted.json").write_text(json.dumps(connections.noted))
    end = time.monotonic() + 2
    while time.monotonic() < end:  # the admin asks how it ended
        server.step()
    connections.close()


def measure(args: argparse.Namespace) -> bench.Measured:
    """Mini-batches a second of each of two sites, and the picture of one."""
    bench.one_thread_each()
    steps, size = (3, SMALL) if args.quick else (25, LARGE)
    asked = recipe("digits-huscf", 2, *size, f"method.training.steps={steps}")
    names = ["silo-0", "silo-1"]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        new_kits(f"{LOOPBACK}:{free_port()}", names, root / "kits")
        parties = [_start("serve", root / "kits" / SERVER, root)]
        parties += [_start("site", root / "kits" / name, root) for name in names]
        with connect_admin(root / "kits", parties[0]) as admin:  # type: ignore[arg-type] # it has poll
            admin.submit(asked, [])
            *_, last = watch(admin, 0.5)
        assert last["stage"] == "ended", last
        codes = [party.wait(60) for party in parties]
        assert codes == [0, 0, 0], codes
        marks = json.loads((root / SERVER / "noted.json").read_text())
        calls = {name: _joined(json.loads((root / name / "noted.json").read_text()), marks[name]) for name in names}
        one = alone_seconds(asked, root / "one") / steps
    rounds = {name: _iterations(mine, steps * asked.method.rounds) for name, mine in calls.items()}
    parts = _shares(rounds)
    if args.save:
        plots.timeline(bench.RESULTS / "network_timeline.png", list(_bars(rounds)))
    seconds = statistics.median(end - begin for begin, end, _ in rounds["silo-0"])
    return {"figures": {"u_gan": 1 / seconds}, "iteration": {"seconds": seconds, "in one process": one, **parts}}


def _start(role: str, kit: Path, out: Path) -> ForkedModule:
    return ForkedModule("network_timeline", role, str(kit), str(out))


def _joined(noted: list[list[Any]], marks: list[list[float]]) -> list[Call]:
    """What a site and the server noted of the same calls; the last of each session may be answered by its end."""
    pairs = zip(noted, marks, strict=False)
    return [Call(op, made, mark[0], mark[1], received) for (op, made, received), mark in pairs if len(mark) == 2]


def _iterations(calls: list[Call], count: int) -> list[tuple[float, float, list[Call]]]:
    """From when to when each went, and its calls: those that are made in every mini-batch, in equal portions."""
    every = [call for call in calls if call.op in EACH]
    each, rest = divmod(len(every), count)
    assert not rest, (len(every), count)
    portions = [every[i * each : (i + 1) * each] for i in range(count)]
    ends = [following[0].made for following in portions[1:]]
    iterations = [(portion[0].made, end, portion) for portion, end in zip(portions, ends, strict=False)]
    return [one for one in iterations if one[1] - one[0] < 2]  # not those in which a round ends


def _shares(rounds: dict[str, list[tuple[float, float, list[Call]]]]) -> dict[str, float]:
    """Seconds of an iteration in which a site works, its messages are on the wire, or others are waited for."""
    works, wire, waits = [], [], []
    for begin, end, calls in rounds["silo-0"]:
        wire.append(sum(call.came - call.made + call.received - call.answered for call in calls))
        waits.append(sum(call.answered - call.came for call in calls))
        works.append(end - begin - wire[-1] - waits[-1])
    names = ("site works", "on the wire", "server works or waits for the other site")
    return {name: statistics.median(each) for name, each in zip(names, (works, wire, waits), strict=True)}


def _bars(rounds: dict[str, list[tuple[float, float, list[Call]]]]) -> Iterator[tuple[str, str, str, float, float]]:
    """Of the iteration in the middle, as a picture has them."""
    middle = len(rounds["silo-0"]) // 2
    zero = rounds["silo-0"][middle][0]
    for name, iterations in rounds.items():
        _, end, calls = iterations[middle]
        for call, following in zip(calls, [*(each.made for each in calls[1:]), end], strict=True):
            what = f"{'gradients' if call.op.endswith(BACKWARD) else 'activations'}: pass"
            yield name, what, "wire", call.made - zero, call.came - zero
            yield name, what, "wire", call.answered - zero, call.received - zero
            yield name, "site: works", "work", call.received - zero, following - zero
    for pair in zip(*(iterations[middle][2] for iterations in rounds.values()), strict=True):
        begin, end = max(call.came for call in pair), min(call.answered for call in pair)
        yield SERVER, "server: works", "work", begin - zero, end - zero


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] in ("serve", "site"):
        {"serve": serve, "site": site}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        bench.main("network_timeline", measure, BARS)
