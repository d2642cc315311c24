"""Findings of record checks: field, found value and expected value."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from plbench.files import escaping

MAX_VALUE, MAX_TEXT = 80, 300
MAX_REFUSALS = 100  # per record, since a table may have 20,000 wrong lines


@dataclass(frozen=True)
class Problem:
    """One reason to reject a record, or a board if `key` is empty.

    Attributes:
        key: of the record, as its folder is named.
        field: dotted path in record.json, or a file, with class id and column for tables.
        found, expected: short texts without control characters.
    """

    key: str
    field: str
    found: str
    expected: str

    def __str__(self) -> str:
        """One sentence."""
        return f"{f'record {self.key}: ' if self.key else ''}{self.field} is {self.found}; expected {self.expected}"


@dataclass
class Findings:
    """Problems of one record in order: the first of each field, and at most `MAX_REFUSALS`."""

    key: str
    problems: list[Problem] = field(default_factory=list)
    _named: set[str] = field(default_factory=set)

    def refuse(self, where: str, found: Any, expected: Any) -> None:
        """Add a problem; strings are used as they are, other values are formatted."""
        if where not in self._named and len(self.problems) < MAX_REFUSALS:
            self._named.add(where)
            words = (printable(value) if isinstance(value, str) else shown(value) for value in (found, expected))
            self.problems.append(Problem(printable(self.key), printable(where), *words))

    def require(self, well: bool, where: str, found: Any, expected: str) -> None:
        """Add a problem if a condition does not hold."""
        if not well:
            self.refuse(where, shown(found), expected)

    def equal(self, where: str, found: Any, expected: Any) -> None:
        """Add a problem if a value differs from the expected one."""
        self.require(found == expected, where, found, shown(expected))

    def close(self, where: str, found: float | None, expected: float | None, tolerance: float) -> None:
        """Add a problem if a number differs by more than the tolerance; None means undefined."""
        if found is None or expected is None:
            self.equal(where, found, expected)
        else:
            self.require(abs(found - expected) <= tolerance, where, found, shown(expected))


def shown(value: Any) -> str:
    """Return a value from an untrusted file as short printable text."""
    return _cut(repr(value), MAX_VALUE)


def printable(text: str) -> str:
    """Return text with unprintable characters escaped, truncated if long."""
    return escaping.printable(_cut(text, MAX_TEXT))


def defined(value: float) -> float | None:
    """Return a number, or None for NaN."""
    return None if math.isnan(value) else value


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text):,} characters)"
