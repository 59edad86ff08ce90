"""What a U-shaped GAN gives away at each of its cuts: every attack, with its floor and its controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from manyhands.audit.attacks import identity
from manyhands.audit.attacks.attributes import WHY_SKIPPED
from manyhands.audit.attacks.distance import reconstruction_scores
from manyhands.audit.attacks.heads import Head, head_of, random_head
from manyhands.audit.attacks.inversion import infer_labels, nearest_candidates, solve_by_descent, solve_linear
from manyhands.audit.attacks.inverter import Inverter, inverter
from manyhands.audit.attacks.statistics import Interval, proportion
from manyhands.audit.effort import MAX_RECONSTRUCTED_IMAGES, Effort
from manyhands.data.images import Images, as_floats
from manyhands.models.gan import run_blocks
from manyhands.seed import torch_rng
from manyhands.tensors import strip_prefix

if TYPE_CHECKING:
    from manyhands.audit.replay import RecordedBatch
    from manyhands.methods.huscf.method import HuSCF
    from manyhands.tensors import Tensors

HeadOfBatch = Callable[["RecordedBatch"], Head]
"""The head that an attacker assumes for the silo of a batch."""


class Estimate(NamedTuple):
    """What an attack estimates: images (N, C, H, W), and labels (N,) where there are classes."""

    images: Tensor
    labels: Tensor | None


@dataclass(frozen=True)
class BatchAttacks:
    """Attacks on recorded mini-batches.

    Args:
        method: The method of the run.
        batches: The recorded mini-batches.
        public: The attacker's images, of the same kind.
        effort: How much the attacker trains.
        seed: The seed of the attacks.
    """

    method: HuSCF
    batches: Sequence[RecordedBatch]
    public: Images
    effort: Effort = field(default_factory=Effort)
    seed: int = 0

    def head(self, last: int) -> dict[str, Any]:
        """Attack the head that ends with block ``last``: as it was sent at cuts of the recipe, else simulated."""
        true_head, own_batches = (
            self._known(last),
            [batch for batch in self.batches if batch.cuts.discriminator.head == last],
        )
        attacks_with_head = self._attacks(last, true_head, "known")
        best = max(
            attacks_with_head.values(), key=lambda estimates: -float((estimates.images - self.truth).square().mean())
        )
        other_head = random_head(self.method.model, last, self.seed + 1, self.method.guard)
        control_attacks = self._attacks(last, lambda _: other_head, "")
        return {
            "head": last,
            "silos": [batch.silo for batch in own_batches],
            "numbers": self._sent(true_head, self.batches[0], real=True)[0].numel(),
            "attacks": {name: self.scores(estimate) for name, estimate in attacks_with_head.items()},
            "unknown_head": {name: self.scores(estimate) for name, estimate in control_attacks.items()},
            "other_images": self.scores(Estimate(best.images.roll(1, 0), None)),
            "labels_of_generated": self._right(self._labels_of_generated(true_head)),
            "recognised": self._recognised(true_head),
            "recognised_by_unknown": self._recognised(true_head, other_head),
        }

    def later(self, batches: Sequence[RecordedBatch]) -> dict[str, dict[str, Any]]:
        """Attack mini-batches from later in the round with the weights of its beginning, for each head."""
        scores_of_head = {}
        for last in sorted({batch.cuts.discriminator.head for batch in batches}):
            of_head = [batch for batch in batches if batch.cuts.discriminator.head == last]
            attacked = BatchAttacks(self.method, of_head, self.public, self.effort, self.seed)
            attacks = attacked._attacks(last, attacked._known(last), "known")
            scores_of_head[str(last)] = {name: attacked.scores(estimate) for name, estimate in attacks.items()}
        return scores_of_head

    def tails(self) -> dict[str, Any]:
        """Reconstruct generated images from the input of the generator's tail, with known and with random weights."""
        random_weights = dict(self.method.model.build(self.seed + 1).state_dict())
        generated, rng = torch.cat([batch.generated for batch in self.batches]), self._rng("tails")
        scores = {}
        for name, weights in {"known": None, "unknown": random_weights}.items():
            estimate = torch.cat([tail_output(self.method, batch, weights or batch.weights) for batch in self.batches])
            scores[name] = reconstruction_scores(estimate, generated, self._mean.expand_as(generated), None, rng)
        return scores

    def floor(self) -> dict[str, Any]:
        """What an attacker knows without any message."""
        guess = self._mean.expand_as(self.truth)
        floor: dict[str, Any] = {
            "reconstruction": reconstruction_scores(guess, self.truth, guess, None, self._rng("floor"))
        }
        if self.labels is not None and self.public.labels is not None:
            most_frequent = self.public.labels.bincount(minlength=self.method.model.classes).argmax()
            floor["labels"] = proportion(self.labels == most_frequent)
        return floor

    def scores(self, estimate: Estimate) -> dict[str, Any]:
        """How close an estimate is to the real images."""
        guess, count = self._mean.expand_as(self.truth), len(self.truth)
        scores: dict[str, Any] = dict(
            reconstruction_scores(estimate.images, self.truth, guess, None, self._rng("scores"))
        )
        picked = proportion(identity.recognised(estimate.images, self.truth, 1.0))
        scores["identity"] = {"candidates": count, "top_1": picked, "chance": 1 / count}
        return scores | {"label": self._right(estimate.labels)}

    @cached_property
    def truth(self) -> Tensor:
        """The real images of all batches (N, C, H, W)."""
        return torch.cat([batch.images for batch in self.batches])

    @cached_property
    def labels(self) -> Tensor | None:
        """Their labels (N,)."""
        labels_of_batches = [batch.labels for batch in self.batches if batch.labels is not None]
        return torch.cat(labels_of_batches) if labels_of_batches else None

    @cached_property
    def _mean(self) -> Tensor:
        return as_floats(self.public.pixels).mean(0, keepdim=True)

    def _known(self, last: int) -> HeadOfBatch:
        heads: dict[int, Head] = {}

        def head(batch: RecordedBatch) -> Head:
            if batch.cluster not in heads:
                heads[batch.cluster] = head_of(self.method.model, batch.weights, last, self.method.guard)
            return heads[batch.cluster]

        return head

    def _attacks(self, last: int, head_of_batch: HeadOfBatch, seed_part: str) -> dict[str, Estimate]:
        """What each attack estimates for all batches, under the assumption that silos have these heads."""
        true_head, networks = self._known(last), dict[int, Inverter]()
        estimates: dict[str, list[Estimate]] = {}
        for batch in self.batches:
            head, sent = head_of_batch(batch), self._sent(true_head, batch, real=True)
            labels = self._labels(head, self._sent(true_head, batch, real=False), batch)
            start = self._mean.repeat(len(sent), 1, 1, 1)
            if solution := solve_linear(head, sent):
                estimates.setdefault("least squares", []).append(Estimate(*solution))
                start = solution[0]
            images_by_descent = solve_by_descent(head, sent, start, labels, self.effort.descent)
            estimates.setdefault("descent", []).append(Estimate(images_by_descent, labels))
            network_key = batch.cluster if seed_part else 0
            if network_key not in networks:
                rng = self._rng("inverter", seed_part, last, network_key)
                networks[network_key] = inverter(head, self.public, len(sent), self.effort.inverter, rng)
            with torch.no_grad():
                images, logits = networks[network_key](sent)
            by_inverter = Estimate(images, logits.argmax(1) if self.method.model.classes else None)
            estimates.setdefault("inverter", []).append(by_inverter)
        return {name: _joined(batch_estimates) for name, batch_estimates in estimates.items()}

    def _sent(self, true_head: HeadOfBatch, batch: RecordedBatch, *, real: bool) -> Tensor:
        """The activations that were sent; where the silo has another head, those that would have been sent."""
        head = true_head(batch)
        if batch.cuts.discriminator.head == head.last:
            return batch.real_activations if real else batch.generated_activations
        images = batch.images if real else batch.generated
        return head.sent(images, batch.labels, self._rng("sent", "real" if real else "made", head.last, batch.silo))

    def _labels(self, head: Head, generated_activations: Tensor, batch: RecordedBatch) -> Tensor | None:
        """Infer the labels of generated images, which the server can draw itself; real images have the same labels."""
        return (
            infer_labels(head, generated_activations, tail_output(self.method, batch, batch.weights))
            if self.method.model.classes
            else None
        )

    def _labels_of_generated(self, true_head: HeadOfBatch) -> Tensor | None:
        labels = [
            self._labels(true_head(batch), self._sent(true_head, batch, real=False), batch) for batch in self.batches
        ]
        return _together(labels)

    def _recognised(self, true_head: HeadOfBatch, assumed_head: Head | None = None) -> Interval:
        """How often the true image, of all, is nearest to the activations that were sent, by the assumed head."""
        picked = []
        for batch in self.batches:
            head = assumed_head or true_head(batch)
            labels = self._labels(head, self._sent(true_head, batch, real=False), batch)
            picked.append(nearest_candidates(head, self._sent(true_head, batch, real=True), self.truth, labels))
        return proportion(torch.cat(picked) == torch.arange(len(self.truth)))

    def _right(self, labels: Tensor | None) -> Interval | None:
        return None if labels is None or self.labels is None else proportion(labels == self.labels)

    def _rng(self, *names: str | int) -> torch.Generator:
        return torch_rng(self.seed, "crossings", *names)


