"""Names that a stranger chose are only names: in tables, on terminals, in spreadsheets, in LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plbench.api import LabelledSplit, PartialLabels
from plbench.board import text
from plbench.board.rows import board_values
from plbench.board.submit import add, new_board
from plbench.cli.console import ConsoleReporter
from plbench.cli.display.tables import print_copied, print_rows, print_title
from plbench.cli.options import echo, say
from plbench.files.escaping import csv_cell, csv_text, printable
from plbench.python.results import Result
from plbench.runs import environment
from plbench.runs import run as runner
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.predict import Predictions
from plbench.runs.scores_file import write_predictions
from plbench.runs.summary import read_per_class
from plbench.runs.tables import PER_CLASS, parse_per_class

FORMULA = '=HYPERLINK("https://evil.example","AP")'
LINK = "Best](https://evil.example) | 99.99 | **x**"
COLOUR = "\x1b[31mred\x1b]0;owned"
LATEX = r"\input{/etc/passwd} 50 % & $x_1$"
MARKUP = "[red]dog[/x] <script>alert(1)</script>"
HOSTILE = (FORMULA, LINK, COLOUR, LATEX, MARKUP, "@SUM(A1)")


@given(st.text())
def test_what_a_spreadsheet_is_given_is_read_back(name: str) -> None:
    assert csv_text(csv_cell(name)) == name
    assert not csv_cell(name).startswith(("=", "+", "-", "@", "\t", "\r"))


def test_what_cannot_be_seen_is_written_out() -> None:
    assert printable("a\u202eb\nc\td\ud800", keep="\n\t") == "a\\u202eb\nc\td\\ud800"
    assert printable("कि\u200dष, naïve – 50 %\xa0") == "कि\u200dष, naïve – 50 %\xa0"


def test_terminals_show_names_and_do_not_obey_them(capsys: pytest.CaptureFixture[str]) -> None:
    for name in HOSTILE:
        print_rows(name, [{name: name, "seeds": 1}])
        print_title(name)
        print_copied("Note", name)
        echo(name)
        say(name, 2)
        reporter = ConsoleReporter()
        reporter.line(name)
        with reporter.task(name) as report:
            report(1, 2)
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err and "\x07" not in out + err
    for shown in (*HOSTILE[:2], printable(COLOUR), *HOSTILE[3:]):
        assert out.count(shown) >= 4 and shown in err, shown


def test_a_bar_does_not_read_its_title(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with ConsoleReporter().task(MARKUP) as report:
        report(1, 2)
    with ConsoleReporter().tally(MARKUP) as tally:
        tally(1, 2, COLOUR)
    assert "[red]dog" in (err := capsys.readouterr().err) and "\x1b]0;" not in err


class TestOfARun:
    @pytest.fixture
    def finished(
        self, make_workspace: Callable[..., Any], tiny_dataset: type[Any], monkeypatch: pytest.MonkeyPatch
    ) -> Result:
        class Hostile(tiny_dataset):  # type: ignore[misc]
            """The tiny dataset with names that somebody else chose."""

            def split(self, name: str) -> Any:
                split = super().split(name)
                dense = split.labels.rows(np.arange(split.labels.num_images))
                ids = split.labels.class_ids
                return LabelledSplit(split.images, PartialLabels.from_dense(dense, ids, HOSTILE))

        monkeypatch.setattr(environment, "git_state", lambda: {"git_commit": "0" * 40, "git_dirty": False})
        workspace = make_workspace(Hostile)
        plan = plan_run(Request("tiny", "ce-negative"), workspace)
        record = runner.run(plan, workspace)
        return Result(record, workspace.store.run_folder(record.key), workspace)

    def test_the_table_of_classes(self, finished: Result) -> None:
        path = finished.folder / PER_CLASS
        cells = [cell for row in csv.reader(io.StringIO(path.read_text())) for cell in row]
        assert not [cell for cell in cells if cell.startswith(("=", "@"))] and f"'{FORMULA}" in cells
        assert [row.class_name for row in parse_per_class(path.read_bytes())] == [*HOSTILE]
        assert [row["class_name"] for row in read_per_class(path, [FORMULA])] == [FORMULA]
        assert list(finished.per_class.index) == [*HOSTILE]

    def test_boards(self, finished: Result, tmp_path: Path) -> None:
        board = new_board(tmp_path / "boards", "tiny", "Tiny", finished.record.spec.protocol)
        assert board_values(board)["sections"] == []
        with pytest.raises(ValueError, match="does not take"):  # a name that nobody sees all of
            add([finished.folder], tmp_path / "boards")


def test_tables_of_boards(make_workspace: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "git_state", lambda: {"git_commit": "0" * 40, "git_dirty": False})
    workspace = make_workspace()
    plan = plan_run(Request("tiny", "ce-negative"), workspace)
    runner.run(plan, workspace)
    board = new_board(tmp_path / "boards", "tiny", "Tiny", plan.spec.protocol)
    add([workspace.store.run_folder(plan.spec.key)], tmp_path / "boards")
    values = board_values(type(board)(board.path))
    (row,) = values["sections"][0]["rows"]
    row["rank"] = row["rank_at_cost"] = 1
    plain_lines = [len(render(values).splitlines()) for render in RENDERERS]
    for name in HOSTILE:
        values["title"] = values["protocol"] = row["label"] = row["cost"]["machine"] = name
        values["groups"] = [name]
        row["cost"]["hours"] = 1.0
        row["figures"][name] = row["figures"]["map_c"]
        markdown, listed, latex, table = (render(values) for render in RENDERERS)
        assert [len(page.splitlines()) for page in (markdown, listed, latex, table)] == plain_lines, name
        assert "\x1b" not in markdown + listed + latex + table and "\x07" not in markdown + listed + latex
        for page in (re.sub(r"`[^`]*`", "", page) for page in (markdown, listed)):  # a code span is only shown
            assert not re.search(r"(?<!\\)\]\(https://evil", page) and "| 99.99 |" not in page.replace(r"\|", "")
            assert "<script" not in page.replace(r"\<", "") and "**x" not in page.replace(r"\*", "")
        assert r"\input" not in latex and "$x" not in latex.replace(r"\$", "")
        cells = [cell for line in csv.reader(io.StringIO(table)) for cell in line]
        assert not [cell for cell in cells if cell.startswith(("=", "@", "+"))]


RENDERERS: tuple[Callable[[Any], str], ...] = (
    text.as_markdown,
    lambda values: text.overview([values]),
    text.as_latex,
    text.as_csv,
)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_scores_of_images(suffix: str, tmp_path: Path) -> None:
    found = Predictions(("=1.jpg", "a.jpg"), HOSTILE[:1], np.ones((2, 1), np.float32), {})
    write_predictions(path := tmp_path / f"scores.{suffix}", found, np.ones((2, 1), bool))
    content = path.read_text()
    if suffix == "jsonl":  # which no spreadsheet opens
        assert '"image": "=1.jpg"' in content
        return
    assert [cell for row in csv.reader(io.StringIO(content)) for cell in row if "=" in cell] == [
        f"'{FORMULA}",
        "'=1.jpg",
        f"'{FORMULA}",
        f"'{FORMULA}",
    ]
