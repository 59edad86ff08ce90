"""Maps on the wire: what comes back is what was sent, but for a rounding that is right in the mean."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from manyhands.errors import Refused
from manyhands.messages.codec import activations
from manyhands.messages.codec.activations import Bits
from manyhands.tensors import TensorSpec, state_spec

LIKE = TensorSpec((None, 3, 5, 5), torch.float32)


def maps(count: int = 4) -> torch.Tensor:
    """Three channels of very different reach."""
    x = torch.randn(count, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    return x * torch.tensor([1e-6, 1.0, 100.0])[:, None, None]


def there_and_back(x: torch.Tensor, bits: Bits, seed: int = 0) -> torch.Tensor:
    return activations.decode(activations.encode(x, bits, torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize(("bits", "lost"), [(32, 0), (16, 2**-8), (8, 1 / 255)])
def test_what_comes_back_is_within_a_step(bits: Bits, lost: float) -> None:
    x = maps()
    reach = x.amax((0, 2, 3)) - x.amin((0, 2, 3))
    off = (there_and_back(x, bits) - x).abs().amax((0, 2, 3))
    assert (off <= 1.001 * lost * reach).all()
    assert (off > 0).all() == bool(lost)


def test_rounding_is_right_in_the_mean_and_keeps_both_ends() -> None:
    x = maps()
    back = torch.stack([there_and_back(x, 8, seed) for seed in range(2000)])
    step = (x.amax((0, 2, 3)) - x.amin((0, 2, 3)))[:, None, None] / 255
    assert ((back.mean(0) - x).abs() < 4 * step * (0.25 / 2000) ** 0.5 * 1.5).all()
    assert torch.allclose(back[0].amin((0, 2, 3)), x.amin((0, 2, 3)))
    assert torch.allclose(back[0].amax((0, 2, 3)), x.amax((0, 2, 3)))


def test_maps_that_are_all_one_number_come_back_as_they_were() -> None:
    x = torch.full((2, 3, 5, 5), -7.0)
    assert torch.equal(there_and_back(x, 8), x)


@pytest.mark.parametrize("bits", [32, 16, 8])
def test_what_is_sent_is_what_a_plan_expects(bits: Bits) -> None:
    wired = activations.encode(maps(), bits, torch.Generator().manual_seed(0))
    activations.check(wired, LIKE, bits)
    expected = activations.wire_spec(LIKE._replace(shape=(4, 3, 5, 5)), bits)
    assert state_spec(wired) == expected


@pytest.mark.parametrize(
    ("bits", "change"),
    [
        (8, {"step": torch.full((3,), 1e30)}),
        (8, {"least": torch.tensor([0.0, 0.0, 1e9])}),
        (8, {"least": torch.zeros(2)}),
        (8, {"x": torch.zeros(4, 3, 5, 5)}),
        (32, {"x": torch.full((4, 3, 5, 5), 1e30)}),
        (16, {"x": torch.full((4, 3, 5, 5), -1e30).bfloat16()}),
        (16, {"x": torch.zeros(4, 3, 5, 6).bfloat16()}),
    ],
)
def test_what_a_network_could_not_take_is_refused(bits: Bits, change: dict[str, Any]) -> None:
    wired = activations.encode(maps(), bits, torch.Generator().manual_seed(0)) | change
    with pytest.raises(Refused):
        activations.check(wired, LIKE, bits)
