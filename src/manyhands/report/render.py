"""Makes HTML from plain values by the templates of this package; every value is escaped."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **values: Any) -> str:
    """The HTML of a template; a value that it needs and does not get is an error."""
    return environment().get_template(template).render(values)


@cache
def environment() -> Environment:
    """The only environment: it loads no template from outside this package."""
    return Environment(
        loader=PackageLoader("manyhands.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
