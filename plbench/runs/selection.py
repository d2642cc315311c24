"""Selecting the best epoch of a training by mAP(C) on the part that it is scored on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from plbench.spec import RunSpec, Selection
from plbench.training.state import FitState, own_copy

Weights = Literal["ema", "raw"]


def selects_by_epoch(spec: RunSpec) -> bool:
    """Return whether a run scores each epoch to keep the best: on the validation part, or on test where asked to."""
    by_validation = spec.train_part == "fit" and spec.selection == "validation"
    return by_validation or spec.selection == "best-on-test"


@dataclass
class Best:
    """The best epoch so far, where one is selected: its mAP(C) in percent, its weights, and the curve it is on."""

    value: float = -1.0
    epoch: int = 0
    weights: Weights = "ema"
    state: dict[str, Any] | None = None
    curve: list[dict[str, Any]] = field(default_factory=list)

    def consider(self, state: FitState, rule: Selection, score: Callable[[Weights], float]) -> None:
        """Score the epoch that just ended and keep its weights if they are the best so far.

        Args:
            state: at the end of the epoch.
            rule: by which the run selects; on test, the last weights compete with the averaged ones.
            score: gives the mAP(C) of weights, percent.
        """
        point: dict[str, Any] = {"epoch": state.epoch}
        choices: tuple[Weights, ...] = ("raw",) if state.ema is None else ("ema",)
        if rule == "best-on-test" and state.ema is not None:
            choices = ("ema", "raw")
        for weights in choices:
            point[weights] = value = score(weights)
            if value > self.value:
                self.value, self.epoch, self.weights = value, state.epoch, weights
                self.state = own_copy(state.averaged(weights))
        self.curve.append(point)
