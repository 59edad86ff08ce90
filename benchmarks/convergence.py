"""The contraction of federated averaging on quadratics, where all can be computed, held against its bounds."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness import bench, case_files, claims
from manyhands.messages.codec.codec import Codec
from manyhands.messages.codec.quantised_updates import Updates
from manyhands.messages.codec.quantised_weights import Weights
from manyhands.seed import torch_rng
from manyhands.tensors import Tensors, WeightedMean, round_to_float16

SILOS, ROWS, COLUMNS = 10, 5, 10
MIN_EIGENVALUE, MAX_EIGENVALUE, RATE, STEPS = 0.5, 2.0, 0.04, 100
MUS = (0.0, 1.0, 5.0, 20.0)
CASE = "quadratics"


class Quadratics:
    """f_k(w) = (w - c_k)' A_k (w - c_k) / 2 for each silo.

    The eigenvalues of A_k go from ``MIN_EIGENVALUE`` to ``MAX_EIGENVALUE``.
    """

    def __init__(self, seed: int) -> None:
        rng, size = torch_rng(seed, "quadratics"), ROWS * COLUMNS
        self.a, self.c = torch.empty(SILOS, size, size), torch.randn(SILOS, size, generator=rng)
        values = torch.linspace(MIN_EIGENVALUE, MAX_EIGENVALUE, size)
        for k in range(SILOS):
            turn, _ = torch.linalg.qr(torch.randn(size, size, generator=rng))
            self.a[k] = turn @ torch.diag(values) @ turn.T
        self.a, self.c = self.a.double(), self.c.double()
        self.best = torch.linalg.solve(self.a.mean(0), torch.einsum("kij,kj->ki", self.a, self.c).mean(0))

    def trained(self, k: int, w: Tensor, mu: float, steps: int = STEPS) -> Tensor:
        """What a silo makes of w by gradient descent on f_k + mu / 2 ||w - start||^2."""
        start = w
        for _ in range(steps):
            w = w - RATE * (self.a[k] @ (w - self.c[k]) + mu * (w - start))
        return w

    def round(self, w: Tensor, mu: float) -> Tensor:
        """The mean of what all silos make of w."""
        return torch.stack([self.trained(k, w, mu) for k in range(SILOS)]).mean(0)

    def fixed_point(self, mu: float) -> Tensor:
        """Where a round changes nothing: the map is affine, so it is the solution of a linear system."""
        size = len(self.best)
        at_zero = self.round(torch.zeros(size, dtype=torch.double), mu)
        columns = [self.round(unit, mu) - at_zero for unit in torch.eye(size, dtype=torch.double)]
        fixed_point: Tensor = torch.linalg.solve(torch.eye(size, dtype=torch.double) - torch.stack(columns, 1), at_zero)
        return fixed_point


def bound(mu: float) -> float:
    """The contraction of a round, at most: mu / (m + mu) + m / (m + mu) (1 - rate (m + mu))^steps."""
    m = MIN_EIGENVALUE
    return mu / (m + mu) + m / (m + mu) * (1 - RATE * (m + mu)) ** STEPS


def contraction(problem: Quadratics, mu: float, rounds: int) -> dict[str, Any]:
    """How fast rounds come together, and how far from the optimum."""
    w, end, away = torch.zeros_like(problem.best), problem.fixed_point(mu), []
    for _ in range(rounds):
        away.append(float((w - end).norm()))
        w = problem.round(w, mu)
    above = [a for a in away if a > 1e-9]
    return {
        "bound": bound(mu),
        "most": max(b / a for a, b in pairwise(above)),
        "bias": float((end - problem.best).norm()),
        "away": away,
    }


def rounded(problem: Quadratics, codec: Codec, rounds: int, seed: int) -> list[float]:
    """The relative error of what silos receive, round by round, one step each, all tensors rounded both ways."""
    shape, rng = (ROWS, COLUMNS), torch_rng(seed, "rounding")
    server: Tensors = {"w": torch.zeros(shape)}
    broadcast, left, errors = round_to_float16(server), [dict[str, Tensor]() for _ in range(SILOS)], []
    for _ in range(rounds):
        mean = WeightedMean()
        for k in range(SILOS):
            start = broadcast["w"].double().flatten()
            mine = {"w": problem.trained(k, start, 0.0, steps=1).float().view(shape)}
            wire, left[k] = codec.encode(mine, broadcast, left[k], rng)
            mean.add(codec.decode(wire, server), 1)
        server = mean.value()
        wire, _ = codec.encode(server, broadcast, {}, rng)
        broadcast = dict(codec.decode(wire, broadcast))
        broadcast = round_to_float16(broadcast) if codec.relative else broadcast
        errors.append(float((broadcast["w"].double().flatten() - problem.best).norm() / problem.best.norm()))
    return errors


def measure(args: argparse.Namespace) -> bench.Measured:
    """Rates against bounds and biases for four mu; relative errors of rounding weights and updates, at 8 and 4 bits."""
    root, scale = (Path(tempfile.mkdtemp()), "quick") if args.quick else (case_files.FOLDER, "small")
    for seed in [0] if args.quick else [int(seed) for seed in args.seeds.split(",")]:
        began = time.perf_counter()
        rates, errors = on(Quadratics(seed), seed, *((20, 100) if args.quick else (60, 1500)))
        if args.save and seed == 0:
            draw(rates, errors)
        case = case_files.of_here(of(rates, errors), time.perf_counter() - began)
        case_files.keep(root, "convergence", scale, CASE, seed, case)
    return {"figures": {}, "claims": claims.rows("convergence", scale, root)}


Rates = dict[float, dict[str, Any]]
Errors = dict[str, list[float]]


def on(problem: Quadratics, seed: int, rounds: int, many: int) -> tuple[Rates, Errors]:
    """What one problem comes to: by mu, and by codec."""
    kinds: dict[str, Callable[[Any], Codec]] = {
        "weights, nearest": lambda bits: Weights(bits=bits),
        "updates, nearest, nothing kept": lambda bits: Updates(bits=bits, stochastic=False, feedback=False),
        "updates, stochastic, with feedback": lambda bits: Updates(bits=bits),
    }
    errors = {
        f"{kind}, {bits} bits": rounded(problem, codec(bits), many, seed)
        for bits in (8, 4)
        for kind, codec in kinds.items()
    }
    return {mu: contraction(problem, mu, rounds) for mu in MUS}, errors


def of(rates: Rates, errors: Errors) -> dict[str, Any]:
    """What is kept of it."""
    biases = [rate["bias"] for rate in rates.values()]
    return {
        "contraction": _share([rate["most"] <= rate["bound"] + 1e-9 for rate in rates.values()]),
        "bias_falls": _share([one > other for one, other in pairwise(biases)]),
        "rates": {
            f"mu {mu:g}": {name: round(rate[name], 4) for name in ("bound", "most", "bias")}
            for mu, rate in rates.items()
        },
        "errors": {name: each[-1] for name, each in errors.items()},
    }


def draw(rates: Rates, errors: Errors) -> None:
    """Both of one problem as a picture, beside the results."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, (mu, rate) in enumerate(rates.items()):
        away = rate["away"]
        left.semilogy(away, color=f"C{i}", label=f"mu = {mu:g}, ends {rate['bias']:.2g} from the optimum")
        left.semilogy([away[0] * bound(mu) ** r for r in range(len(away))], color=f"C{i}", ls=":", lw=1)
    left.set(xlabel="round", ylabel="distance from the fixed point (dotted: bound)", ylim=(1e-9, None))
    for i, (name, each) in enumerate(errors.items()):
        right.loglog(each, color=f"C{i % 3}", ls="-" if i < 3 else "--", label=name)
    right.set(xlabel="round", ylabel="relative error of what silos receive")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=7)
    bench.RESULTS.mkdir(exist_ok=True)
    figure.savefig(Path(bench.RESULTS) / "convergence.png", dpi=110)


def _share(right: list[bool]) -> float:
    return sum(right) / len(right)


if __name__ == "__main__":
    bench.main("convergence", measure, {}, cases="", seeds="0,1,2")
