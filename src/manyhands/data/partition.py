"""How images are dealt to silos: pure functions of labels, silo count and a random generator.

Each gives one array of image numbers for each silo. Together they hold every image once, and none has fewer than
``minimum``: where the draw leaves one with fewer, the largest silo gives it random images of its own. Only
``by_attributes`` and ``lacking`` may leave images out, and only the first of them deals one to several silos.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from manyhands.data.attributes import read_attributes
from manyhands.data.idx import read_idx
from manyhands.data.images import Images
from manyhands.errors import DataError
from manyhands.seed import numpy_rng
from manyhands.spec import Float, Int, Spec

Parts = list[np.ndarray]
Shares = Sequence[tuple[float, float]]


def iid(labels: np.ndarray, silos: int, rng: np.random.Generator, minimum: int = 1) -> Parts:
    """Equal shares at random."""
    return _top_up(np.array_split(rng.permutation(len(labels)), silos), rng, minimum)


def dirichlet(labels: np.ndarray, silos: int, rng: np.random.Generator, alpha: float, minimum: int = 1) -> Parts:
    """Each class is dealt by shares from a symmetric Dirichlet distribution; small alpha, skewed silos.

    References:
        Measuring the Effects of Non-Identical Data Distribution, Hsu, Qi, Brown, 2019, arXiv 1909.06335
    """
    parts: list[list[np.ndarray]] = [[] for _ in range(silos)]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        for part, chunk in zip(parts, _cut(members, rng.dirichlet([alpha] * silos)), strict=True):
            part.append(chunk)
    return _top_up([np.concatenate(part) for part in parts], rng, minimum)


def shards(labels: np.ndarray, silos: int, rng: np.random.Generator, classes_per_silo: int, minimum: int = 1) -> Parts:
    """Sorted by label and cut into equal shards, so many to a silo: few classes each.

    References:
        Communication-Efficient Learning of Deep Networks from Decentralized Data, McMahan et al., 2017,
            arXiv 1602.05629
    """
    shuffled = rng.permutation(len(labels))
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    pieces = np.array_split(by_label, silos * classes_per_silo)
    order = rng.permutation(len(pieces)).reshape(silos, classes_per_silo)
    return _top_up([np.concatenate([pieces[i] for i in row]) for row in order], rng, minimum)


def quantity(labels: np.ndarray, silos: int, rng: np.random.Generator, alpha: float, minimum: int = 1) -> Parts:
    """The same mix everywhere, but silo sizes from a Dirichlet distribution; small alpha, unequal silos."""
    return _top_up(_cut(rng.permutation(len(labels)), rng.dirichlet([alpha] * silos)), rng, minimum)


def by_id(ids: np.ndarray, silos: int, rng: np.random.Generator, minimum: int = 1) -> Parts:
    """Every id (a writer, a patient) goes whole to one silo; the smallest silo takes the next id."""
    groups, counts = np.unique(ids, return_counts=True)
    if len(groups) < silos:
        raise DataError(f"{len(groups)} ids cannot fill {silos} silos")
    sizes, owner = np.zeros(silos, dtype=int), np.empty(len(groups), dtype=int)
    for group in rng.permutation(len(groups)):
        owner[group] = int(sizes.argmin())
        sizes[owner[group]] += counts[group]
    if sizes.min() < minimum:
        raise DataError(f"a silo would have {sizes.min()} images, fewer than the minimum of {minimum}: use fewer silos")
    silo_of = owner[np.searchsorted(groups, ids)]
    return [np.flatnonzero(silo_of == silo) for silo in range(silos)]


def domains(domain: np.ndarray, silos: int, rng: np.random.Generator, minimum: int = 1) -> Parts:
    """Each silo has images of one source only; a source with several silos deals them equal shares."""
    sources = np.unique(domain)
    if silos % len(sources):
        raise DataError(f"{silos} silos cannot be shared evenly by {len(sources)} sources")
    parts: Parts = []
    for source in sources:
        members = rng.permutation(np.flatnonzero(domain == source))
        parts += _top_up(np.array_split(members, silos // len(sources)), rng, minimum)
    return parts


def by_attributes(
    fits: np.ndarray, rng: np.random.Generator, *, overlap: bool = False, each: int | None = None, minimum: int = 1
) -> Parts:
    """Each silo takes images that fit it (images x silos), ``each`` of them at most; what fits none is left out.

    An image that fits several silos goes to one of them at random, or where they ``overlap`` to all.
    """
    if not overlap:
        owner = np.where(fits, rng.random(fits.shape), -1).argmax(1)
        fits = fits & (owner[:, None] == np.arange(fits.shape[1]))
    parts = [np.sort(rng.permutation(np.flatnonzero(mine))[:each]) for mine in fits.T]
    for silo, part in enumerate(parts):
        if len(part) < minimum:
            raise DataError(f"silo {silo} would have {len(part)} images, fewer than the minimum of {minimum}")
    return parts


def lacking(
    labels: np.ndarray,
    held: np.ndarray,
    domain: np.ndarray,
    silos: int,
    rng: np.random.Generator,
    lacks: Shares,
    sizes: Shares,
    each: int,
    minimum: int = 1,
) -> Parts:
    """Equal shares of one domain each; of them each silo loses some classes, and what is beyond a share of ``each``.

    Images that are ``held`` out stay. ``lacks`` and ``sizes`` are pairs: how many classes a silo lacks with which
    weight, and the share of silos that have which share of ``each``.
    """
    parts, classes = domains(domain, silos, rng), np.unique(labels)
    numbers, weights = (np.array(each) for each in zip(*lacks, strict=True))
    shares = np.repeat([size for _, size in sizes], _counts([share for share, _ in sizes], silos))
    for silo, (part, share) in enumerate(zip(parts, rng.permutation(shares), strict=True)):
        gone = rng.choice(classes, int(rng.choice(numbers, p=weights / weights.sum())), replace=False)
        train = rng.permutation(part[~held[part] & ~np.isin(labels[part], gone)])[: round(share * each)]
        if len(train) < minimum:
            raise DataError(f"silo {silo} would have {len(train)} images, fewer than the minimum of {minimum}")
        parts[silo] = np.sort(np.concatenate([train, part[held[part]]]))
    return parts


def _counts(shares: Sequence[float], total: int) -> list[int]:
    """Whole numbers in proportion to shares, with this total."""
    ends = np.rint(np.cumsum(shares) / sum(shares) * total).astype(int)
    return [int(count) for count in np.diff(ends, prepend=0)]


def _cut(numbers: np.ndarray, shares: np.ndarray) -> Parts:
    """Cut an array in proportion to shares that sum to 1."""
    return np.split(numbers, np.rint(np.cumsum(shares)[:-1] * len(numbers)).astype(int))


def _top_up(parts: Parts, rng: np.random.Generator, minimum: int) -> Parts:
    total = sum(map(len, parts))
    if total < minimum * len(parts):
        raise DataError(f"{total} images cannot give {len(parts)} silos {minimum} each")
    for i in range(len(parts)):
        while (short := minimum - len(parts[i])) > 0:
            largest = max(range(len(parts)), key=lambda k: len(parts[k]))
            given, kept = np.split(rng.permutation(parts[largest]), [min(short, len(parts[largest]) - minimum)])
            parts[i], parts[largest] = np.concatenate([parts[i], given]), kept
    return [np.sort(part) for part in parts]


class Partition(Spec, ABC):
    """How many silos there are, and how images are dealt to them."""

    silos: Int = Field(default=5, ge=1, le=100_000)
    minimum: Int = Field(default=1, ge=1)

    @abstractmethod
    def parts(self, images: Images, rng: np.random.Generator) -> Parts:
        """The image numbers of each silo."""

    def names(self, domains: Sequence[str] = ()) -> list[str]:
        """What the silos are called, in the order of their parts.

        Of one domain each, they have its name: ``mayo``, or where it has several ``mayo-0``, ``mayo-1``; others are
        ``silo-0``, ``silo-1``. All numbers are equally long.
        """
        if not domains:
            return _numbered("silo", self.silos)
        each = self.silos // len(domains)
        return list(domains) if each == 1 else [name for domain in domains for name in _numbered(domain, each)]


class Iid(Partition):
    """Equal shares at random."""

    kind: Literal["iid"] = "iid"

    def parts(self, images: Images, rng: np.random.Generator) -> Parts:
        """See ``iid``."""
        return iid(np.zeros(len(images)), self.silos, rng, self.minimum)


class Dirichlet(Partition):
    """Skewed classes; ``alpha`` 0.1 is strong, 5 is weak."""

    kind: Literal["dirichlet"] = "dirichlet"
    alpha: Float = Field(gt=0)

    def parts(self, images: Images, rng: np.random.Generator) -> Parts:
        """See ``dirichlet``."""
        return dirichlet(_labels_of(images), self.silos, rng, self.alpha, self.minimum)


class Shards(Partition):
    """A few classes for each silo."""

    kind: Literal["shards"] = "shards"
    classes_per_silo: Int = Field(default=2, ge=1, le=10_000)

    def parts(self, images: Images, rng: np.random.Generator) -> Parts:
        """See ``shards``."""
        return shards(_labels_of(images), self.silos, rng, self.classes_per_silo, self.minimum)


class Quantity(Partition):
    """Unequal sizes, equal mix."""

    kind: Literal["quantity"] = "quantity"
    alpha: Float = Field(gt=0)

    def parts(self, images: Images, rng: np.random.Generator) -> Parts:
        """See ``quantity``."""
        return quantity(np.zeros(len(images)), self.silos, rng, self.alpha, self.minimum)


class ById(Partition):
    """By a file with an id for each image: an idx file (``column`` of it), or text with one id a line."""

    kind: Literal["by_id"] = "by_id"
    ids: Path
    column: Int = Field(default=0, ge=0)

    def parts(self, images: Images, rng: np.random.Generator) -> Parts:
        """See ``by_id``."""
        ids = _told_of(images, self._read(), self.ids, "ids")
        return by_id(ids, self.silos, rng, self.minimum)

    def _read(self) -> np.ndarray:
        if self.ids.suffix in {".txt", ".csv"}:
            try:
                lines = [line for line in self.ids.read_text().splitlines() if line.strip()]
                return np.array([line.split(",")[self.column].strip() for line in lines])
            except (OSError, UnicodeDecodeError, IndexError) as error:
                raise DataError(f"{self.ids}: has no column {self.column} of ids: {error}") from None
        table = read_idx(self.ids)
        if table.ndim > 2 or (table.ndim == 2 and self.column >= table.shape[1]):
            raise DataError(f"{self.ids}: holds an array of shape {table.shape}, which has no column {self.column}")
        return table if table.ndim == 1 else table[:, self.column]


class ByAttributes(Partition):
    """By a file that says which attributes each image has, CelebA's list or a CSV: a group of attributes for each silo.

    A silo has the images with at least one of its attributes, ``each`` of them at most. One that several silos could
    have goes to one of them at random, or where they ``overlap`` to all. Who holds what does not depend on the run's
    seed: with other images left out, its figures could not be held against those of other seeds.

    References:
        CollaFuse: Collaborative Diffusion Models, Allmendinger, Zipperling, Struppek, Kuehl, 2024, arXiv 2406.14429
        Deep Learning Face Attributes in the Wild, Liu, Luo, Wang, Tang, 2015, arXiv 1411.7766
    """

    kind: Literal["attributes"] = "attributes"
    file: Path
    groups: tuple[Annotated[tuple[str, ...], Field(min_length=1)], ...] = Field(min_length=1)
    overlap: bool = False
    each: Int | None = Field(default=None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _a_silo_for_each_group(cls, told: Any) -> Any:
        groups = told.get("groups") if isinstance(told, dict) else None
        return {"silos": len(groups), **told} if isinstance(groups, list | tuple) and groups else told

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.silos != len(self.groups):
            raise ValueError(f"silos is {self.silos}, but there are {len(self.groups)} groups of attributes")
        if self.each is not None and self.each < self.minimum:
            raise ValueError(f"each is {self.each}, fewer than the minimum of {self.minimum}")
        return self

    def parts(self, images: Images, rng: np.random.Generator) -> Parts:
        """See ``by_attributes``."""
        fits = self._of(images, self.groups)
        own = numpy_rng(0, "attributes")
        return by_attributes(fits, own, overlap=self.overlap, each=self.each, minimum=self.minimum)

    def known(self, images: Images) -> tuple[tuple[str, ...], np.ndarray]:
        """The names of all attributes of the groups, and whether each image has each."""
        names = tuple(dict.fromkeys(name for group in self.groups for name in group))
        return names, self._of(images, [(name,) for name in names])

    def _of(self, images: Images, groups: Sequence[Sequence[str]]) -> np.ndarray:
        told = read_attributes(self.file)
        return _told_of(images, np.stack([told.any_of(group) for group in groups], 1), self.file, "rows")


class Domains(Partition):
    """Each silo has one of the sources under [data.domains], and its name; without ``silos`` there is one of each."""

    kind: Literal["domains"] = "domains"
    silos: Int = Field(default=0, ge=0, le=100_000)

    def parts(self, images: Images, rng: np.random.Generator) -> Parts:
        """See ``domains``."""
        if images.domain is None:
            raise DataError("partition 'domains' needs several sources, under [data.domains.<name>]")
        if not (self.silos or images.domains):
            raise DataError("the domains of these images have no names: say how many silos there are")
        return domains(_domain_of(images), self.silos or len(images.domains), rng, self.minimum)

    def names(self, domains: Sequence[str] = ()) -> list[str]:
        """As ever, with one silo a domain where it is not said how many."""
        return super().names(domains) if self.silos else list(domains)


class Lacking(Partition):
    """Silos of one domain each that lack whole classes, and have but a part of ``each`` images, as HuSCF-GAN has them.

    A silo lacks so many classes with such a weight: ``lacks = [[0, 0.3], [2, 0.7]]``. Such a share of the silos has
    such a share of ``each``: ``sizes = [[0.3, 0.67], [0.7, 1]]``. What is held out is dealt evenly, of all classes. Who
    holds what does not depend on the run's seed.

    References:
        A Distributed Generative AI Approach for Heterogeneous Multi-Domain Environments under Data Sharing constraints,
            Tawfilis et al., 2025, arXiv 2507.12979
    """

    kind: Literal["lacking"] = "lacking"
    each: Int = Field(ge=1)
    lacks: tuple[tuple[Int, Annotated[Float, Field(gt=0)]], ...] = Field(default=((0, 1.0),), min_length=1)
    sizes: tuple[tuple[Annotated[Float, Field(gt=0)], Annotated[Float, Field(gt=0, le=1)]], ...] = Field(
        default=((1.0, 1.0),), min_length=1
    )

    def parts(self, images: Images, rng: np.random.Generator) -> Parts:
        """See ``lacking``."""
        labels, nothing = _labels_of(images), np.zeros(len(images), dtype=int)
        if (most := max(number for number, _ in self.lacks)) >= len(np.unique(labels)):
            raise DataError(f"a silo would lack {most} of {len(np.unique(labels))} classes")
        held = nothing.astype(bool) if images.held is None else images.held.numpy()
        domain, own = _domain_of(images), numpy_rng(0, "lacking")
        return lacking(labels, held, domain, self.silos, own, self.lacks, self.sizes, self.each, self.minimum)


AnyPartition = Annotated[
    Iid | Dirichlet | Shards | Quantity | ById | ByAttributes | Domains | Lacking, Field(discriminator="kind")
]


def _told_of(images: Images, told: np.ndarray, path: Path, what: str) -> np.ndarray:
    """What a file with a row for each image of the source says of these images."""
    rows = np.arange(len(images)) if images.rows is None else images.rows.numpy()
    if (images.rows is None and len(told) != len(images)) or rows.max() >= len(told):
        raise DataError(f"{path}: has {len(told):,} {what} for {rows.max() + 1:,} images")
    return told[rows]


def _numbered(name: str, count: int) -> list[str]:
    width = len(str(count - 1))
    return [f"{name}-{i:0{width}d}" for i in range(count)]


def _domain_of(images: Images) -> np.ndarray:
    """The number of each image's domain: 0 where there is one only. No domain may be without images."""
    domain = np.zeros(len(images), dtype=int) if images.domain is None else images.domain.numpy()
    if empty := [name for number, name in enumerate(images.domains) if number not in domain]:
        raise DataError(f"of domain {empty[0]!r} there are no images: a larger data.limit may help")
    return domain


def _labels_of(images: Images) -> np.ndarray:
    if images.labels is None:
        raise DataError("this partition deals by label, and these images have none; use iid, quantity or by_id")
    return images.labels.numpy()


def class_counts(silos: list[Images]) -> np.ndarray:
    """How many images of each class each silo has: silos x classes; one column where there are no labels."""
    return np.array(
        [
            [len(images)] if images.labels is None else np.bincount(images.labels.cpu(), minlength=len(images.classes))
            for images in silos
        ]
    )
