"""Parse untrusted JSON, unambiguously and with limited depth."""

from __future__ import annotations

import json
from typing import Any

MAX_BYTES = 64 << 20
"""Maximum size of a JSON file."""


def parse_json(content: bytes | str) -> Any:
    """Parse JSON, and reject extensions and ambiguities.

    Raises:
        ValueError: if it is invalid, contains NaN or an infinity, repeats a key, or is nested too deeply.
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
