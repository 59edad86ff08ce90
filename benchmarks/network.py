"""Runs between processes over mutual TLS on loopback: the same weights, how fast, and what survives which fault."""

from __future__ import annotations

import argparse
import contextlib
import json
import queue
import random
import shutil
import socket
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

from harness import bench
from harness.expired import expire
from harness.federations import (
    METHODS,
    RECIPES,
    SMALL,
    alone,
    alone_seconds,
    between,
    end,
    ended,
    recipe,
    up,
    worker_of,
)
from harness.fork_server import ForkedModule
from harness.proxy import proxy
from manyhands import compose, load_recipe
from manyhands.errors import ManyhandsError
from manyhands.federation.approval import approve
from manyhands.federation.demo import LOOPBACK, LocalFederation, free_port, watch
from manyhands.federation.kit import ADMIN, SERVER, Kit, load_kit, new_kits
from manyhands.federation.policy import Policy, recipe_hash, recipe_text
from manyhands.federation.site import Site
from manyhands.links.coordinator import RoundCoordinator
from manyhands.links.exchange import ClientSession
from manyhands.links.flare import FlareConnection
from manyhands.links.frame import Frame
from manyhands.messages.message import Message, encode
from manyhands.runs.recipe import Recipe
from manyhands.runs.run_folder import RunFolder
from manyhands.tensors import sha256

BARS = {
    "identical": "== 0", "rate": ">= 60", "rate_20ms": ">= 0.7",
    "fedavg_round": "<= 5", "fedavg_memory": "<= 1", "fedavg_memory_8": "<= 1",
    "half_gone": "<= 1", "half_gone_mean": "== 0", "rejoin": "<= 30", "cuts": "<= 10",
    "malformed": "== 0", "strangers": "== 0", "approval": "== 1", "sockets": "== 0",
}  # fmt: skip


def identical(args: argparse.Namespace) -> tuple[dict[str, float], dict[str, Any]]:
    """How many of the tensors' hashes differ between one process and four."""
    differ = {}
    with up(3) as (federation, admin, sites), tempfile.TemporaryDirectory() as folder:
        for name in list(METHODS)[: 1 if args.quick else 3]:
            asked = recipe(name, 3)
            run = admin.submit(asked, [])["run"]
            assert ended(admin)["stage"] == "ended", federation.log(SERVER)
            one, other = alone(asked, Path(folder) / name), between(federation, run, asked.method.rounds, sites)
            differ[name] = sum(one.get(each) != other.get(each) for each in one.keys() | other.keys())
    return {"identical": float(sum(differ.values()))}, {"differ": differ}


def rate(args: argparse.Namespace) -> tuple[dict[str, float], dict[str, Any]]:
    """Operations of a megabyte a second, two sites: on loopback, and at 20 ms against gRPC alone."""
    count = 10 if args.quick else 200
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for delay in (0.0, 0.01):
            for bare in ("", "-bare"):
                port = free_port()
                with proxy(port, delay) as stretch:
                    kits = Path(folder) / f"{delay}{bare}"
                    new_kits(f"{LOOPBACK}:{stretch.port if delay else port}", ["a", "b"], kits)
                    seconds[f"{2000 * delay:.0f} ms{bare}"] = _called(kits, port, bare, count)
    slowed = seconds["20 ms-bare"] / seconds["20 ms"]
    return {"rate": 1 / seconds["0 ms"], "rate_20ms": slowed}, {"seconds_of_a_megabyte": seconds}


