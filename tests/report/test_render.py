"""The templates: every value is escaped, none is left out unseen, and nothing is loaded from outside the package."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from jinja2 import TemplateNotFound, UndefinedError

from manyhands import report
from manyhands.formatting import TextTable
from manyhands.report import charts
from manyhands.report.parts import Picture
from manyhands.report.render import environment, render

HOSTILE = "\"><script>alert('x')</script>&amp;{{ 7 * 7 }}"
ESCAPED = "&#34;&gt;&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&amp;amp;{{ 7 * 7 }}"


def macro(template: str, name: str, *values: object) -> str:
    return str(getattr(environment().get_template(template).module, name)(*values))


@pytest.mark.parametrize(
    ("template", "name", "value", "times"),
    [
        ("parts.html", "table", TextTable([HOSTILE], [[HOSTILE]]), 3),
        ("parts.html", "picture", Picture(HOSTILE, "cGljdHVyZQ=="), 1),
        ("charts.html", "curves", charts.curves([charts.Line([(1, 2), (3, 4)], HOSTILE)], HOSTILE, HOSTILE), 5),
        ("charts.html", "bars", charts.bars({"<i>a": (1.0, 0.5)}, HOSTILE), 2),
        ("sections.html", "gives_away", [HOSTILE], 1),
        ("sections.html", "warnings", [HOSTILE] * 30, 20),
    ],
)
def test_every_value_is_escaped(template: str, name: str, value: object, times: int) -> None:
    html = macro(template, name, value)
    assert html.count(ESCAPED) == times
    assert "<script" not in html
    assert "<i>" not in html


def test_a_value_that_is_missing_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        render("page.html")
    with pytest.raises(UndefinedError):
        macro("parts.html", "picture", object())


@pytest.mark.parametrize("name", ["../page.py", "/etc/passwd", "nothing.html"])
def test_nothing_is_loaded_from_outside(name: str) -> None:
    with pytest.raises(TemplateNotFound):
        render(name)


def test_a_long_table_is_cut_and_says_so() -> None:
    html = macro("parts.html", "table", TextTable(["name", "value"], [["a", "1"]] * 1234))
    assert html.count("<tr>") == 201
    assert "and 1,034 more in report.json" in html
    assert html.count('<td class="n">1</td>') == html.count("<td>a</td>") == 200


def test_bars_grow_with_values_and_a_mark_stands_at_the_floor() -> None:
    low, high = charts.bars({"a": (1.0, None), "b": (2.0, 1.0)}, "FID").rows
    assert (high.length, high.mark) == (2 * low.length, charts.BAR_START + low.length)
    assert low.mark is None


def test_python_makes_no_markup() -> None:
    for path in Path(report.__file__).parent.glob("*.py"):
        strings = (node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant))
        assert not [text for text in strings if isinstance(text, str) and ("</" in text or "/>" in text)], path.name
