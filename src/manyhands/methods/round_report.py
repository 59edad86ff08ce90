"""What a silo reports of a round, and why a result must not be reported."""

from __future__ import annotations

import math

from manyhands.errors import printable
from manyhands.messages.message import Message
from manyhands.messages.operation import MAX_LOSS
from manyhands.methods.learners.base import NOTHING, LocalResult
from manyhands.silos.silo import Silo
from manyhands.tensors import Tensors, find_not_finite


def why_unusable(trained: LocalResult, weights: Tensors) -> str:
    """Return why the result of training must not be sent or kept, or "" where it may."""
    if why := why_bad_loss(trained.loss):
        return why
    return "its weights are not finite" if find_not_finite(weights) else ""


def why_bad_loss(loss: float | None) -> str:
    """Return why a loss must not be reported, or "" where it may."""
    if not math.isfinite(loss or 0):
        return "its loss is not finite"
    return f"its loss is larger than {MAX_LOSS:g}" if abs(loss or 0) > MAX_LOSS else ""


def update_facts(silo: Silo, answer: Message, trained: LocalResult = NOTHING, withheld: str = "") -> dict[str, object]:
    """Return the facts that a silo reports after a round, beside its tensors."""
    number = answer.facts["round"]
    figures = {"loss": trained.loss, "seen": trained.seen, "flops": trained.flops}
    return {"round": number, "images": len(silo.images), **figures, "withheld": printable(withheld)}
