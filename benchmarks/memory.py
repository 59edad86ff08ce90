"""Whether memory grows with the number of silos."""

from __future__ import annotations

import argparse
import json
import resource
import sys

from harness import bench
from harness.fork_server import printed

BARS = {"memory": "<= 1.15"}


def measure(args: argparse.Namespace) -> bench.Measured:
    """Peak memory of a run with many silos against one with 2: the same network, images in all, and rounds."""
    many = 20 if args.quick else 100
    peaks = {silos: peak(silos, fresh=not args.quick) for silos in (2, many)}
    return {
        "figures": {"memory": round(peaks[many] / peaks[2], 4)},
        "cases": {f"{silos} silos": f"{kib / 1024:.0f} MiB" for silos, kib in peaks.items()},
        "seeds": [0],
    }


def peak(silos: int, *, fresh: bool) -> int:
    """The peak resident memory of a run in a process of its own, in KiB."""
    return int(json.loads(printed("memory", "--child", str(silos), fresh=fresh)))


def run(silos: int) -> None:
    """A run in this process; prints what it took."""
    from manyhands import Digits, Experiment, FedAvg, Iid, Training, UNet, split

    model = UNet(size=8, channels=1, classes=10, widths=(64, 128))  # 2.5 M weights: 10 MB a copy
    method = FedAvg(model=model, training=Training(batch=8, steps=1), rounds=2, ema=0.9)
    dealt = split(Digits().load(size=8), Iid(silos=silos))
    assert len(list(Experiment(method, dealt, device="cpu"))) == 2
    print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        run(int(sys.argv[2]))
    else:
        bench.main("memory", measure, BARS)
