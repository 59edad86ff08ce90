"""Who has the weights of a head has the images that it is shown; who has not, has nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from manyhands.audit.attacks.distance import psnr
from manyhands.audit.attacks.heads import Head, head_of, random_head
from manyhands.audit.attacks.inversion import infer_labels, solve_by_descent, solve_linear
from manyhands.audit.attacks.inverter import inverter
from manyhands.data.images import Images, as_bytes
from manyhands.methods.huscf.activation_noise import Guard
from manyhands.models.gan import Gan
from tests.audit.crowd import rng

MODEL = Gan(size=8, channels=1, classes=4, latent=4, width=16)


def batch(count: int = 24, seed: int = 0, channels: int = 1) -> tuple[Tensor, Tensor]:
    """Smooth images within -1 and 1, of four classes."""
    coarse = torch.rand(count, channels, 3, 3, generator=rng(seed)) * 2 - 1
    x = torch.nn.functional.interpolate(coarse, 8, mode="bilinear")
    return x, torch.randint(4, (count,), generator=rng(seed + 1))


def head(last: int, seed: int = 0, **fields: object) -> Head:
    """One whose running statistics are near those of its batches, as after training."""
    model = MODEL.model_copy(update=fields)
    network = model.build(seed).train()
    for turn in range(40):
        x, labels = batch(seed=10 + turn, channels=model.channels)
        for number, block in enumerate(network.discriminator[: last + 1]):
            x = block(x, labels) if number == 0 else block(x)
    return head_of(model, dict(network.state_dict()), last)


def near(estimate: Tensor, truth: Tensor) -> float:
    return float(psnr(estimate, truth).mean())


def test_of_one_block_image_and_label_come_back_by_linear_equations() -> None:
    x, labels = batch()
    solution = solve_linear(head(0), head(0)(x, labels))
    assert solution is not None
    assert near(solution[0], x) > 35
    assert torch.equal(solution[1], labels)  # type: ignore[arg-type]
    wrong = solve_linear(random_head(MODEL, 0, seed=9), head(0)(x, labels))
    assert wrong is not None
    assert near(wrong[0], x) < 10
    assert float((wrong[1] == labels).double().mean()) < 0.6
    assert solve_linear(head(1), head(1)(x, labels)) is None


@pytest.mark.parametrize("fields", [{}, {"norm": "group"}, {"spectral": True}, {"channels": 3}, {"classes": 0}])
@pytest.mark.parametrize("last", [0, 1])
def test_through_every_kind_of_head_search_finds_what_was_shown(last: int, fields: dict[str, object]) -> None:
    known = head(last, **fields)
    x, labels = batch(16, channels=known.model.channels)
    sent, start = known(x, labels), torch.zeros_like(x)
    back = solve_by_descent(known, sent, start, labels, 300)
    if not known.model.classes:
        back = back * (back * x).sum() / back.square().sum()  # a norm takes the batch's contrast away, labels say it
    decibels = near(back, x)
    assert (decibels > 35) == (
        sent[0].numel() > x[0].numel()
    )  # of fewer numbers than it has, no image comes back whole
    stranger = random_head(known.model, last, seed=9)
    assert near(solve_by_descent(stranger, sent, start, labels, 300), x) < near(start, x) + 1


@pytest.mark.parametrize("last", [0, 1])
def test_the_label_of_an_image_that_is_known_is_found_by_trying(last: int) -> None:
    x, labels = batch()
    known = head(last)
    assert torch.equal(infer_labels(known, known(x, labels), x), labels)
    assert float((infer_labels(random_head(MODEL, last, 9), known(x, labels), x) == labels).double().mean()) < 0.6


def test_a_head_says_what_training_does_and_being_shown_images_leaves_no_trace() -> None:
    x, labels = batch()
    known, before = head(1), {name: w.clone() for name, w in head(1).blocks.state_dict().items()}
    inverted = known(x, labels)
    assert torch.allclose(known.settled(x, labels)(x, labels), inverted, atol=1e-5)
    assert not torch.allclose(known.as_last_known()(x, labels), inverted, atol=1e-3)
    assert all(torch.equal(w, before[name]) for name, w in known.blocks.state_dict().items())


def test_a_network_learns_to_undo_a_head_and_noise_takes_from_it() -> None:
    (pixels, labels), (x, own) = batch(300, seed=1), batch(seed=2)
    public, model = Images(as_bytes(pixels), labels, ("a", "b", "c", "d")), MODEL
    weights = dict(model.build(0).state_dict())
    shares = []
    for guard in (None, Guard(clip=10.0, noise=0.5)):
        known = head_of(model, weights, 0, guard)
        network = inverter(known, public, 24, 150, rng())
        with torch.no_grad():
            images, logits = network(known.sent(x, own, rng(5)))
        shares.append((near(images, x), float((logits.argmax(1) == own).double().mean())))
    assert shares[0][0] > shares[1][0] + 2
    assert shares[0][0] > near(x.mean(0).expand_as(x), x) + 4
    assert shares[0][1] > shares[1][1] + 0.2
