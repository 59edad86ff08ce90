"""A JSON schema of recipes, with which editors complete and check TOML files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from manyhands.registry import MODELS
from manyhands.runs.recipe import Recipe

SHARE = {"type": "number", "minimum": 0, "maximum": 1}
SWEEP = {
    "type": "object",
    "description": "Fields of the other tables, each with a list of values: one run for every combination.",
}


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of a recipe file.

    It has the names, types, ranges and descriptions of all fields. A field that is missing is no error of the schema,
    but for ``kind``: it may be filled in when the recipe is read, or be in ``[sweep]``.
    """
    schema = Recipe.model_json_schema()
    schema |= {"$schema": "https://json-schema.org/draft/2020-12/schema", "required": ["data", "method"]}
    tables, models = schema["$defs"], {spec.__name__ for _, spec in MODELS.loadable()}
    for name, table in tables.items():
        names_it = "const" in table["properties"].get("kind", {})  # another kind is another table
        table["required"] = ["kind"] if names_it and name not in models else []
        table["properties"] = {field: _with_short_form(field, value) for field, value in table["properties"].items()}
    tables["TimestepCut"] = {"anyOf": [SHARE, tables["TimestepCut"]]}
    for part in _parts(schema):
        _tidy(part, models)
    schema["properties"]["sweep"] = SWEEP
    return schema


def _with_short_form(field: str, value: dict[str, Any]) -> dict[str, Any]:
    """The field with the other form in which a recipe may write it."""
    if field == "classes" and "anyOf" in value:  # names; or how many there are
        return {**value, "anyOf": [*value["anyOf"], {"type": "integer", "minimum": 0}]}
    return value


def _tidy(part: dict[str, Any], models: set[str]) -> None:
    """Leaves out what editors do not use; the kind of a model may be filled in, so any of them fits."""
    if "propertyName" in part.get("discriminator", {}):
        del part["discriminator"]
    if models & {str(choice.get("$ref", "")).rsplit("/", 1)[-1] for choice in part.get("oneOf", [])}:
        part["anyOf"] = part.pop("oneOf")
    if isinstance(part.get("title"), str):
        del part["title"]
    if isinstance(words := part.get("description"), str):
        part["description"] = re.sub(r"\s+", " ", words.split("\n\n")[0]).replace("``", "`")


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """Every table of a schema, itself among them."""
    if isinstance(value, dict):
        yield value
        for part in list(value.values()):
            yield from _parts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _parts(part)
