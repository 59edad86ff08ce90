"""Work is counted as PyTorch counts it, once, and counting changes no bit."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from manyhands import Experiment, Local
from manyhands.silos.flops import Meter
from tests.conftest import FEDAVG_ONLY, TINY, tiny_fedavg, tiny_images, tiny_silos


def test_a_product_of_matrices_costs_two_for_each_of_its_multiplications() -> None:
    meter = Meter({})
    with meter.work("product"):
        torch.zeros(3, 4) @ torch.zeros(4, 5)
    assert meter.flops == 2 * 3 * 4 * 5
    with meter.work("product"):
        pass  # known: not looked at again
    assert meter.flops == 2 * 2 * 3 * 4 * 5


def test_it_agrees_with_pytorchs_own_counter_on_a_whole_step() -> None:
    network, meter = TINY.build(0), Meter({})
    x, labels = tiny_images(3).batch(torch.arange(3))

    def step() -> None:
        network(x, torch.tensor([1, 2, 3]), labels).square().mean().backward()

    with FlopCounterMode(display=False) as oracle:
        step()
    with meter.work("step"):
        step()
    assert meter.flops == oracle.get_total_flops() > 0


def test_counting_changes_no_bit() -> None:
    def gradients(*, counted: bool) -> list[torch.Tensor]:
        network = TINY.build(0)
        x, labels = tiny_images(3).batch(torch.arange(3))
        with Meter({} if counted else {("step",): 0}).work("step"):
            network(x, torch.tensor([1, 2, 3]), labels).square().mean().backward()
        return [p.grad for p in network.parameters() if p.grad is not None]

    for a, b in zip(gradients(counted=True), gradients(counted=False), strict=True):
        assert torch.equal(a, b)


def test_attention_is_work_on_any_device() -> None:
    """Forward two products of matrices; backward five, for the fused kernel makes the scores once more."""
    meter, product = Meter({}), 2 * 3 * 10 * 10 * 8
    q = torch.zeros(1, 3, 10, 8, requires_grad=True)
    with meter.work("forward"):
        out = nn.functional.scaled_dot_product_attention(q, q, q)
    assert meter.flops == 2 * product
    with meter.work("backward"):
        out.sum().backward()
    assert meter.flops == 7 * product


def test_a_run_counts_the_work_of_each_silo_by_the_steps_it_takes() -> None:
    experiment = Experiment(tiny_fedavg(), tiny_silos((8, 8, 8)), device="cpu")
    rounds = list(experiment)
    one = rounds[0].flops["s0"]
    assert one > 0
    assert all(set(done.flops.values()) == {one} for done in rounds)
    assert [done.server_flops for done in rounds] == [0, 0, 0]
    options = tiny_fedavg().model_dump(exclude=FEDAVG_ONLY)
    local = list(Experiment(Local.model_validate(options), tiny_silos((8, 8, 8)), device="cpu"))
    assert local[0].flops == rounds[0].flops
    parted = list(Experiment(tiny_fedavg(participants=1), tiny_silos((8, 8, 8)), device="cpu"))
    assert [len(done.flops) for done in parted] == [1, 1, 1]


def test_a_linear_layer_forward_and_backward_is_three_products() -> None:
    layer, meter = nn.Linear(6, 5, bias=False), Meter({})
    x = torch.zeros(4, 6, requires_grad=True)
    with meter.work("layer"):
        layer(x).sum().backward()
    assert meter.flops == 3 * 2 * 4 * 6 * 5
