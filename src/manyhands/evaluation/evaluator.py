"""Holds what a generator draws against real images that nobody trained on, by one protocol."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from manyhands.data.images import Images, as_bytes, as_floats, checked, pooled
from manyhands.errors import DataError
from manyhands.evaluation import features, inception, metrics, verdict
from manyhands.evaluation.features import Extractor, Seen
from manyhands.models.autoencoder import TrainedAutoencoder
from manyhands.seed import numpy_rng, seed_of
from manyhands.spec import Int, Spec

if TYPE_CHECKING:
    from manyhands.diffusion.sample import Sampling
    from manyhands.generators.base import ImageGenerator
    from manyhands.silos.silo import Silo

Figures = dict[str, float]
ImageSource: TypeAlias = "ImageGenerator | TrainedAutoencoder"
CAS_EPOCHS, CAS_BATCH = 15, 64
ALARM = 4 * metrics.TAIL
SHOWN = 8
AT_ONCE = {"sampler": "at once"}
"""How a GAN draws, in a protocol."""


class Evaluation(Spec):
    """What is drawn and measured at the end of a run, and after every so many rounds (0: at the end only).

    ``images`` samples are drawn, each with the class of a held-out image; 0 measures nothing. ``features`` is
    ``classifier`` or ``inception:PATH``. ``reference`` is the most training images that samples are held against.
    ``cas`` trains a classifier on the samples alone. ``seeds`` draws so often, ``bootstrap`` resamples a single draw.

    References:
        GANs ImageSource by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium, Heusel et al., 2017,
            arXiv 1706.08500
        Demystifying MMD GANs, Binkowski et al., 2018, arXiv 1801.01401
        Improved Precision and Recall Metric for Assessing Generative Models, Kynkaanniemi et al., 2019,
            arXiv 1904.06991
        Reliable Fidelity and Diversity Metrics for Generative Models, Naeem et al., 2020, arXiv 2002.09797
        Improved Techniques for Training GANs, Salimans et al., 2016, arXiv 1606.03498
        On Training Sample Memorization: Lessons from Benchmarking Generative Modeling with a Large-Scale Competition,
            Bai et al., 2021, arXiv 2106.03062
    """

    images: Int = Field(default=500, ge=0, le=1_000_000)
    every: Int = Field(default=0, ge=0)
    features: str = "classifier"
    reference: Int = Field(default=50_000, ge=metrics.MIN_IMAGES)
    cas: bool = False
    seeds: Int = Field(default=1, ge=1, le=1000)
    bootstrap: Int = Field(default=10, ge=0, le=1000)

    @field_validator("images")
    @classmethod
    def _enough(cls, told: int) -> int:
        if 0 < told < metrics.MIN_IMAGES:
            raise ValueError(
                f"{told} images are too few to measure anything; {metrics.MIN_IMAGES} or more, or 0 for none"
            )
        return told

    @field_validator("features")
    @classmethod
    def _known(cls, told: str) -> str:
        if not re.fullmatch(r"classifier|inception:.+", told):
            raise ValueError(f"{told!r} is neither 'classifier' nor 'inception:PATH'")
        return told

    @property
    def inception(self) -> Path | None:
        """Where the weights of Inception are, if that is to look at the images."""
        kind, _, path = self.features.partition(":")
        return Path(path) if kind == "inception" else None


@dataclass(frozen=True)
class View:
    """Images as bytes, as the extractor sees them, and as the classifier does."""

    pixels: Tensor
    seen: Seen
    known: Seen


class Evaluator:
    """Has the real images of all silos, and networks that look at them; measures one generator after another.

    The reference is the pooled training images, the floor is held-out images in the place of samples: as many, of the
    same classes, at the same silos.
    """

    def __init__(self, told: Evaluation, silos: Sequence[Silo], device: str = "cpu") -> None:
        self.told = told
        self.silos = [silo.name for silo in silos]
        train, train_silo = _pool([silo.images for silo in silos])
        held, held_silo = _pool([silo.held_out or silo.images.subset(np.arange(0)) for silo in silos])
        if len(held) < metrics.MIN_IMAGES:
            raise DataError(f"{len(held)} images are held out, {metrics.MIN_IMAGES} are needed to measure anything")
        pooled([train, held])  # of the same classes, or an error
        rng = numpy_rng(0, "evaluation")
        chosen = np.sort(rng.permutation(len(held))[: told.images])
        order = rng.permutation(len(train))[: told.reference]
        self.labelled = train.labels is not None and len(train.classes) > 1
        self.classifier = features.classifier(train, held)
        self.lens: Extractor = self.classifier
        if told.inception:
            self.lens = inception.load(told.inception, device)
        self.data = features.fingerprint(train, held)
        self.real, self.real_silo = train.subset(order), train_silo[order]
        self.held, self.held_silo = held.subset(chosen), held_silo[chosen]
        self._real = features.reference(self.lens, self.real)
        self._floor = self.embed(self.held.pixels)
        self._fid = metrics.Fid(self._real.features)
        self._every = self._real if len(order) == len(train) else features.reference(self.lens, train)
        self._held_distances = metrics.nearest(self._floor.seen.features, self._every.features)
        self._usual = metrics.cosine_distance(self._floor.seen.features, self._every.features)

    def __call__(
        self, generators: Mapping[str, ImageSource], sampling: Sampling, *, cas: bool | None = None
    ) -> dict[str, Any]:
        """Everything about the generators that the silos have: one of their own each, or one for all."""
        asked = _conditional(generators)
        drawn = [self.draw(generators, sampling, seed) for seed in range(self.told.seeds)]
        return self.verdict(drawn, asked=asked, cas=cas) | {"protocol": self.protocol(generators, sampling)}

    def verdict(self, drawn: Sequence[Tensor], *, asked: bool = True, cas: bool | None = None) -> dict[str, Any]:
        """Everything about one set of images, or several: a sample for each held-out image, in their order."""
        if not drawn:
            raise DataError("there is nothing to measure: no images came")
        began = time.perf_counter()
        views = [self.embed(images) for images in drawn]
        each = [self.measure(view, asked=asked, cas=cas) for view in views]
        mean, floor = _mean(each), self.floor(asked=asked, cas=cas)
        return {
            "words": verdict.words(mean, floor, few=self.few),
            "few": self.few,
            "metrics": mean,
            "spread": self._spread(each, views[0], asked=asked),
            "spread_of": f"{len(each)} draws" if len(each) > 1 else f"{self.told.bootstrap} halves of the draw",
            "floor": floor,
            "groups": self.groups(views, asked=asked, cas=cas),
            "classifier": {"accuracy": self.classifier.accuracy, "labels": self.labelled},
            "notes": self._notes(mean, floor),
            "seconds": time.perf_counter() - began,
        }

    def quick(self, generators: Mapping[str, ImageSource], sampling: Sampling) -> Figures:
        """The pooled figures of one draw, without CAS."""
        return self.measure(self.embed(self.draw(generators, sampling)), asked=_conditional(generators), cas=False)

    @property
    def few(self) -> bool:
        """Whether the images are too few for a covariance of all features."""
        return len(self.held) <= self._real.features.shape[1]

    @property
    def labels(self) -> Tensor:
        """The class of each held-out image, which is asked of a sample."""
        return torch.zeros(len(self.held), dtype=torch.long) if self.held.labels is None else self.held.labels

    def draw(self, generators: Mapping[str, ImageSource], sampling: Sampling, seed: int = 0) -> Tensor:
        """A sample for each held-out image, by the generator of the silo that holds it: bytes.

        An autoencoder draws nothing of its own: it gives what comes back of the image.
        """
        images = torch.empty_like(self.held.pixels)
        if without := [silo for i, silo in enumerate(self.silos) if silo not in generators and i in self.held_silo]:
            raise DataError(f"{', '.join(without)}: no generator was trained")
        for who, generator in _distinct(generators).items():
            mine = torch.isin(self.held_silo, torch.tensor([self.silos.index(silo) for silo in who]))
            if isinstance(generator, TrainedAutoencoder):
                images[mine] = _drawn(generator.reconstruct(as_floats(self.held.pixels[mine])))
                continue
            labels = (self.labels[mine] if generator.model.classes else torch.zeros(int(mine.sum()))).long().tolist()
            own = seed if len(who) == len(self.silos) else seed_of(seed, *who)
            if labels:
                parts = generator.stream(labels, seed=own, sampling=sampling)
                images[mine] = torch.cat([_drawn(part) for part, _ in parts])
        return images

    def embed(self, images: Tensor) -> View:
        """As many images as are held out, in their order, as the networks see them."""
        pixels = checked(images)
        if pixels.shape != self.held.pixels.shape:
            raise DataError(f"images are {tuple(pixels.shape)}, to be measured are {tuple(self.held.pixels.shape)}")
        known = self.classifier(pixels)
        return View(pixels, known if self.lens is self.classifier else self.lens(pixels), known)

    def measure(self, view: View, *, asked: bool = True, cas: bool | None = None) -> Figures:
        """The pooled figures; ``asked``: the images are of the asked classes."""
        mine, real = view.seen.features, self._real.features
        fid = self._fid(mine)
        figures: Figures = {
            "fid": fid,
            "kid": metrics.kid(mine, real),
            **metrics.prdc(mine, real),
            "mifid": metrics.mifid(
                fid,
                metrics.cosine_distance(mine, self._every.features),
                None if self.told.inception else self._usual,
            ),
            "memorised": metrics.memorised(metrics.nearest(mine, self._every.features), self._held_distances),
        }
        if self.labelled or self.told.inception:  # what tells which way up an image is, is sure of all good ones
            figures["inception_score"] = metrics.inception_score(view.seen.logits)
        if asked and self.labelled:
            score = metrics.generation_score(view.known.logits, self.labels)
            figures |= {} if score is None else {"generation_score": score}
            figures["label_match"] = metrics.label_match(view.known.logits, self.labels)
            if self.told.cas if cas is None else cas:
                figures |= self._cas(view.pixels, self.labels)
        return figures

    def floor(self, *, asked: bool = True, cas: bool | None = None) -> Figures:
        """The same figures of held-out real images. Their CAS is that of as many training images."""
        figures = self._kept(f"floor {asked}", partial(self.measure, self._floor, asked=asked, cas=False))
        if asked and self.labelled and (self.told.cas if cas is None else cas):
            real = self.real.subset(np.arange(min(len(self.held), len(self.real))))
            figures |= self._kept("floor cas", partial(self._cas, real.pixels, real.labels))
        return figures

    def groups(
        self, views: Sequence[View], *, asked: bool = True, cas: bool | None = None
    ) -> dict[str, dict[str, Any]]:
        """Figures and floors for each silo, each class and each domain; by class only if classes were asked for.

        CAS is by domain alone.
        """
        found: dict[str, dict[str, Any]] = {}
        taught = asked and self.labelled and (self.told.cas if cas is None else cas)
        for kind, name, held, real in self._members(asked=asked):
            rows: dict[str, Any] = {"images": int(held.sum()), "reference": int(real.sum())}
            if min(rows.values()) >= metrics.MIN_IMAGES:
                rows["metrics"] = _mean([self._group(view, held, real, asked=asked) for view in views])
                key = f"floor {asked} {features.hash_of(held=held, real=real)}"
                rows["floor"] = self._kept(key, partial(self._group, self._floor, held, real, asked=asked))
                if taught and kind == "domains":
                    rows["metrics"] |= _mean([self._cas(view.pixels, self.labels, held) for view in views])
            found.setdefault(kind, {})[name] = rows
        return found

    def protocol(self, generators: Mapping[str, ImageSource], sampling: Sampling) -> dict[str, Any]:
        """All that two figures must have in common to be compared."""
        averaged = {generator.ema > 0 for generator in generators.values()}
        return {
            "data": self.data,
            "code": features.CODE[:8],
            "features": self.lens.name,
            "classifier": self.classifier.name,
            "images": len(self.held),
            "reference": len(self.real),
            "sampling": _way(generators, sampling),
            "weights": " and ".join("average over rounds" if one else "raw" for one in sorted(averaged)),
            "seeds": list(range(self.told.seeds)),
        }

    def _kept(self, what: str, measure: Callable[[], Figures]) -> Figures:
        """Figures of real images alone: they are the same for every run on these images."""
        key = f"{what} {self.data} {self.lens.name} {self.classifier.name} {len(self.held)} {len(self.real)}"
        kept = features.recall("floor", key)
        if kept is None:
            kept = {name: torch.tensor(value, dtype=torch.float64) for name, value in measure().items()}
            features.remember("floor", key, kept)
        return {name: float(value) for name, value in kept.items()}

    def _group(self, view: View, held: Tensor, real: Tensor, *, asked: bool) -> Figures:
        mine, theirs = view.seen.features[held], self._real.features[real]
        figures: Figures = {
            "fid": metrics.Fid(theirs)(mine),
            "kid": metrics.kid(mine, theirs),
            **metrics.prdc(mine, theirs),
        }
        if asked and self.labelled:
            figures["label_match"] = metrics.label_match(view.known.logits[held], self.labels[held])
        return figures

    def _members(self, *, asked: bool) -> Iterator[tuple[str, str, Tensor, Tensor]]:
        """Kind and name of each group, and who is in it of the held-out and of the real images."""
        if len(self.silos) > 1:
            for i, name in enumerate(self.silos):
                yield "silos", name, self.held_silo == i, self.real_silo == i
        if asked and self.held.labels is not None and self.real.labels is not None:
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
        """A classifier trained on these images alone, tested on the held-out ones, all or those ``among`` them."""
        assert labels is not None  # asked of labelled images only
        if among is not None:
            pixels, labels = pixels[among], labels[among]
        steps = CAS_EPOCHS * math.ceil(len(pixels) / CAS_BATCH)
        network = features.trained(pixels, labels, len(self.real.classes), steps=steps, batch=CAS_BATCH)
        tested = slice(None) if among is None else among
        said = features.see(network, self.held.pixels[tested]).logits.argmax(1)
        return metrics.classification(said, self.labels[tested])

    def _spread(self, each: list[Figures], view: View, *, asked: bool) -> Figures:
        """The standard deviation over draws, or over resamples of the one draw."""
        if len(each) == 1:
            each = self._resamples(view, asked=asked)
        if len(each) < 2:
            return {}
        return {name: float(np.std([found[name] for found in each], ddof=1)) for name in each[0]}

    def _resamples(self, view: View, *, asked: bool) -> list[Figures]:
        """Figures of random halves: drawn without replacement they vary as whole draws do.

        With replacement, an image that comes twice makes FID and KID of a set that nobody drew.
        """
        rng, found = numpy_rng(0, "bootstrap"), []
        for _ in range(self.told.bootstrap):
            at = torch.from_numpy(rng.permutation(len(self.held))[: len(self.held) // 2])
            mine = view.seen.features[at]
            figures: Figures = {"fid": self._fid(mine), "kid": metrics.kid(mine, self._real.features)}
            if asked and self.labelled:
                figures["label_match"] = metrics.label_match(view.known.logits[at], self.labels[at])
            found.append(figures)
        return found

    def _notes(self, figures: Figures, floor: Figures) -> list[str]:
        notes = [caution] if (caution := verdict.caution(figures, floor)) else []
        share, dimensions = figures["memorised"], self._real.features.shape[1]
        if share > ALARM:
            notes.append(
                f"memorisation: {share:.0%} of the samples lie nearer to a training image than 95 % of the held-out "
                "images do (5 % is expected)"
            )
        if self.few:
            notes.append(
                f"FID: {len(self.held)} images in {dimensions} features have no full covariance; read it beside its "
                "floor, or KID"
            )
        return notes


def _mean(each: Sequence[Figures]) -> Figures:
    return {name: float(np.mean([found[name] for found in each])) for name in each[0]}


def _pool(parts: Sequence[Images]) -> tuple[Images, Tensor]:
    """The images of all silos in the order of their source, whoever holds them, and the number of the holder."""
    images = pooled(parts)
    holder = torch.arange(len(parts)).repeat_interleave(torch.tensor([len(part) for part in parts]))
    order = torch.arange(len(images)) if images.rows is None else torch.argsort(images.rows, stable=True)
    return images.subset(order.numpy()), holder[order]


def _drawn(images: Tensor) -> Tensor:
    """What a generator drew, as bytes: it keeps to [-1, 1], but may have learnt nothing finite."""
    if not bool(images.isfinite().all()):
        raise DataError("the generator draws images that are not finite")
    return as_bytes(images)


def _way(generators: Mapping[str, ImageSource], sampling: Sampling) -> dict[str, Any]:
    """How samples come to be: down a chain, by settings; at once; or, of an autoencoder, from images, by none."""
    if any(isinstance(generator, TrainedAutoencoder) for generator in generators.values()):
        return {}
    is_diffusion = any(getattr(generator, "is_diffusion", True) for generator in generators.values())
    return sampling.model_dump(mode="json") if is_diffusion else AT_ONCE


def _conditional(generators: Mapping[str, ImageSource]) -> bool:
    """Whether all of them can be asked for a class."""
    return all(generator.model.classes for generator in generators.values())


def _distinct(generators: Mapping[str, ImageSource]) -> dict[tuple[str, ...], ImageSource]:
    """Each generator once, by the silos that have it."""
    owners: dict[int, list[str]] = {}
    for silo, generator in generators.items():
        owners.setdefault(id(generator), []).append(silo)
    return {tuple(silos): generators[silos[0]] for silos in owners.values()}
