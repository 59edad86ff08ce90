"""Who does what when with given cuts: as bars on a time axis, and as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from manyhands.formatting import TextTable, size_text
from manyhands.models.gan import NETWORKS
from manyhands.models.layer_cut import LayerCuts
from manyhands.placement.exact_search import End, served_devices
from manyhands.placement.planner import SIDES, Planner

SERVER = "server"
HEADS = ["device", "", *NETWORKS, "works", "on the wire", "waits", "sends", "memory"]
KINDS = ("work", "wire")


class Bar(NamedTuple):
    """Something that a device or the server does from ``start`` to ``end``, in seconds: it works, or sends."""

    who: str
    part: str
    kind: Literal["work", "wire"]
    start: float
    end: float


def timeline(planner: Planner, cuts: Mapping[str, LayerCuts]) -> list[Bar]:
    """Return the bars of one iteration; devices of a kind share theirs."""
    bars: list[Bar] = []
    now = 0.0
    for network in NETWORKS:
        forward, backward = planner.middles[network]
        head, tail = ((network, side) for side in SIDES)
        for end, part, schedule, middle in (
            (head, "heads forward", _gathered, forward), (tail, "tails forward", _scattered, 0.0),
            (tail, "tails backward", _gathered, backward), (head, "heads backward", _scattered, 0.0),
        ):  # fmt: skip
            part_bars, now = schedule(planner, end, f"{network}: {part}", planner.levels(end, cuts), now)
            bars += part_bars
            if middle:
                name = f"{network}: middle {part.split()[1]}"
                bars.append(Bar(SERVER, name, "work", now, now + middle))
                now += middle
    return bars


def _gathered(planner: Planner, end: End, part: str, levels: np.ndarray, now: float) -> tuple[list[Bar], float]:
    """Return the bars of devices that work and send, while the server runs each block once its inputs are there."""
    side, bars, ready = planner.sides[end], list[Bar](), now
    served = served_devices(levels[None], planner.counts, side.levels)[0]
    work, wire = (seconds[0][levels, range(len(levels))] for seconds in (side.work, side.wire))
    for level in range(side.levels):
        spent = served[level] * side.server[0][level] if level else 0.0
        if spent:
            bars.append(Bar(SERVER, part, "work", ready, ready + spent))
        arrivals = [now + work[i] + wire[i] for i in range(len(levels)) if levels[i] == level]
        ready = max([ready + spent, *arrivals])
    for i, device in enumerate(planner.names):
        sent = now + work[i]
        bars += [Bar(device, part, "work", now, sent), Bar(device, part, "wire", sent, sent + wire[i])]
    return bars, ready


def _scattered(planner: Planner, end: End, part: str, levels: np.ndarray, now: float) -> tuple[list[Bar], float]:
    """Return the bars of a server that runs block after block and sends to devices, which go on working."""
    side, bars, begins = planner.sides[end], list[Bar](), np.full(len(levels), now)
    served = served_devices(levels[None], planner.counts, side.levels)[0]
    work, wire = (seconds[1][levels, range(len(levels))] for seconds in (side.work, side.wire))
    for level in range(side.levels - 1, 0, -1):
        spent = served[level] * side.server[1][level]
        start = float(begins[levels < level].max(initial=now))
        if spent:
            bars.append(Bar(SERVER, part, "work", start, start + spent))
            begins[levels < level] = start + spent
    for i, device in enumerate(planner.names):
        arrival = begins[i] + wire[i]
        bars += [Bar(device, part, "wire", begins[i], arrival), Bar(device, part, "work", arrival, arrival + work[i])]
    return bars, max(bar.end for bar in bars)


def timetable(planner: Planner, cuts: Mapping[str, LayerCuts]) -> dict[str, Any]:
    """Return the seconds of an iteration, of each kind of device and of each part, with who finishes it last."""
    parts = [{"part": part, "seconds": seconds, "last": last} for part, seconds, last in bottlenecks(planner, cuts)]
    return {"seconds": planner.seconds(cuts), "devices": rows(planner, cuts), "parts": parts}


def rows(planner: Planner, cuts: Mapping[str, LayerCuts]) -> list[dict[str, Any]]:
    """Return a row for each kind of device: its cuts, seconds of work, sending and waiting, bytes sent, and memory."""
    bars, total, table = timeline(planner, cuts), planner.seconds(cuts), []
    for name, device in planner.fleet.devices.items():
        spent = {kind: sum(b.end - b.start for b in bars if b.who == name and b.kind == kind) for kind in KINDS}
        cut = {network: {"head": c.head, "tail": c.tail} for network in NETWORKS for c in [cuts[name].of(network)]}
        table.append({
            "device": name, "count": device.count, **cut, **spent, "waits": total - sum(spent.values()),
            "bytes": planner.sent(cuts[name]), "memory": planner.memory(cuts[name]),
        })  # fmt: skip
    return table


def bottlenecks(planner: Planner, cuts: Mapping[str, LayerCuts]) -> list[tuple[str, float, str]]:
    """Return each part of an iteration with its seconds and who finishes it last."""
    bars = timeline(planner, cuts)
    last = {bar.part: bar.who for bar in sorted(bars, key=lambda bar: bar.end)}
    return [(part, seconds, last[part]) for part, seconds in planner.parts(cuts)]


def tables(timetable: Mapping[str, Any]) -> list[TextTable]:
    """Return two tables, of devices and of parts of an iteration."""
    devices = []
    for row in timetable["devices"]:
        cuts = [f"{row[network]['head']} | {row[network]['tail']}" for network in NETWORKS]
        seconds = [f"{row[name]:.2f} s" for name in ("work", "wire", "waits")]
        sizes = [size_text(row[name]) for name in ("bytes", "memory")]
        devices.append([row["device"], f"x {row['count']:,}", *cuts, *seconds, *sizes])
    parts = [[row["part"], f"{row['seconds']:.3f}", row["last"]] for row in timetable["parts"]]
    return [TextTable(HEADS, devices, left=2), TextTable(["part", "seconds", "finishes last"], parts)]
