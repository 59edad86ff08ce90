"""JSON as the standard has it: everything can read what is written here, and nowhere else is any written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def strict_json(value: Any, **how: Any) -> str:
    """A value as it travels: a NaN or an infinity is a ValueError; half of a character is one when it is encoded."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False, **how)


def finite_json(value: Any, **how: Any) -> str:
    """A value as it is written into files and told to programs: what is no finite number is null, all is ASCII."""
    return json.dumps(_finite(value), allow_nan=False, **how)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
