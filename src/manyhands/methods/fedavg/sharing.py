"""Which parts of a U-Net are shared, and which silo sends which of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

Share = Literal["all", "up", "up+mid", "usplit"]
ALL = "down+mid+up"
SHARED = {"all": ALL, "up": "up", "up+mid": "mid+up", "usplit": ALL}
"""The parts that are averaged and sent to all silos; the others never leave their silo."""
PART_NAMES = {"down": "way down", "mid": "middle", "up": "way up"}


def possible_uploads(share: Share) -> tuple[str, ...]:
    """Return what a silo may be asked to send: parts joined by "+"."""
    return (ALL, "up", "mid+up", "down", "down+mid") if share == "usplit" else (SHARED[share],)


def assigned_parts(share: Share, silos: Sequence[str], rng: np.random.Generator) -> dict[str, str]:
    """Return which parts each silo of a round must send.

    USplit pairs the silos at random: one of a pair sends the way up, the other the way down, and either of them the
    middle. A silo that is left over sends everything.

    Args:
        share: Which parts are shared, and how.
        silos: The silos that take part in the round.
        rng: The random numbers that pair them.

    References:
        Training Diffusion Models with Federated Learning, de Goede, Cox, Decouchant, 2024, arXiv 2406.12575
    """
    if share != "usplit":
        return dict.fromkeys(silos, SHARED[share])
    order = rng.permutation(list(silos)).tolist()
    assigned: dict[str, str] = {}
    for up, down in zip(order[::2], order[1::2], strict=False):
        assigned |= {up: "mid+up", down: "down"} if rng.random() < 0.5 else {up: "up", down: "down+mid"}
    return assigned | dict.fromkeys(order[len(assigned) :], ALL)
