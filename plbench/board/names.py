"""Validation of texts that are shown on pages and terminals, and of numbers."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel

from plbench.board.entries import Entry
from plbench.runs.findings import Findings, shown

MAX_LENGTH = 200
DEEPEST = 12
MAX_NUMBER = 2**63 - 1

_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
_JOINERS = frozenset("\u200c\u200d")  # required inside words of some scripts
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_RUNS = re.compile(r"\s*(javascript|vbscript|data|file|blob)\s*:", re.IGNORECASE)
_LOCAL = re.compile(r"/|~|[A-Za-z]:[/\\]")
_IS_CLASS = re.compile(r"per_class\.csv\[.*\]\.class_(id|name)|priors\..*\.top\..*")


def flaw_of_name(text: str, *, of_class: bool = False) -> str | None:
    """Return why a text is not a valid name; None if it is valid.

    Names may contain quotes, commas, parentheses, ampersands, colons and slashes, as names of classes do. They must not
    contain markup, backslashes, control, bidirectional or other invisible characters, `..` as part of a path, URLs with
    schemes other than http(s), or more than `MAX_LENGTH` characters.

    Args:
        text: from a record or a table.
        of_class: allow a leading slash, as in MIDs, and joiners, which some scripts require.

    Examples:
        >>> flaw_of_name("/m/01g317", of_class=True), flaw_of_name("Salt & pepper (shakers), 'set'")
        (None, None)
        >>> flaw_of_name("<b>Selective</b>")
        "holds '<'"
    """
    if len(text) > MAX_LENGTH:
        return f"has {len(text):,} characters"
    for character in text:
        if character in "<>\\":
            return f"holds {character!r}"
        if unicodedata.category(character) in _INVISIBLE and not (of_class and character in _JOINERS):
            return f"holds U+{ord(character):04X}, which nobody sees"
    if ".." in text.split("/"):
        return "holds the path part '..'"
    schemes = {scheme.lower() for scheme in _SCHEME.findall(text)} - {"http", "https"}
    if schemes or _RUNS.match(text):
        return f"holds an address of scheme {min(schemes, default=text.partition(':')[0].strip())}"
    if not of_class and _LOCAL.match(text):
        return "is a path on some machine"
    return None


def check_values(entry: Entry, findings: Findings) -> None:
    """Reject invalid names and non-finite numbers in the record and its table, at any depth."""
    for path, value in _leaves(entry.record):
        _check(path, value, findings)
    for row in entry.per_class:
        findings.require(bool(row.class_id), "per_class.csv.class_id", row.class_id, "an id")
        groups = [("groups", group) for group in row.groups]
        for name, text in (("class_id", row.class_id), ("class_name", row.class_name), *groups):
            _check(f"per_class.csv[{row.class_id}].{name}", text, findings)


def _check(path: str, value: Any, findings: Findings) -> None:
    if isinstance(value, str):
        flaw = flaw_of_name(value, of_class=_IS_CLASS.fullmatch(path) is not None)
        if flaw is not None:
            findings.refuse(path, f"{shown(value)}, which {flaw}", "plain text")
    elif isinstance(value, float):
        findings.require(math.isfinite(value), path, value, "a finite number")
    elif isinstance(value, int):
        findings.require(abs(value) <= MAX_NUMBER, path, value, f"a number up to {MAX_NUMBER}")
    elif value is not None:
        findings.refuse(path, f"nested more than {DEEPEST} deep", "plain values")


def _leaves(value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield path and value of everything in a record, with keys of dictionaries; too deep containers stay whole."""
    items: Iterable[tuple[Any, Any]]
    if isinstance(value, BaseModel):
        items = vars(value).items()
    elif isinstance(value, dict):
        items = value.items()
        yield from ((path, name) for name in value)
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        yield path, value
        return
    if depth == DEEPEST:
        yield path, value
        return
    for name, item in items:
        yield from _leaves(item, f"{path}.{name}".lstrip("."), depth + 1)
