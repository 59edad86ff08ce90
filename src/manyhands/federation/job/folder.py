"""The folder of a FLARE job that runs a recipe. No code is in it: its two components are of this package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from manyhands.errors import RecipeError
from manyhands.federation.policy import check_between_sites, recipe_text
from manyhands.files.strict_json import finite_json
from manyhands.files.write import replace_folder
from manyhands.runs.recipe import Recipe

SERVER_COMPONENT = "manyhands.federation.job.server_component.RunServer"
SITE_COMPONENT = "manyhands.federation.job.site_component.RunSite"
TASK = "manyhands"
"""The only task of a job: it lasts as long as the site takes part."""


def write_job(recipe: Recipe, out: Path, sites: Sequence[str] = (), run: str = "") -> Path:
    """Write a job that ``nvflare job submit``, FLARE's API, its console and its simulator take.

    Args:
        recipe: The recipe.
        out: The folder of the job.
        sites: The sites that take part; none means all.
        run: The name of the run, under which a later job goes on with it; "" means the recipe's name.

    Raises:
        RecipeError: The folder exists, or the method needs all images in one place.
    """
    if out.exists():
        raise RecipeError(f"--out {out}: exists already; give a new folder")
    check_between_sites(recipe)
    name = run or recipe.name
    deploy = {"app": ["server", *sites] if sites else ["@ALL"]}
    meta = {"name": name, "resource_spec": {}, "min_clients": recipe.quorum, "deploy_map": deploy}
    server = {"id": "manyhands", "path": SERVER_COMPONENT, "args": {"recipe": recipe_text(recipe), "run": name}}
    site = {"tasks": [TASK], "executor": {"path": SITE_COMPONENT, "args": {}}}
    with replace_folder(out) as fresh:
        config = fresh / "app" / "config"
        config.mkdir(parents=True)
        _write(fresh / "meta.json", meta)
        _write(config / "config_fed_server.json", _config(workflows=[server], components=[]))
        _write(config / "config_fed_client.json", _config(executors=[site], components=[]))
    return out


def _config(**parts: Any) -> dict[str, Any]:
    return {"format_version": 2, **parts, "task_data_filters": [], "task_result_filters": []}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(finite_json(content))
