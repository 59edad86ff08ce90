"""Standard JSON, which every program can read. All JSON that Manyhands writes is written here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def strict_json(value: Any, **options: Any) -> str:
    """Return the JSON of a message; raise ``ValueError`` for a NaN or an infinity.

    Text is not escaped, so half a surrogate pair raises ``ValueError`` when the result is encoded.
    """
    return json.dumps(value, allow_nan=False, ensure_ascii=False, **options)


def finite_json(value: Any, **options: Any) -> str:
    """Return the JSON of a file or of output for programs: NaN and infinities become null, all text is ASCII."""
    return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
