"""Charts as places on a page; ``templates/charts.html`` draws them as SVG, in the page's colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

Points = Sequence[tuple[float, float]]

MAX_DOTS, MAX_NAME = 60, 22
NAMES_END, BAR_START, VALUE_WIDTH, ROW_HEIGHT = 142, 150, 70, 22


class ChartFrame(NamedTuple):
    """The size of a chart, and the edges of the area in which it draws; places count from the top left.

    Args:
        width: The width of the chart.
        height: Its height.
        left: The left edge of the area.
        right: Its right edge.
        top: Its upper edge.
        base: Its lower edge.
    """

    width: int = 640
    height: int = 260
    left: int = 56
    right: int = 628
    top: int = 14
    base: int = 220


class Line(NamedTuple):
    """A line through points; ``kind`` is a class of the page's style: main, thin or floor.

    Args:
        points: The points of the line.
        name: Its name; empty where it is not named.
        kind: Its class in the page's style.
    """

    points: Points
    name: str = ""
    kind: str = "main"

    @property
    def has_dots(self) -> bool:
        """Whether the points are few enough to be marked."""
        return self.kind == "main" and len(self.points) <= MAX_DOTS


class Tick(NamedTuple):
    """A number on an axis, and its place.

    Args:
        place: The place on the page.
        text: The number.
    """

    place: float
    text: str


class Curves(NamedTuple):
    """Lines over common axes; their points are places on the page.

    Args:
        x: The name of the horizontal axis.
        y: The name of the vertical axis.
        lines: The lines.
        across: The ticks of the horizontal axis.
        upward: The ticks of the vertical axis.
        frame: The size of the chart.
    """

    x: str
    y: str
    lines: Sequence[Line]
    across: Sequence[Tick]
    upward: Sequence[Tick]
    frame: ChartFrame = ChartFrame()


class Bar(NamedTuple):
    """A row of a bar chart: where it is, how long its bar is, and where the mark of its floor is.

    Args:
        name: The name of the row.
        value: Its value.
        top: The place of the row.
        length: The length of the bar.
        mark: The place of the mark; None without one.
        end: Where bar and mark end.
    """

    name: str
    value: str
    top: int
    length: float
    mark: float | None
    end: float


class Bars(NamedTuple):
    """A bar for each name.

    Args:
        unit: What the bars show.
        rows: The bars.
        width: The width of the chart.
        height: Its height.
        names_end: Where the names end.
        start: Where the bars start.
    """

    unit: str
    rows: Sequence[Bar]
    width: int
    height: int
    names_end: int = NAMES_END
    start: int = BAR_START


def curves(lines: Sequence[Line], x: str, y: str, *, zero: bool = False) -> Curves:
    """Draw lines over common axes, the horizontal one with whole numbers; ``zero`` starts the vertical one at 0."""
    frame, all_points = ChartFrame(), [point for line in lines for point in line.points]
    across = _Axis([p[0] for p in all_points], frame.left, frame.right, whole=True)
    upward = _Axis([p[1] for p in all_points] + ([0.0] if zero else []), frame.base, frame.top)
    placed = [line._replace(points=[(across.at(x), upward.at(y)) for x, y in line.points]) for line in lines]
    return Curves(x, y, placed, across.ticks(), upward.ticks())


def bars(rows: Mapping[str, tuple[float, float | None]], unit: str) -> Bars:
    """Draw a bar for each row, with a mark at its floor."""
    width = ChartFrame().width
    maximum = max([max(value, floor or 0) for value, floor in rows.values()] + [1e-12])
    scale = (width - BAR_START - VALUE_WIDTH) / maximum
    placed = []
    for i, (name, (value, floor)) in enumerate(rows.items()):
        length = round(max(value, 0) * scale, 1)
        mark = None if floor is None else round(BAR_START + floor * scale, 1)
        end = max(BAR_START + length, mark or 0)
        placed.append(
            Bar(name=name[:MAX_NAME], value=f"{value:.3g}", top=ROW_HEIGHT * i, length=length, mark=mark, end=end)
        )
    return Bars(unit, placed, width, ROW_HEIGHT * len(rows) + 2)


class _Axis:
    """Maps values to places on the page."""

    def __init__(self, values: Sequence[float], start: float, end: float, *, whole: bool = False) -> None:
        self.low, self.high, self.start, self.end = min(values), max(values), start, end
        self.whole = whole
        if self.low == self.high:
            self.low, self.high = self.low - 0.5, self.high + 0.5

    def at(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    def ticks(self) -> list[Tick]:
        from matplotlib.ticker import MaxNLocator

        locator = MaxNLocator(5, steps=[1, 2, 5, 10], integer=self.whole)
        values = map(float, locator.tick_values(self.low, self.high))
        return [Tick(self.at(value), f"{value:.4g}") for value in values if self.low <= value <= self.high]
