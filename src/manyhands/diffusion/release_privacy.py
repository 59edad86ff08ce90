"""How much one noised release of an image discloses, in terms of local differential privacy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from manyhands.errors import RecipeError
from manyhands.privacy.accountant import epsilon, mu_of

if TYPE_CHECKING:
    from manyhands.diffusion.schedule import Schedule


def box_norm(pixels: int) -> float:
    """Return the largest norm of an image with this many pixels, all in [-1, 1]."""
    return math.sqrt(pixels)


def cut_of_epsilon(schedule: Schedule, target: float, delta: float, norm: float) -> int:
    """Return the first timestep at which one release has at most this epsilon.

    Args:
        schedule: The noise schedule. At its last step nothing is released.
        target: The largest epsilon.
        delta: The delta of that epsilon.
        norm: The largest norm of an image.

    Raises:
        RecipeError: No timestep before the last reaches the target.
    """
    snr = schedule.snr().tolist()
    last = schedule.steps - 1
    least = epsilon(mu_of(snr[last], norm), delta)
    if least > target:
        raise RecipeError(
            f"epsilon {target:g} is reached at no timestep: a release at the last, {last}, still has {least:.3g}"
        )
    low, high = 0, last
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if epsilon(mu_of(snr[middle], norm), delta) <= target else (middle, high)
    return high
