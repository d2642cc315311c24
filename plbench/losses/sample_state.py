"""Sparse per-cell state of methods, for (image, class) cells, with a memory limit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from plbench.errors import PlbenchError

MAX_STATE_BYTES = 4 << 30
"""Memory limit of a method's per-cell state: enough for 100,000 images of 1,200 classes."""


def check_state_size(num_bytes: float, *, method: str, keeps: str, cure: str) -> None:
    """Reject a method whose per-cell state would exceed the memory limit.

    Args:
        num_bytes: required memory.
        method: name of the method.
        keeps: its state, such as "a label estimate for each of 9,000,000 x 9,600 cells".
        cure: alternative to suggest, such as "use epr, which keeps none".

    Raises:
        PlbenchError: if that is more than `MAX_STATE_BYTES`.
    """
    if num_bytes > MAX_STATE_BYTES:
        raise PlbenchError(
            f"method {method!r} keeps {keeps}, which takes about {num_bytes / 1e9:,.0f} GB of memory, but only "
            f"{MAX_STATE_BYTES / 1e9:.0f} GB are allowed; {cure}"
        )


class CellValues:
    """Values of some of N x C cells, on the CPU; 12 bytes per cell.

    Attributes:
        cells: int64 [K], row * C + class, sorted, unique. values: float32 [K].
    """

    def __init__(self, num_classes: int) -> None:
        """Start without cells."""
        self.num_classes = num_classes
        self.cells = torch.empty(0, dtype=torch.int64)
        self.values = torch.empty(0)

    def add(self, cells: Tensor, values: Tensor) -> None:
        """Add cells; for cells that already exist or occur twice, the first value is kept.

        Args:
            cells: int64 [K], row * C + class, in any order. values: [K].
        """
        # stable, with old cells first: for equal cells, the first is kept
        merged, order = torch.cat([self.cells, cells.cpu()]).sort(stable=True)
        is_first = torch.ones(len(merged), dtype=torch.bool)
        is_first[1:] = merged[1:] != merged[:-1]
        self.cells = merged[is_first]
        self.values = torch.cat([self.values, values.cpu().to(torch.float32)])[order[is_first]]

    def dense(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return a mask of some rows' cells that have a value, bool [b, C], and the values, float32 [b, C], else 0.

        Args:
            rows: int64 [b], on any device; the results are on the same device.
        """
        start = torch.searchsorted(self.cells, rows.cpu() * self.num_classes)
        count = torch.searchsorted(self.cells, (rows.cpu() + 1) * self.num_classes) - start
        row = torch.repeat_interleave(torch.arange(len(rows)), count)
        place = torch.arange(len(row)) + torch.repeat_interleave(start - (count.cumsum(0) - count), count)
        column = self.cells[place] % self.num_classes
        has_value = torch.zeros(len(rows), self.num_classes, dtype=torch.bool)
        values = torch.zeros(len(rows), self.num_classes)
        has_value[row, column] = True
        values[row, column] = self.values[place]
        return has_value.to(rows.device), values.to(rows.device)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for `load_state_dict`."""
        return {"cells": self.cells, "values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from `state_dict`."""
        self.cells, self.values = state["cells"], state["values"]
