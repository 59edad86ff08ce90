"""A server that only adds up builds no network of its own: the libraries of networks take much memory."""

from __future__ import annotations

import pytest

from manyhands import FedAvg, Training, UNet
from manyhands.methods.base import plan_of
from manyhands.models import state_spec


def test_a_server_that_only_adds_up_builds_its_network_in_another_process_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = UNet(size=4, channels=1, classes=0, widths=(8,))
    weights = model.build(7).state_dict()
    monkeypatch.setattr(state_spec, "_known", {})
    monkeypatch.setattr(state_spec, "_in_subprocess", True)
    monkeypatch.setattr(state_spec, "_built_in_subprocess", lambda _spec, _seed: dict(weights))
    monkeypatch.setattr(UNet, "build", lambda *_: pytest.fail("was built here"))
    method = FedAvg(model=model, training=Training(batch=2, steps=1), rounds=1)
    server = method.server(0, {"a": 1, "b": 2})
    assert server.round == 0
    assert plan_of(method).operations
