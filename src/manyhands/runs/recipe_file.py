"""Reads recipes, of files, of plain values and of other parties. Errors name the field and the most similar name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from manyhands.diffusion.sampling import Sampling
from manyhands.errors import ManyhandsError, RecipeError
from manyhands.evaluation.spec import Evaluation
from manyhands.files.toml_text import parse_toml, read_toml
from manyhands.methods.base import AnyMethod
from manyhands.runs.data import Data
from manyhands.runs.recipe import Recipe
from manyhands.runs.recipe_fields import FILLED_IN, change_field, filled_in
from manyhands.runs.recipe_silos import place_as_written, with_domains
from manyhands.spec import Spec, problems_of

S = TypeVar("S", bound=Spec)


def load_recipe(path: Path | str, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: The TOML file.
        changes: Changes of fields in the form ``a.b=c``, where c is a TOML value or a plain word.
    """
    fields = read_recipe(path, changes)
    if "sweep" in fields:
        raise RecipeError(f"{path}: has a [sweep], so it is several recipes: load_sweep() reads them all")
    return parse_recipe(fields, str(path))


def read_recipe(path: Path | str, changes: Sequence[str] = ()) -> dict[str, Any]:
    """Read the fields of a recipe and apply the changes; a name is added, and nothing is validated."""
    path = Path(path)
    fields = read_toml(path, "recipe")
    fields.setdefault("name", re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("-._") or "run")
    for change in changes:
        change_field(fields, change)
    return fields


def parse_offer(text: str, where: str) -> Recipe:
    """Parse a recipe that another party offers, without opening, listing or fetching anything that it names."""
    fields = parse_toml(text, where)
    check_lists_classes(fields, where)
    with understood(where):
        return parse_recipe(fields, where)


def check_lists_classes(fields: Mapping[str, Any], where: str) -> None:
    """Check that a recipe between sites lists its classes, so that none need read images to know them."""
    data = fields.get("data")
    if isinstance(data, dict) and "classes" not in data and data.get("source") not in ("digits", {"kind": "digits"}):
        raise RecipeError(f"{where}: data.classes is missing; between sites a recipe must list the classes")


@contextmanager
def understood(where: str) -> Iterator[None]:
    """Turn every unexpected exception into an error of the recipe that another party offered."""
    try:
        yield
    except ManyhandsError:
        raise
    except Exception as error:
        raise RecipeError(f"{where}: cannot be understood: {type(error).__name__}: {error}") from None


def parse_recipe(fields: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Parse a recipe from plain values; what the data implies for the model is filled in."""
    if not isinstance(fields, Mapping):
        raise RecipeError(f"{where}: is {fields!r}, but should be a table of fields")
    try:
        complete = filled_in(with_domains(fields))
    except ValueError as error:
        raise RecipeError(f"{where}: silos: {error}") from None
    try:
        return Recipe.model_validate(complete)
    except ValidationError as error:
        raise _recipe_error(where, error, complete, fields) from None


def read(kind: type[S], path: Path, file_kind: str) -> S:
    """Read a specification from a TOML file of its own."""
    fields = read_toml(path, file_kind)
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise _recipe_error(str(path), error, fields) from None


def specs_in(fields: Mapping[str, Any], where: str) -> list[Spec]:
    """The method, data, sampling and evaluation of a run folder's recipe; a run from Python has no data there."""
    kinds: dict[str, Any] = {"method": AnyMethod, "data": Data, "sampling": Sampling, "evaluation": Evaluation}
    specs = []
    for name, kind in kinds.items():
        try:
            specs += [TypeAdapter(kind).validate_python(fields[name])] if name in fields else []
        except ValidationError as error:
            raise _recipe_error(f"{where}: {name}", error, fields[name]) from None
    return specs


def _recipe_error(
    where: str, error: ValidationError, fields: Mapping[str, Any], written: Mapping[str, Any] | None = None
) -> RecipeError:
    problems = [(place_as_written(place, written or fields), text) for place, text in problems_of(error, fields)]
    if any(place.split(".")[0] == "data" for place, _ in problems):
        problems = [(place, text) for place, text in problems if place not in FILLED_IN]  # they are listed for the data
    return RecipeError("\n".join(": ".join(filter(None, (where, place, text))) for place, text in problems))
