"""The fields of a recipe as plain values: changes of them, and those that others imply."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from manyhands.data.partition.base import AnyPartition
from manyhands.errors import RecipeError
from manyhands.models.base import Model
from manyhands.registry import METHODS, MODELS, Registry
from manyhands.runs.data import Data
from manyhands.spec import Spec

FILLED_IN = {"method.model.size", "method.model.channels", "method.model.classes"}


def filled_in(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with fields that others imply: the model's kind, size, channels and classes, and numbers of silos."""
    complete = {**fields, **_with_silos(fields)}
    method, data = complete.get("method"), complete.get("data")
    if not isinstance(method, dict) or (spec := _known_class(METHODS, method)) is None:
        return complete
    method = method | _models(spec, method, data if isinstance(data, dict) else {})
    if getattr(spec, "pools_images", False) and "silos" in spec.model_fields:
        method = {"silos": _count_silos(complete.get("partition")), **method}
    return {**complete, "method": method}


def _with_silos(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The partition with one silo for each domain, where there are domains and no number of silos is given."""
    data, partition = fields.get("data"), fields.get("partition")
    domains = data.get("domains") if isinstance(data, dict) else None
    if not (isinstance(domains, dict) and domains and isinstance(partition, dict)):
        return {}
    return {"partition": {"silos": len(domains), **partition}}


def _known_class(registry: Registry, table: Mapping[str, Any]) -> type[Spec] | None:
    """The class of a table's kind; errors are raised when the whole recipe is validated."""
    try:
        return registry.load(str(table.get("kind")))
    except ValueError:
        return None


def _models(method: type[Spec], fields: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """The tables of a method's models: the first is for the images of the data, the others for those of the first."""
    classes = {name: spec for name, field in method.model_fields.items() if (spec := _model_class(field.annotation))}
    name, *others = classes or [""]
    table = fields.get(name, {})
    if not name or not isinstance(table, dict):
        return {}
    implied = {"kind": _default_kind(classes[name]), "channels": 1}
    first = implied | {key: data[key] for key in ("size", "channels") if key in data} | table
    known = _known_class(MODELS, first)
    if "classes" not in first and known and "classes" in known.model_fields:
        first["classes"] = len(_known_classes(data))
    first = _named(first, data)
    shape = {key: first[key] for key in ("size", "channels", "classes") if key in first}
    tables = {other: fields[other] for other in others if isinstance(fields.get(other), dict)}
    return {name: first} | {
        other: _named({"kind": _default_kind(classes[other])} | shape | table, data) for other, table in tables.items()
    }


def _named(model: dict[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """The table of a model, with the names of the classes where its prompts are made of them."""
    known = _known_class(MODELS, model)
    if "names" in model or known is None or "names" not in known.model_fields:
        return model
    names = _known_classes(data)
    return model | ({"names": names} if len(names) == model.get("classes") else {})


def _model_class(annotation: Any) -> type[Model] | None:
    """The class of models that a field takes; None for a field that takes none."""
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return annotation
    return next((spec for choice in get_args(annotation) if (spec := _model_class(choice))), None)


def _default_kind(model: type[Model]) -> str:
    """The kind of a class of models; that of a U-Net where a method takes any of them."""
    kind: object = model.model_fields["kind"].default
    return kind if isinstance(kind, str) else next(iter(MODELS.classes))


def _count_silos(partition: Any) -> int:
    """The number of silos; errors of the partition are raised when the whole recipe is validated."""
    try:
        silos: int = TypeAdapter(AnyPartition).validate_python(partition).silos
    except ValidationError:
        return 1
    return silos


def _known_classes(data: Mapping[str, Any]) -> list[str]:
    try:
        return list(Data.model_validate(data).known_classes())
    except ValidationError:
        return []  # errors of the data are raised when the whole recipe is validated


def change_field(fields: dict[str, Any], change: str) -> None:
    """Apply a change of the form ``a.b=value``."""
    path, equals, text = change.partition("=")
    if not equals or not path or "\n" in change:
        raise RecipeError(f"--set {change}: has no value; write FIELD=VALUE, such as seed=1 or method.rounds=5")
    put(fields, path.strip(), _value(text), f"--set {change}")


def _value(text: str) -> Any:
    """A TOML value, where .4 stands for 0.4, or else a plain word."""
    for candidate in (text, re.sub(r"(?<![\w.])\.(?=\d)", "0.", text)):
        try:
            return tomllib.loads(f"value = {candidate}")["value"]
        except (ValueError, RecursionError):
            continue
    return text.strip()


def put(fields: dict[str, Any], name: str, value: Any, where: str) -> None:
    """Set the value of a dotted name in nested tables."""
    *parents, last = name.split(".")
    table = fields
    for parent in parents:
        if isinstance(table.get(parent), str):
            table[parent] = {"kind": table[parent]}  # its short form
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise RecipeError(f"{where}: {parent} is a value, not a table")
    table[last] = value
