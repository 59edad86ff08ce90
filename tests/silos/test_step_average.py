from __future__ import annotations

import torch
from torch import nn

from manyhands.models.gan import BatchNorm
from manyhands.silos.step_average import StepAverage
from manyhands.tensors import running_average


def test_a_step_counts_decay_times_as_much_as_the_next_and_the_start_not_at_all() -> None:
    network, decay = nn.Linear(3, 2), 0.7
    average, after = StepAverage(network, decay), []
    for number in range(6):
        nn.init.normal_(network.weight, generator=torch.Generator().manual_seed(number))
        after.append(network.weight.detach().clone())
        average.add()
    shares = torch.tensor([decay ** (5 - number) for number in range(6)])
    expected = torch.einsum("s,sij->ij", shares / shares.sum(), torch.stack(after))
    assert torch.allclose(average.tensors()["weight"], expected, atol=1e-6)
    assert torch.equal(network.weight, after[-1])


def test_one_step_is_its_own_average_of_weights_and_of_statistics() -> None:
    network = nn.Sequential(nn.Linear(3, 2), BatchNorm(2))
    average = StepAverage(network, 0.99)
    network(torch.randn(4, 3))
    nn.init.ones_(network[0].weight)
    average.add()
    assert all(torch.equal(tensor, average.tensors()[name]) for name, tensor in network.state_dict().items())
    average.tensors()["0.weight"].zero_()
    assert bool((network[0].weight == 1).all())  # a copy


def test_the_average_over_rounds_of_such_averages_is_that_over_all_steps() -> None:
    network, decay, steps = nn.Linear(2, 2), 0.7, 4
    whole, over_rounds = StepAverage(network, decay), {}
    for number in range(6):
        part = StepAverage(network, decay)
        for step in range(steps):
            nn.init.normal_(network.weight, generator=torch.Generator().manual_seed(number * steps + step))
            whole.add()
            part.add()
        over_rounds = running_average(over_rounds, part.tensors(), decay**steps, number)
    assert torch.allclose(over_rounds["weight"], whole.tensors()["weight"], atol=1e-3)  # but for how it begins
