"""The metrics against independent references, and at their limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from manyhands.evaluation import metrics
from manyhands.evaluation.precision_recall import prdc_in_blocks


def features(count: int, seed: int = 0, width: int = 12, shift: float = 0.0) -> Tensor:
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(width, width))
    return torch.from_numpy(rng.normal(size=(count, width)) @ mix + shift).float()


def test_fid_is_nought_for_the_same_set_and_equals_a_float64_computation() -> None:
    real, samples = features(500), features(400, seed=1, shift=0.7)
    fid = metrics.Fid(real)
    assert fid(real) == pytest.approx(0, abs=1e-3)
    a, b = real.double().numpy(), samples.double().numpy()
    root = sqrtm(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False)).real
    parts = ((a.mean(0) - b.mean(0)) ** 2).sum(), np.trace(np.cov(a, rowvar=False) + np.cov(b, rowvar=False) - 2 * root)
    assert fid(samples) == pytest.approx(sum(parts), abs=1e-3)
    assert fid(samples) == fid(samples), "what was measured before leaves nothing behind"


def test_kid_equals_the_unbiased_estimator_and_is_nought_on_average() -> None:
    real, samples = features(60), features(60, seed=1, shift=0.5)
    x, y = samples.double().numpy(), real.double().numpy()

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.asarray((a @ b.T / a.shape[1] + 1) ** 3)

    xx, yy, n = kernel(x, x), kernel(y, y), len(x)
    within = (xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)) / (n * (n - 1))
    assert metrics.kid(samples, real) == pytest.approx(within - 2 * kernel(x, y).mean(), rel=1e-6)
    draws = np.array([metrics.kid(features(50, seed=2 * i), features(50, seed=2 * i + 1)) for i in range(40)])
    assert abs(draws.mean()) < 3 * draws.std() / 40**0.5
    assert draws.min() < 0


def test_kid_does_not_touch_the_global_generator_and_repeats() -> None:
    before = torch.default_generator.get_state()
    first = metrics.kid(features(50), features(2000, seed=3))
    assert torch.equal(torch.default_generator.get_state(), before)
    assert first == metrics.kid(features(50), features(2000, seed=3))


def test_mifid_is_that_of_torchmetrics_with_the_roles_exchanged() -> None:
    from torchmetrics.image.mifid import MemorizationInformedFrechetInceptionDistance

    real = torch.rand(80, 4, generator=torch.Generator().manual_seed(0))
    samples = real[:30] + 0.02
    oracle = MemorizationInformedFrechetInceptionDistance(feature=metrics._Given(real))
    with metrics._quiet("oracle"):
        oracle.update(samples.double(), real=True)
        oracle.update(real.double(), real=False)
        expected = float(oracle.compute())
    fid, distance = metrics.Fid(real)(samples), metrics.cosine_distance(samples, real)
    assert metrics.mifid(fid, distance) == pytest.approx(expected, rel=1e-3)
    assert metrics.mifid(fid, distance) > 5 * fid


def test_mifid_in_other_features_grows_by_how_much_nearer_than_held_out_images_samples_are() -> None:
    assert metrics.mifid(3.0, 0.02, usual=0.01) == 3.0
    assert metrics.mifid(3.0, 0.005, usual=0.01) == pytest.approx(6.0)
    assert metrics.mifid(3.0, 0.0, usual=0.0) == 3.0


def test_prdc_of_sets_of_different_size_does_not_hang_on_their_order() -> None:
    real = features(600)
    samples, ordered = real[:100], real[real[:, 0].argsort()]
    values = [metrics.prdc(samples, order)["coverage"] for order in (real, ordered, ordered.flip(0))]
    assert min(values) > 0.8 * max(values)


def test_prdc_is_one_for_the_same_set_and_nought_far_away(capsys: pytest.CaptureFixture[str]) -> None:
    real = features(100)
    same = metrics.prdc(real, real)
    assert same["coverage"] == same["precision"] == same["recall"] == 1
    far = metrics.prdc(real + 1000, real)
    assert set(far.values()) == {0.0}
    assert capsys.readouterr().out == "", "the library prints; standard output is for the figures"


def test_scores_at_their_limits() -> None:
    certain = 50 * torch.eye(5).repeat(400, 1)
    labels = torch.arange(5).repeat(400)
    assert metrics.inception_score(certain) == pytest.approx(5, rel=0.05)
    assert metrics.inception_score(certain, splits=1) == pytest.approx(5, rel=1e-4)
    assert metrics.inception_score(torch.zeros(100, 5)) == pytest.approx(1)
    assert metrics.label_match(certain, labels) == 1
    assert metrics.label_match(certain, (labels + 1) % 5) == 0


def test_the_generation_score_takes_as_many_of_each_class() -> None:
    logits, labels = 50 * torch.eye(2).repeat_interleave(torch.tensor([180, 20]), 0), torch.tensor([0] * 180 + [1] * 20)
    assert metrics.generation_score(logits, labels) == pytest.approx(2, rel=1e-4)
    assert metrics.inception_score(logits, splits=1) < 1.5


def test_memorised_is_the_tail_for_held_out_images_and_one_for_copies() -> None:
    real, held = features(400), features(200, seed=1)
    distances = metrics.nearest(held, real)
    assert torch.allclose(distances, torch.cdist(held, real).amin(1))
    assert metrics.memorised(distances, distances) == pytest.approx(metrics.TAIL, abs=0.01)
    assert metrics.memorised(metrics.nearest(real[:50] + 1e-3, real), distances) == 1


def test_distances_in_chunks_are_those_of_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    real, samples = features(300).abs(), features(70, seed=2).abs()
    whole = metrics.nearest(samples, real), metrics.cosine_distance(samples, real)
    monkeypatch.setattr(metrics, "CHUNK", 1000)
    assert torch.allclose(metrics.nearest(samples, real), whole[0], atol=1e-5)
    assert metrics.cosine_distance(samples, real) == pytest.approx(whole[1], rel=1e-5)


def test_classification_against_a_confusion_written_out() -> None:
    true, predicted = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 1, 1, 1, 1])
    figures = metrics.classification(predicted, true)
    assert figures["cas"] == pytest.approx(4 / 6)
    assert figures["cas_precision"] == pytest.approx((1 + 2 / 4 + 0) / 3)
    assert figures["cas_recall"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert figures["cas_fpr"] == pytest.approx((0 + 2 / 4 + 0) / 3)


@pytest.mark.parametrize(("real", "samples"), [(700, 700), (530, 530)])
def test_precision_and_recall_in_blocks_are_those_of_the_package(real: int, samples: int) -> None:
    rng = torch.Generator().manual_seed(0)
    one, other = torch.randn(real, 8, generator=rng), torch.randn(samples, 8, generator=rng) * 0.8
    other[:9] = other[0]  # copies, at a distance of 0
    blocks = prdc_in_blocks(one.numpy(), other.numpy(), metrics.NEAREST)
    assert blocks == pytest.approx(metrics.prdc(other, one), rel=1e-12)
