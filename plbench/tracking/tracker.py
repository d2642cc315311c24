"""Interface of experiment trackers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from plbench.spec import RunSpec

PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboard"),
    "mlflow": ("mlflow", "mlflow"),
    "wandb": ("wandb", "wandb"),
}
"""By name of each tracker in settings: the required module, and its name on PyPI."""


class Tracker(Protocol):
    """Events of one run: `started` first, then `logged` any number of times, then `finished` or `failed`.

    If an event raises, the tracker is dropped, and the run continues. One object serves one run; those of several runs
    exist at the same time, and are called from several threads.
    """

    def started(self, spec: RunSpec, folder: Path) -> None:
        """Handle the start of the run, or its continuation from a checkpoint in its folder."""

    def logged(self, step: int, values: Mapping[str, float]) -> None:
        """Log values by name at an optimiser step. After an interruption, some steps are repeated."""

    def finished(self, step: int, figures: Mapping[str, float]) -> None:
        """Handle the end of the run at a step; `figures` are its results and costs by name."""

    def failed(self, error: BaseException) -> None:
        """Handle a run that ended without a result; `KeyboardInterrupt` if it was stopped."""


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of nested mappings by path, as in "seconds/training"; other values are left out.

    Examples:
        >>> numbers({"loss": 2, "seconds": {"data": 0.5}, "note": "none", "last": True})
        {'loss': 2.0, 'seconds/data': 0.5}
    """
    found = _flat(values, "/")
    return {path: float(v) for path, v in found if isinstance(v, (int, float)) and not isinstance(v, bool)}


def settings(spec: RunSpec) -> dict[str, bool | int | float | str]:
    """Return all settings of the run by dotted name: "plan.lr", "method.params.top_k"."""
    found = _flat({"key": spec.key, **spec.model_dump(mode="json", exclude_none=True)}, ".")
    return {path: value if isinstance(value, (bool, int, float, str)) else str(value) for path, value in found}


def _flat(values: Mapping[str, Any], separator: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, separator, f"{prefix}{name}{separator}")
        else:
            yield f"{prefix}{name}", value
