"""Searches cuts by a genetic algorithm, as HuSCF-GAN does; it may miss the best ones without noticing."""

from __future__ import annotations

from typing import Any

import numpy as np

from manyhands.errors import RecipeError
from manyhands.placement.exact_search import Levels, Problem, memory_at

try:
    from pymoo.algorithms.soo.nonconvex.ga import GA
    from pymoo.core.mutation import Mutation
    from pymoo.core.problem import Problem as Search
    from pymoo.operators.crossover.ux import UniformCrossover
    from pymoo.operators.sampling.rnd import IntegerRandomSampling
    from pymoo.optimize import minimize
except ImportError:
    raise RecipeError(
        "the genetic solver needs pymoo, which is not installed: pip install 'manyhands[genetic]'"
    ) from None

POPULATION, GENERATIONS = 100, 100
MUTATION_RATE = 0.05
"""The probability that a gene is sampled again."""


def genetic(problem: Problem, seed: int, population: int = POPULATION, generations: int = GENERATIONS) -> Levels | None:
    """Return the best levels of the search, or None if it met none that fit into memory.

    A chromosome has one level for each kind of device at each end. The best of a generation survive, and no chromosome
    is evaluated twice.

    Args:
        problem: The devices and what each level costs.
        seed: The seed of the search.
        population: The number of chromosomes of a generation.
        generations: The number of generations.

    References:
        A Distributed Generative AI Approach for Heterogeneous Multi-Domain Environments under Data Sharing constraints,
            Tawfilis et al., 2025, arXiv 2507.12979
        Pymoo: Multi-Objective Optimization in Python, Blank, Deb, 2020, arXiv 2002.04504
    """
    space = _Space(problem)
    algorithm = GA(
        pop_size=population, sampling=IntegerRandomSampling(), crossover=UniformCrossover(prob=0.7),
        mutation=_Redraw(), eliminate_duplicates=True,
    )  # fmt: skip
    result = minimize(space, algorithm, ("n_gen", generations), seed=seed, verbose=False)
    return None if result.X is None else {end: rows[0] for end, rows in space.levels(np.atleast_2d(result.X)).items()}


class _Space(Search):  # type: ignore[misc]
    """The search space: chromosomes, their seconds and their lack of memory."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.known = problem, dict[bytes, tuple[float, float]]()
        low, high = (np.concatenate(list(levels.values())) for levels in (problem.outermost(), problem.innermost()))
        super().__init__(n_var=len(low), n_obj=1, n_ieq_constr=1, xl=low, xu=high, vtype=int)

    def levels(self, rows: np.ndarray) -> Levels:
        """Return the levels that chromosomes encode."""
        parts = np.split(np.asarray(rows, int), len(self.problem.sides), axis=1)
        return dict(zip(self.problem.sides, parts, strict=True))

    def _evaluate(self, rows: np.ndarray, out: dict[str, Any], *_: Any, **__: Any) -> None:
        keys = [np.asarray(row, int).tobytes() for row in rows]
        fresh = [i for i, key in enumerate(keys) if key not in self.known]
        if fresh:
            self.known |= dict(zip([keys[i] for i in fresh], self._measured(rows[fresh]), strict=True))
        out["F"], out["G"] = (np.array([self.known[key][i] for key in keys]) for i in (0, 1))

    def _measured(self, rows: np.ndarray) -> list[tuple[float, float]]:
        levels, problem = self.levels(rows), self.problem
        seconds = sum(side.seconds(levels[end], problem.counts).sum(0) for end, side in problem.sides.items())
        lacks = np.maximum(memory_at(problem.sides, levels) - problem.memory, 0).sum(1)
        return list(zip(np.asarray(seconds).tolist(), lacks.tolist(), strict=True))


class _Redraw(Mutation):  # type: ignore[misc]
    """Samples genes again."""

    def _do(self, problem: _Space, rows: np.ndarray, *_: Any, random_state: np.random.Generator, **__: Any) -> Any:
        fresh = random_state.integers(problem.xl.astype(int), problem.xu.astype(int) + 1, rows.shape)
        return np.where(random_state.random(rows.shape) < MUTATION_RATE, fresh, rows)
