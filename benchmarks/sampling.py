"""Whether drawing many images takes more memory than drawing few."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import bench

BARS = {"sampling_memory": "<= 1.5"}
CHILD = """
import sys
from pathlib import Path
from manyhands import Diffusion, Generator, Sampling, UNet
from manyhands.evaluation.samples import write_samples
from manyhands.meter import peak_memory
model = UNet(size=28, channels=1, classes=10, widths=(16, 32))
generator = Generator(model, Diffusion(), model.build(0).state_dict(), sampling=Sampling(steps=2))
write_samples(Path(sys.argv[2]), generator, generator.labels(int(sys.argv[1])), 0, generator.sampling)
print(peak_memory())
"""


def measure(told: argparse.Namespace) -> bench.Measured:
    """Peak memory of a process that draws and writes 10,000 samples at 28 x 28, against one that draws 1,000."""
    few = 100 if told.quick else 1000
    peaks = {count: peak(count) for count in (few, 10 * few)}
    return {
        "figures": {"sampling_memory": peaks[10 * few] / peaks[few]},
        "cases": {f"{count} samples, MiB": round(held / 2**20, 1) for count, held in peaks.items()},
        "seeds": [0],
    }


def peak(count: int) -> int:
    """The peak of a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", CHILD, str(count), folder]
        said = subprocess.run(command, capture_output=True, text=True, check=True)
        assert (Path(folder) / "samples.safetensors").stat().st_size > 4 * count * 28 * 28
    return int(said.stdout)


if __name__ == "__main__":
    bench.main("sampling", measure, BARS)
