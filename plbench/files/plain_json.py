"""JSON from files that somebody else may have written: of one meaning, and no deeper than anything of ours."""

from __future__ import annotations

import json
from typing import Any

MAX_BYTES = 64 << 20
"""Bytes of a JSON file of ours beyond which it is not read."""


def parse_json(content: bytes | str) -> Any:
    """Parse JSON, and refuse what JSON does not know or readers disagree about.

    Raises:
        ValueError: if it is no JSON, holds NaN or an infinity, names one key twice, or is nested too deeply.
    """
    try:
        return json.loads(content, parse_constant=_refuse_constant, object_pairs_hook=_distinct)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a valid JSON number")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"it names {twice!r:.80} twice")
    return found
