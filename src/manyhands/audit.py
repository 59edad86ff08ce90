"""What a finished run gave away: attacks on its releases and on its server, by one who has images of the same kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from manyhands.data.images import Images, as_floats, pooled
from manyhands.errors import DataError, RunFolderError
from manyhands.evaluation import features, figures, report
from manyhands.experiment import chosen_device, held_silos
from manyhands.message import Message
from manyhands.methods.collafuse import CollaFuse
from manyhands.models.generator import Generator, load
from manyhands.privacy import algebra
from manyhands.privacy.disclosure import Actual, Own, disclosure
from manyhands.seed import torch_rng

if TYPE_CHECKING:
    from manyhands.journal import RunFolder
    from manyhands.silo import Silo
    from manyhands.tensors import Tensors

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
MOST = 2000
"""The most private images that attackers are tried on."""


def audit(folder: RunFolder, shares: Sequence[float] = SHARES) -> dict[str, Any]:
    """Attack a finished run of ``collafuse``; what came of it goes into its report.

    The attackers' images are those that the run held out, which it never trained on.
    """
    recipe, silos = held_silos(folder)
    method = recipe.method
    if not isinstance(method, CollaFuse):
        raise RunFolderError(f"{folder.path}: method {method.kind} releases no images; an audit is of collafuse")
    silos = [replace(silo, seed=recipe.seed) for silo in silos if method.step_of(silo.name)]
    private, public = _private_and_public(silos)
    with folder.alone():
        stores = folder.state().stores
        found = disclosure(
            private,
            public,
            method.diffusion,
            _cuts(method, silos, shares),
            releases=round(max(method.releases(len(silo.images)) for silo in silos)),
            own=_own(folder, method, silos),
            lens=features.classifier(private, public),
            clip_norm=method.norm,
            actual=_actual(method, silos, stores, len(private)),
            seed=recipe.seed,
        )
        found["exact_algebra"] = _algebra(method, silos, stores)
        found["mode"], found["release"], found["labels"] = method.mode, method.release, method.labels
        figures.disclosure(folder.figures / "disclosure.png", found)
        report.write(folder, folder.report | {"disclosure": found})
    return found


def _private_and_public(silos: Sequence[Silo]) -> tuple[Images, Images]:
    """What was released, and what an attacker has of the same kind; no image is in both."""
    if not silos:
        raise DataError(
            "every silo keeps its whole chain or releases its images as they are: there is nothing to attack"
        )
    held = [silo.held_out for silo in silos if silo.held_out is not None and len(silo.held_out)]
    if not held:
        raise DataError(
            "no images are held out, and an attacker needs some of the same kind: data.held_out or data.test"
        )
    return pooled([silo.images for silo in silos]), pooled(held)


def _cuts(method: CollaFuse, silos: Sequence[Silo], shares: Sequence[float]) -> list[int]:
    """Those asked for and the run's own; at the end of the chain nothing is released."""
    steps = method.diffusion.schedule.steps
    own = {method.step_of(silo.name) for silo in silos}
    return sorted(cut for cut in own | {round(share * steps) for share in shares} if 0 < cut < steps)


def _own(folder: RunFolder, method: CollaFuse, silos: Sequence[Silo]) -> Own | None:
    """The server's own network, at its disposal as an attacker."""
    server = load(folder.model, chosen_device("cpu"))
    if not isinstance(server, Generator):
        return None
    classes = method.server_model.classes
    lowest = min(method.step_of(silo.name) for silo in silos)
    return Own(server.network, lowest, classes or None, labels=method.labels == "share" and bool(classes))


def _actual(method: CollaFuse, silos: Sequence[Silo], stores: Mapping[str, Tensors], count: int) -> list[Actual]:
    """What the server really holds, by cut, and of which of the private images."""
    numbers = np.split(np.arange(count), np.cumsum([len(silo.images) for silo in silos])[:-1])
    found = []
    for cut in sorted({method.step_of(silo.name) for silo in silos}):
        mine = [i for i, silo in enumerate(silos) if method.step_of(silo.name) == cut and silo.name in stores]
        if mine:
            held = torch.cat([stores[silos[i].name]["images"] for i in mine])
            found.append(Actual(cut, np.concatenate([numbers[i] for i in mine]), held))
    return found


def _algebra(method: CollaFuse, silos: Sequence[Silo], stores: Mapping[str, Tensors]) -> dict[str, Any]:
    """What can be computed exactly from what was sent, and from what never may be."""
    sent, truth, control = [], [], []
    rng, left = torch_rng(0, "control"), MOST
    for silo in silos:
        images, cut = as_floats(silo.images.pixels[:left]), method.step_of(silo.name)
        left -= len(images)
        tensors = stores.get(silo.name) or method.noising(silo).of(silo.images, torch.arange(len(images)))
        facts = {"first": 0, "cut": cut, "turn": 0}
        sent.append(Message("release", {name: tensor[: len(images)] for name, tensor in tensors.items()}, facts))
        control.append(algebra.unsafe_release(method.diffusion.schedule, images, torch.full((len(images),), cut), rng))
        truth.append(images)
    every = torch.cat(truth)
    return {"sent": algebra.recovered(sent, every), "control": algebra.recovered(control, every)}
