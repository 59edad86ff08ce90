"""A method that talks at every mini-batch: its gradients and its speed against the same network unsplit."""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch
from torch import nn

from harness import bench
from harness.toy_split import ToySplit, blocks, toy_silos
from manyhands import Experiment, Silo
from manyhands.tensors import Tensors

BARS = {"chatty": ">= 0.7", "gradient_difference": "<= 1e-6"}


def measure(args: argparse.Namespace) -> bench.Measured:
    """4 silos with own heads and tails and one middle, over the link within one process and as one graph, in turn."""
    rounds, steps, batch = (3, 5, 16) if args.quick else (12, 20, 32)
    silos = toy_silos(4, 64)
    rates, split = [], Experiment(ToySplit(rounds=rounds, steps=steps, batch=batch), silos, device="cpu")
    unsplit = Unsplit(silos, batch)
    running = iter(split)
    for number in range(rounds):
        began = time.perf_counter()
        next(running)
        half = time.perf_counter()
        for _ in range(steps):
            unsplit.step(number)
        rates.append((time.perf_counter() - half) / (half - began))
    list(running)
    return {
        "figures": {"chatty": round(statistics.median(rates[1:]), 4), "gradient_difference": difference(silos)},
        "cases": {"silos": 4, "batch a silo": batch, "rates": [round(rate, 3) for rate in rates[1:]]},
        "seeds": [0],
    }


def difference(silos: list[Silo]) -> float:
    """The largest difference between the gradients of one step: with SGD at rate 1, that of the weights."""
    method = ToySplit(rounds=1, steps=1, rate=1.0)
    split = Experiment(method, silos, device="cpu")
    list(split)
    unsplit = Unsplit(silos, method.batch, method.rate)
    unsplit.step(0)
    pairs = [(split.server.state_dict(), dict(unsplit.middle.state_dict()))]
    for silo, head, tail in zip(split.silos, unsplit.heads, unsplit.tails, strict=True):
        theirs = {f"head.{n}": t for n, t in head.state_dict().items()}
        own = {name: tensor for name, tensor in silo.memory.items() if name != "rounds"}
        pairs.append((own, theirs | {f"tail.{n}": t for n, t in tail.state_dict().items()}))
    return max(_distance(one, other) for one, other in pairs)


def _distance(one: Tensors, other: Tensors) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


class Unsplit:
    """The same heads, middle and tails in one graph and one loop."""

    def __init__(self, silos: list[Silo], batch: int, rate: float = 0.05) -> None:
        head, self.middle, tail = blocks(0)
        self.heads, self.tails = ([copy.deepcopy(part) for _ in silos] for part in (head, tail))
        self.silos, self.batch, self.number = silos, batch, -1
        parts = [self.middle, *self.heads, *self.tails]
        self.optimiser = torch.optim.SGD([p for part in parts for p in part.parameters()], rate)

    def step(self, number: int) -> None:
        """One step on a batch of every silo."""
        if number != self.number:
            self.number, self.rngs = number, [silo.rng(number) for silo in self.silos]
        numbers = [
            torch.randint(len(s.images), (self.batch,), generator=r) for s, r in zip(self.silos, self.rngs, strict=True)
        ]
        batches = [silo.images.batch(at) for silo, at in zip(self.silos, numbers, strict=True)]
        sent = [head(x) for head, (x, _) in zip(self.heads, batches, strict=True)]
        back = self.middle(torch.cat(sent)).split(self.batch)
        pairs = zip(self.tails, back, batches, strict=True)
        losses = [nn.functional.cross_entropy(tail(h), y) for tail, h, (_, y) in pairs if y is not None]
        self.optimiser.zero_grad()
        torch.stack(losses).sum().backward()
        self.optimiser.step()


if __name__ == "__main__":
    bench.main("chatty", measure, BARS)
