"""What is cited is what was used."""

from __future__ import annotations

import pytest

from manyhands import Autoencoder, FedAvg, Gan, GanTraining, Sampling, Training
from manyhands.runs.citation import citations
from tests.conftest import tiny_fedavg

PROX, FEDDIFFUSE, DIFFUSION, FEDDM, SERVER_ADAM = "1812.06127", "2406.12575", "2006.11239", "2407.14730", "2003.00295"

DDIM, FLOW, DPM, HEUN = "2010.02502", "2209.03003", "2211.01095", "2206.00364"


@pytest.mark.parametrize(
    ("fields", "cited", "not_cited"),
    [
        ({}, {DIFFUSION}, {PROX, FEDDIFFUSE, FEDDM, SERVER_ADAM}),
        ({"proximal": 0.1}, {PROX}, {FEDDIFFUSE}),
        ({"share": "up"}, {FEDDIFFUSE}, {PROX, FLOW}),
        ({"diffusion": {"target": "flow"}}, {FLOW}, {PROX}),
        ({"up": "weights", "server_optimizer": "adam"}, {FEDDM, SERVER_ADAM}, {PROX}),
    ],
)
def test_a_field_that_is_used_is_cited(fields: dict[str, object], cited: set[str], not_cited: set[str]) -> None:
    text = " ".join(citations(tiny_fedavg(**fields)))
    assert all(paper in text for paper in cited)
    assert not any(paper in text for paper in not_cited)


def test_a_gan_cites_no_walk_down_a_chain() -> None:
    model = Gan(size=8, channels=1, classes=2, latent=4, width=4)
    method = FedAvg(model=model, training=GanTraining(batch=2, steps=1), rounds=1)
    assert DDIM not in " ".join(citations(method, Sampling()))
    assert DDIM in " ".join(citations(tiny_fedavg(), Sampling()))


def test_a_sampler_of_second_order_is_cited_where_it_samples() -> None:
    for sampler, cited, other in (("dpm++", DPM, HEUN), ("heun", HEUN, DPM), ("ddim", DDIM, HEUN)):
        text = " ".join(citations(tiny_fedavg(), Sampling.model_validate({"sampler": sampler})))
        assert cited in text
        assert other not in text


def test_an_autoencoder_cites_no_diffusion() -> None:
    model = Autoencoder(size=8, channels=1, widths=(8, 8))
    text = " ".join(citations(FedAvg(model=model, training=Training(steps=1), rounds=1), Sampling()))
    assert "1312.6114" in text
    assert DIFFUSION not in text
    assert DDIM not in text
