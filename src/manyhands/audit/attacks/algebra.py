"""What can be computed exactly from recorded messages, without any learning."""

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
    """What must never be sent, and lives here only, to show that the audit would see it: x_t, its noise and its step.

    References:
        CollaFuse: Navigating Limited Resources and Privacy in Collaborative Generative AI, Zipperling et al., 2024,
            arXiv 2402.19105 (the first code to it sent these three)
    """
    eps = torch.randn(x_0.shape, generator=rng)
    return Message("release", {"x": noised(x_0, eps, *schedule.levels(t, x_0)), "eps": eps, "t": t})


def recovered(messages: Sequence[Message], truth: Tensor, seeds: Iterable[int] = range(SEEDS)) -> dict[str, int]:
    """How many of the true images are in the messages, to 0.01 in every pixel: in all, and by each way to them.

    All exact leaks of a noised image are of one kind: two tensors are known of which it is a weighted sum. It is
    (x_t - sigma eps) / alpha, alpha x_t - sigma v, or, where two releases share their noise,
    (sigma_s x_t - sigma_t x_s) / (alpha_t sigma_s - alpha_s sigma_t). So it is looked for in the plane of every two
    tensors, which is all steps of all schedules at once. Rows belong together by their place or by their correlation;
    noise is known too where it can be drawn again from a small seed or from a whole number in the messages.
    """
    images = truth.flatten(1).double()
    streams = _streams(messages, tuple(truth.shape[1:]))
    found = {"alone": _alone(streams, images), "in_pairs": _in_pairs(streams, images)}
    found["with_noise_from_seeds"] = _seeded(messages, tuple(truth.shape[1:]), images, {*seeds, *_integers(messages)})
    return {name: int(which.sum()) for name, which in found.items()} | {
        "recovered": int(torch.stack(list(found.values())).any(0).sum()),
        "of": len(truth),
    }


def in_plane(first: Tensor, second: Tensor, images: Tensor) -> Tensor:
    """Which images are weighted sums of any row of the first and the same row of the second."""
    found = torch.zeros(len(images), dtype=torch.bool)
    e_1 = _unit(first)
    across = second - (e_1 * second).sum(1, keepdim=True) * e_1
    straight = across.norm(dim=1, keepdim=True) > 1e-6 * second.norm(dim=1, keepdim=True)
    e_2 = torch.where(straight, _unit(across), 0.0)
    along, beside = images @ e_1.T, images @ e_2.T
    left = images.square().sum(1, keepdim=True) - along.square() - beside.square()
    near, row = left.min(1)
    likely = near < images.shape[1] * TOLERANCE**2
    told = along.gather(1, row[:, None]) * e_1[row] + beside.gather(1, row[:, None]) * e_2[row]
    found[likely] = ((told - images).abs().amax(1) < TOLERANCE)[likely]
    return found


def _alone(streams: Sequence[Tensor], images: Tensor) -> Tensor:
    """Those that stand in the messages as they are."""
    found = torch.zeros(len(images), dtype=torch.bool)
    for stream in streams:
        nearest = torch.cdist(images, stream).argmin(1)
        found |= (stream[nearest] - images).abs().amax(1) < TOLERANCE
    return found


def _in_pairs(streams: Sequence[Tensor], images: Tensor) -> Tensor:
    """Those in the plane of two recorded tensors, by place or by the strongest correlation."""
    found = torch.zeros(len(images), dtype=torch.bool)
    for i, first in enumerate(streams):
        for second in streams[i:]:
            found |= in_plane(first, second[_most_alike(first, second, same=first is second)], images)
            if len(first) == len(second) and first is not second:
                found |= in_plane(first, second, images)
    return found


def _seeded(messages: Sequence[Message], shape: tuple[int, ...], images: Tensor, seeds: set[int]) -> Tensor:
    """Those in the plane of a recorded tensor and of noise that is drawn again, whole or row by row."""
    found = torch.zeros(len(images), dtype=torch.bool)
    each = torch.stack([_noise(shape, seed).flatten() for seed in sorted(seeds)])
    for message in messages:
        for tensor in _pictures(message, shape):
            rows = tensor.flatten(1)
            found |= in_plane(rows, each[_most_alike(rows, each)], images)
            for noise in _drawn_again(message, tensor, seeds):
                if in_plane(rows[:PROBED], noise[:PROBED], images).any():
                    found |= in_plane(rows, noise, images)
    return found


def _drawn_again(message: Message, tensor: Tensor, seeds: set[int]) -> Iterator[Tensor]:
    """Noise for all rows at once from each seed, and for each row from the whole number that came with it."""
    for seed in seeds:
        yield _noise(tuple(tensor.shape), seed).flatten(1)
    for numbers in message.tensors.values():
        if _whole(numbers) and numbers.shape == (len(tensor),):
            yield torch.stack([_noise(tuple(tensor.shape[1:]), int(number)).flatten() for number in numbers])


def _streams(messages: Sequence[Message], shape: tuple[int, ...]) -> list[Tensor]:
    """The rows of all image-shaped tensors, joined by operation and name in the order in which they were sent."""
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
    """The whole numbers in facts and tensors, the first 1,000 of them, that can be a seed."""
    known: dict[int, None] = {}
    for message in messages:
        known |= dict.fromkeys(_numbers(message.facts))
        for tensor in message.tensors.values():
            known |= dict.fromkeys(tensor.flatten().unique().tolist() if _whole(tensor) else [])
    return set([number for number in known if 0 <= number < 2**63][:MAX_NUMBERS])


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
    """The row of the others with the strongest correlation, of either sign; of the same rows, not itself."""
    alike = (_unit(rows) @ _unit(others).T).abs()
    if same:
        alike.fill_diagonal_(-1)
    return alike.argmax(1)


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=1)
