"""Figures can be read in print, on a dark page, and without colour; the same data give the same bytes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plbench.experiments.shared.charts import lines
from plbench.experiments.shared.experiment import Context, Findings, Point
from plbench.experiments.shared.style import COLOURS, DARK, DASHES, INK, MARKS, PAPER, new_figure, save, strokes, styled
from plbench.metrics.statistics import Sample


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("colour", COLOURS)
def test_every_colour_stands_out_on_white_and_on_black(colour: str) -> None:
    assert contrast(colour, PAPER) >= 3 and contrast(colour, DARK[PAPER]) >= 3


def test_text_can_be_read_in_both_modes() -> None:
    assert contrast(INK, PAPER) >= 7 and contrast(DARK[INK], DARK[PAPER]) >= 7


def test_lines_differ_in_more_than_colour() -> None:
    looks = strokes([f"line {n}" for n in range(6)])
    assert len({(look["marker"], str(look["linestyle"])) for look in looks.values()}) == 6
    assert len(set(MARKS)) == len(set(map(str, DASHES))) == len(set(COLOURS)) == 6


def test_files_are_equal_each_time_and_follow_the_page(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        with styled():
            figure, axes = new_figure(2)
            axes[0].plot([1, 2], [3, 4], color=COLOURS[0])
            axes[0].set_title("a title")
        assert save(figure, tmp_path / folder, "f") == ("f.svg", "f.png")
    svg = (tmp_path / "a" / "f.svg").read_text(encoding="utf-8")
    assert svg == (tmp_path / "b" / "f.svg").read_text(encoding="utf-8")
    assert (tmp_path / "a" / "f.png").read_bytes() == (tmp_path / "b" / "f.png").read_bytes()
    assert "a title" in svg and "prefers-color-scheme: dark" in svg
    inks = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", svg.partition("</style>")[2]))
    assert inks <= {*DARK, *COLOURS, "#000000"}  # every ink has its counterpart, or is a colour
    with Image.open(tmp_path / "a" / "f.png") as picture:
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("scale", ["linear", "log", "symlog", "places"])
def test_all_of_a_line_is_inside_its_axes_and_bars_at_one_place_lie_side_by_side(scale: str) -> None:
    places = (0.0, 1.0, 100.0) if scale == "symlog" else (1.0, 10.0, 100.0)
    draws = np.random.default_rng(0).normal(50, 1, (3, 1000))
    points = [Point(s, x, {"m": Sample.of_runs(draws.mean(axis=1), draws)}) for s in ("one", "other") for x in places]
    findings = Findings(Context("d", "d", "none", 1, 1, True), tuple(points))
    with styled():
        figure = lines("m", "x", "y", scale)(findings)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    drawn = [line.get_transform().transform(line.get_xydata()) for line in axes.lines if len(line.get_xydata()) == 3]
    box = axes.get_window_extent()
    assert len(drawn) == 2 * 3  # of each series its line and the caps of its bars
    for pixels in drawn:
        assert (pixels >= box.min).all() and (pixels <= box.max).all()
    means = [line for line in axes.lines if line.get_linestyle() != "None"]
    one, other = (line.get_transform().transform(line.get_xydata()) for line in means)
    assert (other - one)[:, 0] == pytest.approx(3 / 72 * figure.dpi) and (other - one)[:, 1] == pytest.approx(0)
