"""Figures that notebooks show."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def for_notebooks(figure: Figure) -> Figure:
    """Return the figure as one that a notebook shows, also where matplotlib's inline backend was not asked for."""

    def as_png() -> bytes:
        written = BytesIO()
        figure.savefig(written, format="png", dpi=100)
        return written.getvalue()

    figure._repr_png_ = as_png  # type: ignore[attr-defined]  # what IPython asks an object for
    return figure
