"""Tables of board figures in the pages are those of the boards, and figures in the text are on some board."""

import json
import re
import runpy
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]
MADE = runpy.run_path(str(TOP / "docs" / "tables.py"))
PAGES = MADE["PAGES"]


@pytest.mark.parametrize("page", PAGES)
def test_tables_are_those_of_the_boards(page):
    text = (TOP / page).read_text(encoding="utf-8")
    assert len(MADE["TABLE"].findall(text)) == text.count("<!-- board table: ") > 0
    assert text == MADE["rewritten"](text), "run `python docs/tables.py`"


def test_a_figure_that_changed_is_noticed(monkeypatch):
    row = MADE["find"]("coco-20k-fpc300", "CE, Negative")
    monkeypatch.setitem(row["figures"]["map_c"], "mean", 12.345)
    text = (TOP / "docs" / "results.md").read_text(encoding="utf-8")
    assert "| CE, Negative | 1 | 12.35 ±1.17 |" in MADE["rewritten"](text)


def test_a_table_says_what_it_cannot_find():
    assert MADE["find"]("coco-20k-single-positive", "CE, Ignore") is None
    assert MADE["find"]("ucm17-fpc30", "*complete labels: the ceiling*")["ceiling"]
    assert MADE["find"]("scenes-fpc300", "P-ASL, Selective, prior alone")["params"]["mode"] == "prior"
    with pytest.raises(ValueError, match="no board or figure in 'map_c ±'"):
        MADE["columns"]("map_c ±")


@pytest.mark.parametrize("page", PAGES)
def test_figures_with_intervals_in_the_text_are_on_a_board(page):
    known = set()
    for path in (TOP / "leaderboards").glob("*/table.json"):
        for section in json.loads(path.read_text(encoding="utf-8"))["sections"]:
            for row in section["rows"]:
                for figure in row["figures"].values():
                    known.add(f"{figure['mean']:.2f} ±{(figure['high'] - figure['low']) / 2:.2f}")
    text = " ".join((TOP / page).read_text(encoding="utf-8").split())  # a line may break within a figure
    shown = re.findall(r"\b\d+\.\d\d ±\d+\.\d\d\b", text)
    assert shown and [each for each in shown if each not in known] == []
