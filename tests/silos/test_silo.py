"""What a silo holds out: by its images' own marks, whoever built it, and on every path that trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from manyhands import Autoencoder, Experiment, Images, Silo
from manyhands.data.images import pooled
from manyhands.data.partition.base import class_counts
from manyhands.errors import DataError
from manyhands.methods.base import AnyMethod, Method
from manyhands.methods.learners.latent import encode
from manyhands.models.autoencoder import TrainedAutoencoder
from manyhands.registry import METHODS
from manyhands.runs.summary import images_of
from manyhands.tensors import sha256
from tests.conftest import tiny_images

UNET = {"kind": "unet", "size": 8, "channels": 1, "classes": 2, "widths": [8]}
GAN = {"kind": "gan", "size": 16, "channels": 1, "classes": 2, "latent": 4, "width": 4}
AUTOENCODER = Autoencoder(size=8, channels=1, latent=2, widths=(8, 8))
CUT = {"kind": "collafuse", "cut": 0.4, "labels": "share", "model": UNET}
WAYS: dict[str, dict[str, Any]] = {
    "fedavg": {"model": UNET},
    "local": {"model": UNET},
    "central": {"model": UNET, "silos": 3},
    "collafuse": CUT,
    "huscf": {"model": GAN},
    "mdgan": {"model": GAN},
    "splitgan": {"model": GAN},
    "pflgan": {"model": GAN, "every": 1},
    "hflgan": {"model": GAN, "regroup": 1, "globally": 2},
    "fedavg of a GAN": {"kind": "fedavg", "model": GAN},
    "fedavg of an autoencoder": {"kind": "fedavg", "model": AUTOENCODER.model_dump()},
    "local, distilled": {"kind": "local", "model": UNET, "distil": {"rounds": 1}},
    "collafuse, distilled": {**CUT, "distil": {"rounds": 1}},
    "collafuse, released anew": {**CUT, "release": "fresh"},
    "collafuse, the authors'": {**CUT, "mode": "authors"},
    "collafuse, nested": {**CUT, "mode": "nested"},
}
each_way = pytest.mark.parametrize("way", [*WAYS, "fedavg of latents"])


def marked(seed: int = 0, poison: int = 0, size: int = 8) -> Images:
    """Twenty images, of which six are marked, and nothing but poison."""
    images = tiny_images(20, seed=seed, size=size).hold_out(0.3)
    assert images.held is not None
    return replace(images, stored=images.pixels.where(~images.held[:, None, None, None], poison))


def method_of(way: str, folder: Path) -> Method:
    options: Mapping[str, Any] = WAYS.get(way, {"kind": "fedavg"})
    if way not in WAYS:
        TrainedAutoencoder(AUTOENCODER, AUTOENCODER.build(5).state_dict()).save(folder / "model")
        parts = {"autoencoder": AUTOENCODER, "unet": {"widths": [8]}, "folder": str(folder / "model")}
        options = {**options, "model": {"kind": "latent", "size": 8, "channels": 1, "classes": 2, **parts}}
    training = {"batch": 4, "steps": 2, "learning_rate": 1e-2}
    method: Method = TypeAdapter(AnyMethod).validate_python({"kind": way, "training": training, "rounds": 2, **options})
    return method


def kept(method: Method, parts: list[Images]) -> str:
    """The hash of all that is left of a run, and of what was reported in it."""
    silos = (
        [Silo("all", pooled(parts))] if method.pools_images else [Silo(f"s{i}", part) for i, part in enumerate(parts)]
    )
    rounds = list(experiment := Experiment(method, silos, device="cpu"))
    memory = {f"{silo.name}/{name}": t for silo in experiment.silos for name, t in silo.memory.items()}
    summary = str([(done.losses, done.images_seen, done.bytes_up) for done in rounds]) + str(experiment.roster)
    return sha256(memory | dict(experiment.server.state_dict())) + summary


def test_every_method_is_among_those_tried() -> None:
    assert set(METHODS.classes) <= WAYS.keys()


@each_way
def test_no_method_looks_at_what_is_marked(way: str, tmp_path: Path) -> None:
    method = method_of(way, tmp_path)
    size = method.model.size  # type: ignore[attr-defined]
    parts = [marked(i, poison=255, size=size) for i in range(3)]
    assert kept(method, parts) == kept(method, [part.split_held_out()[0] for part in parts])


def test_marks_divide_the_images_of_a_silo_and_it_stays_so() -> None:
    images = marked(poison=255)
    silo = Silo("mayo", images)
    again = replace(silo, seed=3)
    for each in (silo, again):
        assert (len(each.images), len(each.held_out or ())) == (14, 6)
        assert not bool((each.images.pixels == 255).flatten(1).all(1).any())
        assert each.held_out is not None
        assert bool((each.held_out.pixels == 255).all())
    assert class_counts([silo.images]).sum() == 14
    summary = images_of([silo], ())
    assert (summary["held_out_counts"], sum(summary["class_counts"]["mayo"])) == ({"mayo": 6}, 14)


def test_latents_are_those_of_the_images_that_are_trained_on() -> None:
    silo = Silo("mayo", marked())
    assert len(encode(silo, TrainedAutoencoder(AUTOENCODER, AUTOENCODER.build(5).state_dict()))) == 14


def test_a_silo_is_shown_without_its_pixels_its_labels_and_its_secret() -> None:
    images = tiny_images(6).hold_out(0.5)
    summary = repr(Silo("mayo", images, secret="f" * 64))
    assert "tensor" not in summary
    assert "fff" not in summary
    assert "images=Images(" in summary
    assert len(summary) < 400


def test_images_without_marks_are_all_trained_on() -> None:
    assert (len((silo := Silo("mayo", tiny_images(9))).images), silo.held_out) == (9, None)
    held = tiny_images(3, seed=1)
    assert Silo("mayo", tiny_images(9), held_out=held).held_out is held


def test_marks_and_held_out_must_say_the_same() -> None:
    images = marked()
    assert len(Silo("mayo", images, held_out=images.split_held_out()[1]).images) == 14
    for other in (images, tiny_images(6, seed=5, size=8), images.subset(np.arange(0))):
        with pytest.raises(DataError, match="mayo: 6 of its images are marked .* give either marks or held_out"):
            Silo("mayo", images, held_out=other)


@pytest.mark.parametrize("held", [torch.zeros(5, dtype=torch.bool), torch.ones(20, dtype=torch.long)])
def test_marks_that_are_none(held: torch.Tensor) -> None:
    with pytest.raises(DataError, match="not one bool for each of 20 images"):
        replace(tiny_images(20), held=held)


def test_marks_outlive_being_pooled_with_images_that_have_none() -> None:
    both = pooled([tiny_images(4, size=8), marked()])
    assert both.held is not None
    assert (len(Silo("all", both).images), int(both.held.sum())) == (18, 6)
    assert pooled([tiny_images(4), tiny_images(4)]).held is None
