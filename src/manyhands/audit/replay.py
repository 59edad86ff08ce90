"""A mini-batch of a round once more, by the silos' and the server's own code: what was sent, and of what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from manyhands.errors import DataError
from manyhands.messages.codec import activations
from manyhands.messages.message import Message
from manyhands.methods.huscf.method import HuSCF
from manyhands.methods.huscf.order import ORDER
from manyhands.methods.huscf.server import HuSCFServer
from manyhands.methods.huscf.silo import SiloSegments
from manyhands.models.layer_cut import LayerCuts
from manyhands.tensors import Tensors, find_not_finite

if TYPE_CHECKING:
    from manyhands.runs.run_folder import RunFolder
    from manyhands.silos.silo import Silo


class RecordedBatch(NamedTuple):
    """What the server has of a mini-batch of a silo, step ``step`` of ``steps``, and after that, what it was of.

    ``made`` and ``real`` are what was sent of made and of real images, ``into_tail`` what made images came of, and
    ``weights`` those of the whole network that the silo's cluster began the round with.
    """

    silo: str
    cluster: int
    step: int
    steps: int
    cuts: LayerCuts
    weights: Tensors
    made: Tensor
    real: Tensor
    into_tail: Tensor
    images: Tensor
    drawn: Tensor
    labels: Tensor | None


def heard(method: HuSCF, server: HuSCFServer, silos: Sequence[Silo], part: float = 0.0) -> dict[str, RecordedBatch]:
    """That after this part of the open round, with a server and silos as they were when it began."""
    known = {n: dict(mean) for n, mean in server.means.items()}
    watched = {silo.name: _Watched(method, server, silo) for silo in silos}
    steps = min(each.steps for each in watched.values())
    step = int(part * steps)
    said = {name: next(each.talk) for name, each in watched.items()}
    sent, got = dict[str, Mapping[str, Tensor]](), dict[str, Mapping[str, Message]]()
    for op in [*ORDER * step, *ORDER[: ORDER.index("real") + 1]]:
        if bad := [name for name, message in said.items() if message.op != op or find_not_finite(message.tensors)]:
            raise DataError(f"{bad[0]}: says no {op} in step {step}, or not in numbers; there is nothing to attack")
        sent[op] = {name: activations.decode(message.tensors).detach().cpu() for name, message in said.items()}
        got[op] = server.handle_barrier(op, said)
        said = {name: each.talk.send(got[op][name]) for name, each in watched.items()}
    found = {}
    for name, each in watched.items():
        each.talk.close()
        number, into_tail = server.cluster.get(name, 0), activations.decode(got["make"][name].tensors).detach().cpu()
        found[name] = RecordedBatch(
            name, number, step, steps, method.cuts_of(name), known[number],
            sent["made"][name], sent["real"][name], into_tail, *each.seen,
        )  # fmt: skip
    return found


def last_round(folder: RunFolder, method: HuSCF, silos: Sequence[Silo], part: float = 0.0) -> dict[str, RecordedBatch]:
    """That after this part of the last round of a finished run, which went on from the round before."""
    number = method.rounds - 1
    server = method.server(silos[0].seed, {silo.name: len(silo.images) for silo in silos})
    server.device = silos[0].device_context.device
    if not number:
        return heard(method, server, [replace(silo, memory={}) for silo in silos], part)
    state = folder.state(number)
    server.round = state.round
    server.load_state_dict(state.server)
    mine = [replace(silo, memory=dict(state.memories.get(silo.name, {}))) for silo in silos]
    return heard(method, server, mine, part)


class _Watched:
    """A silo's half, and what its networks make images of in the newest step."""

    def __init__(self, method: HuSCF, server: HuSCFServer, silo: Silo) -> None:
        answer = server.handle(silo.name, Message("join", facts={"images": len(silo.images)}))
        segments = SiloSegments(method, silo, dict(answer.tensors), server.round)
        self._drawn, self._judged = torch.empty(0), list[tuple[Tensor, Tensor | None]]()
        segments.network.generator[-1].register_forward_hook(self._draws)
        segments.network.discriminator[0].register_forward_pre_hook(self._judges)
        self.steps = answer.facts["steps"]
        self.talk = segments.round(server.round, self.steps)

    @property
    def seen(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Real images, made ones, and the labels of both."""
        (_, _), (images, labels), *_ = self._judged
        return images.cpu(), self._drawn.cpu(), None if labels is None else labels.cpu()

    def _draws(self, _: Any, __: Any, images: Tensor) -> None:
        self._drawn, self._judged = images.detach(), []

    def _judges(self, _: Any, given: tuple[Tensor, Tensor | None]) -> None:
        self._judged.append((given[0].detach(), given[1]))
