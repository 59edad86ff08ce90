"""Images that can be computed exactly from recorded messages, without any training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from manyhands.diffusion.objective import noised
from manyhands.diffusion.schedule import Schedule
from manyhands.messages.message import Message

TOLERANCE = 1e-2
SEEDS = 300
PROBED = 32
MAX_NUMBERS = 1000


def unsafe_release(schedule: Schedule, x_0: Tensor, t: Tensor, rng: torch.Generator) -> Message:
    """A message that must never be sent: x_t, its noise and its step. It is a control that the audit must recover.

    References:
        CollaFuse: Navigating Limited Resources and Privacy in Collaborative Generative AI, Zipperling et al., 2024,
            arXiv 2402.19105 (the first code to it sent these three)
    """
    eps = torch.randn(x_0.shape, generator=rng)
    return Message("release", {"x": noised(x_0, eps, *schedule.levels(t, x_0)), "eps": eps, "t": t})


def recovered(messages: Sequence[Message], truth: Tensor, seeds: Iterable[int] = range(SEEDS)) -> dict[str, int]:
    """Count the true images that the messages contain, to 0.01 in every pixel: in all, and by each kind of leak.

    Whenever a noised image leaks exactly, it is a weighted sum of two known tensors: (x_t - sigma eps) / alpha,
    alpha x_t - sigma v or, where two releases share their noise,
    (sigma_s x_t - sigma_t x_s) / (alpha_t sigma_s - alpha_s sigma_t). Every pair of tensors is therefore tried with all
    weights at once, which covers all steps of all schedules. Rows are paired by their position or by their correlation.
    Noise also counts as known if it can be drawn again from a small seed or from an integer in the messages.

    Args:
        messages: The recorded messages.
        truth: The true images (N, C, H, W).
        seeds: The seeds that are tried.
    """
    images = truth.flatten(1).double()
    streams = _streams(messages, tuple(truth.shape[1:]))
    hits = {"alone": _alone(streams, images), "in_pairs": _in_pairs(streams, images)}
    hits["with_noise_from_seeds"] = _seeded(messages, tuple(truth.shape[1:]), images, {*seeds, *_integers(messages)})
    return {name: int(is_found.sum()) for name, is_found in hits.items()} | {
        "recovered": int(torch.stack(list(hits.values())).any(0).sum()),
        "of": len(truth),
    }


def in_plane(first: Tensor, second: Tensor, images: Tensor) -> Tensor:
    """Which images (N, D) are weighted sums of some row of the first (M, D) and the same row of the second (M, D)."""
    is_found = torch.zeros(len(images), dtype=torch.bool)
    e_1 = _unit(first)
    across = second - (e_1 * second).sum(1, keepdim=True) * e_1
    straight = across.norm(dim=1, keepdim=True) > 1e-6 * second.norm(dim=1, keepdim=True)
    e_2 = torch.where(straight, _unit(across), 0.0)
    coordinates_1, coordinates_2 = images @ e_1.T, images @ e_2.T
    residual = images.square().sum(1, keepdim=True) - coordinates_1.square() - coordinates_2.square()
    smallest, row = residual.min(1)
    likely = smallest < images.shape[1] * TOLERANCE**2
    estimate = coordinates_1.gather(1, row[:, None]) * e_1[row] + coordinates_2.gather(1, row[:, None]) * e_2[row]
    is_found[likely] = ((estimate - images).abs().amax(1) < TOLERANCE)[likely]
    return is_found


def _alone(streams: Sequence[Tensor], images: Tensor) -> Tensor:
    """The images that the messages contain as they are."""
    is_found = torch.zeros(len(images), dtype=torch.bool)
    for stream in streams:
        nearest = torch.cdist(images, stream).argmin(1)
        is_found |= (stream[nearest] - images).abs().amax(1) < TOLERANCE
    return is_found


def _in_pairs(streams: Sequence[Tensor], images: Tensor) -> Tensor:
    """The images that are sums of two recorded tensors, paired by position or by the strongest correlation."""
    is_found = torch.zeros(len(images), dtype=torch.bool)
    for i, first in enumerate(streams):
        for second in streams[i:]:
            is_found |= in_plane(first, second[_most_alike(first, second, same=first is second)], images)
            if len(first) == len(second) and first is not second:
                is_found |= in_plane(first, second, images)
    return is_found


def _seeded(messages: Sequence[Message], shape: tuple[int, ...], images: Tensor, seeds: set[int]) -> Tensor:
    """The images that are sums of a recorded tensor and of noise drawn again, all at once or row by row."""
    is_found = torch.zeros(len(images), dtype=torch.bool)
    noise_of_seeds = torch.stack([_noise(shape, seed).flatten() for seed in sorted(seeds)])
    for message in messages:
        for tensor in _pictures(message, shape):
            rows = tensor.flatten(1)
            is_found |= in_plane(rows, noise_of_seeds[_most_alike(rows, noise_of_seeds)], images)
            for noise in _drawn_again(message, tensor, seeds):
                if in_plane(rows[:PROBED], noise[:PROBED], images).any():
                    is_found |= in_plane(rows, noise, images)
    return is_found


def _drawn_again(message: Message, tensor: Tensor, seeds: set[int]) -> Iterator[Tensor]:
    """Noise for all rows at once from each seed, and for each row from the integer that was sent with it."""
    for seed in seeds:
        yield _noise(tuple(tensor.shape), seed).flatten(1)
    for numbers in message.tensors.values():
        if _whole(numbers) and numbers.shape == (len(tensor),):
            yield torch.stack([_noise(tuple(tensor.shape[1:]), int(number)).flatten() for number in numbers])


def _streams(messages: Sequence[Message], shape: tuple[int, ...]) -> list[Tensor]:
    """The rows of all image-shaped tensors, concatenated by operation and name in the order of sending."""
    rows: dict[tuple[str, int], list[Tensor]] = {}
    for message in messages:
        for place, tensor in enumerate(_pictures(message, shape)):
            rows.setdefault((message.op, place), []).append(tensor.flatten(1))
    return [torch.cat(parts) for parts in rows.values()]


def _pictures(message: Message, shape: tuple[int, ...]) -> list[Tensor]:
    """The tensors of a message that hold images, or noise of their shape, in the order of their names."""
    tensors = [message.tensors[name] for name in sorted(message.tensors)]
    fit = [tensor for tensor in tensors if tensor.is_floating_point() and tuple(tensor.shape[-len(shape) :]) == shape]
    return [tensor.detach().double().reshape(-1, *shape) for tensor in fit]


def _integers(messages: Sequence[Message]) -> set[int]:
    """The first 1,000 integers in facts and tensors that can be a seed."""
    numbers: dict[int, None] = {}
    for message in messages:
        numbers |= dict.fromkeys(_numbers(message.facts))
        for tensor in message.tensors.values():
            numbers |= dict.fromkeys(tensor.flatten().unique().tolist() if _whole(tensor) else [])
    return set([number for number in numbers if 0 <= number < 2**63][:MAX_NUMBERS])


def _numbers(fact: Any) -> Iterator[int]:
    if isinstance(fact, int) and not isinstance(fact, bool):
        yield fact
    elif isinstance(fact, Mapping):
        yield from (number for part in fact.values() for number in _numbers(part))
    elif isinstance(fact, (list, tuple)):
        yield from (number for part in fact for number in _numbers(part))


def _whole(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and not tensor.is_complex() and tensor.dtype is not torch.bool


def _noise(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def _most_alike(rows: Tensor, others: Tensor, same: bool = False) -> Tensor:
    """The row of ``others`` with the strongest correlation, of either sign; with ``same``, a row is not its own."""
    correlation = (_unit(rows) @ _unit(others).T).abs()
    if same:
        correlation.fill_diagonal_(-1)
    return correlation.argmax(1)


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=1)
