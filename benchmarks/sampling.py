"""Whether drawing many images takes more memory than drawing few."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from harness import bench
from harness.fork_server import printed

BARS = {"sampling_memory": "<= 1.5", "sampling_held": "<= 0.5"}


def measure(args: argparse.Namespace) -> bench.Measured:
    """Peak memory of a process that draws and writes 10,000 samples at 28 x 28, against one that draws 1,000.

    10,000 such samples are only 30 MB, so larger ones are drawn too: how much of what is drawn is held in memory.
    """
    few = 50 if args.quick else 1000
    fresh = not args.quick
    peaks = {(count, 28): peak(count, 28, 16, 32, fresh=fresh) for count in (few, 10 * few)}
    peaks |= {(count, 64): peak(count, 64, 8, fresh=fresh) for count in (few, 8 * few)}
    grown = peaks[8 * few, 64] - peaks[few, 64]
    return {
        "figures": {
            "sampling_memory": peaks[10 * few, 28] / peaks[few, 28],
            "sampling_held": max(grown, 0) / (4 * 7 * few * 64**2),
        },
        "cases": {f"{count} samples, {size} x {size}, MiB": round(p / 2**20, 1) for (count, size), p in peaks.items()},
        "seeds": [0],
    }


def peak(count: int, size: int, *widths: int, fresh: bool) -> int:
    """The peak of a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        said = printed("sampling", "--child", folder, *map(str, (count, size, *widths)), fresh=fresh)
        assert (Path(folder) / "samples.safetensors").stat().st_size > 4 * count * size**2
    return int(said)


def draw(folder: Path, count: int, size: int, *widths: int) -> None:
    """Draw and write samples in this process; prints its peak."""
    from manyhands import Diffusion, DiffusionGenerator, Sampling, UNet
    from manyhands.evaluation.samples import write_samples
    from manyhands.silos.memory import peak_memory

    model = UNet(size=size, channels=1, classes=10, widths=widths)
    generator = DiffusionGenerator(model, Diffusion(), model.build(0).state_dict(), sampling=Sampling(steps=1))
    write_samples(folder, generator, generator.labels(count), 0, generator.sampling)
    print(peak_memory())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        draw(Path(sys.argv[2]), *map(int, sys.argv[3:]))
    else:
        bench.main("sampling", measure, BARS)
