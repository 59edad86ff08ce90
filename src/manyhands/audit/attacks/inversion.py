"""Computes images and labels from the activations of a head whose weights are known, without training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from manyhands.audit.attacks.heads import Head
from manyhands.models.gan import SLOPE, BatchNorm, FromImage

TURNS, LOOKS = 200, 4
"""The maximum number of steps of the linear solver; how often the batch statistics are estimated."""


def solve_linear(head: Head, sent: Tensor) -> tuple[Tensor, Tensor | None] | None:
    """Solve by least squares, where the head is one block with batch norm: a convolution and two invertible steps.

    The block has more outputs than inputs, so that image and label plane are recovered together. The batch statistics
    are first those that came with the weights, then those of the recovered batch. None for other heads.

    References:
        Methods of Conjugate Gradients for Solving Linear Systems, Hestenes, Stiefel, 1952,
            Journal of Research of the National Bureau of Standards 49
    """
    first = head.blocks[0]
    if head.last or not isinstance(first, FromImage) or not isinstance(first.block[1], BatchNorm):  # type: ignore[index]
        return None
    calibrated, colours = head.as_last_known(), head.model.channels
    inputs = _least(calibrated, sent, None)
    labels = _nearest(inputs[:, colours:], first.embedding.weight) if first.embedding is not None else None
    for _ in range(LOOKS):
        calibrated = head.settled(inputs[:, :colours].clamp(-1, 1).float(), labels)
        inputs = _least(calibrated, sent, labels)
    return inputs[:, :colours].clamp(-1, 1).float(), labels


def solve_by_descent(head: Head, sent: Tensor, start: Tensor, labels: Tensor | None, steps: int) -> Tensor:
    """Minimise the squared error of a head's activations over its input images, with the statistics of the batch.

    References:
        On the Limited Memory BFGS Method for Large Scale Optimization, Liu, Nocedal, 1989, Mathematical Programming 45
    """
    x = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [x], max_iter=steps, history_size=20, line_search_fn="strong_wolfe",
        tolerance_grad=1e-12, tolerance_change=1e-14,
    )  # fmt: skip

    def objective() -> Tensor:
        optimiser.zero_grad()
        outside = (x.abs() - 1).clamp(min=0)
        loss: Tensor = (head(x, labels) - sent).square().sum() + outside.square().sum()
        loss.backward()
        return loss

    optimiser.step(objective)
    return x.detach().clamp(-1, 1)


@torch.no_grad()
def infer_labels(head: Head, sent: Tensor, images: Tensor) -> Tensor:
    """Infer the labels of known images: each label is tried, and the one with the nearest activations is taken.

    The batch statistics are first those that came with the weights, then those of the batch with the inferred labels.
    """
    calibrated = head.as_last_known()
    for _ in range(LOOKS):
        label_tensors = [torch.full((len(images),), label) for label in range(head.model.classes)]
        distances = torch.stack(
            [(calibrated(images, label) - sent).square().flatten(1).sum(1) for label in label_tensors], 1
        )
        labels = distances.argmin(1)
        calibrated = head.settled(images, labels)
    return labels


@torch.no_grad()
def nearest_candidates(head: Head, sent: Tensor, candidates: Tensor, labels: Tensor | None) -> Tensor:
    """The index of the candidate whose activations, with its label, are nearest to those that were sent (N,).

    Batch statistics are estimated as above. If they were known, no attack would be right more often under Gaussian
    noise.
    """
    calibrated, picked = head.as_last_known(), torch.zeros(len(sent), dtype=torch.long)
    label_of = torch.zeros(len(sent), dtype=torch.long) if labels is None else labels
    for _ in range(LOOKS):
        for label in label_of.unique():
            has_label, label_rows = label_of == label, label.expand(len(candidates))
            activations = calibrated(candidates, None if labels is None else label_rows)
            picked[has_label] = torch.cdist(sent[has_label].flatten(1), activations.flatten(1)).argmin(1)
        calibrated = head.settled(candidates[picked], labels)
    return picked


def _least(head: Head, sent: Tensor, labels: Tensor | None) -> Tensor:
    """The input of the first convolution: images, and their label planes where the labels are not known."""
    first: Any = head.blocks[0]
    weight, scale, offset = _affine(first.block[0], first.block[1])
    wanted = torch.where(sent > 0, sent, sent / SLOPE).double() - offset
    if labels is not None:
        side, colours = head.model.size, head.model.channels
        planes = first.embedding(labels).double().reshape(-1, 1, side, side)
        wanted = wanted - scale * F.conv2d(planes, weight[:, colours:], stride=2, padding=1)
        weight = weight[:, :colours]

    def convolve(v: Tensor) -> Tensor:
        return scale * F.conv2d(v, weight, stride=2, padding=1)

    def transpose(v: Tensor) -> Tensor:
        return F.conv_transpose2d(scale * v, weight, stride=2, padding=1)

    return _conjugate(lambda v: transpose(convolve(v)), transpose(wanted))


def _affine(conv: Any, norm: Any) -> tuple[Tensor, Tensor, Tensor]:
    """A convolution without its bias, and the scale and offset of each channel by bias and fixed batch norm."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    offset = norm.bias + scale * (conv.bias - norm.running_mean)
    return conv.weight.double(), scale.double().reshape(-1, 1, 1), offset.double().reshape(-1, 1, 1)


def _conjugate(normal: Callable[[Tensor], Tensor], wanted: Tensor) -> Tensor:
    """Solve a linear system for each image, by conjugate gradients."""
    x, residual = torch.zeros_like(wanted), wanted
    direction, size = residual, _squares(residual)
    tolerance = 1e-14 * size.clamp(min=1e-30)
    for _ in range(TURNS):
        if not bool((size > tolerance).any()):
            break
        product = normal(direction)
        step = size / (direction * product).flatten(1).sum(1).clamp(min=1e-300)
        step = torch.where(size > tolerance, step, 0.0)
        x, residual = x + _each(step) * direction, residual - _each(step) * product
        previous, size = size, _squares(residual)
        direction = residual + _each(size / previous.clamp(min=1e-300)) * direction
    return x


def _squares(x: Tensor) -> Tensor:
    return x.square().flatten(1).sum(1)


def _each(numbers: Tensor) -> Tensor:
    return numbers.reshape(-1, 1, 1, 1)


def _nearest(planes: Tensor, rows: Tensor) -> Tensor:
    return torch.cdist(planes.flatten(1).double(), rows.double()).argmin(1)
