"""Records of older schema versions, brought up to the present one step at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Content = dict[str, Any]

SCHEMA_VERSION = 4


def upgraded(content: Content) -> Content:
    """A record's content in the present schema; unchanged where it is that, or one that nobody knows.

    Args:
        content: as read from JSON.

    Raises:
        ValueError: if it holds a field that its version did not have yet.
    """
    version = content.get("schema_version")
    while isinstance(version, int) and not isinstance(version, bool) and version in _STEPS:
        content = _STEPS[version](content)
        version += 1
        content["schema_version"] = version
    return content


def _from_1(content: Content) -> Content:
    """Version 2 says where a method comes from, and whether a run took default values, which 1 did not tell."""
    added = {"paper": "", "source_file": None, "configuration": "unknown", "protocol_sha256": None}
    if later := added.keys() & content.keys():
        raise ValueError(f"schema 1 has no field {min(later)!r}, which came with schema 2")
    return {**content, **added}


def _from_2(content: Content) -> Content:
    """Version 3 has the study that chose a run's values."""
    if "tuning" in content:
        raise ValueError("schema 2 has no field 'tuning', which came with schema 3")
    return {**content, "tuning": None}


def _from_3(content: Content) -> Content:
    """Version 4 says where the time of a training went."""
    cost = content.get("cost")
    if not isinstance(cost, dict):
        return content
    if "phases" in cost:
        raise ValueError("schema 3 has no field 'cost.phases', which came with schema 4")
    return {**content, "cost": {**cost, "phases": {}}}


_STEPS: dict[int, Callable[[Content], Content]] = {1: _from_1, 2: _from_2, 3: _from_3}
