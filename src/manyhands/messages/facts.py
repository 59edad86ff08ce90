"""What a message may tell beside its tensors: each fact has a type and a range, so that nothing foreign is without one.

What is refused is described, never repeated: a foreign value may be nested or as long as it likes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from manyhands.errors import MAX_DETAIL_LENGTH, Reason, Refused, printable

MAX_SHOWN_LENGTH = 40
"""So many characters of a value that is refused are shown."""


class Fact(ABC):
    """What one named value must be."""

    @property
    @abstractmethod
    def max_bytes(self) -> int:
        """The most bytes that it takes in a header."""

    @abstractmethod
    def __str__(self) -> str:
        """What it must be, in words."""

    @abstractmethod
    def accepts(self, value: Any) -> bool:
        """Whether a value is such a one."""

    def check(self, name: str, value: Any) -> None:
        """Refuse a value that is none."""
        if not self.accepts(value):
            endless = type(value) is float and not math.isfinite(value)
            reason = Reason.NOT_FINITE if endless else Reason.WRONG_FACTS
            raise Refused(reason, f"{name} is {describe_value(value)}, not {self}")


@dataclass(frozen=True)
class Whole(Fact):
    """A whole number in a range."""

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
    """A finite number in a range; None where there may be none."""

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
    """So many characters at most."""

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
    """True or false."""

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
    """So many values of one kind at most."""

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
    """A table that takes so many bytes at most; what is in it is looked at by whoever reads it."""

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
    """Refuse facts that are not those expected, or not in their range."""
    if facts.keys() != expected.keys():
        odd = min(facts.keys() ^ expected.keys())
        raise Refused(
            Reason.WRONG_FACTS, f"{describe_value(odd)} is {'missing' if odd in expected else 'no fact of it'}"
        )
    for name, fact in expected.items():
        fact.check(name, facts[name])


def header_bytes(facts: Facts) -> int:
    """The most bytes of a header that tells these."""
    return 48 + sum(len(name) + 4 + fact.max_bytes for name, fact in facts.items())


def describe_value(value: Any) -> str:
    """A foreign value for people, without looking into it."""
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
