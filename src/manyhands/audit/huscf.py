"""What a GAN that is cut into a U gives away at each of its cuts: every attack beside its floor and its controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from manyhands.audit.attacks import identity
from manyhands.audit.attacks.attributes import WHY_NOT
from manyhands.audit.attacks.distance import nearness
from manyhands.audit.attacks.heads import Head, head_of, unknown
from manyhands.audit.attacks.inversion import descended, labelled, nearest, solved
from manyhands.audit.attacks.inverter import Inverter, inverter
from manyhands.audit.attacks.statistics import Interval, proportion
from manyhands.audit.collafuse import SHOWN, Effort
from manyhands.data.images import Images, as_floats
from manyhands.models.gan import run_blocks
from manyhands.seed import torch_rng
from manyhands.tensors import strip_prefix

if TYPE_CHECKING:
    from manyhands.audit.replay import RecordedBatch
    from manyhands.methods.huscf.method import HuSCF
    from manyhands.tensors import Tensors

Of = Callable[["RecordedBatch"], Head]
"""The head that an attacker takes a silo to have."""


class Estimate(NamedTuple):
    """Of a batch: images, and labels where there are any."""

    images: Tensor
    labels: Tensor | None


@dataclass(frozen=True)
class Attacked:
    """Mini-batches that a server has heard, and what the attacker has beside them."""

    method: HuSCF
    heard: Sequence[RecordedBatch]
    public: Images
    effort: Effort = field(default_factory=Effort)
    seed: int = 0

    def head(self, last: int) -> dict[str, Any]:
        """All about one head, at the cuts of the recipe as it was sent, at others as it would have been."""
        known, own = self._known(last), [each for each in self.heard if each.cuts.discriminator.head == last]
        attacks = self._attacks(last, known, "known")
        best = max(attacks.values(), key=lambda estimates: -float((estimates.images - self.truth).square().mean()))
        fresh = unknown(self.method.model, last, self.seed + 1, self.method.guard)
        control = self._attacks(last, lambda _: fresh, "")
        return {
            "head": last,
            "silos": [each.silo for each in own],
            "numbers": self._sent(known, self.heard[0], "real")[0].numel(),
            "attacks": {name: self.scores(estimate) for name, estimate in attacks.items()},
            "unknown_head": {name: self.scores(estimate) for name, estimate in control.items()},
            "other_images": self.scores(Estimate(best.images.roll(1, 0), None)),
            "labels_of_made": self._right(self._labels_of_made(known)),
            "recognised": self._recognised(known),
            "recognised_by_unknown": self._recognised(known, fresh),
        }

    def later(self, heard: Sequence[RecordedBatch]) -> dict[str, dict[str, Any]]:
        """Of mini-batches later in the round, with the weights of its beginning: by head, what attacks find."""
        found = {}
        for last in sorted({each.cuts.discriminator.head for each in heard}):
            mine = [each for each in heard if each.cuts.discriminator.head == last]
            those = Attacked(self.method, mine, self.public, self.effort, self.seed)
            attacks = those._attacks(last, those._known(last), "known")
            found[str(last)] = {name: those.scores(estimate) for name, estimate in attacks.items()}
        return found

    def tails(self) -> dict[str, Any]:
        """What comes of what goes into the tail of the generator, by the weights that the server knows, and by none."""
        fresh = dict(self.method.model.build(self.seed + 1).state_dict())
        drawn, rng = torch.cat([each.drawn for each in self.heard]), self._rng("tails")
        found = {}
        for name, weights in {"known": None, "unknown": fresh}.items():
            made = torch.cat([tailed(self.method, each, weights or each.weights) for each in self.heard])
            found[name] = nearness(made, drawn, self._mean.expand_as(drawn), None, rng)
        return found

    def floor(self) -> dict[str, Any]:
        """What is known without anything that was sent."""
        guess = self._mean.expand_as(self.truth)
        found: dict[str, Any] = {"reconstruction": nearness(guess, self.truth, guess, None, self._rng("floor"))}
        if self.labels is not None and self.public.labels is not None:
            said = self.public.labels.bincount(minlength=self.method.model.classes).argmax()
            found["labels"] = proportion(self.labels == said)
        return found

    def scores(self, estimate: Estimate) -> dict[str, Any]:
        """How near it came."""
        guess, count = self._mean.expand_as(self.truth), len(self.truth)
        found: dict[str, Any] = dict(nearness(estimate.images, self.truth, guess, None, self._rng("scores")))
        picked = proportion(identity.recognised(estimate.images, self.truth, 1.0))
        found["identity"] = {"candidates": count, "top_1": picked, "chance": 1 / count}
        return found | {"label": self._right(estimate.labels)}

    @cached_property
    def truth(self) -> Tensor:
        """The real images of all batches."""
        return torch.cat([each.images for each in self.heard])

    @cached_property
    def labels(self) -> Tensor | None:
        """The labels of them all."""
        every = [each.labels for each in self.heard if each.labels is not None]
        return torch.cat(every) if every else None

    @cached_property
    def _mean(self) -> Tensor:
        return as_floats(self.public.pixels).mean(0, keepdim=True)

    def _known(self, last: int) -> Of:
        kept: dict[int, Head] = {}

        def head(each: RecordedBatch) -> Head:
            if each.cluster not in kept:
                kept[each.cluster] = head_of(self.method.model, each.weights, last, self.method.guard)
            return kept[each.cluster]

        return head

    def _attacks(self, last: int, of: Of, whose: str) -> dict[str, Estimate]:
        """What each attack makes of all batches, by one who takes silos to have these heads."""
        true, networks = self._known(last), dict[int, Inverter]()
        found: dict[str, list[Estimate]] = {}
        for each in self.heard:
            head, sent = of(each), self._sent(true, each, "real")
            labels = self._labels(head, self._sent(true, each, "made"), each)
            start = self._mean.repeat(len(sent), 1, 1, 1)
            if exact := solved(head, sent):
                found.setdefault("least squares", []).append(Estimate(*exact))
                start = exact[0]
            back = descended(head, sent, start, labels, self.effort.descent)
            found.setdefault("descent", []).append(Estimate(back, labels))
            number = each.cluster if whose else 0
            if number not in networks:
                rng = self._rng("inverter", whose, last, number)
                networks[number] = inverter(head, self.public, len(sent), self.effort.inverter, rng)
            with torch.no_grad():
                images, logits = networks[number](sent)
            learnt = Estimate(images, logits.argmax(1) if self.method.model.classes else None)
            found.setdefault("inverter", []).append(learnt)
        return {name: _joined(estimates) for name, estimates in found.items()}

    def _sent(self, true: Of, each: RecordedBatch, op: str) -> Tensor:
        """What was sent of real or of made images; where the silo's head is another one, what would have been."""
        head = true(each)
        if each.cuts.discriminator.head == head.last:
            return each.real if op == "real" else each.made
        images = each.images if op == "real" else each.drawn
        return head.sent(images, each.labels, self._rng("sent", op, head.last, each.silo))

    def _labels(self, head: Head, made: Tensor, each: RecordedBatch) -> Tensor | None:
        """Real images and made ones come with the same labels; and the server can make the made ones itself."""
        return labelled(head, made, tailed(self.method, each, each.weights)) if self.method.model.classes else None

    def _labels_of_made(self, known: Of) -> Tensor | None:
        each = [self._labels(known(one), self._sent(known, one, "made"), one) for one in self.heard]
        return _together(each)

    def _recognised(self, known: Of, guess: Head | None = None) -> Interval:
        """How often the right image is nearest to what was sent, among all, after the head that is taken for it."""
        found = []
        for each in self.heard:
            head = guess or known(each)
            labels = self._labels(head, self._sent(known, each, "made"), each)
            found.append(nearest(head, self._sent(known, each, "real"), self.truth, labels))
        return proportion(torch.cat(found) == torch.arange(len(self.truth)))

    def _right(self, labels: Tensor | None) -> Interval | None:
        return None if labels is None or self.labels is None else proportion(labels == self.labels)

    def _rng(self, *names: str | int) -> torch.Generator:
        return torch_rng(self.seed, "crossings", *names)


