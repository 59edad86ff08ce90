"""Cut checkpoints short and flip their bits: each must be noticed and named, and the generation before be used."""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness import bench
from manyhands import Digits, Experiment, FedAvg, Iid, Training, UNet, split
from manyhands.runs.run_folder import RunFolder

BARS = {"torn": "== 1"}


def measure(args: argparse.Namespace) -> bench.Measured:
    """The share of damages to the newest generation that were named and from which the one before was used."""
    count = 20 if args.quick else 200
    with tempfile.TemporaryDirectory() as temporary:
        folder = trained(Path(temporary) / "run")
        noticed = {kind: sum(survives(folder, count, kind)) for kind in ("truncated", "flipped")}
    return {
        "figures": {"torn": sum(noticed.values()) / (2 * count)},
        "cases": {"damages of each kind": count, **noticed},
        "seeds": [0],
    }


def trained(path: Path) -> RunFolder:
    """A run whose server and silos all have two generations of checkpoints."""
    model = UNet(size=8, channels=1, classes=10, widths=(8, 16))
    method = FedAvg(model=model, training=Training(batch=8, steps=1), rounds=3, keep_optimiser=True)
    dealt = split(Digits().load(size=8), Iid(silos=3))
    for _ in Experiment(method, dealt, folder=path, device="cpu"):
        pass
    return RunFolder(path)


def survives(folder: RunFolder, count: int, kind: str) -> Iterator[bool]:
    """Damage the newest checkpoint files one at a time; whether each damage was named and survived."""
    rng = random.Random(kind)
    roster = folder.report["silos"]
    newest = {path: path.read_bytes() for path in sorted(folder.path.rglob("checkpoint-000003.mh"))}
    for i in range(count):
        path, whole = list(newest.items())[i % len(newest)]
        offset = rng.randrange(len(whole))
        path.write_bytes(whole[:offset] if kind == "truncated" else flipped(whole, offset, rng.randrange(8)))
        folder.problems.clear()
        state = folder.resume(roster)
        named = len(folder.problems) == 1 and str(path) in folder.problems[0]
        yield state is not None and state.round == 2 and named
        for each, raw in newest.items():  # going back to a generation drops those after it
            each.write_bytes(raw)


def flipped(raw: bytes, offset: int, bit: int) -> bytes:
    """The bytes with one bit changed."""
    return raw[:offset] + bytes([raw[offset] ^ 1 << bit]) + raw[offset + 1 :]


if __name__ == "__main__":
    bench.main("torn", measure, BARS)
