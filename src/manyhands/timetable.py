"""What cuts come to on given devices: for a program, and as tables for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from manyhands.advisor import Advisor
from manyhands.models.cut import Cuts
from manyhands.models.gan import NETWORKS
from manyhands.plan import size_text

HEADS = ["device", "", *NETWORKS, "works", "on the wire", "waits", "sends", "memory"]
KINDS = ("work", "wire")


def timetable(advisor: Advisor, cuts: Mapping[str, Cuts]) -> dict[str, Any]:
    """The seconds of an iteration, of each kind of device and of each part, with who ends it last."""
    shown = [{"part": part, "seconds": seconds, "last": last} for part, seconds, last in bottlenecks(advisor, cuts)]
    return {"seconds": advisor.seconds(cuts), "devices": rows(advisor, cuts), "parts": shown}


def rows(advisor: Advisor, cuts: Mapping[str, Cuts]) -> list[dict[str, Any]]:
    """Of each kind of device: its cuts, how long it works, sends and waits, and what it sends and holds."""
    bars, total, found = advisor.timeline(cuts), advisor.seconds(cuts), []
    for name, device in advisor.fleet.devices.items():
        spent = {kind: sum(b.end - b.start for b in bars if b.who == name and b.kind == kind) for kind in KINDS}
        cut = {network: {"head": c.head, "tail": c.tail} for network in NETWORKS for c in [cuts[name].of(network)]}
        found.append({
            "device": name, "count": device.count, **cut, **spent, "waits": total - sum(spent.values()),
            "bytes": advisor.sent(cuts[name]), "memory": advisor.memory(cuts[name]),
        })  # fmt: skip
    return found


def bottlenecks(advisor: Advisor, cuts: Mapping[str, Cuts]) -> list[tuple[str, float, str]]:
    """Of each part of an iteration, who ends it last."""
    bars = advisor.timeline(cuts)
    last = {bar.part: bar.who for bar in sorted(bars, key=lambda bar: bar.end)}
    return [(part, seconds, last[part]) for part, seconds in advisor.parts(cuts)]


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
