"""Where the chain is cut in two: the silo keeps the steps up to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from manyhands.diffusion.release import cut_of_epsilon
from manyhands.diffusion.schedule import Schedule
from manyhands.errors import RecipeError
from manyhands.messages.outgoing.kinds import epsilon_text
from manyhands.privacy.accountant import decibel, epsilon, mu_of
from manyhands.spec import Float, Spec


class TimestepCut(Spec):
    """A cut, told in one of three ways; a plain number is a share.

    ``share`` is that of the chain's steps that stay at the silo: 0 none, 1 all. ``snr_db`` is the signal over the noise
    of what is released, in decibels. ``epsilon`` is what one release of one image may have at most, at ``delta``: local
    differential privacy, where any image may be replaced by any other (of the largest norm, or of the norm that images
    are squeezed into).
    """

    share: Float | None = Field(default=None, ge=0, le=1)
    snr_db: Float | None = Field(default=None, ge=-200, le=200)
    epsilon: Float | None = Field(default=None, gt=0)
    delta: Float = Field(default=1e-5, gt=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, told: Any) -> Any:
        if isinstance(told, Mapping | TimestepCut):
            return told
        if isinstance(told, bool) or not isinstance(told, int | float):
            raise ValueError(f"{told!r} came: say a share in [0, 1], {{ snr_db = ... }} or {{ epsilon = ... }}")
        return {"share": told}

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        told = [name for name in ("share", "snr_db", "epsilon") if getattr(self, name) is not None]
        if len(told) != 1:
            raise ValueError(f"say one of share, snr_db and epsilon, not {' and '.join(told) or 'none'}")
        return self

    def step(self, schedule: Schedule, norm: float) -> int:
        """The step of the chain that images of at most this norm are noised to."""
        if self.share is not None:
            inside = self.share not in (0, 1)  # neither end is meant by what is only near it
            step = round(self.share * schedule.steps)
            return min(max(step, 1), schedule.steps - 1) if inside else step
        if self.epsilon is not None:
            return cut_of_epsilon(schedule, self.epsilon, self.delta, norm)
        snr, wanted = schedule.snr().tolist(), 10 ** ((self.snr_db or 0) / 10)
        if snr[-2] > wanted:
            last = f"{decibel(snr[-2]):.1f} dB at step {schedule.steps - 1}"
            raise RecipeError(f"an SNR of {self.snr_db:g} dB is reached by no step of this chain: it has {last}")
        return next(step for step, left in enumerate(snr) if left <= wanted)


def cut_words(schedule: Schedule, step: int, norm: float, delta: float) -> str:
    """A cut in the three ways, for people: what an image is noised to before it leaves."""
    if step == 0:
        return "cut 0: as they are, nothing is hidden"
    if step == schedule.steps:
        return "cut 1: nothing is released"
    snr = float(schedule.snr()[step])
    shown = epsilon(mu_of(snr, norm), delta)
    return (
        f"step {step} of {schedule.steps} (share {step / schedule.steps:.3g}), SNR {decibel(snr):.1f} dB, epsilon "
        f"{epsilon_text(shown)} at delta {delta:g} (local, one image replaced by any other)"
    )
