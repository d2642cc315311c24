"""Style of all figures of experiments: colours, markers, and files for light and dark pages."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plbench.data.lettering import drawable, dress
from plbench.files import write_atomically, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#00875f", "#b0629a", "#7f7f7f", "#a07800")
"""Based on Okabe and Ito, some darker: colour-blind safe, and visible on white and on black."""

MARKS = ("o", "s", "^", "D", "v", "P")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (5, 1.4, 1.2, 1.4)), (0, (8, 2)), (0, (3, 1)))
INK, PALE, PAPER = "#262626", "#d9d9d9", "#ffffff"
DARK = {INK: "#e8e8e8", PALE: "#3f444b", PAPER: "#0d1117"}
"""Colours of text, grid and background on dark pages."""

_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "legend.fontsize": 8.5,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": PALE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 5,
    "svg.hashsalt": "plbench",  # reproducible bytes
    "svg.fonttype": "none",  # text stays text
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
}
_PNG_DPI = 110


def styled() -> AbstractContextManager[None]:
    """Return a context that applies the style."""
    from matplotlib import rc_context  # slow to import

    return rc_context(_STYLE)


def new_figure(columns: int, rows: int = 1, *, width: float = 3.4, height: float = 2.9) -> tuple[Figure, list[Axes]]:
    """Return a figure of equal panels in this style.

    Args:
        columns, rows: of panels.
        width, height: of one panel in inches.
    """
    from matplotlib.figure import Figure

    with styled():
        figure = Figure(figsize=(max(4.6, columns * width + 0.4), rows * height + 0.5), layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    return figure, axes


def new_grid(number: int, across: int, y_label: str, **size: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with this number of panels, at most `across` per row; the label is at the left of each row."""
    across = min(across, number)
    figure, axes = new_figure(across, -(-number // across), **size)
    for spare in axes[number:]:
        spare.set_visible(False)
    for left in axes[:number:across]:
        left.set_ylabel(y_label)
    return figure, axes[:number]


def add_legend(figure: Figure, axes: Sequence[Axes], columns: int) -> None:
    """Add one legend below all panels, with each label once."""
    handles = {label: h for a in axes for h, label in zip(*a.get_legend_handles_labels(), strict=True)}
    if handles:
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns)


def strokes(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return colour, marker and dash of each line; each of them alone distinguishes lines."""
    kinds = zip(cycle(COLOURS), cycle(MARKS), cycle(DASHES), strict=False)
    return {n: {"color": c, "marker": m, "linestyle": d} for n, (c, m, d) in zip(names, kinds, strict=False)}


def plain(text: str) -> str:
    """Return the text without characters that matplotlib would interpret as a formula, or cannot display."""
    return drawable(text).replace("$", r"\$")


def save(figure: Figure, folder: Path, name: str) -> tuple[str, ...]:
    """Write NAME.svg, which adapts to dark mode, and NAME.png on white; return their names.

    Raises:
        StoreError: if they cannot be written.
    """
    from PIL import Image

    drawn, pixels = io.StringIO(), io.BytesIO()
    with styled():
        dress(figure)
        figure.savefig(drawn, format="svg", metadata={"Date": None})
        figure.savefig(pixels, format="png", dpi=_PNG_DPI)
    write_text(folder / f"{name}.svg", in_both_modes(drawn.getvalue()))
    with Image.open(pixels) as image:  # few colours suffice, and keep repositories with many figures small
        few = image.convert("RGB").quantize(64, dither=Image.Dither.NONE)
    write_atomically(folder / f"{name}.png", lambda file: few.save(file, format="PNG", optimize=True))
    return f"{name}.svg", f"{name}.png"


def in_both_modes(svg: str) -> str:
    """Return an SVG of this style with rules that swap text and background colours on dark pages."""
    pairs = [(what, light, dark) for light, dark in DARK.items() for what in ("fill", "stroke")]
    rules = [f'[style*="{what}: {light}"]{{{what}:{dark}!important}}' for what, light, dark in pairs]
    rules.append(f"text{{fill:{DARK[INK]}}}")  # text without an explicit colour is black
    head, end, body = svg.partition("<defs>")
    return f"{head}<style>@media (prefers-color-scheme: dark){{{''.join(rules)}}}</style>{end}{body}"
