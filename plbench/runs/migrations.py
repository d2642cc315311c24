"""Records of older schema versions, brought up to the present one step at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from plbench.runs.pretraining import PACKAGED, RANDOM

Content = dict[str, Any]

SCHEMA_VERSION = 5

OLDEST_VERSION = 3
"""No record of an earlier one exists."""


def upgraded(content: Content) -> Content:
    """Return a record's content in the present schema; unchanged where it is that, or one that nobody knows.

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


def _from_3(content: Content) -> Content:
    """Version 4 says where the time of a training went."""
    cost = content.get("cost")
    if not isinstance(cost, dict):
        return content
    if "phases" in cost:
        raise ValueError("schema 3 has no field 'cost.phases', which came with schema 4")
    return {**content, "cost": {**cost, "phases": {}}}


def _from_4(content: Content) -> Content:
    """Version 5 takes CF1 and OF1 at chosen thresholds and with top 3, not at 0.5, and has AUROC, ECE, pretraining.

    What stood at 0.5 is left out: it says nothing under partial labels. The new figures need scores that an older
    record does not hold, so it has none. Weights whose origin its spec tells are described.
    """
    for name in ("pretraining", "test_seen_in_pretraining"):
        if name in content:
            raise ValueError(f"schema 4 has no field {name!r}, which came with schema 5")
    metrics = content.get("metrics")
    splits = metrics if isinstance(metrics, dict) else {}
    return {
        **content,
        "metrics": {name: _without_f1_at_half(split) for name, split in splits.items()} if splits else metrics,
        "pretraining": _weights_of(content.get("spec")),
        "test_seen_in_pretraining": None,
    }


_AT_HALF = ("cf1", "of1", "threshold")
_SINCE_5 = ("f1", "thresholds", "f1_top3", "auroc", "ece")


def _without_f1_at_half(split: Any) -> Any:
    if not isinstance(split, dict):
        return split
    if later := [name for name in _SINCE_5 if name in split]:
        raise ValueError(f"schema 4 has no field 'metrics.{later[0]}', which came with schema 5")
    return {name: value for name, value in split.items() if name not in _AT_HALF}


def _weights_of(spec: Any) -> Content | None:
    """Return what packaged and random weights have seen; None for others, about which the spec says too little."""
    model = spec.get("model") if isinstance(spec, dict) else None
    kind = model.get("weights") if isinstance(model, dict) else None
    seen = {"packaged": PACKAGED, "random": RANDOM}.get(kind) if isinstance(kind, str) else None
    return None if seen is None else seen.model_dump(mode="json")


_STEPS: dict[int, Callable[[Content], Content]] = {3: _from_3, 4: _from_4}
