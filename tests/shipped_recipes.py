"""The shipped recipes whose plan can be made here: one that begins from a pretrained model needs its folder."""

from __future__ import annotations

from pathlib import Path

from manyhands.runs.shipped import shipped


def complete_recipes() -> list[Path]:
    """Those that name no pretrained model: tests/methods/learners/test_pretrained.py makes a plan of one that does."""
    return [path for path in shipped() if 'kind = "pretrained"' not in path.read_text()]
