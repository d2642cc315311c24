"""The picture of a comparison: all formats, any number of rows and panels, what is filled, what the caption says."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from plbench.comparison.compare import Row, Setting
from plbench.comparison.picture import draw_comparison
from plbench.errors import PlbenchError
from plbench.metrics.statistics import Figure

COMMAND = "plbench compare --dataset tiny --simulate fpc=8 --methods paper --seeds 5"
NAN = float("nan")


def a_row(place: int, p_value: float | None, groups: tuple[str, ...], num_seeds: int = 5) -> Row:
    mean = 60.0 - place
    figures = {name: Figure(mean, mean - 1, mean + 1) for name in ("map_c", "map_o", *groups)}
    return Row(
        method="m",
        label=f"Method {place}",
        seeds=tuple(range(num_seeds)),
        keys=(f"key-{place}",),
        figures=figures,
        num_classes_scored=6,
        num_classes=6,
        share_best=0.8 if place == 0 else 0.05,
        difference=None if place == 0 else Figure(-place, -place - 1, -place + 1),
        p_value=p_value,
        rank=1 if p_value is None or p_value >= 0.05 else place + 1,
    )


@pytest.fixture
def make_setting() -> Callable[..., Setting]:
    """Builds a comparison: `make_setting(num_rows, groups=(...), num_seeds=5)`; the second row is tied to the first."""

    def make(num_rows: int = 4, groups: tuple[str, ...] = ("frequent", "rare"), num_seeds: int = 5) -> Setting:
        p_values = [None, 0.3, *[0.01] * num_rows][:num_rows]
        rows = tuple(a_row(place, p_value, groups, num_seeds) for place, p_value in enumerate(p_values))
        return Setting("tiny-fpc8/v1", "probe", "a model", 24, rows)

    return make


@pytest.mark.parametrize(
    ("ending", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF"), ("PNG", b"\x89PNG")]
)
def test_it_is_written_in_every_format_and_the_same_each_time(
    make_setting: Callable[..., Setting], tmp_path: Path, ending: str, start: bytes
) -> None:
    path = tmp_path / "deep" / f"picture.{ending}"
    draw_comparison(make_setting(), COMMAND, path)
    first = path.read_bytes()
    assert first.startswith(start)
    draw_comparison(make_setting(), COMMAND, path)
    assert path.read_bytes() == first
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_name_of_no_picture_is_an_error(make_setting: Callable[..., Setting], tmp_path: Path) -> None:
    with pytest.raises(PlbenchError, match=r"\.png, \.svg, \.pdf"):
        draw_comparison(make_setting(), COMMAND, tmp_path / "table.html")


def words_in(setting: Setting, path: Path) -> str:
    """Text of the picture in SVG, where matplotlib notes beside each text's outlines what it says."""
    draw_comparison(setting, COMMAND, path)
    return " ".join(re.findall(r"<!-- (.*?) -->", path.read_text(encoding="utf-8"), flags=re.DOTALL))


def test_it_names_rows_panels_shares_and_its_command(make_setting: Callable[..., Setting], tmp_path: Path) -> None:
    words = words_in(make_setting(), tmp_path / "a.svg")
    for part in ("Method 0", "Method 3", "mAP(C)", "mAP(O)", "frequent", "rare", "80 %", "best in", "tiny-fpc8/v1"):
        assert part in words
    # two hyphens may not stand in a comment of XML
    assert "plbench compare" in words and "fpc=8" in words and "Mean over 5 seeds" in words
    assert "24 test images" in words and "6 of 6 classes scored" in words and "statistically tied" in words


def test_few_seeds_are_said(make_setting: Callable[..., Setting], tmp_path: Path) -> None:
    words = words_in(make_setting(num_seeds=1), tmp_path / "a.svg")
    assert "Mean over 1 seed with" in words and "Too few seeds" in words and "tied" not in words


def test_what_is_worse_is_hollow(make_setting: Callable[..., Setting], tmp_path: Path) -> None:
    whites = []
    for setting in (make_setting(4), make_setting(4, num_seeds=2)):  # two rows worse; too few seeds to say
        draw_comparison(setting, COMMAND, tmp_path / "a.svg")
        whites.append((tmp_path / "a.svg").read_text(encoding="utf-8").count("fill: #ffffff; stroke: #595959"))
    assert whites == [2 * 4, 0]


@pytest.mark.parametrize("num_rows", [1, 2, 30])
@pytest.mark.parametrize("groups", [(), tuple(f"group {number}" for number in range(7))])
def test_any_number_of_rows_and_groups_has_room(
    make_setting: Callable[..., Setting], tmp_path: Path, num_rows: int, groups: tuple[str, ...]
) -> None:
    draw_comparison(make_setting(num_rows, groups), COMMAND, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.height >= 30 * num_rows and picture.width >= 900


def test_undefined_figures_and_hostile_names_are_drawn(make_setting: Callable[..., Setting], tmp_path: Path) -> None:
    setting = make_setting(3, ("$x_{", "b"))
    undefined = {name: Figure(NAN, NAN, NAN) if name == "$x_{" else f for name, f in setting.rows[0].figures.items()}
    rows = [replace(row, figures=undefined, label="a_{$ " * 30, share_best=NAN) for row in setting.rows]
    draw_comparison(replace(setting, rows=tuple(rows)), COMMAND + " --images '$HOME/$x'", tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width < 3000
