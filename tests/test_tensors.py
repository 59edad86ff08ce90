from __future__ import annotations

from fractions import Fraction
from types import MappingProxyType

import torch
from hypothesis import given
from hypothesis import strategies as st

from manyhands.tensors import WeightedMean, find_not_finite, per_image, running_average, sha256, weighted_sum

floats = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
weights = st.integers(1, 2**20)


@given(st.lists(st.tuples(floats, weights), min_size=1, max_size=6))
def test_the_mean_is_the_exact_one_rounded(terms: list[tuple[float, int]]) -> None:
    mean = WeightedMean()
    for value, weight in terms:
        mean.add({"a": torch.tensor([value])}, weight)
    exact = sum(Fraction(value) * weight for value, weight in terms) / sum(weight for _, weight in terms)
    scale = max(abs(value) for value, _ in terms)
    assert abs(Fraction(mean.value()["a"].item()) - exact) <= Fraction(scale) * Fraction(1, 2**23)


@given(floats, st.lists(weights, min_size=1, max_size=20))
def test_the_mean_of_equal_values_is_that_value_bit_for_bit(value: float, counts: list[int]) -> None:
    mean, tensor = WeightedMean(), torch.tensor([value], dtype=torch.float32)
    for weight in counts:
        mean.add({"a": tensor}, weight)
    assert sha256(mean.value()) == sha256({"a": tensor})


def test_the_mean_of_what_lies_elsewhere_is_that_of_what_is_here() -> None:
    """Bit for bit, in any mixture: what is no dict waits, and so does what comes after it."""
    rng = torch.Generator().manual_seed(0)
    sets = [{"a": torch.randn(50, generator=rng), "b": torch.randn(3, generator=rng)} for _ in range(4)]
    del sets[2]["b"]
    here, elsewhere = WeightedMean(), WeightedMean()
    for number, each in enumerate(sets):
        here.add(each, number + 1)
        elsewhere.add(MappingProxyType(each) if number in (1, 2) else each, number + 1)
    assert sha256(here.value()) == sha256(elsewhere.value())


def test_running_average_forgets_its_start_and_with_no_decay_everything_but_the_last() -> None:
    start, first, second = ({"a": torch.tensor([x])} for x in (100.0, 1.0, 3.0))
    assert running_average(start, first, 0.9, 0) is first
    assert running_average(first, second, 0.9, 1)["a"].item() == 2.0
    assert running_average(first, second, 0.0, 5) is second
    assert abs(running_average(first, second, 0.9, 100)["a"].item() - 1.2) < 1e-6


def test_finite_names_the_first_bad_tensor() -> None:
    assert find_not_finite({"a": torch.ones(2), "n": torch.tensor([1])}) is None
    assert find_not_finite({"a": torch.ones(2), "b": torch.tensor([1.0, float("inf")])}) == "b"


def test_the_hash_sees_names_types_shapes_and_bits() -> None:
    base = {"a": torch.zeros(2, 2)}
    others = [{"b": torch.zeros(2, 2)}, {"a": torch.zeros(4)}, {"a": torch.zeros(2, 2, dtype=torch.float16)}]
    hashes = {sha256(each) for each in [base, *others, {"a": -torch.zeros(2, 2)}]}
    assert len(hashes) == 5
    assert sha256(base) == sha256({"a": torch.zeros(2, 2).T})


def test_a_sum_of_equal_shares_is_the_mean_and_of_one_it_is_that_one_bit_for_bit() -> None:
    x = {name: {"a": torch.randn(5, 2), "b": torch.tensor([3])} for name in "pqrs"}
    mean, total = WeightedMean(), weighted_sum(x, dict.fromkeys("pqrs", 0.25))
    for tensors in x.values():
        mean.add(tensors, 1)
    assert sha256(total) == sha256(mean.value())
    assert torch.equal(weighted_sum(x, {"q": 1.0})["a"], x["q"]["a"])


def test_a_number_for_each_image_multiplies_all_of_it() -> None:
    x = torch.randn(3, 2, 4, 5)
    scaled = x * per_image(torch.tensor([0.0, 1.0, 2.0]), x)
    assert torch.equal(scaled, torch.stack([0 * x[0], x[1], 2 * x[2]]))
