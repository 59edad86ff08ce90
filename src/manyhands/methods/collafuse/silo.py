"""A silo's half of CollaFuse: it releases noised images, then trains the network below its cut."""

from __future__ import annotations

import torch
from torch import Tensor

from manyhands.errors import CheckpointError, Reason, Refused
from manyhands.messages.message import Message
from manyhands.methods.base import WEIGHTS, Conversation
from manyhands.methods.collafuse.release import Noising, release_hash, release_messages
from manyhands.methods.collafuse.spec import CollaFuseSpec
from manyhands.methods.round_report import update_facts
from manyhands.silos.silo import Silo
from manyhands.tensors import add_prefix, hash_tensor, strip_prefix

RELEASED = "released"


def converse(method: CollaFuseSpec, silo: Silo) -> Conversation:
    """Release noised images, then train the network below the cut by ``Local`` or ``FedAvg``."""
    yield from _enter(method, silo)
    local = method.local_method(method.step_of(silo.name)).silo(silo)
    yield from _release_each_round(method, silo, local) if method.release == "fresh" else local


def order_of(method: CollaFuseSpec, silo: Silo, turn: int) -> Tensor:
    """Return the numbers of the images of a release, in order: all of them, or those that a round trains on."""
    if method.release == "once":
        return torch.arange(len(silo.images))
    return torch.cat(list(method.training.batches(len(silo.images), silo.rng(turn)))).cpu()


def noising_of(method: CollaFuseSpec, silo: Silo, turn: int = 0) -> Noising:
    """Return how a silo noises its images for a release."""
    return Noising(
        method.diffusion.schedule,
        method.step_of(silo.name),
        silo.noise_secret,
        norm=method.norm,
        labels=method.labels if method.model.classes else "withhold",
        label_epsilon=method.label_epsilon,
        turn=turn,
        fresh=method.release == "fresh",
        held_out=silo.held_out,
    )


def _enter(method: CollaFuseSpec, silo: Silo) -> Conversation:
    """Enter, release what is not released yet, wait for the others, and rest until the warm start."""
    step = method.step_of(silo.name)
    facts = {"images": len(silo.images), "cut": step, "chain": method.chain}
    answer = yield Message("enter", {}, facts)
    if method.release == "once" and step < method.diffusion.schedule.steps:
        yield from _release_once(method, silo, answer.facts["held"])
    if not answer.facts["began"]:
        yield from _ready()
    if method.warm_start and not strip_prefix(silo.memory, WEIGHTS):
        yield from _warm(method, silo, answer.facts["round"])


def _release_once(method: CollaFuseSpec, silo: Silo, held: int) -> Conversation:
    noising, numbers = noising_of(method, silo), order_of(method, silo, 0)
    if not 0 <= held <= len(numbers):
        raise Refused(Reason.WRONG_FACTS, f"the server says that it holds {held} of {len(numbers)} images")
    fingerprint = _fingerprint(noising, silo, numbers)
    if fingerprint.ne(silo.memory.get(RELEASED, fingerprint)).any():
        raise CheckpointError(
            f"{silo.name}: its release would differ from the one it made before; its images or its secret have changed"
        )
    silo.memory.keep({RELEASED: fingerprint})
    yield from release_messages(noising, silo.images, numbers, held)


def _warm(method: CollaFuseSpec, silo: Silo, number: int) -> Conversation:
    """Rest until the round of the warm start, then take the server's weights as the start."""
    answer = Message("progress", {}, {"round": number})
    while answer.facts["round"] < method.warm_start:
        answer = yield Message("progress", {}, update_facts(silo, answer))
    start = yield Message("start")
    silo.memory.keep(add_prefix(start.tensors, WEIGHTS))


def _release_each_round(method: CollaFuseSpec, silo: Silo, local: Conversation) -> Conversation:
    """Before each round is closed, release the images that it trained on, with new noise."""
    step, message, last = method.step_of(silo.name), next(local), -1
    while True:
        number = message.facts.get("round")
        if number is not None and step < method.diffusion.schedule.steps:
            if not last < number < method.rounds:  # otherwise the server could ask for as many releases as it likes
                raise Refused(
                    Reason.STALE_ROUND, f"the server says round {number} of {method.rounds} after round {last}"
                )
            yield from release_messages(noising_of(method, silo, number), silo.images, order_of(method, silo, number))
            last = number
        try:
            answer = yield message
        except Refused as refusal:
            message = local.throw(refusal)
            continue
        try:
            message = local.send(answer)
        except StopIteration:
            return


def _fingerprint(noising: Noising, silo: Silo, numbers: Tensor) -> Tensor:
    return hash_tensor(release_hash(noising, silo.images, numbers))


def _ready() -> Conversation:
    try:
        yield Message("ready")
    except Refused as refusal:
        if refusal.reason is not Reason.STALE_ROUND:  # the others have started without this silo
            raise
