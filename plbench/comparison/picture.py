"""Plot of a comparison: a dot with its interval for every row, one panel per metric."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plbench.comparison.compare import Setting
from plbench.comparison.verdict import share_words
from plbench.data.lettering import drawable, dress
from plbench.files import write_atomically
from plbench.metrics.statistics import SIGNIFICANT
from plbench.progress import counted
from plbench.runs.inspect.statistics import picture_format

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 5  # maximum number of panels per line
_PANEL = 1.9  # inches wide
_LINE = 0.27  # inches per row
_CHARACTER = 0.075  # inches per character of a label
_BEST, _WORSE = "#0072b2", "#595959"  # colour-blind safe; also distinguished by fill
_TITLES = {"map_c": "mAP(C)", "map_o": "mAP(O)"}


def draw_comparison(setting: Setting, command: str, path: Path) -> None:
    """Draw rows in their rank, best on top: mAP(C), mAP(O) and each group, means with 95 % intervals.

    The best row and those statistically tied with it are filled; significantly worse rows are hollow.

    Args:
        setting: the comparison.
        command: that produces it, for the caption.
        path: of the figure; its suffix determines the format.

    Raises:
        PlbenchError: if the name does not end in .png, .svg or .pdf. StoreError: if it cannot be written.
    """
    written = picture_format(path)
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "plbench", "pdf.fonttype": 42}):  # byte-identical files; text stays text
        figure = comparison_figure(setting, command)
        metadata: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(written, {})
        write_atomically(path, lambda file: figure.savefig(file, format=written, dpi=150, metadata=metadata))


def comparison_figure(setting: Setting, command: str = "") -> Figure:
    """Return the figure of `draw_comparison`.

    Args:
        setting: the comparison.
        command: that produces it, for the caption; "" for none.
    """
    from matplotlib.figure import Figure  # slow to import
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    names = list(setting.rows[0].figures)
    lines = math.ceil(len(names) / _COLUMNS)
    columns = math.ceil(len(names) / lines)
    labels = [textwrap.fill(_plain(row.label), 40) for row in setting.rows]
    left = _CHARACTER * max(len(part) for label in labels for part in label.splitlines()) + 0.2
    width = max(7.0, left + columns * _PANEL + 0.7)
    caption = _caption(setting, command, int(width / 0.061))
    below = 0.14 * (caption.count("\n") + 1) + 0.12
    height = 0.45 + lines * (_LINE * len(labels) + 0.75) + below
    room = ConstrainedLayoutEngine(rect=(0, below / height, 1, 1 - below / height))
    figure = Figure(figsize=(width, height), layout=room)
    panels = figure.subplots(lines, columns, squeeze=False)
    for place, axes in enumerate(panels.flat):
        if place >= len(names):
            axes.set_visible(False)
            continue
        _draw_panel(axes, setting, names[place])
        axes.set_yticks(range(len(labels)), labels if place % columns == 0 else [""] * len(labels), fontsize=8)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(labels) - 0.4, -0.6)  # the best on top
        if place == 0:  # next to each dot, the probability of being best
            beside = {"transform": axes.get_yaxis_transform(), "ha": "left", "fontsize": 7}
            axes.text(1.02, -0.62, "best in", va="bottom", **beside)
            for line, row in enumerate(setting.rows):
                axes.text(1.02, line, share_words(row.share_best), va="center", **beside)
    figure.suptitle(_plain(f"{setting.protocol}, {setting.regime}, {setting.model}"), fontsize=10)
    figure.text(0.01, 0.08 / height, caption, fontsize=7.5, va="bottom", color="#333333")
    dress(figure)
    return figure


def _draw_panel(axes: Axes, setting: Setting, name: str) -> None:
    """Draw one metric of all rows, with a vertical line at the best row's mean."""
    best = setting.rows[0]
    filled = {best.keys, *(row.keys for row in setting.tied)}
    for place, row in enumerate(setting.rows):
        figure = row.figures[name]
        if math.isnan(figure.mean):
            continue
        colour = _BEST if row.keys in filled else _WORSE
        axes.plot([figure.low, figure.high], [place, place], color=colour, linewidth=1.3, solid_capstyle="butt")
        axes.plot(
            figure.mean,
            place,
            marker="*" if row is best else "o",
            markersize=9 if row is best else 5.5,
            color=colour,
            markerfacecolor=colour if row.keys in filled else "white",
        )
    if not math.isnan(best.figures[name].mean):
        axes.axvline(best.figures[name].mean, color=_BEST, linewidth=0.6, linestyle=(0, (2, 3)), zorder=0)
    else:
        axes.text(0.5, 0.5, "no class scored", transform=axes.transAxes, ha="center", va="center", fontsize=8)
    axes.set_title(_TITLES.get(name, _plain(name)), fontsize=9)
    axes.tick_params(labelsize=8)
    axes.set_xlabel("%", fontsize=8, labelpad=1)
    axes.grid(axis="x", color="#e0e0e0", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _caption(setting: Setting, command: str, width: int) -> str:
    best = setting.rows[0]
    fewest, most = (end(len(row.seeds) for row in setting.rows) for end in (min, max))
    seeds = counted(fewest, "seed") if fewest == most else f"{fewest} to {most} seeds"
    if setting.has_few_seeds(*setting.rows):
        marks = "Star: highest mAP(C). Too few seeds to rank the rows."
    else:
        marks = (
            "Star: highest mAP(C). Filled: statistically tied with it, no row is significantly better "
            f"(p < {SIGNIFICANT}, all pairs tested together, paired by image and seed). Hollow: at least one row is."
        )
    unseen = "" if setting.folds is None else "each image is scored by models that were not trained on it; "
    text = (
        f"Mean over {seeds} with 95 % intervals over {setting.images} and seeds; {unseen}"
        f"{best.num_classes_scored} of {best.num_classes} classes scored. {marks} Best in: chance that the row "
        f"would have the highest mAP(C) with other {setting.other_images} and seeds."
    )
    return "\n".join([*textwrap.wrap(text, width), *textwrap.wrap(_plain(command), width, break_on_hyphens=False)])


def _plain(text: str) -> str:
    """Return the text without characters that matplotlib would parse as a formula or cannot display."""
    return drawable(text).replace("$", r"\$")
