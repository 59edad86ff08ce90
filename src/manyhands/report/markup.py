"""The parts of a page, and numbers as people read them."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

MAX_ROWS = 200


def number(value: float | None) -> str:
    """A number for people: three significant digits."""
    return "-" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table that scrolls on its own; all columns but the first ``left`` are numbers."""
    kinds = ["" if i < left else ' class="n"' for i in range(len(heads))]
    head = "".join(f'<th scope="col"{kind}>{text(name)}</th>' for name, kind in zip(heads, kinds, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{kind}>{text(cell)}</td>' for cell, kind in zip(row, kinds, strict=True))}</tr>"
        for row in rows[:MAX_ROWS]
    )
    more = f'<p class="dim">and {len(rows) - MAX_ROWS:,} more in report.json</p>' if len(rows) > MAX_ROWS else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(heads[0])} table">'
        f"<table><tr>{head}</tr>{body}</table></div>{more}"
    )


def picture(path: Path, about: str, *, hidden: bool = False) -> str:
    """An image that is embedded in the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    off = " hidden" if hidden else ""
    return f'<img alt="{text(about)}" src="data:image/png;base64,{data}"{off}>'


def flat(value: Any, where: str = "") -> list[list[str]]:
    """Nested fields as rows of a dotted name and its value."""
    if isinstance(value, dict):
        return [row for key, inner in value.items() for row in flat(inner, f"{where}.{key}".strip("."))]
    return [[where, str(value)]]


def text(value: object) -> str:
    """A value, escaped for use anywhere in a page."""
    return html.escape(str(value))


@cache
def style() -> str:
    """The CSS of every page."""
    return Path(__file__).with_name("page.css").read_text()