def attack_batches(attacked: BatchAttacks, later: Sequence[RecordedBatch]) -> dict[str, Any]:
    """Attack every head that the discriminator can have, and the tails; the result holds numbers, never images."""
    method = attacked.method
    own_heads = [batch.cuts.discriminator.head for batch in attacked.batches]
    return {
        "kind": "huscf",
        "images": len(attacked.truth),
        "public": len(attacked.public),
        "pixels": attacked.truth[0].numel(),
        "own": sorted(set(own_heads)),
        "min_head": method.min_head,
        "guard": None if method.guard is None else method.guard.model_dump(),
        "floor": attacked.floor(),
        "skipped": {} if method.model.classes else {"class_inference": WHY_SKIPPED["class_inference"]},
        "heads": [attacked.head(last) for last in range(method.model.middle)],
        "later": {"step": later[0].step, "of": later[0].steps, "heads": attacked.later(later)},
        "tails": attacked.tails(),
    }


def choose_batches(batches: Mapping[str, RecordedBatch]) -> list[RecordedBatch]:
    """The batch of at least one silo for each cut, and of more silos until there are enough images."""
    first_with_head: dict[int, str] = {}
    for name, batch in batches.items():
        first_with_head.setdefault(batch.cuts.discriminator.head, name)
    names, count = list(first_with_head.values()), sum(len(batches[name].images) for name in first_with_head.values())
    for name, batch in batches.items():
        if name not in names and count + len(batch.images) <= MAX_RECONSTRUCTED_IMAGES:
            names.append(name)
            count += len(batch.images)
    return [batches[name] for name in sorted(names)]


@torch.no_grad()
def tail_output(method: HuSCF, batch: RecordedBatch, weights: Tensors) -> Tensor:
    """The images (N, C, H, W) that the tail of a generator with these weights draws from its input, as in training."""
    network = method.model.build(0)
    network.generator.load_state_dict(strip_prefix(weights, "generator."))
    return run_blocks(batch.cuts.generator.parts(list(network.generator))[2], batch.tail_input)


def _joined(estimates: Sequence[Estimate]) -> Estimate:
    return Estimate(
        torch.cat([estimate.images for estimate in estimates]), _together([estimate.labels for estimate in estimates])
    )


def _together(labels_of_batches: Sequence[Tensor | None]) -> Tensor | None:
    present = [labels_of_batch for labels_of_batch in labels_of_batches if labels_of_batch is not None]
    return torch.cat(present) if len(present) == len(labels_of_batches) else None
