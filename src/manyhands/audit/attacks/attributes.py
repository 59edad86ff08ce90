"""Infers what a released image shows, with a classifier that was trained on public images with the same noise.

It infers the class of an image (class inference), or which attributes it has (attribute inference).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from manyhands.audit.attacks.statistics import Interval, auc, bootstrap, mean
from manyhands.diffusion.objective import noised
from manyhands.diffusion.schedule import Schedule
from manyhands.evaluation.features import FeatureNetwork
from manyhands.seed import seeded_globally

if TYPE_CHECKING:
    from manyhands.data.images import Images


WHY_SKIPPED = {
    "class_inference": "the images have no classes, or one only",
    "attribute_inference": "the recipe has no table of attributes: only partition.kind = 'attributes' names one",
}
"""The inference attacks, and the reason that is given where one is not tried."""


class KnownAttributes(NamedTuple):
    """Names of K attributes, and which private and which public images have them: (N, K) booleans."""

    names: tuple[str, ...]
    private: Tensor
    public: Tensor


class NoisyClassifier:
    """A classifier of noised images with the noise level as input: one network for all levels."""

    def __init__(self, schedule: Schedule, network: FeatureNetwork) -> None:
        self._schedule = schedule
        self._network = network

    def __call__(self, x_t: Tensor, t: int) -> Tensor:
        """Compute logits (N, K) of the classes or attributes from noised images (N, C, H, W) at step t."""
        with torch.no_grad():
            logits: Tensor = self._network(with_noise_level(self._schedule, x_t, torch.tensor([t])))[1]
        return logits


class Question(NamedTuple):
    """One inference attack: its classifier, the true answers, and functions that score it and its floor."""

    reader: NoisyClassifier
    answers: Tensor
    scored: Callable[[Tensor, Tensor, torch.Generator], dict[str, Interval]]
    floor: Callable[[Tensor, torch.Generator], dict[str, Interval]]

    def of(self, x_t: Tensor, t: int, rng: torch.Generator) -> dict[str, Interval]:
        """Score the attack on releases (N, C, H, W), one for each image."""
        return self.scored(self.reader(x_t, t), self.answers, rng)


def questions(
    private: Images,
    public: Images,
    attributes: KnownAttributes | None,
    reader: Callable[[Tensor, int, str], NoisyClassifier],
) -> dict[str, Question]:
    """The inference attacks that are possible.

    Args:
        private: The images that are attacked.
        public: The attacker's images.
        attributes: Attributes of both; None where the recipe has none.
        reader: Trains a classifier for public answers, a number of outputs and the name of a seed.
    """
    questions: dict[str, Question] = {}
    if (labels := public.labels) is not None and private.labels is not None and len(public.classes) > 1:
        count = len(public.classes)
        questions["class_inference"] = Question(
            reader(labels, count, "attributes"), private.labels, class_scores,
            lambda true, rng: majority_class_scores(labels, true, count, rng),
        )  # fmt: skip
    if attributes is not None:
        questions["attribute_inference"] = Question(
            reader(attributes.public, len(attributes.names), "attributes of images"),
            attributes.private, attribute_scores,
            lambda true, rng: majority_attribute_scores(attributes.public, true, rng),
        )  # fmt: skip
    return questions


def classifier(
    public: Tensor,
    answers: Tensor,
    *,
    outputs: int,
    schedule: Schedule,
    levels: Sequence[int],
    steps: int,
    rng: torch.Generator,
    batch: int = 128,
) -> NoisyClassifier:
    """Train a classifier on public images, noised at every step to random ones of these levels; 0 is the clean image.

    The ``answers`` are a class for each image (N,), or which attributes each image has (N, K).
    """
    levels_tensor = torch.tensor(sorted(set(levels)))
    with seeded_globally(int(torch.randint(2**31, (), generator=rng)), "attributes"):
        network = FeatureNetwork(public.shape[-1], public.shape[1] + 1, outputs)
    optimiser = torch.optim.Adam(network.parameters(), 2e-3, fused=True)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
        indices = torch.randint(len(public), (batch,), generator=rng)
        t = levels_tensor[torch.randint(len(levels_tensor), (batch,), generator=rng)]
        x_t = noised(public[indices], torch.randn(public[indices].shape, generator=rng), *schedule.levels(t, public))
        optimiser.zero_grad()
        _error(network(with_noise_level(schedule, x_t, t))[1], answers[indices]).backward()
        optimiser.step()
    return NoisyClassifier(schedule, network.eval())


def _error(logits: Tensor, answers: Tensor) -> Tensor:
    if answers.dim() == 1:
        return F.cross_entropy(logits, answers)
    return F.binary_cross_entropy_with_logits(logits, answers.float())


def with_noise_level(schedule: Schedule, x_t: Tensor, t: Tensor) -> Tensor:
    """Noised images with one more channel, which holds their noise level."""
    sigma = schedule.levels(t, x_t)[1].expand(len(x_t), 1, *x_t.shape[2:])
    return torch.cat([x_t, sigma], 1)


def class_scores(logits: Tensor, labels: Tensor, rng: torch.Generator) -> dict[str, Interval]:
    """How well classes are inferred: accuracy, and the means over classes of F1 and of the AUC against the rest."""
    rows = torch.cat([logits.double(), labels[:, None].double()], 1)
    return {
        "accuracy": bootstrap(_accuracy, rows, rng=rng),
        "f1": bootstrap(_f1, rows, rng=rng),
        "auc": bootstrap(_auc, rows, rng=rng),
    }


def majority_class_scores(
    public_labels: Tensor, labels: Tensor, classes: int, rng: torch.Generator
) -> dict[str, Interval]:
    """The scores of always guessing the most frequent public class: the floor."""
    guesses = F.one_hot(public_labels.bincount(minlength=classes).argmax(), classes).double()
    return class_scores(guesses.expand(len(labels), -1), labels, rng)


def attribute_scores(logits: Tensor, has: Tensor, rng: torch.Generator) -> dict[str, Interval]:
    """How well attributes (N, K) are inferred: the means over attributes of accuracy and AUC.

    The AUC is over the attributes that some images have and some have not.
    """
    rows = torch.stack([logits.double(), has.double()], 2)
    return {
        "accuracy": bootstrap(lambda drawn: mean((drawn[..., 0] > 0) == (drawn[..., 1] > 0)), rows, rng=rng),
        "auc": bootstrap(lambda drawn: _mean_auc(aucs(drawn[..., 0], drawn[..., 1] > 0)), rows, rng=rng),
    }


def majority_attribute_scores(public: Tensor, has: Tensor, rng: torch.Generator) -> dict[str, Interval]:
    """The scores of guessing for each attribute what is true of most public images: the floor."""
    guesses = (public.double().mean(0) > 0.5).double() - 0.5
    return attribute_scores(guesses.expand(has.shape), has, rng)


def aucs(logits: Tensor, has: Tensor) -> list[float | None]:
    """The AUC of each attribute; None where all images have it, or none."""
    columns = zip(logits.T, has.T, strict=True)
    return [
        auc(scores[has_it], scores[~has_it]) if 0 < int(has_it.sum()) < len(has_it) else None
        for scores, has_it in columns
    ]


def _mean_auc(aucs: Sequence[float | None]) -> float:
    known = [value for value in aucs if value is not None]
    return sum(known) / len(known) if known else 0.5


def _accuracy(rows: Tensor) -> float:
    return mean(rows[:, :-1].argmax(1) == rows[:, -1])


def _f1(rows: Tensor) -> float:
    classes = rows.shape[1] - 1
    predicted, true = (F.one_hot(which.long(), classes).double() for which in (rows[:, :-1].argmax(1), rows[:, -1]))
    right, predicted_or_true = (predicted * true).sum(0), predicted.sum(0) + true.sum(0)
    return mean((2 * right / predicted_or_true.clamp(min=1))[true.sum(0) > 0])


def _auc(rows: Tensor) -> float:
    shares, true = rows[:, :-1].softmax(1), rows[:, -1].long()
    present = [label for label in true.unique().tolist() if int((true == label).sum()) < len(true)]
    aucs = [auc(shares[true == label, label], shares[true != label, label]) for label in present]
    return sum(aucs) / len(aucs) if aucs else 0.5