def _called(kits: Path, port: int, bare: str, count: int) -> float:
    """The median seconds of an operation."""

    def start(role: str, party: str) -> ForkedModule:
        return ForkedModule("harness.network_child", f"{role}{bare}", str(kits / party), str(port), str(count))

    parties = [start("serve", SERVER), start("call", "a"), start("call", "b")]
    said = [process.stdout.read() for process in parties]
    return float(max(statistics.median(json.loads(each)[count // 10 :]) for each in said[1:]))


def half_gone(_args: argparse.Namespace) -> tuple[dict[str, float], dict[str, Any]]:
    """By how many seconds a round ends later than its deadline when half of eight sites die, and whose mean it has."""
    deadline, gone = 8.0, [f"silo-{i}" for i in range(4)]
    asked = recipe("digits-fedavg", 8, f"federation.deadline={deadline}", "method.training.steps=20")
    with up(8) as (federation, admin, _sites):
        run = admin.submit(asked, [])["run"]
        for status in watch(admin, 0.05):
            if status["round"] == 1:
                break
        for party in gone:
            end(federation, party)
        stage = ended(admin)["stage"]
        folder = RunFolder(federation.folder / SERVER / run)
        rounds, state = folder.rounds, folder.state()
    late = rounds[1].seconds - deadline
    missing = [sorted(done.missing) for done in rounds]
    with tempfile.TemporaryDirectory() as other:
        same = stage == "ended" and sha256(state.server) == _without(asked, missing, Path(other))
    shown = {"half_gone_rounds": [{"missing": done.missing, "seconds": done.seconds} for done in rounds]}
    return {"half_gone": late, "half_gone_mean": float(not same)}, shown


def _without(asked: Recipe, missing: list[list[str]], folder: Path) -> str:
    """The server's weights of a run in one process in which these were missing."""
    experiment = compose(asked, folder)
    server, plan = experiment.server, asked.method.plan()
    for gone in missing:
        coordinator = RoundCoordinator(server, plan, experiment.roster)
        for name in gone:
            coordinator.drop(name, "gone")
        for silo in experiment.silos:
            if silo.name in gone:
                continue
            conversation = asked.method.silo(silo)
            coordinator.submit(silo.name, next(conversation))
            answer = coordinator.collect(silo.name)
            assert answer is not None
            coordinator.submit(silo.name, conversation.send(answer))
            conversation.close()
    return sha256(server.state_dict())


def rejoin(_args: argparse.Namespace) -> tuple[dict[str, float], dict[str, Any]]:
    """The seconds from the moment a site is begun again, after it was left out, to the end of a round that has it."""
    asked = recipe("digits-fedavg", 3, "federation.deadline=3", "method.rounds=400", "method.training.steps=40")
    with up(3) as (federation, admin, _):
        run = admin.submit(asked, [])["run"]
        folder = RunFolder(federation.folder / SERVER / run)
        _until(lambda: len(folder.rounds) >= 2)
        party = "silo-1"
        end(federation, party)
        _until(lambda: party in folder.rounds[-1].missing)
        began = time.perf_counter()
        federation.start(party)
        _until(lambda: party not in folder.rounds[-1].missing)
        taken = time.perf_counter() - began
        admin.stop(run)
    return {"rejoin": taken}, {}


def cuts(args: argparse.Namespace) -> tuple[dict[str, float], dict[str, Any]]:
    """The seconds from the healing of a network that was cut to the end of the next round."""
    asked = recipe("digits-fedavg", 3, "federation.deadline=600", "method.rounds=4000", "method.training.steps=40")
    port, after = free_port(), {}
    with proxy(port) as stretch, up(3, port=port, through=stretch.port) as (federation, admin, _):
        run = admin.submit(asked, [])["run"]
        folder = RunFolder(federation.folder / SERVER / run)
        _until(lambda: len(folder.rounds) >= 2)
        for seconds in (1,) if args.quick else (5, 30, 120):
            stretch.cut()
            time.sleep(seconds)
            done, began = len(folder.rounds), time.perf_counter()
            stretch.heal()
            _until(partial(_more_than, folder, done + 1))
            after[seconds] = time.perf_counter() - began
    return {"cuts": max(after.values())}, {"seconds_after_a_cut": after}


def _more_than(folder: RunFolder, rounds: int) -> bool:
    return len(folder.rounds) > rounds


def _until(true: Callable[[], bool], most: float = 180.0) -> None:
    end = time.monotonic() + most
    while not true():
        if time.monotonic() > end:
            raise SystemExit("what was waited for did not come")
        time.sleep(0.02)


def approval(args: argparse.Namespace) -> tuple[dict[str, float], dict[str, Any]]:
    """The share of recipes, each changed by one byte since it was approved, that a site refuses."""
    text = recipe_text(recipe("digits-fedavg", 3))
    refused, count, chance = 0, 20 if args.quick else 200, random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        site = Site("silo-0", Policy(data="recipe"), Path(folder), None, lambda _: None)  # type: ignore[arg-type] # it calls nobody
        approve(Path(folder), [recipe_hash(text)])
        site.check_offer("run", text)
        for _ in range(count):
            place = chance.randrange(len(text))
            other = chr(chance.choice([code for code in range(32, 127) if code != ord(text[place])]))
            try:
                site.check_offer("run", text[:place] + other + text[place + 1 :])
            except ManyhandsError:
                refused += 1
    return {"approval": refused / count}, {}


def sockets(args: argparse.Namespace) -> tuple[dict[str, float], dict[str, Any]]:
    """The parties that listen where they should not: any but the server, and it on loopback alone."""
    with up(1 if args.quick else 3) as (federation, _, sites):
        listening = {party: sorted(_listening(federation, party)) for party in (SERVER, *sites)}
        expected = {party: [f"{LOOPBACK}:{federation.port}"] if party == SERVER else [] for party in listening}
    return {"sockets": float(sum(listening[party] != expected[party] for party in listening))}, {"listening": listening}


def _listening(federation: LocalFederation, party: str) -> list[str]:
    processes = [psutil.Process(federation.processes[party].pid), worker_of(federation, party)]
    every = [each for process in processes if process for each in process.net_connections()]
    places = [each.laddr for each in every if each.status == psutil.CONN_LISTEN]
    return [f"{place.ip.removeprefix('::ffff:')}:{place.port}" for place in places]


def malformed(args: argparse.Namespace) -> tuple[dict[str, float], dict[str, Any]]:
    """The messages of a registered site, and of a stranger, that broke something or were refused without a name."""
    count, chance = 50 if args.quick else 1000, random.Random(0)
    asked = recipe("digits-huscf", 3, "method.training.steps=25")
    with tempfile.TemporaryDirectory() as folder, up(4) as (federation, admin, names):
        *sites, intruder = names
        run = admin.submit(asked, sites)["run"]
        _until(lambda: admin.status()["run"]["stage"] == "training")
        end(federation, intruder)
        kit = load_kit(federation.folder / "kits" / intruder, "site")
        heard = _fuzz(kit, count, chance)
        plain = _plain(federation.port, 10 * count, chance)
        same = ended(admin)["stage"] == "ended"
        same = same and between(federation, run, asked.method.rounds, sites) == alone(asked, Path(folder) / "one")
    odd = count - heard + plain + (0 if same else count)
    return {"malformed": float(odd)}, {"malformed_refused": heard, "same": same}


def _fuzz(kit: Kit, count: int, chance: random.Random) -> int:
    """How many of so many messages were refused by name; what is not answered is sent again, as any caller does."""
    refused: dict[str, str] = {}
    came: queue.SimpleQueue[Frame] = queue.SimpleQueue()
    line = kit.connect(LOOPBACK)(lambda _, frame: came.put(frame), lambda *_: None)
    whole = encode(Message("update", {"x": torch.ones(64)}, {"round": 0, "images": 3, "loss": 0.5}))
    frames = {f"s{number}": _mutated(f"s{number}", whole, chance) for number in range(count)}
    end = time.monotonic() + 60
    while len(refused) < count and time.monotonic() < end:
        for session in [each for each in frames if each not in refused]:
            while not line.send(SERVER, [frames[session]]):
                time.sleep(0.05)
            with contextlib.suppress(queue.Empty):
                while frame := came.get(timeout=0.02):
                    if frame.fields.get("k") == "refuse":
                        refused[frame.fields["s"]] = frame.fields["reason"]
    line.close()
    return len(refused)


def _mutated(session: str, whole: bytes, chance: random.Random) -> Frame:
    """A message with some bytes changed or cut off, in a frame that may be odd, too."""
    raw = bytearray(whole)
    for _ in range(chance.randint(0, 8)):
        raw[chance.randrange(len(raw))] ^= chance.randint(1, 255)
    del raw[chance.randint(1, len(raw)) if chance.random() < 0.3 else len(raw) :]
    header: dict[str, Any] = {"k": "part", "s": session, "n": 1, "i": 0, "size": len(raw)}
    if chance.random() < 0.3:
        header[chance.choice(["k", "i", "size"])] = chance.choice([None, -1, 1 << 60, "x", [], {"a": 1}, 0.5])
    return Frame(header, bytes(raw))


def _plain(port: int, count: int, chance: random.Random) -> int:
    """How many strangers without TLS got an answer that is more than a refusal of TLS."""
    got = 0
    for _ in range(count // 10):
        with socket.create_connection((LOOPBACK, port), timeout=10) as plain, contextlib.suppress(OSError):
            plain.sendall(chance.randbytes(chance.randint(1, 4000)))
            plain.shutdown(socket.SHUT_WR)
            while heard := plain.recv(1 << 16):
                got += len(heard) > 100
    return got


def strangers(_args: argparse.Namespace) -> tuple[dict[str, float], dict[str, Any]]:
    """Those who were let in, or heard a word, and should not have."""
    with tempfile.TemporaryDirectory() as folder, up(2) as (federation, admin, _):
        run = admin.submit(recipe("digits-fedavg", 2), [])["run"]
        kits, other = federation.folder / "kits", Path(folder) / "other"
        new_kits(f"{LOOPBACK}:{federation.port}", ["silo-0"], other)
        expired = Path(folder) / "expired"
        shutil.copytree(kits / "silo-0" / "startup", expired)
        expire(expired / "client.crt", kits / "authority")
        tries = {
            "wrong authority": ("silo-0", other / "silo-0" / "startup"),
            "expired": ("silo-0", expired),
            "another site's certificate": ("silo-0", kits / "silo-1" / "startup"),
            "the admin's name": (ADMIN, kits / "silo-1" / "startup"),
            "the server's name": (SERVER, kits / "silo-1" / "startup"),
        }
        let_in = {name: _let_in(*each, federation.port) for name, each in tries.items()}
        let_in["plain TCP"] = _plain(federation.port, 100, random.Random(0)) > 0
        let_in["no certificate"] = _bare_tls(kits / "silo-0" / "startup", federation.port)
        assert ended(admin)["run"] == run
        if not _let_in("silo-0", kits / "silo-0" / "startup", federation.port):
            raise SystemExit("silo-0 itself heard nothing, so that strangers heard nothing says nothing")
    return {"strangers": float(sum(let_in.values()))}, {"let_in": let_in}


def _let_in(name: str, startup: Path, port: int) -> bool:
    """Whether somebody hears a word within some seconds of calling; not its own, where it has the server's name."""
    came: list[Frame] = []
    line = FlareConnection(
        lambda _, frame: came.append(frame), lambda *_: None,
        name=name, startup=startup, host=LOOPBACK, port=port, role="client",
    )  # fmt: skip
    call, end = ClientSession(Message("hello", facts={"declined": ""}), "s", 1), time.monotonic() + 4
    asked = call.begin() + call.ask_again()
    while time.monotonic() < end:
        line.send(SERVER, asked)
        time.sleep(0.2)
    line.close()
    return any(frame not in asked for frame in came)


def _bare_tls(startup: Path, port: int) -> bool:
    context = ssl.create_default_context(cafile=str(startup / "rootCA.pem"))
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((LOOPBACK, port), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname=LOOPBACK) as secured,
        ):
            secured.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
            return len(secured.recv(1 << 16)) > 0
    except OSError:
        return False


SMALL_NET = ("method.model.widths=[16,32]",)
DDPM = ("method.model.widths=[128,256,256,256]", "method.model.blocks=2", "method.model.groups=32",
        "method.model.attention=[1]")  # fmt: skip
"""The network of DDPM for CIFAR-10, of 35.7 million weights."""


BRIEF = ("method.training.steps=1", "method.training.batch=2", "method.ema=0", "sampling.steps=1")


def fedavg_round(args: argparse.Namespace) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds that a round of a large network takes more than in one process; the server's memory against its bound."""
    model = SMALL_NET if args.quick else DDPM
    figures: dict[str, float] = {}
    shown: dict[str, Any] = {}
    for sites in (2,) if args.quick else (2, 8):
        asked = load_recipe(
            RECIPES / "digits-fedavg.toml",
            [*SMALL, f"partition.silos={sites}", "data.size=32", *model, *BRIEF],
        )
        with up(sites) as (federation, admin, _):
            run = admin.submit(asked, [])["run"]
            assert ended(admin)["stage"] == "ended", federation.log(SERVER)
            folder = RunFolder(federation.folder / SERVER / run)
            taken = statistics.median(done.seconds for done in folder.rounds[1:])
            peak, weights_bytes = folder.report["peak_memory"], 4 * int(folder.report["parameters"])
        bound = 2.5 * weights_bytes + 300e6
        figures["fedavg_memory" if sites == 2 else "fedavg_memory_8"] = peak / bound
        shown[f"{sites} sites"] = {"seconds": taken, "peak": peak, "model": weights_bytes}
        if sites == 2:
            with tempfile.TemporaryDirectory() as other:
                one = alone_seconds(asked, Path(other) / "one")
            figures["fedavg_round"] = taken - one
            shown["in one process"] = one
    return figures, {"fedavg_round": shown}


PARTS = (identical, rate, fedavg_round, half_gone, rejoin, cuts, malformed, strangers, approval, sockets)

QUICK = (rate, approval, sockets)
"""The faults of the others are in the tests, at small size."""


def measure(args: argparse.Namespace) -> bench.Measured:
    """All parts, or those that --only names; some at toy size.

    Each party has one thread, and so has the one process that they are held against: with two threads each, parties
    that share two cores wait for one another's threads most of the time, and a round of eight takes ten times as long.
    """
    bench.one_thread_each()
    figures: dict[str, float | None] = dict.fromkeys(BARS)
    shown: dict[str, Any] = {}
    for part in QUICK if args.quick else PARTS:
        if args.only and part.__name__ not in args.only.split(","):
            continue
        measured, beside = part(args)
        figures |= measured
        shown |= beside
        print(measured, file=sys.stderr)
    return {"figures": figures, **shown, "why": "not asked for"}


if __name__ == "__main__":
    bench.main("network", measure, BARS, only="")
