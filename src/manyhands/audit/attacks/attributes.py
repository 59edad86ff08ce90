"""What a released image is of, asked of a classifier that was trained on public images noised alike.

It is asked for one class of many (class inference), or which attributes an image has (attribute inference).
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
from manyhands.evaluation.features import Network
from manyhands.seed import seeded_globally

if TYPE_CHECKING:
    from manyhands.data.images import Images


WHY_NOT = {
    "class_inference": "the images have no classes, or one only",
    "attribute_inference": "the recipe has no table of attributes: only partition.kind = 'attributes' names one",
}
"""What is read off releases where it can be, and why it is not tried where it is not."""


class Known(NamedTuple):
    """What is known of images beside their class: names of attributes, and which image has which, images x names."""

    names: tuple[str, ...]
    private: Tensor
    public: Tensor


class NoisyClassifier:
    """A classifier of noised images that is told how noisy they are: one network for all levels."""

    def __init__(self, schedule: Schedule, network: Network) -> None:
        self._schedule = schedule
        self._network = network

    def __call__(self, x_t: Tensor, t: int) -> Tensor:
        """The logits of the classes, or of each attribute."""
        with torch.no_grad():
            logits: Tensor = self._network(told(self._schedule, x_t, torch.tensor([t])))[1]
        return logits


class Question(NamedTuple):
    """Something to be read off releases: by whom, the true answers, and how well it is told with and without them."""

    reader: NoisyClassifier
    answers: Tensor
    scored: Callable[[Tensor, Tensor, torch.Generator], dict[str, Interval]]
    floor: Callable[[Tensor, torch.Generator], dict[str, Interval]]

    def of(self, x_t: Tensor, t: int, rng: torch.Generator) -> dict[str, Interval]:
        """What is read off these releases, one of each image."""
        return self.scored(self.reader(x_t, t), self.answers, rng)


def questions(
    private: Images,
    public: Images,
    known: Known | None,
    reader: Callable[[Tensor, int, str], NoisyClassifier],
) -> dict[str, Question]:
    """Those that can be asked; a ``reader`` is trained for public answers, a number of outputs, and a seed's name."""
    found: dict[str, Question] = {}
    if (labels := public.labels) is not None and private.labels is not None and len(public.classes) > 1:
        count = len(public.classes)
        found["class_inference"] = Question(
            reader(labels, count, "attributes"), private.labels, inferred,
            lambda true, rng: majority(labels, true, count, rng),
        )  # fmt: skip
    if known is not None:
        found["attribute_inference"] = Question(
            reader(known.public, len(known.names), "attributes of images"), known.private, attributed,
            lambda true, rng: usual(known.public, true, rng),
        )  # fmt: skip
    return found


def classifier(
    public: Tensor,
    answers: Tensor,
    outputs: int,
    schedule: Schedule,
    levels: Sequence[int],
    steps: int,
    rng: torch.Generator,
    batch: int = 128,
) -> NoisyClassifier:
    """Train one on public images, noised anew at every step to levels drawn from these; 0 is the clean image.

    The ``answers`` are a class for each image, or for each image and attribute whether it has it.
    """
    known = torch.tensor(sorted(set(levels)))
    with seeded_globally(int(torch.randint(2**31, (), generator=rng)), "attributes"):
        network = Network(public.shape[-1], public.shape[1] + 1, outputs)
    optimiser = torch.optim.Adam(network.parameters(), 2e-3, fused=True)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
        at = torch.randint(len(public), (batch,), generator=rng)
        t = known[torch.randint(len(known), (batch,), generator=rng)]
        x_t = noised(public[at], torch.randn(public[at].shape, generator=rng), *schedule.levels(t, public))
        optimiser.zero_grad()
        _error(network(told(schedule, x_t, t))[1], answers[at]).backward()
        optimiser.step()
    return NoisyClassifier(schedule, network.eval())


def _error(logits: Tensor, answers: Tensor) -> Tensor:
    if answers.dim() == 1:
        return F.cross_entropy(logits, answers)
    return F.binary_cross_entropy_with_logits(logits, answers.float())


def told(schedule: Schedule, x_t: Tensor, t: Tensor) -> Tensor:
    """Noised images with one more channel, that holds how noisy they are."""
    sigma = schedule.levels(t, x_t)[1].expand(len(x_t), 1, *x_t.shape[2:])
    return torch.cat([x_t, sigma], 1)


def inferred(logits: Tensor, labels: Tensor, rng: torch.Generator) -> dict[str, Interval]:
    """How well labels are told: accuracy, the F1 of the mean class, and the AUC of the mean class against the rest."""
    both = torch.cat([logits.double(), labels[:, None].double()], 1)
    return {
        "accuracy": bootstrap(_accuracy, both, rng=rng),
        "f1": bootstrap(_f1, both, rng=rng),
        "auc": bootstrap(_auc, both, rng=rng),
    }


def majority(public_labels: Tensor, labels: Tensor, classes: int, rng: torch.Generator) -> dict[str, Interval]:
    """The same where the most frequent public class is always said: the floor."""
    said = F.one_hot(public_labels.bincount(minlength=classes).argmax(), classes).double()
    return inferred(said.expand(len(labels), -1), labels, rng)


def attributed(logits: Tensor, has: Tensor, rng: torch.Generator) -> dict[str, Interval]:
    """How well attributes are told, images x attributes: accuracy and AUC of the mean attribute.

    The AUC is over those attributes that some of the images have and some have not.
    """
    both = torch.stack([logits.double(), has.double()], 2)
    return {
        "accuracy": bootstrap(lambda drawn: mean((drawn[..., 0] > 0) == (drawn[..., 1] > 0)), both, rng=rng),
        "auc": bootstrap(lambda drawn: _mean_auc(aucs(drawn[..., 0], drawn[..., 1] > 0)), both, rng=rng),
    }


def usual(public: Tensor, has: Tensor, rng: torch.Generator) -> dict[str, Interval]:
    """The same where of each attribute that is said which is so of most public images: the floor."""
    said = (public.double().mean(0) > 0.5).double() - 0.5
    return attributed(said.expand(has.shape), has, rng)


def aucs(logits: Tensor, has: Tensor) -> list[float | None]:
    """The AUC of each attribute; None where all images have it or none has."""
    every = zip(logits.T, has.T, strict=True)
    return [auc(told[mine], told[~mine]) if 0 < int(mine.sum()) < len(mine) else None for told, mine in every]


def _mean_auc(each: Sequence[float | None]) -> float:
    known = [value for value in each if value is not None]
    return sum(known) / len(known) if known else 0.5


def _accuracy(both: Tensor) -> float:
    return mean(both[:, :-1].argmax(1) == both[:, -1])


def _f1(both: Tensor) -> float:
    classes = both.shape[1] - 1
    said, true = (F.one_hot(which.long(), classes).double() for which in (both[:, :-1].argmax(1), both[:, -1]))
    right, asked = (said * true).sum(0), said.sum(0) + true.sum(0)
    return mean((2 * right / asked.clamp(min=1))[true.sum(0) > 0])


def _auc(both: Tensor) -> float:
    shares, true = both[:, :-1].softmax(1), both[:, -1].long()
    present = [label for label in true.unique().tolist() if int((true == label).sum()) < len(true)]
    each = [auc(shares[true == label, label], shares[true != label, label]) for label in present]
    return sum(each) / len(each) if each else 0.5
