"""Escape untrusted text for terminals, and for spreadsheets that open a CSV."""

from __future__ import annotations

import re
import unicodedata
from typing import TypeVar

_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"  # required inside words of some scripts
_FORMULA = re.compile(r"'*[=+\-@\t\r]")

_Value = TypeVar("_Value")


def printable(text: str, keep: str = "") -> str:
    r"""Return text with control, bidirectional and other invisible characters escaped.

    Args:
        text: untrusted.
        keep: characters to keep, such as line breaks.

    Examples:
        >>> printable("\x1b[2Jdog")
        '\\x1b[2Jdog'
    """
    if text.isprintable():
        return text
    return "".join(character if _is_shown(character, keep) else _written(character) for character in text)


def _is_shown(character: str, keep: str) -> bool:
    return character in keep or character in _JOINERS or unicodedata.category(character) not in _INVISIBLE


def _written(character: str) -> str:
    return character.encode("unicode_escape").decode()


def csv_cell(value: _Value) -> _Value | str:
    """Return a value for a CSV file: text that a spreadsheet would run as a formula gets a leading quote.

    Examples:
        >>> csv_cell("=1+1"), csv_cell(-1.5), csv_cell("dog")
        ("'=1+1", -1.5, 'dog')
    """
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def csv_text(cell: str) -> str:
    """Return the original text of a cell written with `csv_cell`.

    Examples:
        >>> csv_text("'=1+1"), csv_text("'twas"), csv_text("-1")
        ('=1+1', "'twas", '-1')
    """
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
