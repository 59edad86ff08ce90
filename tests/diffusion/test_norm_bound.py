"""Images squeezed into a norm are within it, and come back whole."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from manyhands.data.images import Images, as_floats
from manyhands.diffusion.norm_bound import squeezed, stretched
from manyhands.diffusion.objective import Diffusion
from manyhands.methods.distil import loss
from manyhands.runs.audit import _squeezed


def norms(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1).double().norm(dim=1)


def of_norms(*lengths: float) -> torch.Tensor:
    x = torch.randn(len(lengths), 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x * (torch.tensor(lengths, dtype=torch.float64) / norms(x)).reshape(-1, 1, 1, 1)


LARGER = of_norms(*torch.linspace(0, 4, 41).tolist())


@given(st.floats(1e-3, 10))
def test_norms_are_within_the_bound_in_their_order_and_come_back(norm: float) -> None:
    small = squeezed(LARGER, norm)
    assert bool((norms(small) <= norm * (1 + 1e-9)).all())
    assert bool((norms(small).diff() > 0).all())
    assert torch.allclose(stretched(small, norm), LARGER, atol=1e-9)
    direction = torch.nn.functional.cosine_similarity(small.flatten(1)[1:], LARGER.flatten(1)[1:])
    assert torch.allclose(direction, torch.ones(40, dtype=torch.float64))


@given(st.floats(0.01, 3.9), st.floats(0, 3.99))
def test_an_error_of_a_norm_grows_by_no_more_than_is_said(norm: float, own: float) -> None:
    x = squeezed(of_norms(own + 1e-3), norm)
    off = norms(stretched(x * (1 - 1e-6), norm)) / norms(stretched(x, norm)) - 1
    assert 0.99e-6 < -off.item() < math.log2(2 * 4 / norm) * 1.01e-6


def test_what_is_within_half_the_bound_or_bounded_by_the_pixels_stays_to_the_last_bit() -> None:
    small = LARGER[norms(LARGER) <= 1].float()
    assert torch.equal(squeezed(small, 2.1), small)
    assert torch.equal(stretched(small, 2.1), small)
    for norm in (None, 4.0, 1e9):
        assert torch.equal(squeezed(LARGER, norm), LARGER)
        assert torch.equal(stretched(LARGER, norm), LARGER)


def test_what_is_drawn_beyond_the_bound_is_taken_to_be_at_it() -> None:
    beyond = stretched(of_norms(0.0, 5.0, math.sqrt(2)), 1.0)
    assert beyond.isfinite().all()
    assert norms(beyond).tolist() == pytest.approx([0, 4, 4])


def test_an_audit_attacks_images_as_they_were_released() -> None:
    images = Images(torch.randint(0, 256, (5, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(_squeezed(images, None).pixels, images.pixels)
    back = as_floats(_squeezed(images, 1.0).pixels)
    assert torch.allclose(back, squeezed(as_floats(images.pixels), 1.0), atol=0.5 / 127.5 + 1e-6)


def test_objectives_see_squeezed_images() -> None:
    x, seen = LARGER.float()[30:], []

    def network(x_t: torch.Tensor, t: torch.Tensor, _: object) -> torch.Tensor:
        seen.append(x_t)
        return torch.zeros_like(x_t)

    plain, within = (Diffusion(norm=norm, max_timestep=1) for norm in (None, 1.0))
    for images, diffusion in ((x, within), (squeezed(x, 1.0), plain)):
        diffusion.loss(network, images, None, 0, torch.Generator().manual_seed(0))
    assert torch.equal(*seen)
    seen.clear()
    for images, diffusion in ((x, within), (squeezed(x, 1.0), plain)):
        loss(
            diffusion,
            network,
            network,
            x_0=images,
            labels=None,
            no_label=0,
            rng=torch.Generator().manual_seed(0),
            grid=[5, 0],
            teacher_steps=1,
        )
    assert torch.equal(seen[0], seen[len(seen) // 2])
