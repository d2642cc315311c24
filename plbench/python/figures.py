"""Figures for notebooks."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def for_notebooks(figure: Figure) -> Figure:
    """Make a figure display in notebooks even without matplotlib's inline backend."""

    def as_png() -> bytes:
        written = BytesIO()
        figure.savefig(written, format="png", dpi=100)
        return written.getvalue()

    figure._repr_png_ = as_png  # type: ignore[attr-defined]  # used by IPython
    return figure
