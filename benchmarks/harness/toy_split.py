"""A toy U-shaped split: head and tail at the silo, middle on the server, two group operations a mini-batch.

It stands for the methods that talk at every mini-batch, and shows how one is written: the silo's half reads like plain
PyTorch with two remote calls in the middle.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from manyhands import Images, Message, Method, Server, Silo
from manyhands.messages.facts import Number
from manyhands.messages.operation import COUNT, Operation, Payload
from manyhands.messages.outgoing import Activations, Gradients
from manyhands.messages.plan import Plan
from manyhands.methods.base import Conversation
from manyhands.seed import seeded_globally
from manyhands.tensors import Tensors, TensorSpec, snapshot

WIDTH = 32
MAPS = TensorSpec((None, WIDTH, 7, 7), torch.float32)


def blocks(seed: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Head, middle and tail of a small convolutional network from 28 x 28 to 10 classes."""
    with seeded_globally(seed, "toy"):
        head = nn.Sequential(nn.Conv2d(1, WIDTH, 4, 4), nn.ReLU())
        middle = nn.Sequential(*[each for _ in range(4) for each in (nn.Conv2d(WIDTH, WIDTH, 3, 1, 1), nn.ReLU())])
        tail = nn.Sequential(nn.Flatten(), nn.Linear(WIDTH * 49, 10))
    return head, middle, tail


class ToySplit(Method):
    """A classifier cut in three."""

    kind: Literal["toy_split"] = "toy_split"
    steps: int = 10
    batch: int = 16
    rate: float = 0.05

    def silo(self, silo: Silo) -> Conversation:
        """Forward and backward through the server's middle, a batch at a time."""
        head, _, tail = blocks(0)
        nets = nn.ModuleDict({"head": head, "tail": tail})
        if silo.memory:  # what was kept of the rounds before
            nets.load_state_dict({name: tensor for name, tensor in silo.memory.items() if name != "rounds"})
        optimiser = torch.optim.SGD(nets.parameters(), self.rate)
        for number in range(int(silo.memory.get("rounds", torch.tensor(0))), self.rounds):
            rng = silo.rng(number)
            for _ in range(self.steps):
                x, y = silo.images.batch(torch.randint(len(silo.images), (self.batch,), generator=rng))
                assert y is not None
                sent = head(x)
                there = yield Message("forward", {"x": sent.detach()})
                back = there.tensors["x"].requires_grad_()
                loss = nn.functional.cross_entropy(tail(back), y)
                optimiser.zero_grad()
                loss.backward()
                assert back.grad is not None
                gradient = yield Message("backward", {"x": back.grad})
                sent.backward(gradient.tensors["x"])
                optimiser.step()
            silo.memory.keep({**snapshot(nets.state_dict()), "rounds": torch.tensor(number + 1)})
            yield Message("segments", {}, {"round": number, "loss": loss.item(), "seen": self.steps * self.batch})

    def server(self, seed: int, silos: Mapping[str, int]) -> ToyServer:
        """The middle."""
        return ToyServer(self.rate)

    def plan(self) -> Plan:
        """Activations and their gradients; no image, no label."""
        maps = Payload({"x": MAPS})
        statistics = Payload(facts={"round": COUNT, "loss": Number(-1e6, 1e6), "seen": COUNT})
        often, made = "each mini-batch", (Activations(by="its head", on="its images", images=True),)
        back = (Gradients(at="what its tail gets"),)
        return Plan(
            {
                "forward": Operation("sends activations", often, maps, maps, barrier=True, outgoing=made),
                "backward": Operation("sends their gradients", often, maps, maps, barrier=True, outgoing=back),
                "segments": Operation("ends a round", "each round", statistics, barrier=True, closes_round=True),
            }
        )


class ToyServer(Server):
    """Runs all silos' activations through the middle as one batch."""

    def __init__(self, rate: float) -> None:
        _, self.middle, _ = blocks(0)
        self.optimiser = torch.optim.SGD(self.middle.parameters(), rate)
        self.x = self.y = torch.empty(0)

    def handle_barrier(self, op: str, messages: Mapping[str, Message]) -> Mapping[str, Message]:
        """Answer a pass, or end a round."""
        if op == "segments":
            self.round += 1
            return {silo: Message(op) for silo in messages}
        joined = torch.cat([message.tensors["x"] for message in messages.values()])
        sizes = [len(message.tensors["x"]) for message in messages.values()]
        out = self._forward(joined) if op == "forward" else self._backward(joined)
        return {silo: Message(op, {"x": part}) for silo, part in zip(messages, out.split(sizes), strict=True)}

    def _forward(self, x: Tensor) -> Tensor:
        self.x = x.requires_grad_()
        self.y = self.middle(self.x)
        return self.y.detach()

    def _backward(self, gradient: Tensor) -> Tensor:
        self.optimiser.zero_grad()
        self.y.backward(gradient)
        self.optimiser.step()
        assert self.x.grad is not None
        return self.x.grad

    def state_dict(self) -> Tensors:
        """The middle's weights."""
        return dict(self.middle.state_dict())

    def load_state_dict(self, state: Tensors) -> None:
        """Go on from kept weights."""
        self.middle.load_state_dict(state)


def toy_silos(silos: int, images: int) -> list[Silo]:
    """Silos with random pictures."""
    rng = torch.Generator().manual_seed(0)
    shape = (silos, images, 1, 28, 28)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=rng)
    labels = torch.randint(0, 10, (silos, images), generator=rng)
    return [Silo(f"s{i}", Images(pixels[i], labels[i], tuple("0123456789"))) for i in range(silos)]
