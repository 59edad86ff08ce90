from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from manyhands.silos.local_training import load_optimiser_state, optimiser_state, steps
from manyhands.silos.training import Training


@given(st.integers(1, 40), st.integers(1, 16), st.integers(1, 3))
def test_an_epoch_takes_every_image_once(count: int, batch: int, epochs: int) -> None:
    batches = list(Training(batch=batch, epochs=epochs).batches(count, torch.Generator().manual_seed(0)))
    assert len(batches) == epochs * -(-count // min(batch, count))
    assert torch.cat(batches).bincount(minlength=count).tolist() == [epochs] * count


@given(st.integers(1, 40), st.integers(1, 16), st.integers(1, 9))
def test_steps_are_full_batches_that_take_no_image_again_before_all_others(count: int, batch: int, number: int) -> None:
    batches = list(Training(batch=batch, steps=number).batches(count, torch.Generator().manual_seed(0)))
    assert [len(each) for each in batches] == [min(batch, count)] * number
    taken = torch.cat(batches).bincount(minlength=count)
    assert taken.max() - taken.min() <= 1


def test_one_length_must_be_said() -> None:
    for options in ({}, {"steps": 1, "epochs": 1}):
        with pytest.raises(ValidationError, match="either steps or epochs"):
            Training.model_validate(options)


def test_the_rate_falls_from_all_to_the_share_that_is_left() -> None:
    training = Training(steps=1, learning_rate=0.1, learning_rate_end=0.05)
    rates = [training.rate(i / 10) for i in range(11)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[-1] == pytest.approx(0.005)
    assert rates == sorted(rates, reverse=True)
    assert Training(steps=1, learning_rate=0.1).rate(0.7) == 0.1


def run(net: torch.nn.Module, optimiser: torch.optim.Optimizer, batches: list[torch.Tensor], **options: float) -> None:
    data = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    for _ in steps(net, optimiser, batches, lambda numbers: net(data[numbers]).square().mean(), **options):
        pass


def linear() -> torch.nn.Linear:
    net = torch.nn.Linear(3, 1)
    torch.nn.init.constant_(net.weight, 1.0)
    torch.nn.init.zeros_(net.bias)
    return net


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_the_loop_is_the_plain_loop_and_goes_on_from_a_kept_optimiser(kind: str) -> None:
    training = Training.model_validate({"batch": 4, "steps": 6, "optimiser": kind, "weight_decay": 0.1})
    batches = list(training.batches(8, torch.Generator().manual_seed(0)))
    whole, plain, parts = linear(), linear(), linear()
    run(whole, training.optimiser_of(whole, 0.0), batches)
    first = training.optimiser_of(parts, 0.0)
    run(parts, first, batches[:3])
    second = training.optimiser_of(parts, 0.0)
    load_optimiser_state(second, optimiser_state(first))
    run(parts, second, batches[3:])
    assert torch.equal(whole.weight, parts.weight)

    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    optimiser = kinds[kind](plain.parameters(), 2e-4, weight_decay=0.1)
    data = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    for numbers in batches:
        optimiser.zero_grad()
        plain(data[numbers]).square().mean().backward()
        optimiser.step()
    assert torch.allclose(whole.weight, plain.weight, atol=1e-7)


def test_clipping_bounds_the_gradient() -> None:
    net = linear()
    run(net, torch.optim.SGD(net.parameters(), 1.0), [torch.arange(8)], clip=1e-3)
    assert (net.weight - 1).norm() <= 1e-3 + 1e-7


def test_nothing_is_held_over_a_yield() -> None:
    net = linear()
    loop = steps(
        net,
        torch.optim.SGD(net.parameters(), 0.1),
        [torch.arange(2)] * 2,
        lambda n: net(torch.ones(2, 3)).sum(),
        autocast=True,
    )
    next(loop)
    assert not torch.is_autocast_enabled("cpu")
    assert torch.is_grad_enabled()
    assert net(torch.ones(1, 3)).dtype == torch.float32
