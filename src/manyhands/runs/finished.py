"""Runs that have ended: what they draw from, and measuring them again."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch

from manyhands.errors import RunFolderError
from manyhands.evaluation.evaluator import Evaluation, Evaluator, ImageSource
from manyhands.generators.load import load
from manyhands.links.coordinator import RoundCoordinator
from manyhands.links.in_process import InProcess
from manyhands.messages.ledger import Ledger
from manyhands.messages.message import Message
from manyhands.methods.base import Method, Server, TrainedModel
from manyhands.report import page
from manyhands.runs import summary
from manyhands.runs.compose import silo_of, silos_of
from manyhands.runs.experiment import NOT_EVALUATED
from manyhands.runs.recipe import Recipe, parse_recipe, specs_in
from manyhands.runs.run_folder import RunFolder, State
from manyhands.silos.device import chosen_device
from manyhands.silos.silo import Silo, distinct


def evaluate(folder: RunFolder, told: Evaluation, data: str = "", **sampling: Any) -> dict[str, Any]:
    """Measure a finished run again, by another protocol, or on other ``data``; its report is written anew."""
    recipe, silos = held_silos(folder, data)
    kept = folder.report
    with folder.alone():
        if data:
            generators = dict.fromkeys((silo.name for silo in silos), loaded_generator(folder, None))
        else:
            generators = kept_generators(folder, recipe.method, recipe.link)
        judge = Evaluator(told, silos, chosen_device(recipe.device))
        verdict = judge(generators, recipe.sampling.model_copy(update=sampling))
        old = [line for line in kept["problems"] if not line.startswith(NOT_EVALUATED)]
        anew = {"problems": old, "versions": page.versions()}
        page.write(folder, kept | summary.measured(verdict, folder.rounds) | anew)
    return folder.report


def held_silos(folder: RunFolder, data: str = "") -> tuple[Recipe, list[Silo]]:
    """The recipe of a finished run and its silos, with the images that they had.

    ``data`` brings others: a folder, or ``recipe`` for what the recipe deals, whoever has trained on what.
    """
    if "data" not in folder.recipe:
        raise RunFolderError(
            f"{folder.path}: was run from Python, so its recipe does not say where the images are; "
            "Experiment.evaluate() measures it there"
        )
    kept, recipe = folder.report, parse_recipe(folder.recipe, str(folder.path / "recipe.toml"))
    if data:
        return recipe, distinct(silos_of(recipe)[0]) if data == "recipe" else [silo_of("here", data, recipe)]
    if not kept["data"]:
        raise RunFolderError(
            f"{folder.path}: was trained between sites, and their images are theirs: evaluate --data measures it"
        )
    silos = distinct(silos_of(recipe)[0])
    if len(folder.rounds) != kept["rounds"]:
        raise RunFolderError(f"{folder.path}/journal.jsonl: tells of {len(folder.rounds)} of {kept['rounds']} rounds")
    if kept["data"] != summary.data_of(silos):
        raise RunFolderError(f"{folder.path}: the images are no longer those that it was trained on")
    return recipe, silos


def kept_generators(folder: RunFolder, method: Method, link: InProcess) -> dict[str, ImageSource]:
    """What each silo of a finished run draws from."""
    device, ledger = chosen_device(folder.recipe.get("device", "auto")), Ledger()
    shared = _kept(folder.model, device)
    hub = cache(lambda: _restored(folder, method, device))
    found = {}
    for silo in folder.report["silos"]:

        def ask(message: Message, silo: str = silo) -> Message:
            return link.server_call(hub(), silo, ledger)(message)

        if drawn := method.generator_for(silo, shared, _kept(folder.silo(silo) / "model", device), ask):
            found[silo] = drawn
    return found


def loaded_generator(folder: RunFolder, silo: str | None, *, alone: bool = False) -> ImageSource:
    """What a silo of a finished run draws from, or without one what all do; ``alone``: one network, and no other."""
    method = next(spec for spec in specs_in(folder.recipe, str(folder.path)) if isinstance(spec, Method))
    generators = kept_generators(folder, method, InProcess())
    device = chosen_device(folder.recipe.get("device", "auto"))
    if silo is not None and silo not in generators:
        raise RunFolderError(f"{folder.path}: {silo} has no generator; there are those of {', '.join(generators)}")
    if alone:
        found: ImageSource | None = _kept(folder.model if silo is None else folder.silo(silo) / "model", device)
        if found is None:
            raise RunFolderError(f"{folder.path}: {silo or 'the server'} has no network of its own")
        return found
    drawn = list({id(each): each for each in generators.values()}.values()) if silo is None else [generators[silo]]
    if len(drawn) != 1:
        own = f"these silos have one of their own (--silo): {', '.join(generators)}" if drawn else "has the run ended?"
        raise RunFolderError(f"{folder.path}: there is no one generator of all; {own}")
    return drawn[0]


def _kept(path: Path, device: str) -> TrainedModel | None:
    return load(path, device) if path.exists() else None


def _restored(folder: RunFolder, method: Method, device: str) -> RoundCoordinator:
    """The server of a finished run, ready to answer."""
    state = folder.state()
    server = restored(state, method, int(folder.recipe.get("seed", 0)), device)
    return RoundCoordinator(server, method.plan(), state.roster)


def restored(state: State, method: Method, seed: int, device: str) -> Server:
    """The server of a run as it was kept."""
    server = method.server(seed, state.roster)
    server.device = torch.device(device)
    server.resume(state.round, state.stores, state.server)
    return server
