"""How close an estimate is to the image: for each image, and with intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from manyhands.audit.attacks.statistics import Interval, bootstrap, mean
from manyhands.data.images import as_bytes

if TYPE_CHECKING:
    from manyhands.evaluation.features import Extractor

PEAK = 2.0
BEST = 100.0
"""The maximum PSNR in decibels, for identical images: it keeps the figure finite."""
WINDOW = 7


def squared_error(estimate: Tensor, truth: Tensor) -> Tensor:
    """The mean squared error of each image (N,)."""
    return (estimate - truth).square().flatten(1).mean(1)


def psnr(estimate: Tensor, truth: Tensor) -> Tensor:
    """The peak signal-to-noise ratio of each image in dB, of images from -1 to 1; at most 100."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    flat = estimate.double().flatten(1), truth.double().flatten(1)
    return peak_signal_noise_ratio(*flat, data_range=PEAK, reduction="none", dim=1).clamp(max=BEST)


def ssim(estimate: Tensor, truth: Tensor) -> Tensor:
    """The structural similarity of each image, over uniform windows of 7 x 7 pixels that lie wholly inside it.

    References:
        Image Quality Assessment: From Error Visibility to Structural Similarity, Wang et al., 2004,
            IEEE Transactions on Image Processing 13
    """
    x, y = estimate.double(), truth.double()
    window = min(WINDOW, *x.shape[-2:])

    def window_mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, window, stride=1)

    # by hand: torchmetrics also counts windows over the edge, takes no even window, and is about twenty times slower
    c_1, c_2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    m_x, m_y = window_mean(x), window_mean(y)
    v_x, v_y, v_xy = window_mean(x * x) - m_x**2, window_mean(y * y) - m_y**2, window_mean(x * y) - m_x * m_y
    similarity = (2 * m_x * m_y + c_1) * (2 * v_xy + c_2) / ((m_x**2 + m_y**2 + c_1) * (v_x + v_y + c_2))
    return similarity.flatten(1).mean(1)


def feature_distance(estimate: Tensor, truth: Tensor, extractor: Extractor) -> Tensor:
    """The root mean squared distance of the features of each image from those of its estimate.

    In an audit the features are those of the small classifier of the run's own images. This is not LPIPS (Zhang et al.,
    arXiv 1801.03924): nothing in it was fitted to what people find similar.
    """
    features = [extractor(as_bytes(images)).features for images in (estimate, truth)]
    return (features[0] - features[1]).square().mean(1).sqrt()


def reconstruction_scores(
    estimate: Tensor, truth: Tensor, guess: Tensor, extractor: Extractor | None, rng: torch.Generator
) -> dict[str, Interval]:
    """All measures of how close estimates are to their images.

    Args:
        estimate: The estimates (N, C, H, W).
        truth: The true images (N, C, H, W).
        guess: A guess without any release (N, C, H, W); ``explained`` is the share of its error that is removed.
        extractor: A network for the feature distance; None leaves this out.
        rng: The random generator of the intervals.
    """
    scores = {"psnr": psnr(estimate, truth), "ssim": ssim(estimate, truth)}
    if extractor is not None:
        scores["feature_distance"] = feature_distance(estimate, truth, extractor)
    errors = torch.stack([squared_error(estimate, truth), squared_error(guess, truth)], 1)
    intervals = {name: bootstrap(mean, values, rng=rng) for name, values in scores.items()}
    return intervals | {"explained": bootstrap(explained, errors, rng=rng)}


def explained(errors: Tensor) -> float:
    """1 - the sum of the first column of errors divided by that of the second; negative where the guess is better."""
    first, second = errors.double().sum(0).tolist()
    return 1 - first / second if second else 0.0
