"""The training loop at a silo, which all methods share."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from manyhands.silos.flops import Meter
from manyhands.tensors import Tensors, snapshot

if TYPE_CHECKING:
    from manyhands.silos.training import Training


def steps(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    batches: Iterable[Tensor],
    loss: Callable[[Tensor], Tensor],
    *,
    clip: float | None = None,
    autocast: bool = False,
    meter: Meter | None = None,
    work: Hashable = None,
    accumulate: int = 1,
) -> Iterator[Tensor]:
    """Take one optimiser step for each batch, and yield its loss, still on the device.

    Args:
        network: The network to train.
        optimiser: The optimiser of its weights.
        batches: The image numbers of each batch, (B,).
        loss: Returns the loss of a batch from its image numbers; a method adds its terms here.
        clip: The largest norm of the gradient; None for no clipping.
        autocast: Whether the forward pass runs in bfloat16.
        meter: Counts the floating-point operations.
        work: The name of this work for the meter.
        accumulate: In how many parts a batch passes through the network; their gradients are added up.
    """
    meter = meter or Meter({})
    device = next(network.parameters()).device.type
    network.train()
    sizes: set[int] = set()
    for numbers in batches:
        optimiser.zero_grad(set_to_none=True)
        total = None
        for part in numbers.chunk(accumulate):
            with _eager(network, len(part) not in sizes), meter.work(work, len(part)):
                with torch.autocast(device, torch.bfloat16, enabled=autocast):
                    value = loss(part)
                    if len(part) < len(numbers):
                        value = value * (len(part) / len(numbers))
                value.backward()
            sizes.add(len(part))
            total = value.detach() if total is None else total + value.detach()
        if clip is not None:
            nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimiser.step()
        assert total is not None, "a batch has at least one image"
        yield total


def prepare(network: nn.Module, training: Training) -> None:
    """Compile a network, or have it compute features again in the backward pass, where the training says so.

    Args:
        network: The network; its weights and their names stay as they are.
        training: The training.
    """
    if training.compile and network._compiled_call_impl is None:
        network.compile(dynamic=False)
    if training.checkpointing:
        for module in network.modules():
            if hasattr(module, "enable_gradient_checkpointing"):
                module.enable_gradient_checkpointing()  # type: ignore[operator] # a network of diffusers


@contextmanager
def _eager(network: nn.Module, first: bool) -> Iterator[None]:
    """Run a compiled network as it is where a size of batch is the first of its round.

    So its operations can be counted, and a run that is resumed compiles and counts where an unbroken one does.
    """
    if first and network._compiled_call_impl is not None:
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


def optimiser_state(optimiser: torch.optim.Optimizer) -> Tensors:
    """Return the state of the optimiser as named tensors."""
    state = optimiser.state_dict()["state"]
    return snapshot({f"optimiser.{i}.{key}": value for i, entry in state.items() for key, value in entry.items()})


def load_optimiser_state(optimiser: torch.optim.Optimizer, kept: Mapping[str, Tensor]) -> None:
    """Load a state of ``optimiser_state``; without one, the optimiser stays as it is."""
    state: dict[int, Tensors] = {}
    for name, value in kept.items():
        if name.startswith("optimiser."):
            _, i, key = name.split(".")
            state.setdefault(int(i), {})[key] = value.clone()
    if state:
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
