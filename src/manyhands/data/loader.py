"""Batches of images on a device, which come while the network still trains on the batch before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from manyhands.data.images import Images, as_floats

MAX_DEVICE_BYTES = 1 << 30
"""The most bytes of images in a file that a GPU keeps as a whole; of more, it gets each batch."""


class FetchedBatch(NamedTuple):
    """A batch on its way.

    Args:
        pixels: The images as bytes, (B, C, H, W).
        labels: Their labels, (B,), or None.
        copied: What has happened when they are on the device; None where nothing is copied.
    """

    pixels: Tensor
    labels: Tensor | None
    copied: torch.cuda.Event | None


class BatchLoader:
    """Gives batches of images on a device.

    On CUDA, images of a file that is too large for it stay there: a thread reads the next of the announced batches
    into pinned memory, and has it copied, while the network trains on this one. It is always the batch that was asked
    for; a batch that was not announced is read when it is.

    Args:
        images: The images.
        device: The device that batches are for.
        max_device_bytes: The most bytes of images in a file that the device keeps as a whole.
        threaded: Whether announced batches come by a thread; None does so where a GPU gets each batch.
    """

    def __init__(
        self,
        images: Images,
        device: torch.device,
        *,
        max_device_bytes: int = MAX_DEVICE_BYTES,
        threaded: bool | None = None,
    ) -> None:
        is_remote = bool(images.files) and device.type != "cpu" and math.prod(images.shape) > max_device_bytes
        self._host_images, self._device, self._is_remote = images, device, is_remote
        self._threaded = is_remote and device.type == "cuda" if threaded is None else threaded
        self._stream = torch.cuda.Stream(device) if is_remote and device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, "batches") if self._threaded else None
        self._announced: list[Tensor] = []
        self._places: dict[tuple[int, int], int] = {}
        self._next: tuple[int, Future[FetchedBatch]] | None = None

    def announce(self, batches: Sequence[Tensor]) -> None:
        """Say which batches come next, by the numbers of their images, (B,) each, in order."""
        if self._thread is not None:
            self._announced = [numbers.cpu() for numbers in batches]  # now: later it would wait for the network
            self._places = {_key(numbers): place for place, numbers in enumerate(batches)}
            self._kept = list(batches)  # no other tensor can have their addresses
            self._next = None

    def batch(self, numbers: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the images with these numbers in [-1, 1], (B, C, H, W), and their labels, (B,), on the device."""
        place = self._places.get(_key(numbers))
        if place is not None:
            return self._arrived(self._announced_batch(place))
        return self._arrived(self._fetch(numbers.cpu())) if self._is_remote else self._images.batch(numbers)

    @cached_property
    def _images(self) -> Images:
        """The images, moved to the device when they are first asked for, if they go there as a whole."""
        return self._host_images if self._is_remote else self._host_images.to(self._device)

    def _announced_batch(self, place: int) -> FetchedBatch:
        assert self._thread is not None, "without a thread there is no place"
        waiting = self._next
        fetched = waiting[1].result() if waiting and waiting[0] == place else self._fetch(self._announced[place])
        if place + 1 < len(self._announced):
            self._next = place + 1, self._thread.submit(self._fetch, self._announced[place + 1])
        return fetched

    def _fetch(self, numbers: Tensor) -> FetchedBatch:
        pixels, labels = self._images.read(numbers), self._images.labels
        labels = None if labels is None else labels[numbers]
        if self._stream is None:
            return FetchedBatch(pixels.to(self._device), None if labels is None else labels.to(self._device), None)
        with torch.cuda.stream(self._stream):
            pixels = pixels.pin_memory().to(self._device, non_blocking=True)
            labels = None if labels is None else labels.pin_memory().to(self._device, non_blocking=True)
            return FetchedBatch(pixels, labels, self._stream.record_event())

    def _arrived(self, fetched: FetchedBatch) -> tuple[Tensor, Tensor | None]:
        if fetched.copied is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(fetched.copied)
            for tensor in (fetched.pixels, fetched.labels):
                if tensor is not None:
                    tensor.record_stream(stream)
        return as_floats(fetched.pixels), fetched.labels


def _key(numbers: Tensor) -> tuple[int, int]:
    """What the numbers of a batch are known by, without reading them from the device."""
    return numbers.data_ptr(), len(numbers)
