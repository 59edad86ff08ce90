"""What is attacked is what was sent, to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import PrivateAttr
from torch import Tensor

from manyhands import Evaluation, Experiment
from manyhands.audit.replay import record_batches, record_last_round
from manyhands.errors import DataError
from manyhands.links.in_process import InProcess
from manyhands.messages.codec import activations
from manyhands.messages.ledger import Direction, Ledger
from manyhands.messages.message import Message
from manyhands.methods.huscf.server import HuSCFServer
from manyhands.runs.run_folder import RunFolder
from tests.methods.huscf.test_method import MIXED, Broken, gan_silos, tiny


class Recording(InProcess):
    """Keeps what goes up, by operation and silo."""

    _sent: dict[tuple[str, str], list[Tensor]] = PrivateAttr(default_factory=dict)

    def of(self, op: str, silo: str) -> list[Tensor]:
        """In the order in which it was sent."""
        return self._sent[op, silo]

    def _carry(self, silo: str, direction: Direction, message: Message, ledger: Ledger) -> Message:
        if direction == "up" and "x" in message.tensors:
            self._sent.setdefault((message.op, silo), []).append(activations.decode(message.tensors).detach())
        return super()._carry(silo, direction, message, ledger)


@pytest.mark.parametrize("part", [0.0, 0.5])
@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize(
    "fields", [{}, {"statistics": "cluster", "warm": 1}, {"guard": {"clip": 2.0, "noise": 0.3}, "bits": 8}], ids=str
)
def test_it_is_what_went_over_the_wire(tmp_path: Path, fields: dict[str, Any], rounds: int, part: float) -> None:
    method, link = tiny(cuts=MIXED, rounds=rounds, **fields), Recording()
    for _ in Experiment(
        method, gan_silos(), seed=3, device="cpu", folder=tmp_path, link=link, evaluation=Evaluation(images=0)
    ):
        pass
    silos = [replace(silo, seed=3) for silo in gan_silos()]
    batches = record_last_round(RunFolder(tmp_path), method, silos, part)
    assert set(batches) == {"s0", "s1", "s2"}
    steps = 5
    for name, batch in batches.items():
        at = (rounds - 1) * steps + int(part * steps)
        assert torch.equal(batch.real_activations, link.of("real-forward", name)[at])
        assert torch.equal(batch.generated_activations, link.of("fake-forward", name)[at])
        assert batch.images.shape == batch.generated.shape == (4, 1, 16, 16)
        own = next(silo.images for silo in silos if silo.name == name)
        pixels, labels = own.batch(torch.arange(len(own)))
        nearest = torch.cdist(batch.images.flatten(1), pixels.flatten(1)).argmin(1)
        assert torch.equal(pixels[nearest], batch.images)
        assert torch.equal(labels[nearest], batch.labels)  # type: ignore[index, arg-type]


def test_a_silo_that_says_no_numbers_is_named() -> None:
    silos, method = gan_silos(2), tiny()
    was = silos[1].images
    silos[1].images = Broken(was.pixels * 0 + 255, was.labels, was.classes)
    server = method.server(0, {"s0": 9, "s1": 9})
    assert isinstance(server, HuSCFServer)
    with pytest.raises(DataError, match="s1: sends no .* there is nothing to attack"):
        record_batches(method, server, silos, 0.9)