def crossings(attacked: Attacked, later: Sequence[RecordedBatch]) -> dict[str, Any]:
    """Every head that the discriminator can have, and the tails, as plain numbers, never as pictures."""
    method = attacked.method
    told = [each.cuts.discriminator.head for each in attacked.heard]
    return {
        "kind": "crossings",
        "images": len(attacked.truth),
        "public": len(attacked.public),
        "pixels": attacked.truth[0].numel(),
        "own": sorted(set(told)),
        "min_head": method.min_head,
        "guard": None if method.guard is None else method.guard.model_dump(),
        "floor": attacked.floor(),
        "skipped": {} if method.model.classes else {"class_inference": WHY_NOT["class_inference"]},
        "heads": [attacked.head(last) for last in range(method.model.middle)],
        "later": {"step": later[0].step, "of": later[0].steps, "heads": attacked.later(later)},
        "tails": attacked.tails(),
    }


def chosen(heard: Mapping[str, RecordedBatch]) -> list[RecordedBatch]:
    """At least a silo of each cut, and more until there are enough images."""
    first: dict[int, str] = {}
    for name, each in heard.items():
        first.setdefault(each.cuts.discriminator.head, name)
    found, count = list(first.values()), sum(len(heard[name].images) for name in first.values())
    for name, each in heard.items():
        if name not in found and count + len(each.images) <= SHOWN:
            found.append(name)
            count += len(each.images)
    return [heard[name] for name in sorted(found)]


@torch.no_grad()
def tailed(method: HuSCF, each: RecordedBatch, weights: Tensors) -> Tensor:
    """What a tail of the generator with these weights makes of what goes into it, as in training."""
    network = method.model.build(0)
    network.generator.load_state_dict(strip_prefix(weights, "generator."))
    return run_blocks(each.cuts.generator.parts(list(network.generator))[2], each.into_tail)


def _joined(estimates: Sequence[Estimate]) -> Estimate:
    return Estimate(torch.cat([each.images for each in estimates]), _together([each.labels for each in estimates]))


def _together(each: Sequence[Tensor | None]) -> Tensor | None:
    known = [labels for labels in each if labels is not None]
    return torch.cat(known) if len(known) == len(each) else None
