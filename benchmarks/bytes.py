"""Whether the ledger tells the truth: what a run counted against what really was encoded."""

from __future__ import annotations

import argparse
from typing import Any

from harness import bench
from harness.toy_split import ToySplit, toy_silos
from manyhands import Central, Digits, Experiment, FedAvg, Iid, Local, Method, Silo, Training, UNet, split
from manyhands.links.in_process import InProcess

BARS = {"bytes_equal": "== 1"}


def measure(args: argparse.Namespace) -> bench.Measured:
    """The ledger of a counting run against that of the same run over bytes, row by row, for several methods."""
    digits = Digits().load(size=8)
    dealt = split(digits, Iid(silos=3 if args.quick else 10))
    options = {
        "model": UNet(size=8, channels=1, classes=10, widths=(8, 16)),
        "training": Training(batch=8, steps=2),
        "rounds": 2 if args.quick else 10,
    }
    cases: dict[str, tuple[Method, list[Silo]]] = {
        "fedavg": (FedAvg(**options), dealt),
        "fedavg, float16 up, bfloat16 down": (
            FedAvg.model_validate({**options, "up": {"kind": "float16"}, "down": {"kind": "bfloat16"}}), dealt,
        ),
        "fedavg, 2 of all a round": (FedAvg(**options, participants=2), dealt),
        "local": (Local(**options), dealt),
        "central": (Central(**options), [Silo("pooled", digits)]),
        "a split network, two group operations a mini-batch": (ToySplit(rounds=2, steps=5), toy_silos(4, 8)),
    }  # fmt: skip
    rows = {
        name: [entries(method, silos, wire) for wire in ("count", "bytes")] for name, (method, silos) in cases.items()
    }
    equal = [counted == sent for counted, sent in rows.values()]
    totals = {name: sum(int(row["bytes"]) for row in sent) for name, (_, sent) in rows.items()}
    return {"figures": {"bytes_equal": sum(equal) / len(equal)}, "cases": totals, "seeds": [0]}


def entries(method: Method, silos: list[Silo], wire: str) -> list[dict[str, Any]]:
    """The ledger after a run over a wire."""
    experiment = Experiment(method, silos, device="cpu", link=InProcess.model_validate({"wire": wire}))
    for _ in experiment:
        pass
    return experiment.ledger.entries()


if __name__ == "__main__":
    bench.main("bytes", measure, BARS)
