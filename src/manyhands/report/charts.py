"""Charts as SVG inside a page: they use its colours, light or dark, and can be printed."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 14, 40

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """A line through points; ``kind`` is a class of the page's style: main, thin or floor."""

    points: Points
    name: str = ""
    kind: str = "main"


def curves(lines: Sequence[Line], x: str, y: str, *, zero: bool = False) -> str:
    """Draw lines over common axes, the horizontal one with whole numbers; ``zero`` starts the vertical one at 0."""
    all_points = [point for line in lines for point in line.points]
    across = _Axis([p[0] for p in all_points], LEFT, WIDTH - RIGHT, whole=True)
    upward = _Axis([p[1] for p in all_points] + ([0.0] if zero else []), HEIGHT - BOTTOM, TOP)
    drawn_lines = "".join(_line(line, across, upward) for line in lines)
    legend = "".join(f'<span class="key {line.kind}">{html.escape(line.name)}</span>' for line in lines if line.name)
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(y)} over {html.escape(x)}">'
        f"{_grid(across, upward)}{drawn_lines}"
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{html.escape(x)}</text>'
        f"</svg><figcaption>{html.escape(y)}{legend}</figcaption></figure>"
    )


def bars(rows: Mapping[str, tuple[float, float | None]], unit: str) -> str:
    """Draw a bar for each row, with a mark at its floor."""
    maximum = max([max(value, floor or 0) for value, floor in rows.values()] + [1e-12])
    lines = []
    for i, (name, (value, floor)) in enumerate(rows.items()):
        top, length = i * 22, max(value, 0) / maximum * (WIDTH - 220)
        mark = 150 + (floor or 0) / maximum * (WIDTH - 220)
        tick = (
            ""
            if floor is None
            else f'<line class="floor" x1="{mark:.1f}" x2="{mark:.1f}" y1="{top + 1}" y2="{top + 19}"/>'
        )
        lines.append(
            f'<text x="142" y="{top + 14}" text-anchor="end">{html.escape(name[:22])}</text>'
            f'<rect class="bar" x="150" y="{top + 3}" width="{length:.1f}" height="14" rx="2"/>{tick}'
            f'<text x="{150 + max(length, mark - 150) + 6:.1f}" y="{top + 14}">{value:.3g}</text>'
        )
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {22 * len(rows) + 2}" role="img" aria-label="{html.escape(unit)}">'
        f"{''.join(lines)}</svg><figcaption>{html.escape(unit)}</figcaption></figure>"
    )


class _Axis:
    """Maps values to positions on the page."""

    def __init__(self, values: Sequence[float], start: float, end: float, *, whole: bool = False) -> None:
        from matplotlib.ticker import MaxNLocator

        low, high = min(values), max(values)
        if low == high:
            low, high = low - 0.5, high + 0.5
        places = MaxNLocator(5, steps=[1, 2, 5, 10], integer=whole).tick_values(low, high)
        self.ticks = [t for t in places if low <= t <= high]
        self.low, self.high, self.start, self.end = low, high, start, end

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _grid(across: _Axis, upward: _Axis) -> str:
    lines = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{upward.at(t):.1f}" y2="{upward.at(t):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{upward.at(t) + 4:.1f}" text-anchor="end">{t:.4g}</text>'
        for t in upward.ticks
    ]
    base = HEIGHT - BOTTOM
    lines += [f'<text x="{across.at(t):.1f}" y="{base + 16}" text-anchor="middle">{t:.4g}</text>' for t in across.ticks]
    return "".join(lines)


def _line(line: Line, across: _Axis, upward: _Axis) -> str:
    places = [(across.at(x), upward.at(y)) for x, y in line.points]
    coordinates = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(f'<circle class="{line.kind}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places)
    shown_dots = dots if line.kind == "main" and len(places) <= 60 else ""
    return f'<polyline class="{line.kind}" points="{coordinates}"/>{shown_dots}'
