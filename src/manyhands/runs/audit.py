"""What a finished run gave away: attacks on all that left its silos, by one who has images of the same kind."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from manyhands.audit import huscf, replay
from manyhands.audit.attacks import algebra
from manyhands.audit.attacks.attributes import Known
from manyhands.audit.collafuse import Actual, Effort, Own, disclosure
from manyhands.data.images import Images, as_bytes, as_floats, pooled
from manyhands.data.partition import ByAttributes, Partition
from manyhands.diffusion.squeeze import squeezed
from manyhands.errors import DataError, RunFolderError
from manyhands.evaluation import features, figures
from manyhands.files.strict_json import finite_json
from manyhands.files.write import replace_file
from manyhands.generators.diffusion import DiffusionGenerator
from manyhands.generators.load import load
from manyhands.messages.message import Message
from manyhands.methods.collafuse.method import CollaFuse
from manyhands.methods.collafuse.silo import noising_of
from manyhands.methods.huscf.method import HuSCF
from manyhands.report import page
from manyhands.runs.finished import held_silos
from manyhands.runs.run_folder import RunFolder
from manyhands.runs.sweep import INDEX
from manyhands.seed import torch_rng
from manyhands.silos.device import chosen_device
from manyhands.silos.silo import DeviceContext

if TYPE_CHECKING:
    from manyhands.silos.silo import Silo
    from manyhands.tensors import Tensors

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
MAX_ATTACKED_IMAGES = 2000
"""The most images that attackers have, and that they are tried on."""


def audit(folder: RunFolder, shares: Sequence[float] = SHARES, effort: Effort | None = None) -> dict[str, Any]:
    """Attack a finished run of ``collafuse`` or ``huscf``; what came of it goes into its report.

    The attackers' images are those that the run held out, which it never trained on.
    """
    recipe, silos = held_silos(folder)
    method = recipe.method
    if isinstance(method, HuSCF):
        return _of_cuts(folder, method, [replace(silo, seed=recipe.seed) for silo in silos], effort)
    if not isinstance(method, CollaFuse):
        raise RunFolderError(
            f"{folder.path}: method {method.kind} releases no images; an audit is of collafuse or huscf"
        )
    last = method.diffusion.schedule.steps
    silos = [replace(silo, seed=recipe.seed) for silo in silos if 0 < method.step_of(silo.name) < last]
    private, public = (_squeezed(part, method.norm) for part in _private_and_public(silos))
    with folder.alone():
        stores = folder.state().stores
        found = disclosure(
            private,
            public,
            method.diffusion,
            _cuts(method, silos, shares),
            releases=max(1, *(round(method.releases(len(silo.images))) for silo in silos)),
            own=_own(folder, method, silos),
            lens=features.classifier(private, public),
            clip_norm=method.bound,
            actual=_actual(method, silos, stores, len(private)),
            known=_attributes(recipe.partition, private, public),
            effort=effort,
            seed=recipe.seed,
        )
        found["exact_algebra"] = _algebra(method, silos, stores)
        found["mode"], found["release"], found["labels"] = method.mode, method.release, method.labels
        figures.disclosure(folder.figures / "disclosure.png", found)
        page.write(folder, folder.report | {"disclosure": found})
    return found


def _of_cuts(folder: RunFolder, method: HuSCF, silos: Sequence[Silo], effort: Effort | None) -> dict[str, Any]:
    """Attack what crossed the cuts of a GAN in its last round, which is done once more."""
    public, context = _public(silos), DeviceContext(chosen_device(folder.recipe.get("device", "auto")))
    if len(public) < 2:
        raise DataError(
            f"{len(public)} image is held out, and an attacker needs 2 at least: data.held_out or data.test"
        )
    silos = [replace(silo, device_context=context) for silo in silos]
    with folder.alone():
        first, later = (replay.last_round(folder, method, silos, part) for part in (0.0, 0.5))
        mine = huscf.chosen(first)
        attacked = huscf.Attacked(method, mine, public, effort or Effort(), silos[0].seed)
        found = huscf.crossings(attacked, [later[each.silo] for each in mine])
        page.write(folder, folder.report | {"disclosure": found})
    return found


def trade(folder: Path, effort: Effort | None = None) -> list[dict[str, float | None]]:
    """What each cut of a sweep reaches, gives away and costs a silo, as a table, trade.json, and a picture, trade.png.

    Attacks are made once, on the first run that releases noised images.
    """
    ended = [run for run in _swept(folder) if run.ended and "costs" in run.report]
    inner = [run for run in ended if 0 < _share(run) < 1]
    if not inner:
        raise RunFolderError(f"{folder}: no run of it has ended that releases noised images")
    found = audit(inner[0], sorted({_share(run) for run in inner}), effort)
    rows = [_trade_row([run for run in ended if _share(run) == share], share, found) for share in _shares(ended)]
    figures.trade(folder / "trade.png", rows)
    replace_file(folder / "trade.json", finite_json(rows, indent=1).encode())
    return rows


def _swept(folder: Path) -> list[RunFolder]:
    try:
        told = json.loads((folder / INDEX).read_text())
        return [RunFolder(folder / run["folder"]) for run in told if "method.cut" in run["values"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{folder}: holds no sweep over cuts: {error}") from None


def _shares(runs: Sequence[RunFolder]) -> list[float]:
    return sorted({_share(run) for run in runs})


def _share(run: RunFolder) -> float:
    """The cut of a run, the lowest if silos differ, as a share of its chain."""
    steps = run.recipe["method"]["diffusion"]["schedule"]["steps"]
    return float(min(costs["cut"] for costs in run.report["costs"].values()) / steps)


def _trade_row(runs: Sequence[RunFolder], share: float, found: Mapping[str, Any]) -> dict[str, float | None]:
    """One cut; figures of several seeds are means. At cut 0 all is given away, at cut 1 nothing."""
    reports = [run.report for run in runs]
    costs = next(iter(reports[0]["costs"].values()))
    at = next((cut for cut in found["cuts"] if abs(cut["share"] - share) < 1e-9), None)
    scores = at["one_release"] if at else None
    chance, best = found["cuts"][0]["one_release"]["identity"]["chance"], None
    if scores:
        best = max(attack["explained"]["value"] for attack in scores["reconstruction"].values())
    fids = [report["metrics"]["fid"] for report in reports if "fid" in report["metrics"]]
    return {
        "cut": share,
        "snr_db": at["snr_db"] if at else None,
        "epsilon": scores["guarantee"]["epsilon"] if scores else None,
        "fid": float(np.mean(fids)) if fids else None,
        "fid_deviation": float(np.std(fids, ddof=1)) if len(fids) > 1 else None,
        "fid_real": reports[0]["floor"].get("fid"),
        "explained": best if scores else float(share == 0),
        "picked": scores["identity"]["top_1"]["value"] if scores else 1.0 if share == 0 else chance,
        "of": found["cuts"][0]["one_release"]["identity"]["candidates"],
        "draw_share": costs["draw_flops"] / costs["draw_flops_whole"],
        "train_share": costs["train_flops"] / costs["train_flops_whole"],
    }


def _private_and_public(silos: Sequence[Silo]) -> tuple[Images, Images]:
    """What was released, and what an attacker has of the same kind; no image is in both."""
    if not silos:
        raise DataError(
            "every silo keeps its whole chain or releases its images as they are: there is nothing to attack"
        )
    private = pooled([silo.images for silo in silos])
    return private.subset(np.arange(min(MAX_ATTACKED_IMAGES, len(private)))), _public(silos)


def _squeezed(images: Images, norm: float | None) -> Images:
    """Images as a release has them; an attacker can stretch what it finds."""
    return replace(images, pixels=as_bytes(squeezed(as_floats(images.pixels), norm)))


def _public(silos: Sequence[Silo]) -> Images:
    """The images that nobody trained on."""
    held = [silo.held_out for silo in silos if silo.held_out is not None and len(silo.held_out)]
    if not held:
        raise DataError(
            "no images are held out, and an attacker needs some of the same kind: data.held_out or data.test"
        )
    public = pooled(held)
    return public.subset(np.arange(min(MAX_ATTACKED_IMAGES, len(public))))


def _attributes(partition: Partition, private: Images, public: Images) -> Known | None:
    """The attributes that the recipe deals by, of all of these images."""
    if not isinstance(partition, ByAttributes):
        return None
    (names, mine), (_, others) = partition.known(private), partition.known(public)
    return Known(names, torch.from_numpy(mine), torch.from_numpy(others))


def _cuts(method: CollaFuse, silos: Sequence[Silo], shares: Sequence[float]) -> list[int]:
    """Those asked for and the run's own; at the end of the chain nothing is released."""
    steps = method.diffusion.schedule.steps
    own = {method.step_of(silo.name) for silo in silos}
    return sorted(cut for cut in own | {round(share * steps) for share in shares} if 0 < cut < steps)


