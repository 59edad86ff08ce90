"""A guard hides what heads of discriminators send, and nothing else; without one all is as ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from manyhands import Evaluation, Experiment
from manyhands.methods.huscf.activation_noise import Guard
from tests.audit.test_replay import Recording
from tests.methods.huscf.test_method import MIXED, gan_silos, pieces, tiny, trained

NONE = {"evaluation": Evaluation(images=0)}


def run(guard: Guard | None, **options: Any) -> tuple[Experiment, Recording]:
    link = Recording()
    return trained(tiny(cuts=MIXED, guard=guard), gan_silos(), link=link, **NONE, **options), link


def same(first: Experiment, second: Experiment) -> bool:
    return all(
        torch.equal(tensor, pieces(second, i)[name]) for i in range(3) for name, tensor in pieces(first, i).items()
    )


def test_one_that_holds_nothing_back_changes_no_bit() -> None:
    assert same(run(None)[0], run(Guard(clip=1e6))[0])
    assert not same(run(None)[0], run(Guard(clip=3.0))[0])


def test_what_is_sent_has_the_norm_and_the_noise_that_were_told() -> None:
    (_, clear), (_, clipped) = run(None), run(Guard(clip=3.0))
    noised = run(Guard(clip=3.0, noise=2.0))[1]
    for silo in ("s0", "s1", "s2"):
        for op in ("fake-forward", "real-forward", "adversarial-forward"):
            norms = torch.cat([x.flatten(1).norm(dim=1) for x in clipped.of(op, silo)])
            assert norms.max() < 3.0001
            assert torch.cat([x.flatten() for x in noised.of(op, silo)]).std() == pytest.approx(6, rel=0.1)
        assert torch.equal(clear.of("generator-forward", silo)[0], noised.of("generator-forward", silo)[0])
        first = (noised.of("real-forward", silo)[0] - clipped.of("real-forward", silo)[0]).flatten()
        assert first.std() == pytest.approx(6, rel=0.1)


def test_noise_is_of_the_secret_and_of_what_it_hides() -> None:
    guard, x, (one, other, _) = Guard(clip=3.0, noise=1.0), torch.ones(2, 3), gan_silos()
    hidden = guard.hidden(x, one)
    assert torch.equal(hidden, guard.hidden(x, one))
    one.secret = "told to nobody"
    assert not torch.allclose(guard.hidden(x, one), hidden)
    first, second = (guard.hidden(each, one) - guard.clipped(each) for each in (x, x + 1e-6))
    assert not torch.allclose(first, second, atol=0.1)
    assert not torch.allclose(guard.hidden(x, other), hidden)


def test_a_guarded_run_that_stopped_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    guard = Guard(clip=3.0, noise=0.2)
    whole = run(guard)[0]
    for done in Experiment(tiny(cuts=MIXED, guard=guard), gan_silos(), device="cpu", folder=tmp_path, **NONE):  # type: ignore[arg-type]
        if done.number == 0:
            break
    assert same(whole, run(guard, folder=tmp_path, resume=True)[0])


@pytest.mark.parametrize("guard", [{"clip": 0}, {"clip": 1, "noise": -1}, {"noise": 1}, {"clip": 1, "sigma": 1}])
def test_one_that_cannot_be_is_refused(guard: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="guard"):
        tiny(guard=guard)
