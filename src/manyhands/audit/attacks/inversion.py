"""From what a head of known weights sends back to images and labels, by computing alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from manyhands.audit.attacks.heads import Head
from manyhands.models.gan import SLOPE, BatchNorm, FromImage

TURNS, LOOKS = 200, 4
"""The most steps of a system of equations; how often batch statistics are computed anew."""


def solved(head: Head, sent: Tensor) -> tuple[Tensor, Tensor | None] | None:
    """By least squares, where the head is one block with batch norm: a convolution, and two steps that can be undone.

    It has more numbers out than in, so that image and label plane come back together. The statistics are first those
    that came with the weights, then those of the batch that was found.

    References:
        Methods of Conjugate Gradients for Solving Linear Systems, Hestenes, Stiefel, 1952,
            Journal of Research of the National Bureau of Standards 49
    """
    first = head.blocks[0]
    if head.last or not isinstance(first, FromImage) or not isinstance(first.block[1], BatchNorm):  # type: ignore[index]
        return None
    known, colours = head.as_last_known(), head.model.channels
    found = _least(known, sent, None)
    labels = _nearest(found[:, colours:], first.embedding.weight) if first.embedding is not None else None
    for _ in range(LOOKS):
        known = head.settled(found[:, :colours].clamp(-1, 1).float(), labels)
        found = _least(known, sent, labels)
    return found[:, :colours].clamp(-1, 1).float(), labels


def descended(head: Head, sent: Tensor, start: Tensor, labels: Tensor | None, steps: int) -> Tensor:
    """By least squares through any head: the images of which it makes what was sent, statistics of the batch and all.

    References:
        On the Limited Memory BFGS Method for Large Scale Optimization, Liu, Nocedal, 1989, Mathematical Programming 45
    """
    x = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [x], max_iter=steps, history_size=20, line_search_fn="strong_wolfe",
        tolerance_grad=1e-12, tolerance_change=1e-14,
    )  # fmt: skip

    def misfit() -> Tensor:
        optimiser.zero_grad()
        outside = (x.abs() - 1).clamp(min=0)
        loss: Tensor = (head(x, labels) - sent).square().sum() + outside.square().sum()
        loss.backward()
        return loss

    optimiser.step(misfit)
    return x.detach().clamp(-1, 1)


@torch.no_grad()
def labelled(head: Head, sent: Tensor, images: Tensor) -> Tensor:
    """The labels that were sent with known images: each is tried, and the nearest taken.

    The statistics are first those that came with the weights, then those of the batch with the labels found.
    """
    known = head.as_last_known()
    for _ in range(LOOKS):
        tried = [torch.full((len(images),), label) for label in range(head.model.classes)]
        apart = torch.stack([(known(images, label) - sent).square().flatten(1).sum(1) for label in tried], 1)
        labels = apart.argmin(1)
        known = head.settled(images, labels)
    return labels


@torch.no_grad()
def nearest(head: Head, sent: Tensor, candidates: Tensor, labels: Tensor | None) -> Tensor:
    """The number of the candidate of which the head makes what is nearest to what was sent, with its label.

    Statistics as above. Were they known, nothing would find the right one more often under Gaussian noise.
    """
    known, found = head.as_last_known(), torch.zeros(len(sent), dtype=torch.long)
    told = torch.zeros(len(sent), dtype=torch.long) if labels is None else labels
    for _ in range(LOOKS):
        for label in told.unique():
            mine, same = told == label, label.expand(len(candidates))
            made = known(candidates, None if labels is None else same)
            found[mine] = torch.cdist(sent[mine].flatten(1), made.flatten(1)).argmin(1)
        known = head.settled(candidates[found], labels)
    return found


def _least(head: Head, sent: Tensor, labels: Tensor | None) -> Tensor:
    """What goes into the first convolution: images, and the planes of their labels where those are not known."""
    first: Any = head.blocks[0]
    weight, scale, offset = _affine(first.block[0], first.block[1])
    wanted = torch.where(sent > 0, sent, sent / SLOPE).double() - offset
    if labels is not None:
        side, colours = head.model.size, head.model.channels
        planes = first.embedding(labels).double().reshape(-1, 1, side, side)
        wanted = wanted - scale * F.conv2d(planes, weight[:, colours:], stride=2, padding=1)
        weight = weight[:, :colours]

    def there(v: Tensor) -> Tensor:
        return scale * F.conv2d(v, weight, stride=2, padding=1)

    def back(v: Tensor) -> Tensor:
        return F.conv_transpose2d(scale * v, weight, stride=2, padding=1)

    return _conjugate(lambda v: back(there(v)), back(wanted))


def _affine(conv: Any, norm: Any) -> tuple[Tensor, Tensor, Tensor]:
    """A convolution without its bias, and what it and a norm of fixed statistics do to each channel after it."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    offset = norm.bias + scale * (conv.bias - norm.running_mean)
    return conv.weight.double(), scale.double().reshape(-1, 1, 1), offset.double().reshape(-1, 1, 1)


def _conjugate(normal: Callable[[Tensor], Tensor], wanted: Tensor) -> Tensor:
    """The solution of a system of equations for each image, by conjugate gradients."""
    x, left = torch.zeros_like(wanted), wanted
    way, size = left, _squares(left)
    enough = 1e-14 * size.clamp(min=1e-30)
    for _ in range(TURNS):
        if not bool((size > enough).any()):
            break
        across = normal(way)
        step = size / (way * across).flatten(1).sum(1).clamp(min=1e-300)
        step = torch.where(size > enough, step, 0.0)
        x, left = x + _each(step) * way, left - _each(step) * across
        before, size = size, _squares(left)
        way = left + _each(size / before.clamp(min=1e-300)) * way
    return x


def _squares(x: Tensor) -> Tensor:
    return x.square().flatten(1).sum(1)


def _each(numbers: Tensor) -> Tensor:
    return numbers.reshape(-1, 1, 1, 1)


def _nearest(planes: Tensor, rows: Tensor) -> Tensor:
    return torch.cdist(planes.flatten(1).double(), rows.double()).argmin(1)
