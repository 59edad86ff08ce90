"""What a run can be told: frozen, typed, and strict about keys."""

from __future__ import annotations

import difflib
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Strict, model_validator
from pydantic_core import PydanticCustomError

Int = Annotated[int, Strict()]
"""A whole number that is told as one: neither true nor "3" nor 3.0."""
Float = Annotated[float, Strict()]
"""A number; a whole one will do."""


def suggest(name: str, known: list[str]) -> str:
    """The hint of an error: the known name that the given one is most like, or all of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"


class Spec(BaseModel):
    """A value that a recipe or a Python caller states; it compares, hashes and prints as what it says."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    def cited_parts(self) -> list[object]:
        """What it is made of, for its papers: itself and its parts, or what does their work."""
        return [self, *(getattr(self, name) for name in type(self).model_fields)]

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, told: Any) -> Any:
        if isinstance(told, dict):
            for key in told:
                if key not in cls.model_fields:
                    hint = suggest(str(key), list(cls.model_fields))
                    raise PydanticCustomError("unknown_key", "unknown key '{key}'; {hint}", {"key": key, "hint": hint})
        return told
