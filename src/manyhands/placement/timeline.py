"""Who does what when under given cuts: as bars in time, for a program, and as tables for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from manyhands.formatting import size_text
from manyhands.models.gan import NETWORKS
from manyhands.models.layer_cut import LayerCuts
from manyhands.placement.planner import SIDES, Planner
from manyhands.placement.solver import End, left_to_server

SERVER = "server"
HEADS = ["device", "", *NETWORKS, "works", "on the wire", "waits", "sends", "memory"]
KINDS = ("work", "wire")


class Bar(NamedTuple):
    """Something that somebody does for a while: ``kind`` is work, or the wire."""

    who: str
    part: str
    kind: Literal["work", "wire"]
    start: float
    end: float


def timeline(planner: Planner, cuts: Mapping[str, LayerCuts]) -> list[Bar]:
    """Who does what when, over one iteration; those of a kind do the same."""
    bars: list[Bar] = []
    now = 0.0
    for network in NETWORKS:
        there, back = planner.middles[network]
        head, tail = ((network, side) for side in SIDES)
        for end, part, happens, middle in (
            (head, "heads forward", _gathered, there), (tail, "tails forward", _scattered, 0.0),
            (tail, "tails backward", _gathered, back), (head, "heads backward", _scattered, 0.0),
        ):  # fmt: skip
            mine, now = happens(planner, end, f"{network}: {part}", planner.levels(end, cuts), now)
            bars += mine
            if middle:
                name = f"{network}: middle {part.split()[1]}"
                bars.append(Bar(SERVER, name, "work", now, now + middle))
                now += middle
    return bars


def _gathered(planner: Planner, end: End, part: str, levels: np.ndarray, now: float) -> tuple[list[Bar], float]:
    """Devices work and send, and the server takes each block when all have come that it needs; and when it is done."""
    side, bars, ready = planner.sides[end], list[Bar](), now
    there = left_to_server(levels[None], planner.counts, side.levels)[0]
    work, wire = (each[0][levels, range(len(levels))] for each in (side.work, side.wire))
    for level in range(side.levels):
        spent = there[level] * side.server[0][level] if level else 0.0
        if spent:
            bars.append(Bar(SERVER, part, "work", ready, ready + spent))
        came = [now + work[i] + wire[i] for i in range(len(levels)) if levels[i] == level]
        ready = max([ready + spent, *came])
    for i, device in enumerate(planner.names):
        sent = now + work[i]
        bars += [Bar(device, part, "work", now, sent), Bar(device, part, "wire", sent, sent + wire[i])]
    return bars, ready


def _scattered(planner: Planner, end: End, part: str, levels: np.ndarray, now: float) -> tuple[list[Bar], float]:
    """The server takes block after block and sends to those who go on from there; and when the last of them is done."""
    side, bars, begins = planner.sides[end], list[Bar](), np.full(len(levels), now)
    there = left_to_server(levels[None], planner.counts, side.levels)[0]
    work, wire = (each[1][levels, range(len(levels))] for each in (side.work, side.wire))
    for level in range(side.levels - 1, 0, -1):
        spent = there[level] * side.server[1][level]
        start = float(begins[levels < level].max(initial=now))
        if spent:
            bars.append(Bar(SERVER, part, "work", start, start + spent))
            begins[levels < level] = start + spent
    for i, device in enumerate(planner.names):
        came = begins[i] + wire[i]
        bars += [Bar(device, part, "wire", begins[i], came), Bar(device, part, "work", came, came + work[i])]
    return bars, max(bar.end for bar in bars)


def timetable(planner: Planner, cuts: Mapping[str, LayerCuts]) -> dict[str, Any]:
    """The seconds of an iteration, of each kind of device and of each part, with who ends it last."""
    shown = [{"part": part, "seconds": seconds, "last": last} for part, seconds, last in bottlenecks(planner, cuts)]
    return {"seconds": planner.seconds(cuts), "devices": rows(planner, cuts), "parts": shown}


def rows(planner: Planner, cuts: Mapping[str, LayerCuts]) -> list[dict[str, Any]]:
    """Of each kind of device: its cuts, how long it works, sends and waits, and what it sends and holds."""
    bars, total, found = timeline(planner, cuts), planner.seconds(cuts), []
    for name, device in planner.fleet.devices.items():
        spent = {kind: sum(b.end - b.start for b in bars if b.who == name and b.kind == kind) for kind in KINDS}
        cut = {network: {"head": c.head, "tail": c.tail} for network in NETWORKS for c in [cuts[name].of(network)]}
        found.append({
            "device": name, "count": device.count, **cut, **spent, "waits": total - sum(spent.values()),
            "bytes": planner.sent(cuts[name]), "memory": planner.memory(cuts[name]),
        })  # fmt: skip
    return found


def bottlenecks(planner: Planner, cuts: Mapping[str, LayerCuts]) -> list[tuple[str, float, str]]:
    """Of each part of an iteration, who ends it last."""
    bars = timeline(planner, cuts)
    last = {bar.part: bar.who for bar in sorted(bars, key=lambda bar: bar.end)}
    return [(part, seconds, last[part]) for part, seconds in planner.parts(cuts)]


def tables(found: Mapping[str, Any]) -> list[list[list[str]]]:
    """A row for each kind of device, and one for each part of an iteration; heads first."""
    devices = [HEADS]
    for row in found["devices"]:
        ends = [f"{row[network]['head']} | {row[network]['tail']}" for network in NETWORKS]
        seconds = [f"{row[name]:.2f} s" for name in ("work", "wire", "waits")]
        sizes = [size_text(row[name]) for name in ("bytes", "memory")]
        devices.append([row["device"], f"x {row['count']:,}", *ends, *seconds, *sizes])
    parts = [[each["part"], f"{each['seconds']:.3f}", each["last"]] for each in found["parts"]]
    return [devices, [["part", "seconds", "ends last"], *parts]]
