"""What one noised release of an image gives away, as local differential privacy has it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from manyhands.errors import RecipeError
from manyhands.privacy.accountant import epsilon, mu_of

if TYPE_CHECKING:
    from manyhands.diffusion.schedule import Schedule


def box_norm(pixels: int) -> float:
    """The largest norm of an image whose pixels are in [-1, 1]."""
    return math.sqrt(pixels)


def cut_of_epsilon(schedule: Schedule, target: float, delta: float, norm: float) -> int:
    """The first step of the chain at which one release has at most this epsilon; at its end nothing is released."""
    snr = schedule.snr().tolist()
    last = schedule.steps - 1
    least = epsilon(mu_of(snr[last], norm), delta)
    if least > target:
        raise RecipeError(
            f"epsilon {target:g} is reached by no step of this chain: a release at step {last} still has {least:.3g}"
        )
    low, high = 0, last
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if epsilon(mu_of(snr[middle], norm), delta) <= target else (middle, high)
    return high
