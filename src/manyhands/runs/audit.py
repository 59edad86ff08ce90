"""What a finished run gave away: attacks on everything that left its silos, with other images of the same kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from manyhands.audit import huscf, replay
from manyhands.audit.attacks import algebra
from manyhands.audit.attacks.attributes import KnownAttributes
from manyhands.audit.collafuse import ActualReleases, attack_releases
from manyhands.audit.collafuse_attackers import ServerDenoiser
from manyhands.audit.effort import Effort
from manyhands.data.images import Images, as_bytes, as_floats, pooled
from manyhands.data.partition.base import Partition
from manyhands.data.partition.by_attributes import ByAttributes
from manyhands.diffusion.norm_bound import squeezed
from manyhands.errors import DataError, RunFolderError
from manyhands.evaluation import features, plots
from manyhands.generators.diffusion import DiffusionGenerator
from manyhands.generators.load import load
from manyhands.messages.message import Message
from manyhands.methods.collafuse.method import CollaFuse
from manyhands.methods.collafuse.silo import noising_of
from manyhands.methods.huscf.method import HuSCF
from manyhands.report import page
from manyhands.runs.finished import held_silos
from manyhands.runs.run_folder import RunFolder
from manyhands.seed import torch_rng
from manyhands.silos.device import chosen_device
from manyhands.silos.silo import DeviceContext

if TYPE_CHECKING:
    from manyhands.runs.recipe import Recipe
    from manyhands.silos.silo import Silo
    from manyhands.tensors import Tensors

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
MAX_ATTACKED_IMAGES = 2000
"""The maximum number of images that attackers have, and that are attacked."""


def audit(folder: RunFolder, shares: Sequence[float] = SHARES, effort: Effort | None = None) -> dict[str, Any]:
    """Attack a finished run of ``collafuse`` or ``huscf``, and write the results into its report.

    The attackers' images are the held-out ones, which the run never trained on.

    Args:
        folder: The run folder.
        shares: For ``collafuse``, further cuts to attack, as shares of the chain.
        effort: How much the attackers train.
    """
    recipe, silos = held_silos(folder)
    attack = AUDITS.get(recipe.method.kind)
    if attack is None:
        raise RunFolderError(
            f"{folder.path}: is a run of {recipe.method.kind}; only runs of {' and '.join(AUDITS)} can be audited"
        )
    silos = [replace(silo, seed=recipe.seed) for silo in silos]
    with folder.alone():
        report = attack(folder, recipe, silos, shares, effort or Effort())
        page.write(folder, folder.report | {"disclosure": report})
    return report


def _attack_releases(
    folder: RunFolder, recipe: Recipe, silos: Sequence[Silo], shares: Sequence[float], effort: Effort
) -> dict[str, Any]:
    """Attack the noised images that the silos of ``collafuse`` released."""
    method = recipe.method
    assert isinstance(method, CollaFuse)
    last = method.diffusion.schedule.steps
    silos = [silo for silo in silos if 0 < method.step_of(silo.name) < last]
    private, public = (_squeezed(part, method.norm) for part in _private_and_public(silos))
    stores = folder.state().stores
    report = attack_releases(
        private,
        public,
        method.diffusion,
        _cuts(method, silos, shares),
        releases=max(1, *(round(method.releases(len(silo.images))) for silo in silos)),
        server_denoiser=_server_denoiser(folder, method, silos),
        extractor=features.classifier(private, public),
        clip_norm=method.bound,
        actual=_actual(method, silos, stores, len(private)),
        known_attributes=_attributes(recipe.partition, private, public),
        effort=effort,
        seed=recipe.seed,
    )
    report["exact_algebra"] = _algebra(method, silos, stores)
    report["mode"], report["release"], report["labels"] = method.mode, method.release, method.labels
    plots.disclosure(folder.figures / "disclosure.png", report)
    return report


def _attack_cuts(
    folder: RunFolder, recipe: Recipe, silos: Sequence[Silo], _shares: Sequence[float], effort: Effort
) -> dict[str, Any]:
    """Attack what crossed the cuts of ``huscf`` in its last round, which is replayed."""
    method = recipe.method
    assert isinstance(method, HuSCF)
    public, context = _public(silos), DeviceContext(chosen_device(recipe.device))
    if len(public) < 2:
        raise DataError(
            f"{len(public)} image is held out, and an attacker needs at least 2: set data.held_out or data.test"
        )
    silos = [replace(silo, device_context=context) for silo in silos]
    first, later = (replay.record_last_round(folder, method, silos, part) for part in (0.0, 0.5))
    batches = huscf.choose_batches(first)
    attacked = huscf.BatchAttacks(method, batches, public, effort, recipe.seed)
    return huscf.attack_batches(attacked, [later[batch.silo] for batch in batches])


AUDITS = {"collafuse": _attack_releases, "huscf": _attack_cuts}
"""What attacks a run, by the kind of its method."""


def _private_and_public(silos: Sequence[Silo]) -> tuple[Images, Images]:
    """The released images, and those of an attacker, of the same kind; no image is in both."""
    if not silos:
        raise DataError(
            "every silo keeps its whole chain, or releases its images without noise: there is nothing to attack"
        )
    private = pooled([silo.images for silo in silos])
    return private.subset(np.arange(min(MAX_ATTACKED_IMAGES, len(private)))), _public(silos)


def _squeezed(images: Images, norm: float | None) -> Images:
    """Images as they are released, scaled to the norm; an attacker can scale its estimate back."""
    return replace(images, stored=as_bytes(squeezed(as_floats(images.pixels), norm)))


def _public(silos: Sequence[Silo]) -> Images:
    """The held-out images, which no silo trained on."""
    held_out = [silo.held_out for silo in silos if silo.held_out is not None and len(silo.held_out)]
    if not held_out:
        raise DataError(
            "no images are held out, and an attacker needs some of the same kind: set data.held_out or data.test"
        )
    public = pooled(held_out)
    return public.subset(np.arange(min(MAX_ATTACKED_IMAGES, len(public))))


def _attributes(partition: Partition, private: Images, public: Images) -> KnownAttributes | None:
    """The attributes by which the recipe partitions, for all of these images; None for other partitions."""
    if not isinstance(partition, ByAttributes):
        return None
    (names, of_private), (_, of_public) = partition.known(private), partition.known(public)
    return KnownAttributes(names, torch.from_numpy(of_private), torch.from_numpy(of_public))


def _cuts(method: CollaFuse, silos: Sequence[Silo], shares: Sequence[float]) -> list[int]:
    """The cuts to attack: those asked for and those of the run, without the ends of the chain."""
    steps = method.diffusion.schedule.steps
    own = {method.step_of(silo.name) for silo in silos}
    return sorted(cut for cut in own | {round(share * steps) for share in shares} if 0 < cut < steps)


def _server_denoiser(folder: RunFolder, method: CollaFuse, silos: Sequence[Silo]) -> ServerDenoiser | None:
    """The server's own denoiser, with which it can attack; None if the run has none."""
    server = load(folder.model, chosen_device("cpu"))
    if not isinstance(server, DiffusionGenerator):
        return None
    classes = method.server_model.classes
    lowest = min(method.step_of(silo.name) for silo in silos)
    return ServerDenoiser(server.network, lowest, classes or None, labels=method.labels == "share" and bool(classes))


