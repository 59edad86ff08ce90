"""The base of every configuration class: frozen, typed, and strict about keys."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Strict, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from manyhands.errors import RecipeError

Int = Annotated[int, Strict()]
"""An integer; true, "3" and 3.0 are rejected."""
Float = Annotated[float, Strict()]
"""A number; an integer is accepted, a string is not."""
MAX_SHOWN = 300
"""The most characters of a wrong value that an error shows."""
EXPECTED = {
    "tuple_type": "should be a list",
    "dict_type": "should be a table",
    "model_type": "should be a table",
    "int_type": "should be a whole number",
    "float_type": "should be a number",
    "string_type": "should be a text",
    "too_short": "should have {min_length} items or more",
    "too_long": "should have at most {max_length} items",
    "string_pattern_mismatch": "should be of the form {pattern}",
}
"""What is expected, where the words of pydantic for a type of error are not plain."""


def suggest(name: str, known: list[str]) -> str:
    """Suggest the known name that is most similar to ``name``, or list all known names."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"


class SpecError(RecipeError, ValueError):
    """A configuration that is built in Python has a wrong field. It is pydantic's error in the form of a recipe's."""


class Spec(BaseModel):
    """A configuration: part of a recipe, or built in Python. Two with equal fields are equal and hash alike.

    Raises:
        SpecError: A field that it is built with in Python is wrong. ``model_validate`` raises pydantic's own error.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    def __init__(self, **fields: Any) -> None:
        __tracebackhide__ = True
        try:
            super().__init__(**fields)
        except ValidationError as error:
            name = type(self).__name__
            lines = [
                f"{name}.{place}: {text}" if place else f"{name}: {text}" for place, text in problems_of(error, fields)
            ]
            raise SpecError("\n".join(lines)) from None

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # model_validate need not call it

    if not TYPE_CHECKING:  # a type checker rejects values without a name, and assignments

        def __new__(cls, *unnamed: Any, **_: Any) -> Spec:  # noqa: D102 - how a class is made is said in its docstring
            if unnamed:
                raise SpecError(f"{cls.__name__}: takes its fields by name: {', '.join(cls.model_fields)}")
            return super().__new__(cls)

        def __setattr__(self, name: str, value: Any) -> None:
            try:
                super().__setattr__(name, value)
            except ValidationError:
                kind = type(self).__name__
                raise SpecError(f"{kind}.{name}: cannot be changed; make another {kind} instead") from None

    def cited_parts(self) -> list[object]:
        """The objects whose papers are cited: itself and its fields, or what implements them."""
        return [self, *(getattr(self, name) for name in type(self).model_fields)]

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, fields: Any) -> Any:
        if isinstance(fields, dict):
            for key in fields:
                if key not in cls.model_fields:
                    deeper = _path_of_key(str(key), fields)
                    hint = f"did you mean '{deeper}'?" if deeper else suggest(str(key), list(cls.model_fields))
                    raise PydanticCustomError("unknown_key", "unknown key '{key}'; {hint}", {"key": key, "hint": hint})
        return fields


def _path_of_key(key: str, fields: Mapping[str, Any]) -> str:
    """Return the dotted name of the key in a table of these fields, or "" if no table has it."""
    for name, table in fields.items():
        if isinstance(table, Mapping):
            deeper = key if key in table else _path_of_key(key, table)
            if deeper:
                return f"{name}.{deeper}"
    return ""


def problems_of(error: ValidationError, fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what is wrong with fields: for each problem the dotted name of its place, and a sentence."""
    return [(".".join(_path(problem["loc"], fields)), _sentence(problem)) for problem in error.errors()]


def _sentence(problem: ErrorDetails) -> str:
    text = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        return "is missing"
    if problem["type"] in {"unknown_key", "value_error"}:
        return text
    value = repr(problem["input"])
    shown = value if len(value) <= MAX_SHOWN else f"{value[:MAX_SHOWN]} ..."
    expected = EXPECTED.get(problem["type"], "").format(**problem.get("ctx", {})) or text.removeprefix("Input ")
    return f"is {shown}, but {expected[0].lower()}{expected[1:]}"


def _path(loc: Sequence[str | int], fields: Any) -> list[str]:
    """The place in the fields, without the names that pydantic gives to the choices of a union."""
    path, value = [], fields
    for i, step in enumerate(loc):
        if i and not isinstance(value, Mapping | list | tuple):
            continue
        path.append(str(step))
        value = value.get(step) if isinstance(value, Mapping) and isinstance(step, str) else None
    return path
