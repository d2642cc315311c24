"""What a tracker is told of a run, and in which form."""

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
"""Of each tracker by the name that a run's settings give: the module that it needs, and what pip calls it."""


class Tracker(Protocol):
    """What is told of one run: `started` first, then `logged` any number of times, then `finished` or `failed`.

    Any event may raise: the tracker is dropped then, and the run goes on. One object serves one run; those of several
    runs live side by side, and are told from several threads.
    """

    def started(self, spec: RunSpec, folder: Path) -> None:
        """Hear that the run begins, or goes on from a checkpoint in its folder."""

    def logged(self, step: int, values: Mapping[str, float]) -> None:
        """Take values by name after so many optimiser steps. After an interruption some steps come a second time."""

    def finished(self, step: int, figures: Mapping[str, float]) -> None:
        """Hear that the run is done after so many steps; `figures` are its results and costs by name."""

    def failed(self, error: BaseException) -> None:
        """Hear that the run ended without a record, or with that of a failure; `KeyboardInterrupt`: it was stopped."""


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of nested mappings by path, as in "seconds/training"; all else is left out.

    Examples:
        >>> numbers({"loss": 2, "seconds": {"data": 0.5}, "note": "none", "last": True})
        {'loss': 2.0, 'seconds/data': 0.5}
    """
    found = _flat(values, "/")
    return {path: float(v) for path, v in found if isinstance(v, (int, float)) and not isinstance(v, bool)}


def settings(spec: RunSpec) -> dict[str, bool | int | float | str]:
    """Return everything that decides the run, one value by dotted name: "plan.lr", "method.params.top_k"."""
    found = _flat({"key": spec.key, **spec.model_dump(mode="json", exclude_none=True)}, ".")
    return {path: value if isinstance(value, (bool, int, float, str)) else str(value) for path, value in found}


def _flat(values: Mapping[str, Any], separator: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, separator, f"{prefix}{name}{separator}")
        else:
            yield f"{prefix}{name}", value
