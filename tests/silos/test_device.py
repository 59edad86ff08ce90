from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from manyhands.silos.device import chosen_device


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = before


@pytest.mark.usefixtures("cuda")
def test_cuda_repeats_its_bits_unless_it_may_be_fast_and_one_run_does_not_set_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    for repeatable in (True, False, True):
        assert chosen_device("auto", repeatable=repeatable) == "cuda"
        assert torch.are_deterministic_algorithms_enabled() == repeatable
        assert torch.backends.cudnn.benchmark != repeatable
    chosen_device("cuda")
    assert torch.are_deterministic_algorithms_enabled()


def test_the_cpu_is_left_as_it_is() -> None:
    assert chosen_device("cpu", repeatable=False) == "cpu"
    assert not torch.are_deterministic_algorithms_enabled()
