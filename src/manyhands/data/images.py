"""Images and their labels. They are stored as bytes; a batch of them is in [-1, 1]."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from manyhands.data import arrays
from manyhands.data.ids import ids_to_hold_out, number_ids
from manyhands.data.rows import Rows, RowsFile, joined
from manyhands.errors import DataError
from manyhands.seed import numpy_rng

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Images:
    """N images as bytes, with their labels and the names of the classes.

    Large sets of pictures are in a file of the cache; what is chosen of them is read when it is used. ``pixels`` reads
    all of it, ``read`` some.

    Args:
        stored: The images, uint8, (N, C, H, W): a tensor, or rows of a file.
        labels: One class number for each image, (N,), or None.
        classes: The names of the classes, in the order of their numbers.
        domain: Which of several sources each image is from, (N,); None for a single source.
        rows: The row of each image in its source, (N,); None where it is the position here.
        held: Which images are held out from training, bool, (N,); None for no marks.
        skipped: Files that could not be read, with the reason.
        domains: The names of the sources, in the order of their numbers.
        ids: What the images of one patient, writer or slide share, as ``hash_ids`` returns it, (N,); None where it is
            not known.
    """

    stored: Tensor | Rows
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    domain: Tensor | None = None
    rows: Tensor | None = None
    held: Tensor | None = None
    skipped: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    ids: Tensor | None = None

    def __post_init__(self) -> None:
        if self.stored.dtype != torch.uint8 or len(self.shape) != 4:
            raise DataError(f"pixels are {self.stored.dtype} {self.shape}, not uint8 N x C x H x W")
        if self.held is not None and (self.held.dtype != torch.bool or self.held.shape != (len(self),)):
            raise DataError(
                f"the held-out marks are {self.held.dtype} {tuple(self.held.shape)}, not one bool for each of "
                f"{len(self)} images"
            )
        if self.ids is not None and self.ids.shape != (len(self),):
            raise DataError(f"{len(self)} images have {len(self.ids)} ids")
        if self.labels is None:
            return
        if self.labels.shape != (len(self),):
            raise DataError(f"{len(self)} images have {len(self.labels)} labels")
        if len(self) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            bad = int(self.labels.min()) if int(self.labels.min()) < 0 else int(self.labels.max())
            raise DataError(f"label {bad} is outside the {len(self.classes)} classes (0 to {len(self.classes) - 1})")

    @classmethod
    def from_arrays(
        cls,
        pixels: Any,
        labels: Any = None,
        classes: Sequence[str] | None = None,
        *,
        size: int | None = None,
        channels: int | None = None,
        value_range: tuple[float, float] | None = None,
    ) -> Self:
        """Make images of arrays or tensors.

        Args:
            pixels: The images, (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3, or a list of images.
            labels: One class number for each image, (N,), or None.
            classes: The names of the classes; None names them by their numbers, and empty leaves the labels out.
            size: The side to which all are cropped and resized; None for images that are square and of one size.
            channels: 1 for grey, 3 for RGB; None keeps the channels of the first.
            value_range: The values of black and of white; None for uint8 from 0 to 255, and for floats from -1 to 1
                of which some are negative. For all others it must be given.

        Raises:
            DataError: They are not such images, or not such labels.
        """
        made = torch.from_numpy(arrays.squares(pixels, size, channels, value_range))
        if labels is None and classes:
            raise DataError(f"there are names of {len(classes)} classes, but no labels")
        if labels is None or (classes is not None and not classes):
            return cls(made)
        numbers, names = arrays.label_numbers(labels, len(made), classes)
        return cls(made, torch.from_numpy(numbers), names)

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        classes: Sequence[str] | None = None,
        *,
        size: int | None = None,
        channels: int | None = None,
        value_range: tuple[float, float] | None = None,
    ) -> Self:
        """Make images of a map-style ``torch.utils.data.Dataset``, each of whose items is read once.

        Args:
            dataset: Its items are images, or pairs of an image and a class number; an image is an array, a tensor or a
                picture of Pillow.
            classes: The names of the classes; None takes ``dataset.classes``, or else their numbers.
            size: As in ``from_arrays``.
            channels: As in ``from_arrays``.
            value_range: As in ``from_arrays``: (0, 1) for what torchvision's ``ToTensor`` makes.

        Raises:
            DataError: Its items are not such images or pairs.
        """
        images, labels = arrays.items_of(dataset)
        if classes is None and labels is not None and hasattr(dataset, "classes"):
            classes = tuple(map(str, dataset.classes))
        options: dict[str, Any] = {"size": size, "channels": channels, "value_range": value_range}
        return cls.from_arrays(images, labels, classes, **options)

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def shape(self) -> tuple[int, ...]:
        """The number, channels, height and width of the images."""
        return tuple(self.stored.shape)

    @property
    def pixels(self) -> Tensor:
        """All images, uint8, (N, C, H, W). Those in a file are all read into memory."""
        return self.stored.read() if isinstance(self.stored, Rows) else self.stored

    @property
    def files(self) -> tuple[RowsFile, ...]:
        """The files that the images are in; () for images in memory."""
        parts = self.stored.parts if isinstance(self.stored, Rows) else ()
        return tuple(part for part in parts if isinstance(part, RowsFile))

    def read(self, numbers: Tensor | slice) -> Tensor:
        """Return the images with these numbers as bytes, (B, C, H, W)."""
        return self.stored.read(numbers) if isinstance(self.stored, Rows) else self.stored[numbers]

    def chunks(self) -> Iterator[Tensor]:
        """Return all images as bytes, as many at a time as memory has room for."""
        return self.stored.chunks() if isinstance(self.stored, Rows) else iter((self.stored,))

    def has_pixels_of(self, other: Images) -> bool:
        """Whether the images of another set are the same, in the same order."""
        size = 4096
        return self.shape == other.shape and all(
            torch.equal(*(images.read(slice(start, start + size)) for images in (self, other)))
            for start in range(0, len(self), size)
        )

    def __repr__(self) -> str:
        """Show number and size only, so that a log which shows a silo shows none of its pixels."""
        size = " x ".join(map(str, self.shape))
        return f"{type(self).__name__}({size}, {len(self.classes)} classes)"

    def subset(self, numbers: np.ndarray | Sequence[int]) -> Self:
        """Return the images with these numbers."""
        index = torch.as_tensor(numbers)
        rows = torch.arange(len(self)) if self.rows is None else self.rows
        labels = None if self.labels is None else self.labels[index]
        domain = None if self.domain is None else self.domain[index]
        held = None if self.held is None else self.held[index]
        ids = None if self.ids is None else self.ids[index]
        stored, rows = self.stored[index], rows[index]
        return replace(self, stored=stored, labels=labels, domain=domain, rows=rows, held=held, ids=ids)

    def hold_out(self, share: float) -> Self:
        """Mark a share of the images as held out: the same share of each class and each domain.

        The choice depends on the images alone. Runs with other seeds or other silos hold out the same images. Where
        images have ids, whole ids are held out, and the share of a class is only about the same.

        Args:
            share: The share to hold out, from 0 to 1.
        """
        if not 0 <= share <= 1:
            raise DataError(f"the share to hold out is {share:g}, 0 to 1 is expected")
        zeros = torch.zeros(len(self), dtype=torch.long)
        kinds = torch.stack([zeros if column is None else column for column in (self.labels, self.domain)], 1)
        if self.ids is not None and len(self):
            cells = kinds.unique(dim=0, return_inverse=True)[1].numpy()
            return replace(self, held=torch.from_numpy(ids_to_hold_out(number_ids(self.ids.numpy()), cells, share)))
        rng, held = numpy_rng(0, "held out"), torch.zeros(len(self), dtype=torch.bool)
        for kind in kinds.unique(dim=0):
            members = torch.nonzero((kinds == kind).all(1)).flatten()
            held[members[torch.from_numpy(rng.permutation(len(members))[: round(share * len(members))])]] = True
        return replace(self, held=held)

    def split_held_out(self) -> tuple[Self, Self]:
        """Return the images to train on, and the held-out images."""
        held = np.zeros(len(self), bool) if self.held is None else self.held.numpy()
        return self.subset(np.flatnonzero(~held)), self.subset(np.flatnonzero(held))

    def to(self, device: torch.device) -> Self:
        """Return the same images on another device."""
        labels = None if self.labels is None else self.labels.to(device)
        stored = self.stored if isinstance(self.stored, Rows) and device.type == "cpu" else self.pixels.to(device)
        return replace(self, stored=stored, labels=labels)

    def batch(self, numbers: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the images with these numbers in [-1, 1], (B, C, H, W), and their labels, (B,)."""
        return as_floats(self.read(numbers)), None if self.labels is None else self.labels[numbers]


def as_floats(pixels: Tensor) -> Tensor:
    """Convert bytes from 0 to 255 to floats in [-1, 1], of the same shape."""
    return pixels.float().div_(127.5).sub_(1)


def as_bytes(images: Tensor) -> Tensor:
    """Convert floats in [-1, 1] to bytes from 0 to 255, of the same shape; values outside are clamped, bytes kept."""
    if images.dtype == torch.uint8:
        return images
    return images.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def checked(images: Tensor) -> Tensor:
    """Return images as bytes, from bytes or from floats in [-1, 1].

    Args:
        images: A tensor of shape (N, C, H, W).

    Raises:
        DataError: For anything else; no value is wrapped or clamped in silence.
    """
    if not isinstance(images, torch.Tensor):
        raise DataError(f"images are of type {type(images).__name__}, not a tensor")
    if images.dim() != 4 or not len(images):
        raise DataError(f"images are {tuple(images.shape)}, not N x C x H x W")
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise DataError(f"images are {images.dtype}; floats in [-1, 1] or uint8 are expected")
    low, high = images.min().item(), images.max().item()
    if not -1 <= low <= high <= 1:
        raise DataError(f"images range from {low:g} to {high:g}; floats in [-1, 1] or uint8 are expected")
    if low >= 0 and high > low:
        raise DataError(f"images range from {low:g} to {high:g}, as if black were 0; floats in [-1, 1] are expected")
    return as_bytes(images)


def join(parts: Sequence[Images], names: Sequence[str] = ()) -> Images:
    """Join the images of several sources; ``domain`` says which source each image is from.

    Args:
        parts: The images of each source; their classes must be the same.
        names: The names of the sources.
    """
    domain = torch.cat([torch.full((len(part),), i) for i, part in enumerate(parts)])
    return replace(pooled(parts), domain=domain, rows=None, domains=tuple(names))


def pooled(parts: Sequence[Images]) -> Images:
    """Join the images of several silos.

    Labels, domains and rows are kept where every silo has them. Images that a silo holds out stay marked.
    """
    first = parts[0]
    if any(part.classes != first.classes for part in parts):
        raise DataError(f"the parts have different classes: {' / '.join(str(len(part.classes)) for part in parts)}")
    if len({part.labels is None for part in parts}) > 1:
        raise DataError("some parts have labels and some have none")
    columns = {name: [getattr(part, name) for part in parts] for name in ("labels", "domain", "rows", "held", "ids")}
    if any(part.held is not None for part in parts):
        columns["held"] = [
            torch.zeros(len(part), dtype=torch.bool) if part.held is None else part.held for part in parts
        ]
    known = {name: torch.cat(values) for name, values in columns.items() if all(value is not None for value in values)}
    skipped = tuple(name for part in parts for name in part.skipped)
    return Images(
        _stored_together([part.stored for part in parts]),
        classes=first.classes,
        skipped=skipped,
        domains=first.domains,
        **known,
    )


def _stored_together(parts: Sequence[Tensor | Rows]) -> Tensor | Rows:
    """Join images; those of files stay in them."""
    if not any(isinstance(part, Rows) for part in parts):
        return torch.cat(list(parts))  # type: ignore[arg-type] # all are tensors
    return joined([part if isinstance(part, Rows) else Rows([part]) for part in parts])
