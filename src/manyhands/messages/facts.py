"""What a message may tell beside its tensors: each fact has a type and a range, so that nothing foreign is without one.

What is refused is described, never repeated: a foreign value may be nested or as long as it likes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from manyhands.errors import SAID, Reason, Refused, plain

SHOWN = 40
"""So many characters of a value that is refused are shown."""


class Fact(ABC):
    """What one named value must be."""

    @property
    @abstractmethod
    def weight(self) -> int:
        """The most bytes that it takes in a header."""

    @abstractmethod
    def __str__(self) -> str:
        """What it must be, in words."""

    @abstractmethod
    def fits(self, value: Any) -> bool:
        """Whether a value is such a one."""

    def check(self, name: str, value: Any) -> None:
        """Refuse a value that is none."""
        if not self.fits(value):
            endless = type(value) is float and not math.isfinite(value)
            reason = Reason.NOT_FINITE if endless else Reason.WRONG_FACTS
            raise Refused(reason, f"{name} is {shown(value)}, not {self}")


@dataclass(frozen=True)
class Whole(Fact):
    """A whole number in a range."""

    least: int
    most: int

    @property
    def weight(self) -> int:
        """See ``Fact``."""
        return max(len(str(self.least)), len(str(self.most)))

    def __str__(self) -> str:
        return f"a whole number from {self.least:,} to {self.most:,}"

    def fits(self, value: Any) -> bool:
        """See ``Fact``."""
        return type(value) is int and self.least <= value <= self.most


@dataclass(frozen=True)
class Number(Fact):
    """A finite number in a range; None where there may be none."""

    least: float
    most: float
    or_none: bool = False

    @property
    def weight(self) -> int:
        """See ``Fact``."""
        return 25

    def __str__(self) -> str:
        return f"a number from {self.least:g} to {self.most:g}{' or none' * self.or_none}"

    def fits(self, value: Any) -> bool:
        """See ``Fact``."""
        return (value is None and self.or_none) or (type(value) is float and self.least <= value <= self.most)


@dataclass(frozen=True)
class Text(Fact):
    """So many characters at most."""

    most: int = SAID

    @property
    def weight(self) -> int:
        """See ``Fact``."""
        return 6 * self.most + 2

    def __str__(self) -> str:
        return f"a text of at most {self.most:,} characters"

    def fits(self, value: Any) -> bool:
        """See ``Fact``."""
        return type(value) is str and len(value) <= self.most


@dataclass(frozen=True)
class Flag(Fact):
    """True or false."""

    @property
    def weight(self) -> int:
        """See ``Fact``."""
        return 5

    def __str__(self) -> str:
        return "true or false"

    def fits(self, value: Any) -> bool:
        """See ``Fact``."""
        return type(value) is bool


@dataclass(frozen=True)
class Listed(Fact):
    """So many values of one kind at most."""

    each: Fact
    most: int

    @property
    def weight(self) -> int:
        """See ``Fact``."""
        return self.most * (self.each.weight + 1) + 2

    def __str__(self) -> str:
        return f"a list of at most {self.most:,}, each {self.each}"

    def fits(self, value: Any) -> bool:
        """See ``Fact``."""
        return type(value) is list and len(value) <= self.most and all(map(self.each.fits, value))


@dataclass(frozen=True)
class Table(Fact):
    """A table that takes so many bytes at most; what is in it is looked at by whoever reads it."""

    most: int

    @property
    def weight(self) -> int:
        """See ``Fact``."""
        return self.most

    def __str__(self) -> str:
        return "a table"

    def fits(self, value: Any) -> bool:
        """See ``Fact``."""
        return type(value) is dict


Facts = Mapping[str, Fact]


def check_facts(expected: Facts, facts: Mapping[str, Any]) -> None:
    """Refuse facts that are not those expected, or not in their range."""
    if facts.keys() != expected.keys():
        odd = min(facts.keys() ^ expected.keys())
        raise Refused(Reason.WRONG_FACTS, f"{shown(odd)} is {'missing' if odd in expected else 'no fact of it'}")
    for name, fact in expected.items():
        fact.check(name, facts[name])


def header_bytes(facts: Facts) -> int:
    """The most bytes of a header that tells these."""
    return 48 + sum(len(name) + 4 + fact.weight for name, fact in facts.items())


def shown(value: Any) -> str:
    """A foreign value for people, without looking into it."""
    match value:
        case None | bool() | float():
            return str(value)
        case int():
            return str(value) if value.bit_length() < 100 else f"a whole number of {value.bit_length():,} bits"
        case str():
            return repr(plain(value[:SHOWN])) if len(value) <= SHOWN else f"a text of {len(value):,} characters"
    return f"a {type(value).__name__}"
