"""The base of every configuration class: frozen, typed, and strict about keys."""

from __future__ import annotations

import difflib
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Strict, model_validator
from pydantic_core import PydanticCustomError

Int = Annotated[int, Strict()]
"""An integer; true, "3" and 3.0 are rejected."""
Float = Annotated[float, Strict()]
"""A number; an integer is accepted, a string is not."""


def suggest(name: str, known: list[str]) -> str:
    """Suggest the known name that is most similar to ``name``, or list all known names."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"


class Spec(BaseModel):
    """A configuration: part of a recipe, or built in Python. Two with equal fields are equal and hash alike."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    def cited_parts(self) -> list[object]:
        """The objects whose papers are cited: itself and its fields, or what implements them."""
        return [self, *(getattr(self, name) for name in type(self).model_fields)]

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, fields: Any) -> Any:
        if isinstance(fields, dict):
            for key in fields:
                if key not in cls.model_fields:
                    hint = suggest(str(key), list(cls.model_fields))
                    raise PydanticCustomError("unknown_key", "unknown key '{key}'; {hint}", {"key": key, "hint": hint})
        return fields
