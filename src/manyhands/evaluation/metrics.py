"""How close samples are to real images: pure functions of features (N, D) or logits (N, K).

FID, KID, the Inception score, precision, recall, density and coverage and the classification report come from
torchmetrics, prdc and scikit-learn; what these libraries lack is written here.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyhands.evaluation.precision_recall import prdc_in_blocks
from manyhands.seed import numpy_rng, seeded_globally

NEAREST = 5
TAIL = 0.05
KID_SUBSETS, KID_SIZE = 10, 1000
CHUNK = 10_000_000
MAX_AT_ONCE = 4000
"""The most images whose distances to each other may all be in memory."""
MIN_IMAGES = 2 * NEAREST + 2
TINY = 1e-14
LOWER_IS_BETTER = frozenset({"fid", "kid", "mifid", "memorised", "cas_fpr"})


class Fid:
    """The Frechet distance to real features, whose mean and covariance are computed once.

    References:
        GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium, Heusel et al., 2017,
            arXiv 1706.08500
    """

    def __init__(self, real: Tensor) -> None:
        from torchmetrics.image.fid import FrechetInceptionDistance

        self._metric = FrechetInceptionDistance(feature=_Given(real), reset_real_features=False)
        self._metric.update(real.double(), real=True)

    def __call__(self, samples: Tensor) -> float:
        """Compute the distance of samples (N, D); it is 0 for the real features themselves."""
        self._metric.reset()
        self._metric.update(samples.double(), real=False)
        return max(float(self._metric.compute()), 0.0)


def kid(samples: Tensor, real: Tensor, subsets: int = KID_SUBSETS) -> float:
    """The unbiased kernel distance: the mean over subsets of at most 1,000 images. It can be below zero.

    References:
        Demystifying MMD GANs, Binkowski et al., 2018, arXiv 1801.01401
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(len(samples), len(real), KID_SIZE)
    with _quiet("kid"):
        real = real[torch.randperm(len(real))[: subsets * size]]  # enough to draw the subsets from
        metric = KernelInceptionDistance(feature=_Given(real), subsets=subsets, subset_size=size)
        metric.update(real.double(), real=True)
        metric.update(samples.double(), real=False)
        return float(metric.compute()[0])


def inception_score(logits: Tensor, splits: int = 10) -> float:
    """The exponential of the mean KL divergence of an image's class probabilities from those of all images.

    It is the mean over splits.

    References:
        Improved Techniques for Training GANs, Salimans et al., 2016, arXiv 1606.03498
    """
    from torchmetrics.image.inception import InceptionScore

    with _quiet("inception score"):
        metric = InceptionScore(feature=_Given(logits), splits=min(splits, len(logits)))
        metric.update(logits.double())
        return float(metric.compute()[0])


def generation_score(logits: Tensor, labels: Tensor) -> float | None:
    """The image-generation score: the Inception score in one split, of the same number of samples of each class.

    It is None where a class has too few.

    References:
        HuSCF-GAN: Heterogeneous U-Shaped Split Learning with Client Clustering and Federated Learning for GANs,
            Tawfilis, Hossam, 2025
    """
    ranks = torch.zeros(len(labels), dtype=torch.long)
    known = labels.unique()
    for label in known:
        ranks[labels == label] = torch.arange(int((labels == label).sum()))
    fewest = min(int((labels == label).sum()) for label in known)
    if fewest < MIN_IMAGES:
        return None
    return inception_score(logits[ranks < fewest], splits=1)


def prdc(samples: Tensor, real: Tensor) -> dict[str, float]:
    """Precision, recall, density and coverage by the 5 nearest neighbours, for as many real images as samples.

    The larger of the two sets is reduced at random.

    References:
        Improved Precision and Recall Metric for Assessing Generative Models, Kynkaanniemi et al., 2019,
            arXiv 1904.06991
        Reliable Fidelity and Diversity Metrics for Generative Models, Naeem et al., 2020, arXiv 2002.09797
    """
    from joblib import parallel_config
    from prdc import compute_prdc

    count = min(len(samples), len(real))
    if count > MAX_AT_ONCE:
        return prdc_in_blocks(_some(real, count).numpy(), _some(samples, count).numpy(), NEAREST)
    with (
        contextlib.redirect_stdout(io.StringIO()),
        parallel_config(backend="sequential"),
    ):  # it prints, and starts threads
        generated, reference = (_some(features, count).numpy() for features in (samples, real))
        figures = compute_prdc(reference, generated, nearest_k=min(NEAREST, count - 2))
    return {name: float(value) for name, value in figures.items()}


