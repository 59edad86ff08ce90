"""The timestep that divides the work: the silo has the timesteps up to it, the server those above."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from manyhands.diffusion.release_privacy import cut_of_epsilon
from manyhands.diffusion.schedule import Schedule
from manyhands.errors import RecipeError
from manyhands.formatting import number_text
from manyhands.privacy.accountant import decibel, epsilon, mu_of
from manyhands.spec import Float, Spec


class TimestepCut(Spec):
    """The timestep at which silos release noised images, in one of three forms; a plain number is a share."""

    share: Float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="The share of the timesteps that stay at the silo: 0 for none, 1 for all; None for another form.",
    )
    snr_db: Float | None = Field(
        default=None,
        ge=-200,
        le=200,
        description="The signal-to-noise ratio of what is released, in decibels; None for another form.",
    )
    epsilon: Float | None = Field(
        default=None,
        gt=0,
        description=(
            "The largest epsilon of one release of one image, for local differential privacy that replaces an image by "
            "any other; None for another form."
        ),
    )
    delta: Float = Field(default=1e-5, gt=0, lt=1, description="The delta of epsilon.")

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if isinstance(value, Mapping | TimestepCut):
            return value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(
                f"is {value!r}, but should be a share in [0, 1], {{ snr_db = ... }} or {{ epsilon = ... }}"
            )
        return {"share": value}

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        forms = [name for name in ("share", "snr_db", "epsilon") if getattr(self, name) is not None]
        if len(forms) != 1:
            raise ValueError(f"set one of share, snr_db and epsilon, not {' and '.join(forms) or 'none'}")
        return self

    def step(self, schedule: Schedule, norm: float) -> int:
        """Return the timestep up to which images are noised before they are released.

        Args:
            schedule: The noise schedule.
            norm: The largest norm of an image.
        """
        if self.share is not None:
            inside = self.share not in (0, 1)  # a share that is only near 0 or 1 means neither
            step = round(self.share * schedule.steps)
            return min(max(step, 1), schedule.steps - 1) if inside else step
        if self.epsilon is not None:
            return cut_of_epsilon(schedule, self.epsilon, self.delta, norm)
        snr, target = schedule.snr().tolist(), 10 ** ((self.snr_db or 0) / 10)
        if snr[-2] > target:
            last = f"{decibel(snr[-2]):.1f} dB at step {schedule.steps - 1}"
            raise RecipeError(f"an SNR of {self.snr_db:g} dB is reached at no timestep of this schedule: it has {last}")
        return next(step for step, ratio in enumerate(snr) if ratio <= target)


def cut_words(schedule: Schedule, step: int, norm: float, delta: float) -> str:
    """Describe a cut in all three forms, for a person.

    Args:
        schedule: The noise schedule.
        step: The timestep of the cut.
        norm: The largest norm of an image.
        delta: The delta of the epsilon.
    """
    if step == 0:
        return "cut 0: images are sent without any noise"
    if step == schedule.steps:
        return "cut 1: nothing is released"
    snr = float(schedule.snr()[step])
    shown = epsilon(mu_of(snr, norm), delta)
    return (
        f"step {step} of {schedule.steps} (share {step / schedule.steps:.3g}), SNR {decibel(snr):.1f} dB, epsilon "
        f"{number_text(shown)} at delta {delta:g} (local, one image replaced by any other)"
    )