def _own(folder: RunFolder, method: CollaFuse, silos: Sequence[Silo]) -> Own | None:
    """The server's own network, at its disposal as an attacker."""
    server = load(folder.model, chosen_device("cpu"))
    if not isinstance(server, DiffusionGenerator):
        return None
    classes = method.server_model.classes
    lowest = min(method.step_of(silo.name) for silo in silos)
    return Own(server.network, lowest, classes or None, labels=method.labels == "share" and bool(classes))


def _actual(method: CollaFuse, silos: Sequence[Silo], stores: Mapping[str, Tensors], count: int) -> list[Actual]:
    """What the server really holds, by cut, and of which of the private images."""
    every = np.arange(sum(len(silo.images) for silo in silos))
    numbers = [mine[mine < count] for mine in np.split(every, np.cumsum([len(silo.images) for silo in silos])[:-1])]
    found = []
    for cut in sorted({method.step_of(silo.name) for silo in silos}):
        mine = [
            i for i, silo in enumerate(silos)
            if method.step_of(silo.name) == cut and silo.name in stores and len(numbers[i])
        ]  # fmt: skip
        if mine:
            held = torch.cat([stores[silos[i].name]["images"][: len(numbers[i])] for i in mine])
            found.append(Actual(cut, np.concatenate([numbers[i] for i in mine]), held))
    return found


def _algebra(method: CollaFuse, silos: Sequence[Silo], stores: Mapping[str, Tensors]) -> dict[str, Any]:
    """What can be computed exactly from what was sent, and from what never may be.

    Releases that the server does not keep are made again from the secrets of silos: two of each image.
    """
    sent, truth, control = [], [], []
    rng, left = torch_rng(0, "control"), MAX_ATTACKED_IMAGES
    for silo in silos:
        images, cut = squeezed(as_floats(silo.images.pixels[:left]), method.norm), method.step_of(silo.name)
        left -= len(images)
        if not len(images):
            break
        mine = [stores[silo.name]] if silo.name in stores else []
        for turn in range(0 if mine else 2):
            mine.append(noising_of(method, silo, turn).release(silo.images, torch.arange(len(images))))
        for turn, tensors in enumerate(mine):
            parts = {name: tensor[: len(images)] for name, tensor in tensors.items()}
            sent.append(Message("release", parts, {"first": 0, "cut": cut, "turn": turn}))
        control.append(algebra.unsafe_release(method.diffusion.schedule, images, torch.full((len(images),), cut), rng))
        truth.append(images)
    every = torch.cat(truth)
    return {"sent": algebra.recovered(sent, every), "control": algebra.recovered(control, every)}
