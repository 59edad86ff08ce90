"""Which parts of a U-Net are shared, and who sends which of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

Share = Literal["all", "up", "up+mid", "usplit"]
ALL = "down+mid+up"
SHARED = {"all": ALL, "up": "up", "up+mid": "mid+up", "usplit": ALL}
"""The parts that are averaged and handed out; the others never leave their silo."""
WAYS = {"down": "way down", "mid": "middle", "up": "way up"}


def uploads(share: Share) -> tuple[str, ...]:
    """What a silo may be asked to send, parts joined by +."""
    return (ALL, "up", "mid+up", "down", "down+mid") if share == "usplit" else (SHARED[share],)


def asked(share: Share, silos: Sequence[str], rng: np.random.Generator) -> dict[str, str]:
    """What each silo of a round is to send.

    USplit pairs the silos at random: one of a pair sends the way up, the other the way down, and the middle comes from
    either. One who is left over sends everything.

    References:
        Training Diffusion Models with Federated Learning, de Goede, Cox, Decouchant, 2024, arXiv 2406.12575
    """
    if share != "usplit":
        return dict.fromkeys(silos, SHARED[share])
    order = rng.permutation(list(silos)).tolist()
    found: dict[str, str] = {}
    for up, down in zip(order[::2], order[1::2], strict=False):
        found |= {up: "mid+up", down: "down"} if rng.random() < 0.5 else {up: "up", down: "down+mid"}
    return found | dict.fromkeys(order[len(found) :], ALL)
