"""How near an estimate is to the image: by image, and with intervals."""

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
"""Decibels at which two images count as one: it keeps the figure finite."""
WINDOW = 7


def squared_error(estimate: Tensor, truth: Tensor) -> Tensor:
    """The mean over the pixels of each image."""
    return (estimate - truth).square().flatten(1).mean(1)


def psnr(estimate: Tensor, truth: Tensor) -> Tensor:
    """The peak signal-to-noise ratio of each image in dB, of images from -1 to 1; at most 100."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    flat = estimate.double().flatten(1), truth.double().flatten(1)
    return peak_signal_noise_ratio(*flat, data_range=PEAK, reduction="none", dim=1).clamp(max=BEST)


def ssim(estimate: Tensor, truth: Tensor) -> Tensor:
    """The structural similarity of each image, over even windows of 7 pixels that lie wholly in it.

    References:
        Image Quality Assessment: From Error Visibility to Structural Similarity, Wang et al., 2004,
            IEEE Transactions on Image Processing 13
    """
    x, y = estimate.double(), truth.double()
    window = min(WINDOW, *x.shape[-2:])

    def over(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, window, stride=1)

    # by hand: torchmetrics also counts windows over the edge, takes no even window, and is about twenty times slower
    c_1, c_2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    m_x, m_y = over(x), over(y)
    v_x, v_y, v_xy = over(x * x) - m_x**2, over(y * y) - m_y**2, over(x * y) - m_x * m_y
    alike = (2 * m_x * m_y + c_1) * (2 * v_xy + c_2) / ((m_x**2 + m_y**2 + c_1) * (v_x + v_y + c_2))
    return alike.flatten(1).mean(1)


def feature_distance(estimate: Tensor, truth: Tensor, lens: Extractor) -> Tensor:
    """How far the features of each image are from those of its estimate, as the root of their mean square.

    The features are what ``lens`` has learnt: in an audit the last layer of the small classifier of the run's own
    images. It is no LPIPS (Zhang et al., arXiv 1801.03924): nothing in it was fitted to what people find alike.
    """
    seen = [lens(as_bytes(images)).features for images in (estimate, truth)]
    return (seen[0] - seen[1]).square().mean(1).sqrt()


def nearness(
    estimate: Tensor, truth: Tensor, guess: Tensor, lens: Extractor | None, rng: torch.Generator
) -> dict[str, Interval]:
    """All distances of estimates to their images; ``explained`` is the share of the guess's error that is gone."""
    each = {"psnr": psnr(estimate, truth), "ssim": ssim(estimate, truth)}
    if lens is not None:
        each["feature_distance"] = feature_distance(estimate, truth, lens)
    errors = torch.stack([squared_error(estimate, truth), squared_error(guess, truth)], 1)
    told = {name: bootstrap(mean, values, rng=rng) for name, values in each.items()}
    return told | {"explained": bootstrap(explained, errors, rng=rng)}


def explained(errors: Tensor) -> float:
    """1 - the first column of errors over the second; below zero where the guess was better."""
    first, second = errors.double().sum(0).tolist()
    return 1 - first / second if second else 0.0
