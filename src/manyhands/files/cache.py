"""The folder in which costly results are cached between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder of the cache, which may be deleted at any time: $MANYHANDS_CACHE, or ~/.cache/manyhands."""
    if own := os.environ.get("MANYHANDS_CACHE"):
        return Path(own)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "manyhands"
