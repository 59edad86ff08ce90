"""A package of somebody else: a method, a model and a source of images, which recipes know by their kinds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

import manyhands as mh
from manyhands.methods.base import Conversation
from manyhands.seed import seeded_globally


class Stripes(mh.Source):
    """Images that are bright above or below."""

    kind: Literal["toy_stripes"] = Field(default="toy_stripes", description="Selects this kind of source.")
    count: int = Field(default=60, ge=2, description="The number of images.")

    def classes(self) -> tuple[str, ...]:
        return ("above", "below")

    def load(self, size: int, channels: int = 1, classes: tuple[str, ...] | None = None) -> mh.Images:
        labels = np.arange(self.count) % 2
        pixels = np.random.default_rng(0).integers(0, 90, (self.count, 8, 8), dtype=np.uint8)
        for image, label in zip(pixels, labels, strict=True):
            image[4 * label : 4 * label + 4] += np.uint8(150)
        names = self.classes() if classes is None else classes
        return mh.Images.from_arrays(pixels, labels, names, size=size, channels=channels)


class MixerModule(nn.Module):
    def __init__(self, spec: Mixer) -> None:
        super().__init__()
        self.spec, pixels = spec, spec.channels * spec.size**2
        self.labels = nn.Embedding(spec.classes + 1, spec.width)
        self.first, self.last = nn.Linear(pixels + 1, spec.width), nn.Linear(spec.width, pixels)

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        h = self.first(torch.cat([x_t.flatten(1), t[:, None] / 1000], dim=1))
        return self.last(torch.relu(h + self.labels(labels))).view_as(x_t)


class Mixer(mh.Denoiser):
    """A denoiser of two layers."""

    kind: Literal["toy_mixer"] = Field(default="toy_mixer", description="Selects this kind of model.")
    width: int = Field(default=16, ge=1, description="The number of hidden features.")

    def build(self, seed: int) -> MixerModule:
        with seeded_globally(seed, "mixer"):
            return MixerModule(self)


class MedianServer(mh.ServerWrapper):
    def accumulate(self, silo: str, message: mh.Message) -> mh.Accumulated:
        return mh.Accumulated(message)

    def handle_barrier(self, op: str, messages: Mapping[str, mh.Message]) -> Mapping[str, mh.Message]:
        if sent := {silo: message.tensors for silo, message in messages.items() if message.tensors}:
            silo = min(sent)
            median = {name: torch.stack([sent[one][name] for one in sent]).median(0).values for name in sent[silo]}
            self.inner.accumulate(silo, mh.Message(op, median, messages[silo].facts))
        return self.inner.handle_barrier(op, messages)


class Median(mh.WholeNetworkMethod):
    """The median of the silos' weights."""

    kind: Literal["toy_median"] = Field(default="toy_median", description="Selects this kind of method.")

    @property
    def fedavg(self) -> mh.FedAvg:
        return mh.FedAvg(
            model=self.model, training=self.training, diffusion=self.diffusion, rounds=self.rounds, ema=self.ema
        )

    def silo(self, silo: mh.Silo) -> Conversation:
        return self.fedavg.silo(silo)

    def plan(self) -> mh.Plan:
        return self.fedavg.plan()

    def server(self, seed: int, silos: Mapping[str, int]) -> mh.Server:
        return MedianServer(self.fedavg.server(seed, silos))
