"""A benchmark in parts, each of which can be measured alone: its figures, and when and how loaded it was measured."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from harness import bench

Part = Callable[[argparse.Namespace], tuple[dict[str, float], dict[str, Any]]]
"""Measures some figures, and what is worth keeping beside them."""


def measure(
    program: str, parts: Sequence[Part], quick: Sequence[Part], bars: dict[str, str], args: argparse.Namespace
) -> bench.Measured:
    """All parts, or those that --only names, or some at toy size; --save with --only keeps the other parts' figures.

    Each process has one thread, and so has the one process that they are held against: with two threads each, parties
    that share two cores wait for one another's threads most of the time.
    """
    bench.one_thread_each()
    chosen = _named(parts, args.only.split(",")) if args.only else quick if args.quick else parts
    result = _earlier(program) if args.only and args.save else {"figures": {}, "shown": {}, "measured": {}}
    for part in chosen:
        began, load = time.monotonic(), os.getloadavg()[0]
        figures, shown = part(args)
        print(figures, shown, file=sys.stderr)
        result["figures"] |= figures
        result["shown"] |= shown
        result["measured"][part.__name__] = {
            "commit": bench.commit(),
            "date": datetime.now(UTC).date().isoformat(),
            "seconds": round(time.monotonic() - began, 1),
            "load_before": round(load, 1),
        }
    return {**result, "figures": {name: result["figures"].get(name) for name in bars}, "why": "not asked for"}


def _named(parts: Sequence[Part], names: Sequence[str]) -> list[Part]:
    known = {part.__name__: part for part in parts}
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"--only {unknown[0]}: there is no such part; known: {', '.join(known)}")
    return [known[name] for name in names]


def _earlier(program: str) -> dict[str, Any]:
    path = bench.RESULTS / f"{program}-small.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    return {name: result.get(name) or {} for name in ("figures", "shown", "measured")}
