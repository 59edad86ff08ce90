"""A recipe with a [sweep]: it gives fields a list of values, and every combination of values is a run."""

from __future__ import annotations

import copy
import itertools
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from manyhands.errors import RecipeError, RunFolderError
from manyhands.files.strict_json import finite_json
from manyhands.files.write import disk_errors, replace_file
from manyhands.runs.recipe import Recipe
from manyhands.runs.recipe_fields import put
from manyhands.runs.recipe_file import parse_recipe, read_recipe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

INDEX = "sweep.json"
MAX_RUNS, MAX_NAME_LENGTH = 1000, 200


class Variant(NamedTuple):
    """One combination of a sweep: its recipe, the values of the fields, and its folder within that of the sweep.

    Args:
        recipe: The recipe.
        values: The value of each field of the sweep.
        folder: The name of its folder; empty for the folder of the sweep itself.
    """

    recipe: Recipe
    values: dict[str, Any]
    folder: str

    def seeded(self, seeds: int) -> list[Variant]:
        """The same variant with this number of seeds, each in a folder of its own."""
        recipes = [self.recipe.model_copy(update={"seed": self.recipe.seed + i}) for i in range(seeds)]
        return [Variant(recipe, self.values, f"{self.folder}/seed-{recipe.seed}".lstrip("/")) for recipe in recipes]


class Sweep(NamedTuple):
    """All variants of a recipe; without a [sweep] there is one, which has no folder of its own.

    Args:
        name: The name of the recipe.
        variants: The variants, in the order of their values.
    """

    name: str
    variants: list[Variant]

    @property
    def is_swept(self) -> bool:
        """Whether the recipe has a [sweep]."""
        return bool(self.variants[0].values)

    def runs(self, seeds: int = 1) -> list[Variant]:
        """All variants, with all seeds."""
        return self.variants if seeds == 1 else [run for variant in self.variants for run in variant.seeded(seeds)]


def load_sweep(path: Path | str, changes: Sequence[str] = ()) -> Sweep:
    """Read a recipe that may have a [sweep].

    Args:
        path: The TOML file.
        changes: Changes of fields, as ``load_recipe`` takes them.
    """
    path = Path(path)
    recipe_fields = read_recipe(path, changes)
    fields = _fields(recipe_fields.pop("sweep", {}), f"{path}: sweep")
    if not fields:
        recipe = parse_recipe(recipe_fields, str(path))
        return Sweep(recipe.name, [Variant(recipe, {}, "")])
    if (count := math.prod(map(len, fields.values()))) > MAX_RUNS:
        raise RecipeError(f"{path}: sweep: has {count:,} combinations, {MAX_RUNS:,} are the maximum")
    combinations = itertools.product(*fields.values())
    variants = [_variant(recipe_fields, dict(zip(fields, values, strict=True)), path) for values in combinations]
    _check_distinct(variants, path)
    return Sweep(str(recipe_fields["name"]), variants)


def check_parents(folder: Path, runs: Sequence[Variant]) -> None:
    """Check that the folders above those of the runs hold no other run, and a sweep's nothing but that sweep."""
    for above in dict.fromkeys(above for run in runs for above in Path(run.folder).parents):
        place, of_sweep = folder / above, bool(runs[0].values) and above == Path()
        names = {path.name for path in place.iterdir() if not path.name.startswith(".")} if place.is_dir() else set()
        if "recipe.toml" in names or (names and (INDEX in names) != of_sweep):
            kind = "run" if "recipe.toml" in names else "sweep" if INDEX in names else ""
            what = f"holds another {kind} already" if kind else "is not empty and holds no sweep"
            raise RunFolderError(f"{place}: {what}; choose another folder with --out")


def write_index(folder: Path, runs: Sequence[Variant], *, resume: bool) -> None:
    """Write sweep.json, which lists the runs and their folders."""
    path = folder / INDEX
    if path.exists() and not resume:
        raise RunFolderError(f"{folder}: holds a sweep already; continue it with --resume")
    index = [{"values": run.values, "seed": run.recipe.seed, "folder": run.folder} for run in runs]
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    replace_file(path, finite_json(index, indent=1).encode())


def _fields(table: Any, where: str) -> dict[str, list[Any]]:
    """The values of each field, by its full name; ``cut`` is short for ``method.cut``."""
    fields: dict[str, list[Any]] = {}
    for name, values in _flat(table, where):
        full_name = name if "." in name else f"method.{name}"
        if not isinstance(values, list) or not values:
            raise RecipeError(f"{where}.{name}: is {values!r}, but should be a list of values")
        if full_name in fields:
            raise RecipeError(f"{where}: {full_name} is listed twice")
        fields[full_name] = values
    return fields


def _flat(table: Any, where: str) -> list[tuple[str, Any]]:
    """Dotted names and values; TOML reads a dotted name without quotes as nested tables."""
    if not isinstance(table, dict):
        raise RecipeError(f"{where}: is {table!r}, but should be a table of fields with a list of values each")
    pairs = []
    for name, value in table.items():
        inner = _flat(value, where) if isinstance(value, dict) else [("", value)]
        pairs += [(f"{name}.{rest}".rstrip("."), values) for rest, values in inner]
    return pairs


def _variant(recipe_fields: Mapping[str, Any], values: dict[str, Any], path: Path) -> Variant:
    """One combination; its values are part of its name, as far as the length of a name allows."""
    fields, where = copy.deepcopy(dict(recipe_fields)), f"{path}: sweep {_words(values)}"
    for name, value in values.items():
        put(fields, name, copy.deepcopy(value), where)
    folder = _folder(values)
    if len(folder) > MAX_NAME_LENGTH:
        raise RecipeError(f"{where}: would give a folder a name of more than {MAX_NAME_LENGTH} characters")
    fields["name"] = f"{fields['name']}-{folder.lower()}"[:63]
    return Variant(parse_recipe(fields, where), values, folder)


def _check_distinct(variants: Sequence[Variant], path: Path) -> None:
    """Check that no two combinations have the same folder or are the same run."""
    seen: dict[str, Variant] = {}
    for variant in variants:
        content = finite_json(variant.recipe.resolved() | {"name": ""}, sort_keys=True)
        for key in (variant.folder.lower(), content):
            if first := seen.get(key):
                pair = f"{_words(first.values)} and {_words(variant.values)}"
                raise RecipeError(f"{path}: sweep: {pair} are {'the same run' if key == content else 'one folder'}")
            seen[key] = variant


def _folder(values: Mapping[str, Any]) -> str:
    """The name of the folder, such as cut-0.2_ema-0.5."""
    parts = (f"{name.removeprefix('method.')}-{_text(value)}" for name, value in values.items())
    return "_".join(re.sub(r"[^A-Za-z0-9._-]+", "-", part) for part in parts)


def _words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_text(value)}" for name, value in values.items())


def _text(value: Any) -> str:
    return re.sub(r'[][{}"]', "", finite_json(value, default=str))
