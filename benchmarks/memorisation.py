"""Whether a model that gives its training images back is noticed, and one that does not is left in peace."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from harness import bench
from manyhands import compose, load_recipe

BARS = {"memorisation": "== 1"}
OVERTRAINED = ["data.limit=63", "method.kind=central", "partition.silos=1", "method.training.steps=80"]


def measure(args: argparse.Namespace) -> bench.Measured:
    """The share right of: the digits recipe over-trained on 51 images is flagged, the recipe as shipped is not."""
    over, shipped = verdict(OVERTRAINED, quick=args.quick), verdict([], quick=args.quick)
    flagged = [any(note.startswith("memorisation") for note in each["notes"]) for each in (over, shipped)]
    return {
        "figures": {"memorisation": (flagged[0] + (not flagged[1])) / 2},
        "cases": {
            name: {"share nearer than 95 % of held-out images": each["metrics"]["memorised"], "flagged": mark}
            for name, each, mark in zip(
                ("over-trained on 51 images", "as shipped"), (over, shipped), flagged, strict=True
            )
        },
        "protocol": [over["protocol"], shipped["protocol"]],
        "seeds": [0],
    }


def verdict(changes: list[str], *, quick: bool) -> dict[str, Any]:
    """Train the recipe with these changes, and measure it."""
    toy = [*bench.TOY, "sampling.steps=5", "method.rounds=2", "method.training.steps=3"]
    overrides = ["evaluation.images=1000", *(toy if quick else []), *changes]
    recipe = load_recipe(Path(bench.ROOT / "recipes" / "digits-fedavg.toml"), overrides)
    with tempfile.TemporaryDirectory() as folder:
        experiment = compose(recipe, Path(folder) / "run")
        for _ in experiment:
            pass
        return experiment.evaluate()


if __name__ == "__main__":
    bench.main("memorisation", measure, BARS)
