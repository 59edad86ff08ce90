"""A silo's half of CollaFuse: it releases noised images, then trains below its cut."""

from __future__ import annotations

import torch
from torch import Tensor

from manyhands.errors import CheckpointError, Reason, Refused
from manyhands.messages.message import Message
from manyhands.methods.base import Conversation
from manyhands.methods.collafuse.release import Noising, chunks, fingerprint
from manyhands.methods.collafuse.spec import CollaFuseSpec
from manyhands.methods.local_training import update_facts
from manyhands.silos.silo import Silo
from manyhands.tensors import add_prefix, strip_prefix

RELEASED = "released"


def converse(method: CollaFuseSpec, silo: Silo) -> Conversation:
    """Release what is noised, then train what is below the cut; all that follows is a method of its own."""
    yield from _enter(method, silo)
    home = method.home(method.step_of(silo.name)).silo(silo)
    yield from _releasing_anew(method, silo, home) if method.release == "fresh" else home


def order_of(method: CollaFuseSpec, silo: Silo, turn: int) -> Tensor:
    """The numbers of the images of a release: all of them, or those that a round trains on."""
    if method.release == "once":
        return torch.arange(len(silo.images))
    return torch.cat(list(method.training.batches(len(silo.images), silo.rng(turn)))).cpu()


def noising_of(method: CollaFuseSpec, silo: Silo, turn: int = 0) -> Noising:
    """How a silo makes its release."""
    return Noising(
        method.diffusion.schedule,
        method.step_of(silo.name),
        silo.noise_secret,
        method.norm,
        method.labels if method.model.classes else "withhold",
        method.label_epsilon,
        turn,
        method.release == "fresh",
        silo.held_out,
    )


def _enter(method: CollaFuseSpec, silo: Silo) -> Conversation:
    """Enter, release what is not released yet, wait for the others, and rest until there is a warm start."""
    step = method.step_of(silo.name)
    facts = {"images": len(silo.images), "cut": step, "chain": method.chain}
    answer = yield Message("enter", {}, facts)
    if method.release == "once" and step < method.diffusion.schedule.steps:
        yield from _released(method, silo, answer.facts["held"])
    if not answer.facts["began"]:
        yield from _ready()
    if method.warm_start and not strip_prefix(silo.memory, "weights."):
        yield from _warm(method, silo, answer.facts["round"])


def _released(method: CollaFuseSpec, silo: Silo, held: int) -> Conversation:
    noising, numbers = noising_of(method, silo), order_of(method, silo, 0)
    if not 0 <= held <= len(numbers):
        raise Refused(Reason.WRONG_FACTS, f"the server says that it holds {held} of {len(numbers)} images")
    code = _code(noising, silo, numbers)
    if code.ne(silo.memory.get(RELEASED, code)).any():
        raise CheckpointError(
            f"{silo.name}: what it would release now is not what it released: its images or its secret have changed"
        )
    silo.memory |= {RELEASED: code}
    yield from chunks(noising, silo.images, numbers, held)


def _warm(method: CollaFuseSpec, silo: Silo, number: int) -> Conversation:
    """Rest until the server has learnt something, then start from that."""
    answer = Message("progress", {}, {"round": number})
    while answer.facts["round"] < method.warm_start:
        answer = yield Message("progress", {}, update_facts(silo, answer))
    start = yield Message("start")
    silo.memory |= add_prefix(dict(start.tensors), "weights.")


def _releasing_anew(method: CollaFuseSpec, silo: Silo, home: Conversation) -> Conversation:
    """Before a round is closed, release what was trained on in it with noise of its own."""
    step, message, last = method.step_of(silo.name), next(home), -1
    while True:
        number = message.facts.get("round")
        if number is not None and step < method.diffusion.schedule.steps:
            if not last < number < method.rounds:  # else whoever asks could have as many releases as it likes
                raise Refused(Reason.STALE_ROUND, f"the server says round {number} of {method.rounds} after {last}")
            yield from chunks(noising_of(method, silo, number), silo.images, order_of(method, silo, number))
            last = number
        try:
            answer = yield message
        except Refused as refusal:
            message = home.throw(refusal)
            continue
        try:
            message = home.send(answer)
        except StopIteration:
            return


def _code(noising: Noising, silo: Silo, numbers: Tensor) -> Tensor:
    return torch.tensor(list(bytes.fromhex(fingerprint(noising, silo.images, numbers))), dtype=torch.uint8)


def _ready() -> Conversation:
    try:
        yield Message("ready")
    except Refused as refusal:
        if refusal.reason is not Reason.STALE_ROUND:  # the others have begun without it
            raise
