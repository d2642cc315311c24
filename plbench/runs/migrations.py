"""Upgrade records of older schema versions to the current one."""

from __future__ import annotations

from typing import Any

from plbench.runs.pretraining import PACKAGED, RANDOM

SCHEMA_VERSION = 5

OLDEST_VERSION = 3
"""The oldest version in any record."""

_METRICS_SINCE_5 = ("f1", "thresholds", "f1_top3", "auroc", "ece")
_F1_AT_HALF = ("cf1", "of1", "threshold")


def upgraded(content: Any) -> Any:
    """Return a record's content in the current schema; unchanged if it is current, or of an unknown version.

    Version 4 adds the training time by phase. Version 5 has CF1 and OF1 at chosen thresholds and for the top 3, instead
    of at 0.5 (which is meaningless under partial labels, and left out), and adds AUROC, ECE and pretraining. New
    figures stay empty, since they need scores that older records lack. Pretraining is described if the spec determines
    the origin of the weights.

    Args:
        content: as read from JSON.

    Raises:
        ValueError: if it has a field of a later version.
    """
    version = content.get("schema_version") if isinstance(content, dict) else None
    if type(version) is not int or not OLDEST_VERSION <= version < SCHEMA_VERSION:
        return content
    metrics = content.get("metrics")
    splits = {} if not isinstance(metrics, dict) else {n: own for n, own in metrics.items() if isinstance(own, dict)}
    later: list[tuple[Any, str, tuple[str, ...]]]
    later = [(content, "", ("pretraining", "test_seen_in_pretraining"))]
    later += [(split, "metrics.", _METRICS_SINCE_5) for split in splits.values()]
    if version == 3 and isinstance(content.get("cost"), dict):
        later.append((content["cost"], "cost.", ("phases",)))
    for held, place, names in later:
        if found := [name for name in names if name in held]:
            raise ValueError(f"schema {version} has no field {place + found[0]!r}, which came with a later one")
    kept = {n: {key: value for key, value in own.items() if key not in _F1_AT_HALF} for n, own in splits.items()}
    try:
        seen = {"packaged": PACKAGED, "random": RANDOM}.get(content["spec"]["model"]["weights"])
    except (KeyError, TypeError):  # reported by validation
        seen = None
    return {
        **content,
        "schema_version": SCHEMA_VERSION,
        "metrics": metrics | kept if splits else metrics,
        "pretraining": None if seen is None else seen.model_dump(mode="json"),
    }