def _actual(
    method: CollaFuse, silos: Sequence[Silo], stores: Mapping[str, Tensors], count: int
) -> list[ActualReleases]:
    """The releases that the server really holds, for each cut, and the indices of their private images."""
    all_indices = np.arange(sum(len(silo.images) for silo in silos))
    indices = [
        chosen[chosen < count] for chosen in np.split(all_indices, np.cumsum([len(silo.images) for silo in silos])[:-1])
    ]
    releases = []
    for cut in sorted({method.step_of(silo.name) for silo in silos}):
        chosen = [
            i for i, silo in enumerate(silos)
            if method.step_of(silo.name) == cut and silo.name in stores and len(indices[i])
        ]  # fmt: skip
        if chosen:
            released = torch.cat([stores[silos[i].name]["images"][: len(indices[i])] for i in chosen])
            releases.append(ActualReleases(cut, np.concatenate([indices[i] for i in chosen]), released))
    return releases


def _algebra(method: CollaFuse, silos: Sequence[Silo], stores: Mapping[str, Tensors]) -> dict[str, Any]:
    """Count the images that exact algebra recovers from what was sent, and from a control.

    Releases that the server does not keep are drawn again from the secrets of the silos: two of each image.
    """
    sent, truth, control = [], [], []
    rng, remaining = torch_rng(0, "control"), MAX_ATTACKED_IMAGES
    for silo in silos:
        images, cut = squeezed(as_floats(silo.images.read(slice(remaining))), method.norm), method.step_of(silo.name)
        remaining -= len(images)
        if not len(images):
            break
        releases = [stores[silo.name]] if silo.name in stores else []
        for turn in range(0 if releases else 2):
            releases.append(noising_of(method, silo, turn).release(silo.images, torch.arange(len(images))))
        for turn, tensors in enumerate(releases):
            parts = {name: tensor[: len(images)] for name, tensor in tensors.items()}
            sent.append(Message("release", parts, {"first": 0, "cut": cut, "turn": turn}))
        control.append(algebra.unsafe_release(method.diffusion.schedule, images, torch.full((len(images),), cut), rng))
        truth.append(images)
    all_images = torch.cat(truth)
    return {"sent": algebra.recovered(sent, all_images), "control": algebra.recovered(control, all_images)}
