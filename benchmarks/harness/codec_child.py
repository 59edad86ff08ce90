"""Seconds and peak memory of one side of a codec, in a process of its own, which is told the side and the widths."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import torch

from manyhands import UNet
from manyhands.messages.codec.quantised_updates import Updates


def main(what: str, widths: tuple[int, ...]) -> None:
    """Print seconds, memory in updates, and the number of weights: 8 bits, by chance, with feedback, on one thread."""
    torch.set_num_threads(1)
    model = UNet(size=32, channels=3, classes=0, widths=widths, blocks=2, attention=(1,), groups=min(32, widths[0]))
    base, rng = model.build(0).state_dict(), torch.Generator().manual_seed(0)
    weights = {name: tensor + 1e-3 * torch.randn(tensor.shape, generator=rng) for name, tensor in base.items()}
    left = {name: 1e-5 * torch.randn(tensor.shape, generator=rng) for name, tensor in base.items()}
    codec, size = Updates(bits=8), 4 * sum(tensor.numel() for tensor in base.values())
    wire = codec.encode(weights, base, left, rng).wire if what == "decode" else {}
    hold = torch.ones(max(peak() - now(), 0) // 4)  # so that what comes is above the peak that has been
    before, began = peak(), time.perf_counter()
    done = codec.encode(weights, base, left, rng) if what == "encode" else codec.decode(wire, base)
    print(time.perf_counter() - began, (peak() - before) / size, size // 4)
    del hold, done  # held until here


def peak() -> int:
    """The most bytes that this process has held."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def now() -> int:
    """The bytes that it holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main(sys.argv[1], tuple(map(int, sys.argv[2].split(","))))
