"""The folder of a FLARE job that runs a recipe. No code is in it: its two components are of this package."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from manyhands import __version__
from manyhands.errors import RecipeError, printable
from manyhands.federation.plans import RUN_NAME
from manyhands.federation.policy import check_between_sites, recipe_text
from manyhands.files.strict_json import finite_json
from manyhands.files.write import replace_folder
from manyhands.runs.recipe import Recipe
from manyhands.spec import suggest

SERVER_COMPONENT = "manyhands.federation.job.server_component.RunServer"
SITE_COMPONENT = "manyhands.federation.job.site_component.RunSite"
RECEIVERS = {
    "tensorboard": "nvflare.app_opt.tracking.tb.tb_receiver.TBAnalyticsReceiver",
    "mlflow": "nvflare.app_opt.tracking.mlflow.mlflow_receiver.MLflowReceiver",
}
FLARE = "2.9."
"""The version of FLARE whose jobs have been killed in every way (CONTRIBUTING says what to run before it changes)."""
OURS = "manyhands"
"""The key by which a job's metadata says that it is a run of ours."""
MARK = "manyhands.running"
"""The file in a party's folder of a job that says that it runs, with the job's metadata."""
DONE = "manyhands.done"
"""The file beside it that says that the party has done its part: its process need not be restarted."""
STATUS = "manyhands.status"
"""What an admin asks the server of a running job for."""


def write_job(recipe: Recipe, out: Path, sites: Sequence[str] = (), run: str = "", track: Sequence[str] = ()) -> Path:
    """Write a job that ``nvflare job submit``, FLARE's API, its console and its simulator take.

    Args:
        recipe: The recipe.
        out: The folder of the job.
        sites: The sites that take part; none means all.
        run: The name of the run, under which a later job goes on with it; "" means the recipe's name.
        track: The receivers of FLARE that get the figures of each round, at the server: tensorboard, mlflow.

    Raises:
        RecipeError: The folder exists, or the method needs all images in one place.
    """
    if out.exists():
        raise RecipeError(f"--out {out}: exists already; give a new folder")
    check_between_sites(recipe)
    name = run or recipe.name
    if not RUN_NAME.fullmatch(name):
        raise RecipeError(f"--run {name}: use a-z, 0-9, '.', '_' and '-', at most 80 in all")
    deploy = {"app": ["server", *sites] if sites else ["@ALL"]}
    meta = {"name": name, OURS: __version__, "resource_spec": {}, "min_clients": recipe.quorum, "deploy_map": deploy}
    arguments = {"recipe": recipe_text(recipe), "run": name, "version": __version__}
    server = {"id": "manyhands", "path": SERVER_COMPONENT, "args": arguments}
    site = {"tasks": ["manyhands"], "executor": {"path": SITE_COMPONENT, "args": arguments}}
    with replace_folder(out) as fresh:
        config = fresh / "app" / "config"
        config.mkdir(parents=True)
        _write(fresh / "meta.json", meta)
        _write(
            config / "config_fed_server.json",
            _config(workflows=[server], components=[_receiver(name) for name in track]),
        )
        _write(config / "config_fed_client.json", _config(executors=[site], components=[]))
    return out


def check_job(run: str, version: str) -> None:
    """Refuse a job whose run names no folder, or of another version of Manyhands, and another FLARE than was tested."""
    if not RUN_NAME.fullmatch(run):
        raise RecipeError(f"{printable(run)[:80]!r} is not a valid name of a run")
    if version != __version__:
        raise RecipeError(f"the job is of manyhands {version}, but {__version__} is installed here; use one version")
    if not (installed := metadata.version("nvflare")).startswith(FLARE):
        raise RecipeError(f"NVIDIA FLARE {installed} is installed here; this version of manyhands needs {FLARE}*")


def _receiver(name: str) -> dict[str, Any]:
    if name not in RECEIVERS:
        raise RecipeError(f"--track {name}: {suggest(name, list(RECEIVERS))}")
    return {"id": name, "path": RECEIVERS[name], "args": {}}


def _config(**parts: Any) -> dict[str, Any]:
    return {"format_version": 2, **parts, "task_data_filters": [], "task_result_filters": []}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(finite_json(content))
