"""One recipe as several: its [sweep] gives fields a list of values each, and every combination is a run."""

from __future__ import annotations

import copy
import itertools
import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from manyhands.errors import RecipeError, RunFolderError
from manyhands.files.strict_json import finite_json
from manyhands.files.write import disk_errors, replace_file
from manyhands.runs.recipe import Recipe, parse_recipe, put, read_recipe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

INDEX = "sweep.json"
MAX_RUNS, MAX_NAME_LENGTH = 1000, 200


class Variant(NamedTuple):
    """A recipe with the sweep resolved away, the values that it took, and its folder within that of the sweep."""

    recipe: Recipe
    values: dict[str, Any]
    folder: str

    def seeded(self, seeds: int) -> list[Variant]:
        """The same with so many seeds, each in a folder below."""
        several = [self.recipe.model_copy(update={"seed": self.recipe.seed + i}) for i in range(seeds)]
        return [Variant(each, self.values, f"{self.folder}/seed-{each.seed}".lstrip("/")) for each in several]


class Sweep(NamedTuple):
    """All runs that a recipe asks for; without a [sweep] it is one, in no folder of its own."""

    name: str
    variants: list[Variant]

    @property
    def swept(self) -> bool:
        """Whether there is a [sweep]."""
        return bool(self.variants[0].values)

    def runs(self, seeds: int = 1) -> list[Variant]:
        """Every variant with every seed."""
        return self.variants if seeds == 1 else [run for variant in self.variants for run in variant.seeded(seeds)]


def load_sweep(path: Path, changes: Sequence[str] = ()) -> Sweep:
    """Read a recipe that may have a [sweep], and change it as ``load_recipe`` does."""
    told = read_recipe(path, changes)
    fields = _fields(told.pop("sweep", {}), f"{path}: sweep")
    if not fields:
        recipe = parse_recipe(told, str(path))
        return Sweep(recipe.name, [Variant(recipe, {}, "")])
    if (count := math.prod(map(len, fields.values()))) > MAX_RUNS:
        raise RecipeError(f"{path}: sweep: asks for {count:,} runs, more than {MAX_RUNS:,}")
    combinations = itertools.product(*fields.values())
    found = [_variant(told, dict(zip(fields, values, strict=True)), path) for values in combinations]
    _distinct(found, path)
    return Sweep(str(told["name"]), found)


def write_index(folder: Path, runs: Sequence[Variant], *, resume: bool) -> None:
    """Say in sweep.json which run is where."""
    path = folder / INDEX
    if path.exists() and not resume:
        raise RunFolderError(f"{folder}: holds a sweep already; --resume goes on with it")
    told = [{"values": run.values, "seed": run.recipe.seed, "folder": run.folder} for run in runs]
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    replace_file(path, finite_json(told, indent=1).encode())


def _fields(told: Any, where: str) -> dict[str, list[Any]]:
    """The values of each field by its whole name; ``cut`` is short for method.cut."""
    fields: dict[str, list[Any]] = {}
    for name, values in _flat(told, where):
        whole = name if "." in name else f"method.{name}"
        if not isinstance(values, list) or not values:
            raise RecipeError(f"{where}.{name}: {values!r} came, a list of values is expected")
        if whole in fields:
            raise RecipeError(f"{where}: {whole} is told twice")
        fields[whole] = values
    return fields


def _flat(told: Any, where: str) -> list[tuple[str, Any]]:
    """Fields and values; TOML reads a dotted name without quotes as tables in tables."""
    if not isinstance(told, dict):
        raise RecipeError(f"{where}: {told!r} came, a table of fields with a list of values each is expected")
    found = []
    for name, value in told.items():
        inner = _flat(value, where) if isinstance(value, dict) else [("", value)]
        found += [(f"{name}.{rest}".rstrip("."), values) for rest, values in inner]
    return found


def _variant(told: Mapping[str, Any], values: dict[str, Any], path: Path) -> Variant:
    """One combination; its name tells it from the others, as far as a name may be long."""
    full, where = copy.deepcopy(dict(told)), f"{path}: sweep {_words(values)}"
    for name, value in values.items():
        put(full, name, copy.deepcopy(value), where)
    folder = _folder(values)
    if len(folder) > MAX_NAME_LENGTH:
        raise RecipeError(f"{where}: makes the name of a folder longer than {MAX_NAME_LENGTH} characters")
    full["name"] = f"{full['name']}-{folder.lower()}"[:63]
    return Variant(parse_recipe(full, where), values, folder)


def _distinct(found: Sequence[Variant], path: Path) -> None:
    """Two combinations must not share a folder, nor be the same run in two."""
    seen: dict[str, Variant] = {}
    for variant in found:
        same = finite_json(variant.recipe.resolved() | {"name": ""}, sort_keys=True)
        for key in (variant.folder.lower(), same):
            if first := seen.get(key):
                both = f"{_words(first.values)} and {_words(variant.values)}"
                raise RecipeError(f"{path}: sweep: {both} are {'the same run' if key == same else 'one folder'}")
            seen[key] = variant


def _folder(values: Mapping[str, Any]) -> str:
    """Such as cut-0.2_ema-0.5."""
    told = (f"{name.removeprefix('method.')}-{_text(value)}" for name, value in values.items())
    return "_".join(re.sub(r"[^A-Za-z0-9._-]+", "-", each) for each in told)


def _words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_text(value)}" for name, value in values.items())


def _text(value: Any) -> str:
    return re.sub(r'[][{}"]', "", finite_json(value, default=str))
