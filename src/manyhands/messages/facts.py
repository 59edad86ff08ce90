"""The facts of a message, which are its values besides tensors: each has a type and a range that are checked.

An error describes a refused value and does not repeat it: it may be deeply nested or very long.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from manyhands.errors import MAX_DETAIL_LENGTH, Reason, Refused, printable

MAX_SHOWN_LENGTH = 40
"""The most characters of a refused value that an error shows."""


class Fact(ABC):
    """The type and the range of one named value."""

    @property
    @abstractmethod
    def max_bytes(self) -> int:
        """The most bytes of the value in a header."""

    @abstractmethod
    def __str__(self) -> str:
        """Describe the allowed values."""

    @abstractmethod
    def accepts(self, value: Any) -> bool:
        """Return whether a value is allowed."""

    def check(self, name: str, value: Any) -> None:
        """Refuse a value that is not allowed."""
        if not self.accepts(value):
            not_finite = type(value) is float and not math.isfinite(value)
            reason = Reason.NOT_FINITE if not_finite else Reason.WRONG_FACTS
            raise Refused(reason, f"{name} is {describe_value(value)}, not {self}")


@dataclass(frozen=True)
class Whole(Fact):
    """An integer in a range, both ends included."""

    minimum: int
    maximum: int

    @property
    def max_bytes(self) -> int:
        """See ``Fact``."""
        return max(len(str(self.minimum)), len(str(self.maximum)))

    def __str__(self) -> str:
        return f"a whole number from {self.minimum:,} to {self.maximum:,}"

    def accepts(self, value: Any) -> bool:
        """See ``Fact``."""
        return type(value) is int and self.minimum <= value <= self.maximum


@dataclass(frozen=True)
class Number(Fact):
    """A finite number in a range, both ends included; with ``or_none`` also None."""

    minimum: float
    maximum: float
    or_none: bool = False

    @property
    def max_bytes(self) -> int:
        """See ``Fact``."""
        return 25

    def __str__(self) -> str:
        return f"a number from {self.minimum:g} to {self.maximum:g}{' or none' * self.or_none}"

    def accepts(self, value: Any) -> bool:
        """See ``Fact``."""
        return (value is None and self.or_none) or (type(value) is float and self.minimum <= value <= self.maximum)


@dataclass(frozen=True)
class Text(Fact):
    """A string of at most ``maximum`` characters."""

    maximum: int = MAX_DETAIL_LENGTH

    @property
    def max_bytes(self) -> int:
        """See ``Fact``."""
        return 6 * self.maximum + 2

    def __str__(self) -> str:
        return f"a text of at most {self.maximum:,} characters"

    def accepts(self, value: Any) -> bool:
        """See ``Fact``."""
        return type(value) is str and len(value) <= self.maximum


@dataclass(frozen=True)
class Flag(Fact):
    """A boolean."""

    @property
    def max_bytes(self) -> int:
        """See ``Fact``."""
        return 5

    def __str__(self) -> str:
        return "true or false"

    def accepts(self, value: Any) -> bool:
        """See ``Fact``."""
        return type(value) is bool


@dataclass(frozen=True)
class Listed(Fact):
    """A list of at most ``maximum`` values of one kind."""

    item: Fact
    maximum: int

    @property
    def max_bytes(self) -> int:
        """See ``Fact``."""
        return self.maximum * (self.item.max_bytes + 1) + 2

    def __str__(self) -> str:
        return f"a list of at most {self.maximum:,}, each {self.item}"

    def accepts(self, value: Any) -> bool:
        """See ``Fact``."""
        return type(value) is list and len(value) <= self.maximum and all(map(self.item.accepts, value))


@dataclass(frozen=True)
class Table(Fact):
    """A JSON object of at most ``maximum`` bytes; its reader checks the content."""

    maximum: int

    @property
    def max_bytes(self) -> int:
        """See ``Fact``."""
        return self.maximum

    def __str__(self) -> str:
        return "a table"

    def accepts(self, value: Any) -> bool:
        """See ``Fact``."""
        return type(value) is dict


Facts = Mapping[str, Fact]


def check_facts(expected: Facts, facts: Mapping[str, Any]) -> None:
    """Refuse facts that are missing, unexpected or out of range."""
    if facts.keys() != expected.keys():
        name = min(facts.keys() ^ expected.keys())
        problem = "is missing" if name in expected else "is not an expected fact"
        raise Refused(Reason.WRONG_FACTS, f"{describe_value(name)} {problem}")
    for name, fact in expected.items():
        fact.check(name, facts[name])


def header_bytes(facts: Facts) -> int:
    """Compute the most bytes of a header with these facts."""
    return 48 + sum(len(name) + 4 + fact.max_bytes for name, fact in facts.items())


def describe_value(value: Any) -> str:
    """Describe a value of another party without reading what is inside it."""
    match value:
        case None | bool() | float():
            return str(value)
        case int():
            return str(value) if value.bit_length() < 100 else f"a whole number of {value.bit_length():,} bits"
        case str():
            return (
                repr(printable(value[:MAX_SHOWN_LENGTH]))
                if len(value) <= MAX_SHOWN_LENGTH
                else f"a text of {len(value):,} characters"
            )
    return f"a {type(value).__name__}"
