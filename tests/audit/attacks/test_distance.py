from __future__ import annotations

import pytest
import torch

from manyhands.audit.attacks.distance import BEST, feature_distance, psnr, reconstruction_scores, ssim
from manyhands.evaluation.features import Classifier, FeatureNetwork
from tests.audit.crowd import cloud, rng


@pytest.mark.parametrize("size", [8, 16])
def test_ssim_is_that_of_another_library(size: int) -> None:
    from torchmetrics.functional.image import structural_similarity_index_measure

    x, y = cloud(5, size=size), cloud(5, seed=1, size=size) / 2 + cloud(5, size=size)
    score = {"gaussian_kernel": False, "kernel_size": 7, "data_range": 2.0, "reduction": "none"}
    _, by_place = structural_similarity_index_measure(y.double(), x.double(), return_full_image=True, **score)
    whole = by_place[:, :, 3:-3, 3:-3]  # at the other places the window reaches over the edge
    assert torch.allclose(ssim(y, x), whole.flatten(1).mean(1), atol=1e-6)


def test_psnr_of_a_known_error() -> None:
    x = cloud(3)
    assert torch.allclose(psnr(x + 0.2, x), torch.full((3,), 20.0, dtype=torch.float64), atol=1e-4)
    assert (psnr(x, x) == BEST).all()


def test_the_image_itself_is_nearest_and_noise_moves_away() -> None:
    x = cloud(40, size=8).clamp(-1, 1)
    network = FeatureNetwork(8, 1, 2).eval()
    extractor = Classifier(network, "untrained", 0.5)
    guess = x.mean(0).expand_as(x)
    scores = [
        reconstruction_scores(
            (x + far * torch.randn(x.shape, generator=rng())).clamp(-1, 1), x, guess, extractor, rng()
        )
        for far in (0.0, 0.1, 0.4, 1.0)
    ]
    for name, up in (("psnr", -1), ("ssim", -1), ("feature_distance", 1), ("explained", -1)):
        values = [up * interval[name]["value"] for interval in scores]
        assert values == sorted(values), name
        assert all(interval[name]["low"] <= interval[name]["value"] <= interval[name]["high"] for interval in scores)
    assert scores[0]["explained"]["value"] == scores[0]["ssim"]["value"] == 1
    assert scores[0]["feature_distance"]["value"] == 0
    assert reconstruction_scores(guess, x, guess, None, rng())["explained"]["value"] == 0
    assert feature_distance(x, x.flip(0), extractor).shape == (40,)
