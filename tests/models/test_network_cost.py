"""What is computed without a network is what is measured with one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from manyhands import Diffusion, UNet
from manyhands.models.network_cost import forward_flops, training_flops, training_memory, weights
from manyhands.silos.flops import Meter

SPECS = {
    "plain": UNet(size=8, channels=1, classes=0, widths=(8,)),
    "classes": UNet(size=8, channels=1, classes=3, widths=(8, 16)),
    "attention": UNet(size=16, channels=3, classes=0, widths=(16, 32), attention=True, scale_shift=True),
    "dropout": UNet(size=8, channels=3, classes=2, widths=(8, 16), blocks=2, dropout=0.1, resnet_sampling=True),
}


def batch_of(spec: UNet, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    labels = torch.zeros(count, dtype=torch.long) if spec.classes else None
    return torch.zeros(count, spec.channels, spec.size, spec.size), labels


class Allocations(TorchDispatchMode):
    """Every piece of memory that operations have made; a view of a weight is none."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.made: dict[StorageWeakRef, int] = {}
        self.own = {StorageWeakRef(weight.untyped_storage()) for weight in network.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else [out]:
            if isinstance(one, torch.Tensor):
                self.made[StorageWeakRef(one.untyped_storage())] = one.untyped_storage().nbytes()
        return out

    def held(self) -> int:
        """Of these, the bytes that are still in use."""
        return sum(size for made, size in self.made.items() if made not in self.own and not made.expired())


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_operations_are_those_that_are_counted_in_a_real_step(spec: UNet) -> None:
    network, meter, rng = spec.build(0), Meter({}), torch.Generator().manual_seed(0)
    x_0, labels = batch_of(spec, 3)
    with meter.work("training"):
        Diffusion().loss(network, x_0, labels, spec.classes, rng).backward()
    assert meter.flops == 3 * training_flops(spec)
    with meter.work("forward"), torch.no_grad():
        network(x_0, torch.tensor([1, 2, 3]), labels)
    assert meter.flops == 3 * training_flops(spec) + forward_flops(spec, 3)
    assert forward_flops(spec, 3) == 3 * forward_flops(spec)
    assert 2 < training_flops(spec) / forward_flops(spec) < 3.5


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("count", [1, 8])
def test_memory_is_that_of_a_real_step(spec: UNet, count: int) -> None:
    network = spec.build(0)
    x_0, labels = batch_of(spec, count)
    with Allocations(network) as memory:
        out = network(x_0, torch.ones(count, dtype=torch.long), labels)
    held = memory.held()
    assert out.requires_grad
    assert training_memory(spec, count) - 16 * weights(spec) == pytest.approx(held, rel=0.05)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_memory_is_sixteen_bytes_a_weight_and_grows_with_the_batch(spec: UNet) -> None:
    assert weights(spec) == sum(weight.numel() for weight in spec.build(0).parameters())
    two, four, eight = (training_memory(spec, count) for count in (2, 4, 8))
    assert eight - four == 2 * (four - two) > 0
    assert two - (four - two) == pytest.approx(16 * weights(spec), rel=0.01)


def test_asking_what_it_costs_changes_nothing_and_is_answered_once() -> None:
    spec, before = UNet(size=4, channels=1, classes=2, widths=(8,), groups=4), torch.get_rng_state()
    first = training_memory(spec, 2), training_flops(spec)
    assert torch.equal(torch.get_rng_state(), before)
    assert (training_memory(spec.model_copy(), 2), training_flops(spec.model_copy())) == first
    assert training_memory.cache_info().hits
    network = spec.build(0)
    assert type(next(network.parameters()).data) is torch.Tensor


def test_a_large_network_is_asked_about_without_being_made() -> None:
    large = UNet(size=64, channels=3, classes=0, widths=(128, 256, 256, 256, 512), blocks=2, groups=32, attention=(2,))
    assert weights(large) == 78_700_803
    assert training_memory(large, 128) > 20e9
