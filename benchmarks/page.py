"""What the report of a run weighs, and how a real browser takes it."""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import tempfile
from pathlib import Path

from harness import bench
from harness.browser import CHROMIUM, opened
from manyhands import Digits, Experiment, FedAvg, Iid, Sampling, Training, UNet, split
from manyhands.evaluation.spec import Evaluation

BARS = {"report": "== 1", "report_megabytes": "<= 3", "report_seconds": "<= 1", "report_errors": "== 0"}
TIMER = """<script>addEventListener("load", () => setTimeout(() => {
document.title = "loaded " + performance.getEntriesByType("navigation")[0].loadEventEnd }))</script>"""


def measure(args: argparse.Namespace) -> bench.Measured:
    """The page of a run of 50 rounds and 10 silos, measured after every round: in megabytes, and in Chromium.

    Seconds are from the start of the navigation to the end of the load event, the median of five.
    """
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "run" / "report.html"
        train(page.parent, *((2, 3) if args.quick else (50, 10)))
        weight = page.stat().st_size / 1e6
        if shutil.which(CHROMIUM) is None:
            figures = dict.fromkeys(BARS) | {"report_megabytes": weight}
            return {"figures": figures, "why": "Debian's chromium is not installed"}
        errors = opened(page).errors
        timed = page.with_name("timed.html")
        timed.write_text(page.read_text().replace("</main>", f"</main>{TIMER}"))
        seconds = [loaded(timed) for _ in range(1 if args.quick else 5)]
    median = statistics.median(seconds)
    held = [bench.held(value, BARS[name]) for name, value in
            (("report_megabytes", weight), ("report_seconds", median), ("report_errors", len(errors)))]  # fmt: skip
    return {
        "figures": {
            "report": sum(held) / 3, "report_megabytes": weight, "report_seconds": median, "report_errors": len(errors),
        },
        "cases": {"seconds": seconds, "errors": errors},
        "seeds": [0],
    }  # fmt: skip


def train(folder: Path, rounds: int, silos: int) -> None:
    """Silos with digits at 28 x 28."""
    model = UNet(size=28, channels=1, classes=10, widths=(8, 16))
    method = FedAvg(model=model, training=Training(batch=8, steps=1), rounds=rounds)
    evaluation = Evaluation(images=50, every=1)
    dealt = split(Digits().load(28).hold_out(0.3), Iid(silos=silos))
    for _ in Experiment(method, dealt, folder=folder, evaluation=evaluation, sampling=Sampling(steps=2), device="cpu"):
        pass


def loaded(page: Path) -> float:
    """Seconds until a page says that it has loaded."""
    title = re.search(r"<title>loaded ([\d.]+)</title>", opened(page).dom)
    assert title is not None
    return float(title.group(1)) / 1000


if __name__ == "__main__":
    bench.main("page", measure, BARS)
