"""Thresholds of the classes, chosen on the validation part: where CF1 and OF1 are taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from plbench.metrics import choose_thresholds
from plbench.metrics.cells import Cells
from plbench.runs.record import ThresholdReport


@dataclass(frozen=True, eq=False)
class Thresholds:
    """One threshold a class, and how they were chosen.

    Attributes:
        values: [C] in [0, 1].
    """

    values: npt.NDArray[np.float64]
    report: ThresholdReport


def thresholds_on(cells: Cells, labels: Literal["partial", "complete"], *, held_out: bool) -> Thresholds:
    """Choose thresholds on the known cells of the validation part; see `plbench.metrics.choose_thresholds`.

    Args:
        cells: of the validation part.
        labels: which labels of that part they are: its own partial ones, or the complete ones behind them (an oracle).
        held_out: whether the model that scored them was trained without that part.

    Raises:
        PlbenchError: if no cell is a known positive.
    """
    values, pooled = choose_thresholds(cells)
    has_positive = np.bincount(cells.class_index[cells.positives], minlength=cells.num_classes) > 0
    report = ThresholdReport(
        part="validation",
        labels=labels,
        held_out=held_out,
        num_images=cells.num_images,
        num_pooled=int(np.count_nonzero(~has_positive)),
        pooled=pooled,
    )
    return Thresholds(values, report)
