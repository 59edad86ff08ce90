"""Compares the samples of a generator with real images that nobody trained on, always by the same protocol."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from manyhands.data.images import Images, as_floats, checked, pooled
from manyhands.errors import DataError
from manyhands.evaluation import features, inception, metrics, verdict
from manyhands.evaluation.distortions import distortion_features
from manyhands.evaluation.drawing import (
    ImageSource,
    are_conditional,
    distinct_generators,
    drawn_bytes,
    sampling_protocol,
)
from manyhands.evaluation.features import Embedding, Extractor
from manyhands.evaluation.spec import DISTORTIONS, Evaluation
from manyhands.models.autoencoder import TrainedAutoencoder
from manyhands.seed import numpy_rng, seed_of

if TYPE_CHECKING:
    from manyhands.diffusion.sampling import Sampling
    from manyhands.silos.silo import Silo

Figures = dict[str, float]
CAS_EPOCHS, CAS_BATCH = 15, 64


@dataclass(frozen=True)
class EmbeddedImages:
    """N images as bytes (N, C, H, W), with their embedding by the extractor and by the classifier."""

    pixels: Tensor
    embedding: Embedding
    classified: Embedding


class Evaluator:
    """Measures generators against the real images of all silos.

    The reference is the pooled training images. The floor is what held-out real images reach when they take the place
    of the samples: as many of them, of the same classes, at the same silos.

    Args:
        evaluation: What is measured, and how.
        silos: The silos, with the images that they train on and those that they hold out.
        device: The device on which Inception runs, if it is used.
    """

    def __init__(self, evaluation: Evaluation, silos: Sequence[Silo], device: str = "cpu") -> None:
        self.evaluation = evaluation
        self.silos = [silo.name for silo in silos]
        train, train_silo = _pool([silo.images for silo in silos])
        held, held_silo = _pool([silo.held_out or silo.images.subset(np.arange(0)) for silo in silos])
        if len(held) < metrics.MIN_IMAGES:
            raise DataError(f"{len(held)} images are held out, {metrics.MIN_IMAGES} are needed to measure anything")
        pooled([train, held])  # raises an error where they do not have the same classes
        rng = numpy_rng(0, "evaluation")
        chosen = np.sort(rng.permutation(len(held))[: evaluation.images])
        order = rng.permutation(len(train))[: evaluation.reference]
        self.labelled = train.labels is not None and len(train.classes) > 1
        self.classifier = features.classifier(train, held)
        self.extractor: Extractor = self.classifier
        if evaluation.inception:
            self.extractor = inception.load(evaluation.inception, device)
        elif evaluation.features == DISTORTIONS:
            self.extractor = distortion_features(train)
        self.data = features.fingerprint(train, held)
        self.real, self.real_silo = train.subset(order), train_silo[order]
        self.held, self.held_silo = held.subset(chosen), held_silo[chosen]
        self._real = features.reference(self.extractor, self.real)
        self._floor = self.embed(self.held.pixels)
        self._fid = metrics.Fid(self._real.features)
        self._every = self._real if len(order) == len(train) else features.reference(self.extractor, train)
        self._held_distances = metrics.nearest(self._floor.embedding.features, self._every.features)
        self._usual = metrics.cosine_distance(self._floor.embedding.features, self._every.features)

    def __call__(
        self, generators: Mapping[str, ImageSource], sampling: Sampling, *, cas: bool | None = None
    ) -> dict[str, Any]:
        """Measure the generators of the silos: one for each silo, or one for all of them.

        Args:
            generators: The generator of each silo, by its name.
            sampling: How a diffusion model samples.
            cas: Whether to compute the CAS; None does as ``Evaluation.cas`` says.
        """
        conditional = are_conditional(generators)
        samples = [self.draw(generators, sampling, seed) for seed in range(self.evaluation.seeds)]
        return self.verdict(samples, conditional=conditional, cas=cas) | {
            "protocol": self.protocol(generators, sampling)
        }

    def verdict(
        self, samples: Sequence[Tensor], *, conditional: bool = True, cas: bool | None = None
    ) -> dict[str, Any]:
        """Measure one or several sets of samples.

        Args:
            samples: Sets of images (N, C, H, W), each with one sample for each held-out image, in their order.
            conditional: Whether the samples have the classes of the held-out images.
            cas: Whether to compute the CAS; None does as ``Evaluation.cas`` says.
        """
        if not samples:
            raise DataError("there is nothing to measure: no set of samples was given, at least one is expected")
        began = time.perf_counter()
        embedded = [self.embed(images) for images in samples]
        by_draw = [self.measure(view, conditional=conditional, cas=cas) for view in embedded]
        mean, floor = _mean(by_draw), self.floor(conditional=conditional, cas=cas)
        return {
            "words": verdict.words(mean, floor, few=self.is_few),
            "few": self.is_few,
            "metrics": mean,
            "spread": self._spread(by_draw, embedded[0], conditional=conditional),
            "spread_of": f"{len(by_draw)} draws"
            if len(by_draw) > 1
            else f"{self.evaluation.bootstrap} random halves of the samples",
            "floor": floor,
            "groups": self.groups(embedded, conditional=conditional, cas=cas),
            "classifier": {"accuracy": self.classifier.accuracy, "labels": self.labelled},
            "notes": verdict.notes(mean, floor, len(self.held), self._real.features.shape[1]),
            "seconds": time.perf_counter() - began,
        }

    def quick(self, generators: Mapping[str, ImageSource], sampling: Sampling) -> Figures:
        """The figures of one set of samples from all silos together, without CAS."""
        return self.measure(
            self.embed(self.draw(generators, sampling)), conditional=are_conditional(generators), cas=False
        )

    @property
    def is_few(self) -> bool:
        """Whether there are fewer held-out images than a covariance of all features needs."""
        return len(self.held) <= self._real.features.shape[1]

    @property
    def labels(self) -> Tensor:
        """The class of each held-out image, with which its sample is drawn (N,); zeros where there are no classes."""
        return torch.zeros(len(self.held), dtype=torch.long) if self.held.labels is None else self.held.labels

    def draw(self, generators: Mapping[str, ImageSource], sampling: Sampling, seed: int = 0) -> Tensor:
        """Draw a sample for each held-out image, with the generator of the silo that holds it: bytes (N, C, H, W).

        An autoencoder draws no images of its own; it gives its reconstruction of the held-out image instead.
        """
        images = torch.empty(self.held.shape, dtype=torch.uint8)
        if missing := [silo for i, silo in enumerate(self.silos) if silo not in generators and i in self.held_silo]:
            raise DataError(f"{', '.join(missing)}: no generator was trained")
        for silos, generator in distinct_generators(generators).items():
            is_own = torch.isin(self.held_silo, torch.tensor([self.silos.index(silo) for silo in silos]))
            if isinstance(generator, TrainedAutoencoder):
                images[is_own] = drawn_bytes(generator.reconstruct(as_floats(self.held.read(is_own))))
                continue
            labels = (
                (self.labels[is_own] if generator.model.classes else torch.zeros(int(is_own.sum()))).long().tolist()
            )
            draw_seed = seed if len(silos) == len(self.silos) else seed_of(seed, *silos)
            if labels:
                parts = generator.stream(labels, seed=draw_seed, sampling=sampling)
                images[is_own] = torch.cat([drawn_bytes(part) for part, _ in parts])
        return images

    def embed(self, images: Tensor) -> EmbeddedImages:
        """Embed samples (N, C, H, W), one for each held-out image, in their order."""
        pixels = checked(images)
        if tuple(pixels.shape) != self.held.shape:
            raise DataError(
                f"the samples have the shape {tuple(pixels.shape)}, {self.held.shape} is expected: "
                "one for each held-out image"
            )
        classified = self.classifier(pixels)
        return EmbeddedImages(
            pixels, classified if self.extractor is self.classifier else self.extractor(pixels), classified
        )

    def measure(self, samples: EmbeddedImages, *, conditional: bool = True, cas: bool | None = None) -> Figures:
        """The figures of all samples together; ``conditional``: they have the classes of the held-out images."""
        generated, real = samples.embedding.features, self._real.features
        fid = self._fid(generated)
        figures: Figures = {
            "fid": fid,
            "kid": metrics.kid(generated, real),
            **metrics.prdc(generated, real),
            "mifid": metrics.mifid(
                fid,
                metrics.cosine_distance(generated, self._every.features),
                None if self.evaluation.inception else self._usual,
            ),
            "memorised": metrics.memorised(metrics.nearest(generated, self._every.features), self._held_distances),
        }
        if self.labelled or self.evaluation.inception:  # a classifier of rotations is sure of every good image
            logits = samples.embedding.logits if self.evaluation.inception else samples.classified.logits
            figures["inception_score"] = metrics.inception_score(logits)
        if conditional and self.labelled:
            score = metrics.generation_score(samples.classified.logits, self.labels)
            figures |= {} if score is None else {"generation_score": score}
            figures["label_match"] = metrics.label_match(samples.classified.logits, self.labels)
            if self.evaluation.cas if cas is None else cas:
                figures |= self._cas(samples.pixels, self.labels)
        return figures

    def floor(self, *, conditional: bool = True, cas: bool | None = None) -> Figures:
        """The same figures of held-out real images; for CAS, of as many training images."""
        figures = self._kept(
            f"floor {conditional}", partial(self.measure, self._floor, conditional=conditional, cas=False)
        )
        if conditional and self.labelled and (self.evaluation.cas if cas is None else cas):
            real = self.real.subset(np.arange(min(len(self.held), len(self.real))))
            figures |= self._kept("floor cas", partial(self._cas, real.pixels, real.labels))
        return figures

    def groups(
        self, samples: Sequence[EmbeddedImages], *, conditional: bool = True, cas: bool | None = None
    ) -> dict[str, dict[str, Any]]:
        """Figures and floors for each silo and domain, and for each class where samples have classes.

        CAS is computed for domains only.
        """
        groups: dict[str, dict[str, Any]] = {}
        with_cas = conditional and self.labelled and (self.evaluation.cas if cas is None else cas)
        for kind, name, held, real in self._members(conditional=conditional):
            rows: dict[str, Any] = {"images": int(held.sum()), "reference": int(real.sum())}
            if min(rows.values()) >= metrics.MIN_IMAGES:
                rows["metrics"] = _mean(
                    [self._group(sample, held, real, conditional=conditional) for sample in samples]
                )
                key = f"floor {conditional} {features.hash_of(held=held, real=real)}"
                rows["floor"] = self._kept(key, partial(self._group, self._floor, held, real, conditional=conditional))
                if with_cas and kind == "domains":
                    rows["metrics"] |= _mean([self._cas(sample.pixels, self.labels, held) for sample in samples])
            groups.setdefault(kind, {})[name] = rows
        return groups

    def protocol(self, generators: Mapping[str, ImageSource], sampling: Sampling) -> dict[str, Any]:
        """Everything that two runs must have in common for their figures to be comparable."""
        averaged = {generator.ema > 0 for generator in generators.values()}
        return {
            "data": self.data,
            "code": features.CODE[:8],
            "features": self.extractor.name,
            "classifier": self.classifier.name,
            "images": len(self.held),
            "reference": len(self.real),
            "sampling": sampling_protocol(generators, sampling),
            "weights": " and ".join("average over rounds" if one else "raw" for one in sorted(averaged)),
            "seeds": list(range(self.evaluation.seeds)),
        }

    def _kept(self, kind: str, measure: Callable[[], Figures]) -> Figures:
        """Figures of real images, from the cache where they are there: they are the same for every run on them."""
        key = f"{kind} {self.data} {self.extractor.name} {self.classifier.name} {len(self.held)} {len(self.real)}"
        kept = features.recall("floor", key)
        if kept is None:
            kept = {name: torch.tensor(value, dtype=torch.float64) for name, value in measure().items()}
            features.remember("floor", key, kept)
        return {name: float(value) for name, value in kept.items()}

    def _group(self, samples: EmbeddedImages, held: Tensor, real: Tensor, *, conditional: bool) -> Figures:
        generated, reference = samples.embedding.features[held], self._real.features[real]
        figures: Figures = {
            "fid": metrics.Fid(reference)(generated),
            "kid": metrics.kid(generated, reference),
            **metrics.prdc(generated, reference),
        }
        if conditional and self.labelled:
            figures["label_match"] = metrics.label_match(samples.classified.logits[held], self.labels[held])
        return figures

    def _members(self, *, conditional: bool) -> Iterator[tuple[str, str, Tensor, Tensor]]:
        """The kind and the name of each group, and which held-out and which reference images are in it."""
        if len(self.silos) > 1:
            for i, name in enumerate(self.silos):
                yield "silos", name, self.held_silo == i, self.real_silo == i
        if conditional and self.held.labels is not None and self.real.labels is not None:
            for i, name in enumerate(self.real.classes):
                yield "classes", name, self.held.labels == i, self.real.labels == i
        if self.held.domain is not None and self.real.domain is not None:
            for i in self.real.domain.unique().tolist():
                yield (
                    "domains",
                    self.real.domains[i] if self.real.domains else str(i),
                    self.held.domain == i,
                    self.real.domain == i,
                )

    def _cas(self, pixels: Tensor, labels: Tensor | None, among: Tensor | None = None) -> Figures:
        """Train a classifier on these images alone and test it on held-out ones; ``among`` selects some of both."""
        assert labels is not None  # it is called for labelled images only
        if among is not None:
            pixels, labels = pixels[among], labels[among]
        steps = CAS_EPOCHS * math.ceil(len(pixels) / CAS_BATCH)
        network = features.train_features(pixels, labels, len(self.real.classes), steps=steps, batch=CAS_BATCH)
        tested = slice(None) if among is None else among
        predicted = features.embed(network, self.held.read(tested)).logits.argmax(1)
        return metrics.classification(predicted, self.labels[tested])

    def _spread(self, by_draw: list[Figures], samples: EmbeddedImages, *, conditional: bool) -> Figures:
        """The standard deviation over sets of samples or, where there is only one set, over random halves of it."""
        if len(by_draw) == 1:
            by_draw = self._resamples(samples, conditional=conditional)
        if len(by_draw) < 2:
            return {}
        return {name: float(np.std([draw[name] for draw in by_draw], ddof=1)) for name in by_draw[0]}

    def _resamples(self, samples: EmbeddedImages, *, conditional: bool) -> list[Figures]:
        """Figures of random halves; drawn without replacement, they vary as whole sets of samples do.

        With replacement, duplicate images would give FID and KID of a set that no generator drew.
        """
        rng, resamples = numpy_rng(0, "bootstrap"), []
        for _ in range(self.evaluation.bootstrap):
            indices = torch.from_numpy(rng.permutation(len(self.held))[: len(self.held) // 2])
            generated = samples.embedding.features[indices]
            figures: Figures = {"fid": self._fid(generated), "kid": metrics.kid(generated, self._real.features)}
            if conditional and self.labelled:
                figures["label_match"] = metrics.label_match(samples.classified.logits[indices], self.labels[indices])
            resamples.append(figures)
        return resamples


def _mean(by_draw: Sequence[Figures]) -> Figures:
    return {name: float(np.mean([draw[name] for draw in by_draw])) for name in by_draw[0]}


def _pool(parts: Sequence[Images]) -> tuple[Images, Tensor]:
    """The images of all silos in the order of their source, and the number of the silo that holds each."""
    images = pooled(parts)
    holder = torch.arange(len(parts)).repeat_interleave(torch.tensor([len(part) for part in parts]))
    order = torch.arange(len(images)) if images.rows is None else torch.argsort(images.rows, stable=True)
    return images.subset(order.numpy()), holder[order]
