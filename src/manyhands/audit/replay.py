"""Replays a mini-batch of a round with the code of the silos and the server, to record what was sent and its inputs."""

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
from manyhands.methods.huscf.operations import FAKE_FORWARD, GENERATOR_FORWARD, ORDER, REAL_FORWARD
from manyhands.methods.huscf.server import HuSCFServer
from manyhands.methods.huscf.silo import SiloSegments
from manyhands.models.layer_cut import LayerCuts
from manyhands.silos.silo_memory import SiloMemory
from manyhands.tensors import Tensors, find_not_finite

if TYPE_CHECKING:
    from manyhands.runs.run_folder import RunFolder
    from manyhands.silos.silo import Silo


class RecordedBatch(NamedTuple):
    """What the server receives of a mini-batch of a silo, and the images that it came from.

    Args:
        silo: The name of the silo.
        cluster: The number of its cluster.
        step: The step of the round.
        steps: The number of steps of a round.
        cuts: The cuts of the silo's networks.
        weights: The weights of the whole network with which the silo's cluster began the round.
        generated_activations: The activations sent for generated images.
        real_activations: The activations sent for real images.
        tail_input: The input of the generator's tail, from which the silo draws the generated images.
        images: The real images (N, C, H, W), which the server does not receive.
        generated: The generated images (N, C, H, W), which the server does not receive.
        labels: The labels of both (N,), which the server does not receive; None without classes.
    """

    silo: str
    cluster: int
    step: int
    steps: int
    cuts: LayerCuts
    weights: Tensors
    generated_activations: Tensor
    real_activations: Tensor
    tail_input: Tensor
    images: Tensor
    generated: Tensor
    labels: Tensor | None


def record_batches(
    method: HuSCF, server: HuSCFServer, silos: Sequence[Silo], part: float = 0.0
) -> dict[str, RecordedBatch]:
    """Record the mini-batch of each silo after this part (0 to 1) of the open round.

    The server and the silos must be as they were when the round began.
    """
    initial_weights = {n: dict(mean) for n, mean in server.means.items()}
    recorders = {silo.name: _Recorder(method, server, silo) for silo in silos}
    steps = min(recorder.steps for recorder in recorders.values())
    step = int(part * steps)
    messages = {name: next(recorder.conversation) for name, recorder in recorders.items()}
    sent_by_op, answers = dict[str, Mapping[str, Tensor]](), dict[str, Mapping[str, Message]]()
    for op in [*ORDER * step, *ORDER[: ORDER.index(REAL_FORWARD) + 1]]:
        if silent := [
            name for name, message in messages.items() if message.op != op or find_not_finite(message.tensors)
        ]:
            raise DataError(
                f"{silent[0]}: sends no {op!r} in step {step}, or numbers that are not finite; there is "
                "nothing to attack"
            )
        sent_by_op[op] = {
            name: activations.decode(message.tensors).detach().cpu() for name, message in messages.items()
        }
        answers[op] = server.handle_barrier(op, messages)
        messages = {name: recorder.conversation.send(answers[op][name]) for name, recorder in recorders.items()}
    batches = {}
    for name, recorder in recorders.items():
        recorder.conversation.close()
        number = server.cluster.get(name, 0)
        images, generated, labels = recorder.latest
        batches[name] = RecordedBatch(
            silo=name, cluster=number, step=step, steps=steps,
            cuts=method.cuts_of(name), weights=initial_weights[number],
            generated_activations=sent_by_op[FAKE_FORWARD][name], real_activations=sent_by_op[REAL_FORWARD][name],
            tail_input=activations.decode(answers[GENERATOR_FORWARD][name].tensors).detach().cpu(),
            images=images, generated=generated, labels=labels,
        )  # fmt: skip
    return batches


def record_last_round(
    folder: RunFolder, method: HuSCF, silos: Sequence[Silo], part: float = 0.0
) -> dict[str, RecordedBatch]:
    """Record the mini-batch of each silo after this part (0 to 1) of the last round of a finished run."""
    number = method.rounds - 1
    server = method.server(silos[0].seed, {silo.name: len(silo.images) for silo in silos})
    server.device = silos[0].device_context.device
    if not number:
        return record_batches(method, server, [replace(silo, memory=SiloMemory()) for silo in silos], part)
    state = folder.state(number)
    server.round = state.round
    server.load_state_dict(state.server)
    own_silos = [replace(silo, memory=SiloMemory(state.memories.get(silo.name, {}))) for silo in silos]
    return record_batches(method, server, own_silos, part)


class _Recorder:
    """Runs the segments of a silo and records the images of its latest step."""

    def __init__(self, method: HuSCF, server: HuSCFServer, silo: Silo) -> None:
        answer = server.handle(silo.name, Message("join", facts={"images": len(silo.images)}))
        segments = SiloSegments(method, silo, dict(answer.tensors), server.round)
        self._generated, self._discriminated = torch.empty(0), list[tuple[Tensor, Tensor | None]]()
        segments.network.generator[-1].register_forward_hook(self._keep_generated)
        segments.network.discriminator[0].register_forward_pre_hook(self._keep_discriminated)
        self.steps = answer.facts["steps"]
        self.conversation = segments.round(server.round, self.steps)

    @property
    def latest(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Real images, generated images, and the labels of both."""
        (_, _), (images, labels), *_ = self._discriminated
        return images.cpu(), self._generated.cpu(), None if labels is None else labels.cpu()

    def _keep_generated(self, _: Any, __: Any, images: Tensor) -> None:
        self._generated, self._discriminated = images.detach(), []

    def _keep_discriminated(self, _: Any, inputs: tuple[Tensor, Tensor | None]) -> None:
        self._discriminated.append((inputs[0].detach(), inputs[1]))
