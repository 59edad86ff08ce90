"""A silo's half of federated averaging: it trains whenever weights come."""

from __future__ import annotations

from typing import NamedTuple

import torch

from manyhands.errors import Reason, Refused
from manyhands.messages.message import Message
from manyhands.messages.operation import RESTING
from manyhands.methods.base import AVERAGE, Conversation
from manyhands.methods.fedavg.sharing import SHARED
from manyhands.methods.fedavg.spec import Facts, FedAvgSpec
from manyhands.methods.learners.base import NOTHING, LocalResult
from manyhands.methods.proximal import Proximal
from manyhands.methods.round_report import update_facts, why_unusable
from manyhands.seed import torch_rng
from manyhands.silos.local_training import load_optimiser_state, optimiser_state
from manyhands.silos.silo import Silo
from manyhands.tensors import Tensors, add_prefix, running_average, snapshot, strip_prefix

HELD, RESIDUAL = "held.", "left."


def converse(method: FedAvgSpec, silo: Silo) -> Conversation:
    """Join, then train whenever weights come, until the server says that the run is done."""
    yield from method.learner.prepare(silo)
    answer, correction = (yield _join(method, silo)), None
    while not answer.facts["done"]:
        try:
            with silo.memory.transaction():  # an update gets no name: while it waits, a silo must not hold on to it
                answer, correction = (yield correction or _reply(method, silo, answer)), None
        except Refused as refusal:
            stale = refusal.reason is Reason.STALE_ROUND
            if correction is not None and not stale:
                raise
            correction = _join(method, silo) if stale else _withheld(method, silo, answer, str(refusal))
    if answer.tensors:
        silo.memory.keep(_receive(method, silo, answer).average)


def _join(method: FedAvgSpec, silo: Silo) -> Message:
    return Message("join", facts={"images": len(silo.images)} | _holds(method, silo))


def _holds(method: FedAvgSpec, silo: Silo) -> Facts:
    """Return the round whose model the silo has, where the server must know it."""
    return {"holds": int(silo.memory.get("holds", -1))} if method.downlink.tracks else {}


def _withheld(method: FedAvgSpec, silo: Silo, answer: Message, why: str, trained: LocalResult = NOTHING) -> Message:
    facts = update_facts(silo, answer, trained._replace(loss=None), why)
    return Message("update", {}, facts | _holds(method, silo))


def _reply(method: FedAvgSpec, silo: Silo, answer: Message) -> Message:
    return _update(method, silo, answer) if answer.tensors else _withheld(method, silo, answer, RESTING)


class Received(NamedTuple):
    """What came from the server.

    Args:
        weights: The weights as the silo has them now.
        average: The silo's average over rounds with them in it, which it keeps unless they cannot be trained.
    """

    weights: Tensors
    average: Tensors


def _receive(method: FedAvgSpec, silo: Silo, answer: Message) -> Received:
    """Return the weights that came, and keep them where they are needed later."""
    downlink, number = method.downlink, answer.facts["round"]
    weights = downlink.received(answer.facts.get("kind", "step"), answer.tensors, strip_prefix(silo.memory, HELD))
    if not (downlink.tracks or method.kept):
        return Received(weights, {})
    is_new = number != int(silo.memory.get("holds", -1))
    silo.memory.keep(add_prefix(weights, HELD) | {"holds": torch.tensor(number)})
    averages = is_new and (method.personal or method.kept)
    return Received(weights, _average_with(method, silo, weights) if averages else {})


def _average_with(method: FedAvgSpec, silo: Silo, weights: Tensors) -> Tensors:
    """Return the entries of the silo's average over rounds with these weights in it."""
    count = int(silo.memory.get("receipts", 0))
    average = running_average(strip_prefix(silo.memory, AVERAGE), weights, method.ema, count)
    return add_prefix(average, AVERAGE) | {"receipts": torch.tensor(count + 1)}


def _update(method: FedAvgSpec, silo: Silo, answer: Message) -> Message:
    """Train one round: load the weights that came, train, and return the message with the new ones."""
    received = _receive(method, silo, answer)
    network = silo.device_context.network(method.model)
    number = answer.facts["round"]
    network.load_state_dict(method.downlink.start(received.weights, number))
    optimiser = method.training.optimiser_of(network, method.progress(number))
    if method.keep_optimiser:
        load_optimiser_state(optimiser, silo.memory)
    pull = Proximal(network, method.proximal, method.proximal_mode) if method.proximal else None
    trained = method.train_round(network, optimiser, silo, number, pull)
    weights = trained.average or snapshot(network.state_dict())
    if why := why_unusable(trained, weights):
        return _withheld(method, silo, answer, why, trained)
    parts = answer.facts.get("send", SHARED[method.share])
    sent = {name: weights[name] for name in method.spec_of(parts)}
    rng = torch_rng(silo.seed, silo.name, "up", number)
    wire, residual = method.up.encode(sent, received.weights, strip_prefix(silo.memory, RESIDUAL), rng)
    private = {name: tensor for name, tensor in weights.items() if method.personal and name not in sent}
    kept = optimiser_state(optimiser) if method.keep_optimiser else {}
    silo.memory.keep(received.average | kept | add_prefix(residual, RESIDUAL) | add_prefix(private, HELD))
    return Message("update", wire, update_facts(silo, answer, trained) | _holds(method, silo))
