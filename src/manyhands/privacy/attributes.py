"""What class a released image is of, asked of a classifier that was trained on public images noised alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from manyhands.diffusion.objective import noised
from manyhands.diffusion.schedule import Schedule
from manyhands.evaluation.features import Network
from manyhands.privacy.statistics import Interval, auc, bootstrap, mean
from manyhands.seed import seeded_globally


class NoisyClassifier:
    """A classifier of noised images that is told how noisy they are: one network for all levels."""

    def __init__(self, schedule: Schedule, network: Network) -> None:
        self._schedule = schedule
        self._network = network

    def __call__(self, x_t: Tensor, t: int) -> Tensor:
        """The logits of the classes."""
        with torch.no_grad():
            logits: Tensor = self._network(told(self._schedule, x_t, torch.tensor([t])))[1]
        return logits


def classifier(
    public: Tensor,
    labels: Tensor,
    classes: int,
    schedule: Schedule,
    levels: Sequence[int],
    steps: int,
    rng: torch.Generator,
    batch: int = 128,
) -> NoisyClassifier:
    """Train one on public images, noised anew at every step to levels drawn from these; 0 is the clean image."""
    known = torch.tensor(sorted(set(levels)))
    with seeded_globally(int(torch.randint(2**31, (), generator=rng)), "attributes"):
        network = Network(public.shape[-1], public.shape[1] + 1, classes)
    optimiser = torch.optim.Adam(network.parameters(), 2e-3, fused=True)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
        at = torch.randint(len(public), (batch,), generator=rng)
        t = known[torch.randint(len(known), (batch,), generator=rng)]
        x_t = noised(public[at], torch.randn(public[at].shape, generator=rng), *schedule.levels(t, public))
        optimiser.zero_grad()
        F.cross_entropy(network(told(schedule, x_t, t))[1], labels[at]).backward()
        optimiser.step()
    return NoisyClassifier(schedule, network.eval())


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
