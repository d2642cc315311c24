"""Tables fit: no word is broken, no line is too long, and what is left out is said."""

from __future__ import annotations

import contextlib
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plbench.cli.display import tables
from plbench.cli.display.fitting import GAP, columns_that_fit
from plbench.cli.plain_console import PlainConsole
from plbench.comparison.compare import Row, Setting
from plbench.metrics.statistics import Figure

words = st.text("abc ", min_size=1, max_size=30).map(lambda text: text.strip() or "x")


@given(st.lists(st.lists(words, min_size=3, max_size=3), min_size=1, max_size=6), st.integers(20, 120))
def test_columns_have_room_for_their_longest_word(columns: list[list[str]], width: int) -> None:
    cells = {str(number): texts for number, texts in enumerate(columns)}
    shown = columns_that_fit(cells, width)
    assert "0" in shown and list(shown) == sorted(shown, key=int)
    if len(shown) > 1:
        assert sum(shown.values()) + GAP * (len(shown) - 1) <= width
    for name, room in shown.items():
        assert room >= max(min(len(word), 24) for text in cells[name] for word in text.split())


def test_what_matters_least_leaves_first() -> None:
    cells = {name: [name * 10] for name in "abcd"}
    assert list(columns_that_fit(cells, 46)) == list("abcd")
    assert list(columns_that_fit(cells, 45, less=["b"])) == list("acd")
    assert list(columns_that_fit(cells, 30, less=["b", "gone"])) == list("ac")
    assert columns_that_fit(cells, 5) == {"a": 10}  # which has to be broken


def row(label: str, mean: float, best: bool) -> Row:
    figures = {name: Figure(mean, mean - 10.97, mean + 10.97) for name in ("map_c", "map_o", "frequent", "rare")}
    gap = None if best else Figure(-9.92, -24.32, 4.48)
    return Row(
        "m", label, (0, 1, 2), ("k",), figures, 8, 8, 0.4, rank=1, difference=gap, p_value=None if best else 0.03
    )


@pytest.mark.parametrize("columns", [160, 80, 40])
def test_a_comparison(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (row("P-ASL, Selective (epochs=2)", 45.36, True), row("CE, Negative", 35.43, False))
    setting = Setting("custom/coco2017-fpc8", "probe", "test_resnet at 32 px, mlp head", 28, rows)
    written = io.StringIO()
    monkeypatch.setattr(tables, "output", lambda: PlainConsole(file=written, width=columns, soft_wrap=False))
    with contextlib.redirect_stdout(written):
        tables.print_settings([setting])
    lines = written.getvalue().splitlines()
    assert max(map(len, lines)) <= columns
    table = " ".join(" ".join(lines).split())
    assert all(word in table for word in ("Selective", "(epochs=2)", "45.36", "±10.97", "Negative", "best", "-9.92"))
    assert ("because the terminal is narrow: " in table) is (columns < 160)