def mifid(fid: float, distance: float, usual: float | None = None) -> float:
    """The memorisation-informed FID: FID, increased where samples are copies of training images.

    As published, for Inception: FID divided by the ``cosine_distance`` of the samples, where that is below 0.1. For the
    features of another network 0.1 has no meaning; given the ``usual`` distance, that of held-out images, FID is
    multiplied by the ratio of the usual distance to that of the samples, where this is above 1.

    References:
        On Training Sample Memorization: Lessons from Benchmarking Generative Modeling with a Large-Scale Competition,
            Bai et al., 2021, arXiv 2106.03062
    """
    if usual is not None:
        return fid * max((usual + TINY) / (distance + TINY), 1.0)
    return fid / (distance + TINY) if distance < 0.1 else fid


def cosine_distance(images: Tensor, real: Tensor) -> float:
    """The mean over the images of the cosine distance to the nearest real one.

    torchmetrics computes the mean over the real images of the distance to the nearest sample; the paper, and this
    function, the reverse. With the arguments exchanged, torchmetrics gives the same value.
    """
    samples, references = F.normalize(images[images.sum(1) != 0]), F.normalize(real[real.sum(1) != 0])
    closest = torch.cat([(part @ references.T).abs_().amax(1) for part in _chunks(samples, references)])
    return float(1 - closest.mean())


def nearest(images: Tensor, real: Tensor) -> Tensor:
    """The distance of each image to the nearest real one."""
    return torch.cat([torch.cdist(part, real).amin(1) for part in _chunks(images, real)])


def _chunks(images: Tensor, real: Tensor) -> tuple[Tensor, ...]:
    """Split the images so that the distances of one part to all real ones take 40 MB."""
    return torch.split(images, max(1, CHUNK // len(real)))


def memorised(samples: Tensor, held: Tensor) -> float:
    """The share of samples that are nearer to a training image than 95 % of the held-out images are; expected: 0.05.

    Both arguments are distances (N,) as ``nearest`` computes them.
    """
    return float((samples < torch.quantile(held, TAIL)).double().mean())


def label_match(logits: Tensor, labels: Tensor) -> float:
    """The share of images that the classifier assigns to the class that was requested."""
    return float((logits.argmax(1) == labels).double().mean())


def classification(predicted: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, and the means over the classes that occur of precision, recall, F1 and false positive rate."""
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    predictions, true = predicted.numpy(), labels.numpy()
    known = np.unique(true)
    precision, recall, f1, _ = precision_recall_fscore_support(
        true, predictions, labels=known, average="macro", zero_division=0
    )
    rates = np.array(
        [(predictions[true != label] == label).mean() if (true != label).any() else 0.0 for label in known]
    )
    names = ("cas", "cas_precision", "cas_recall", "cas_f1", "cas_fpr")
    values = (accuracy_score(true, predictions), precision, recall, f1, rates.mean())
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def _some(features: Tensor, count: int) -> Tensor:
    if len(features) == count:
        return features
    return features[torch.from_numpy(numpy_rng(0, "some").permutation(len(features))[:count])]


class _Given(nn.Module):
    """Takes the place of the network that torchmetrics expects: the features are computed already."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.num_features = features.shape[1]

    def forward(self, features: Tensor) -> Tensor:
        return features


@contextlib.contextmanager
def _quiet(seed_name: str) -> Iterator[Any]:
    """Seed the global random generator and hide warnings: for libraries that use the one and print the other."""
    with seeded_globally(0, seed_name), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
