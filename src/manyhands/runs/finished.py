"""Finished runs: their generators, and their evaluation once more."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch

from manyhands.data.sources.of_path import source_of_path
from manyhands.errors import RecipeError, RunFolderError
from manyhands.evaluation.drawing import ImageSource
from manyhands.evaluation.evaluator import Evaluator
from manyhands.evaluation.spec import Evaluation
from manyhands.generators.load import TrainedModel, load
from manyhands.links.coordinator import RoundCoordinator
from manyhands.links.in_process import InProcess
from manyhands.messages.ledger import Ledger
from manyhands.messages.message import Message
from manyhands.methods.base import Method
from manyhands.methods.server import Server
from manyhands.report import page
from manyhands.runs import summary
from manyhands.runs.compose import silo_of, silos_of
from manyhands.runs.experiment import NOT_EVALUATED
from manyhands.runs.recipe import Recipe
from manyhands.runs.recipe_file import parse_recipe, specs_in
from manyhands.runs.round import State
from manyhands.runs.run_folder import RunFolder
from manyhands.silos.device import chosen_device
from manyhands.silos.silo import Silo, distinct


def evaluate(folder: RunFolder, evaluation: Evaluation, data: str = "", **sampling: Any) -> dict[str, Any]:
    """Evaluate a finished run again, and write its report again.

    Args:
        folder: The run folder.
        evaluation: What is drawn and measured.
        data: Other images to compare with: a folder, a zip file or a table, or "recipe" for those of the recipe; empty
            takes those of the run.
        sampling: Fields of ``Sampling`` that differ from those of the run.
    """
    recipe, silos = held_silos(folder, data)
    report = folder.report
    with folder.alone():
        if data:
            generators = dict.fromkeys((silo.name for silo in silos), loaded_generator(folder, None))
        else:
            generators = kept_generators(folder, recipe.method, recipe.link)
        evaluator = Evaluator(evaluation, silos, chosen_device(recipe.device, repeatable=recipe.repeatable))
        verdict = evaluator(generators, recipe.sampling.model_copy(update=sampling))
        problems = [line for line in report["problems"] if not line.startswith(NOT_EVALUATED)]
        updated = {"problems": problems, "versions": page.versions()}
        page.write(folder, report | summary.measured(verdict, folder.rounds) | updated)
    return folder.report


def held_silos(folder: RunFolder, data: str = "") -> tuple[Recipe, list[Silo]]:
    """The recipe of a finished run and its silos, with the images that they trained on.

    ``data`` gives other images: a folder, a zip file, a table, or ``recipe`` for those of the recipe, whichever the run
    trained on.
    """
    if "data" not in folder.recipe:
        raise RunFolderError(
            f"{folder.path}: was run from Python, so its recipe does not say where the images are; evaluate it in "
            "Python with Experiment.evaluate()"
        )
    report, recipe = folder.report, parse_recipe(folder.recipe, str(folder.path / "recipe.toml"))
    if data:
        return recipe, distinct(silos_of(recipe)[0]) if data == "recipe" else [
            silo_of("here", source_of_path(data), recipe)
        ]
    if not report["data"]:
        raise RunFolderError(
            f"{folder.path}: was trained between sites, whose images are theirs; give images to compare with: --data"
        )
    silos = distinct(silos_of(recipe)[0])
    if len(folder.rounds) != report["rounds"]:
        raise RunFolderError(f"{folder.path}/journal.jsonl: has {len(folder.rounds)} of {report['rounds']} rounds")
    if report["data"] != summary.data_of(silos):
        raise RunFolderError(f"{folder.path}: the images of its recipe are no longer those that it was trained on")
    return recipe, silos


def kept_generators(folder: RunFolder, method: Method, link: InProcess) -> dict[str, ImageSource]:
    """The generator of each silo of a finished run."""
    device, ledger = chosen_device(folder.recipe.get("device", "auto")), Ledger()
    shared = _kept(folder.model, device)
    coordinator = cache(lambda: _restored(folder, method, device))
    generators = {}
    for silo in folder.report["silos"]:

        def call(message: Message, silo: str = silo) -> Message:
            return link.server_call(coordinator(), silo, ledger)(message)

        if generator := method.generator_for(silo, shared, _kept(folder.silo(silo) / "model", device), call):
            generators[silo] = generator
    return generators


def loaded_generator(folder: RunFolder, silo: str | None, *, alone: bool = False) -> ImageSource:
    """The generator of a silo of a finished run, or without ``silo`` that of all.

    Args:
        folder: The run folder.
        silo: The name of the silo.
        alone: Whether to return the network that is stored for the silo or the server, without any other.
    """
    method = next(spec for spec in specs_in(folder.recipe, str(folder.path)) if isinstance(spec, Method))
    generators = kept_generators(folder, method, InProcess())
    device = chosen_device(folder.recipe.get("device", "auto"))
    if silo is not None and silo not in generators:
        raise RunFolderError(
            f"{folder.path}: there is no generator of a silo {silo!r}; there are those of {', '.join(generators)}"
        )
    chosen = [generators[silo]] if silo else list({id(one): one for one in generators.values()}.values())
    if alone and len(chosen) == 1 and type(method).generator_for is Method.generator_for:
        raise RecipeError("--alone: changes nothing here, because the silos sample without the server anyway")
    if alone:
        trained: ImageSource | None = _kept(folder.model if silo is None else folder.silo(silo) / "model", device)
        if trained is None:
            raise RunFolderError(f"{folder.path}: {silo or 'the server'} has no network of its own")
        return trained
    if len(chosen) != 1:
        if not chosen:
            raise RunFolderError(f"{folder.path}: there is no generator yet; has the run ended?")
        raise RunFolderError(
            f"{folder.path}: each silo has a generator of its own; choose one with --silo: {', '.join(generators)}"
        )
    return chosen[0]


def _kept(path: Path, device: str) -> TrainedModel | None:
    return load(path, device) if path.exists() else None


def _restored(folder: RunFolder, method: Method, device: str) -> RoundCoordinator:
    """The server of a finished run, ready to answer requests."""
    state = folder.state()
    server = restored(state, method, int(folder.recipe.get("seed", 0)), device, Ledger())
    return RoundCoordinator(server, method.plan(), state.roster)


def restored(state: State, method: Method, seed: int, device: str, ledger: Ledger) -> Server:
    """The server of a run, with its state from disk; the ledger gets its entries."""
    server = method.server(seed, state.roster)
    server.device = torch.device(device)
    state.restore(server, ledger)
    return server
