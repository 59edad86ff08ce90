"""Links that listen: to every byte that leaves a silo, or to how long the server takes."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import PrivateAttr

from manyhands import Experiment, Folder, Iid, split
from manyhands.audit.attacks import algebra
from manyhands.data.images import as_floats, pooled
from manyhands.links.coordinator import RoundCoordinator
from manyhands.links.in_process import InProcess
from manyhands.messages.ledger import Direction, Ledger
from manyhands.messages.message import Message, decode, encode
from manyhands.methods.collafuse.method import CollaFuse

MARK = "SECRET"


class Tapped(InProcess):
    """Keeps every message that goes up, as it is on the wire."""

    _blobs: list[bytes] = PrivateAttr(default_factory=list)

    @property
    def blobs(self) -> list[bytes]:
        """What was sent, in its order."""
        return self._blobs

    def _carry(self, silo: str, direction: Direction, message: Message, ledger: Ledger) -> Message:
        if direction == "up":
            self._blobs.append(encode(message))
        return super()._carry(silo, direction, message, ledger)


class Timed(InProcess):
    """Counts the seconds that the server is at work: all that is asked of it, and its own training."""

    _seconds: list[float] = PrivateAttr(default_factory=lambda: [0.0])

    @property
    def clock(self) -> list[float]:
        """The seconds, so far."""
        return self._seconds

    def run(self, coordinator: RoundCoordinator, silos: Any, ledger: Ledger) -> Any:
        """With every call to the coordinator timed."""
        for name in ("submit", "collect", "train_step"):
            setattr(coordinator, name, self._timed(getattr(coordinator, name)))
        yield from super().run(coordinator, silos, ledger)

    def _timed(self, call: Any) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self._seconds[0] += time.perf_counter() - began

        return timed


def tapped(method: CollaFuse, count: int) -> dict[str, int]:
    """How many images, labels and names of five silos are in what they sent, and how many algebra gets out of it."""
    with tempfile.TemporaryDirectory() as folder:
        images = Folder(path=_pictures(Path(folder), count)).load(8)
    silos = split(images, Iid(silos=5))
    link = Tapped(wire="bytes")
    experiment = Experiment(method, silos, device="cpu", link=link)
    for _ in experiment:
        pass
    sent = b"".join(link.blobs)
    mine = pooled([silo.images for silo in experiment.silos])
    messages = [decode(blob) for blob in link.blobs]
    truth, rng = as_floats(mine.pixels), torch.Generator().manual_seed(0)
    cut = torch.full((len(truth),), max(method.step_of("silo-0"), 1))
    control = algebra.unsafe_release(method.diffusion.schedule, truth, cut, rng)
    raw = [(pixel.numpy().tobytes(), as_floats(pixel).numpy().tobytes()) for pixel in mine.pixels]
    labels = [message.tensors["labels"] for message in messages if "labels" in message.tensors]
    return {
        "images": sum(any(form in sent for form in forms) for forms in raw),
        "labels": sum(map(len, labels)),
        "names": sent.count(MARK.encode()),
        "algebra": algebra.recovered(messages, truth)["recovered"],
        "algebra_control": algebra.recovered([control], truth)["recovered"],
        "bytes": len(sent),
    }


def _pictures(folder: Path, count: int) -> Path:
    """Random pictures in ten classes, all of whose names are marked."""
    rng = np.random.default_rng(0)
    for number in range(count):
        place = folder / f"{MARK}-class-{number % 10}"
        place.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{MARK}-{number:05d}.png")
    return folder
