"""Descriptions in Croissant, as its own library reads them."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from plbench.board.croissant import as_croissant
from plbench.board.text import as_csv

mlcroissant = pytest.importorskip("mlcroissant")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
LEADERBOARDS = Path(__file__).parents[2] / "leaderboards"


def loaded(description: Path, name: str) -> list[dict[str, Any]]:
    """The records that the library finds, as text, without the name of their table."""
    dataset = mlcroissant.Dataset(jsonld=description)
    assert dataset.metadata.ctx.issues.errors == set()
    return [
        {column.removeprefix(f"{name}/"): plain(value) for column, value in record.items()}
        for record in dataset.records(name)
    ]


def plain(value: Any) -> Any:
    if value is None or value != value:  # an empty cell, NaN
        return ""
    return value.decode() if isinstance(value, bytes) else value


def as_typed(text: str, like: Any) -> Any:
    return text if isinstance(like, str) else type(like)(float(text))


@pytest.mark.parametrize("name", ["scenes-fpc300", "ucm17-rpa0.5", "lvis"])
def test_records_of_a_board_are_the_rows_of_its_table(name: str) -> None:
    folder = LEADERBOARDS / name
    with (folder / "table.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = loaded(folder / "croissant.json", "rows")
    assert len(found) == len(rows)
    for record, row in zip(found, rows, strict=True):
        assert list(record) == list(row)
        assert record == {column: as_typed(text, record[column]) for column, text in row.items()}
    assert (folder / "croissant.json").stat().st_size < 10_000


def test_a_table_that_was_changed_is_noticed(tmp_path: Path) -> None:
    shutil.copy(LEADERBOARDS / "ucm17-rpa0.5" / "croissant.json", tmp_path)
    table = (LEADERBOARDS / "ucm17-rpa0.5" / "table.csv").read_text(encoding="utf-8")
    (tmp_path / "table.csv").write_text(table.replace("ce-negative", "ce-positive"), encoding="utf-8")
    with pytest.raises(Exception, match="Download") as error:
        loaded(tmp_path / "croissant.json", "rows")
    assert "is not identical with the reference" in " ".join(str(error.value.__cause__).split())


def test_every_column_is_explained_or_an_end_of_an_interval(boards: list[dict[str, Any]]) -> None:
    board = {**boards[0], "sections": []}
    fields = json.loads(as_croissant(board, as_csv(board), None))["recordSet"][0]["field"]
    bare = {field["@id"].removeprefix("rows/") for field in fields if "description" not in field}
    assert {name for name in bare if not name.endswith(("_low", "_high"))} == {"device", "machine"}


def test_the_documentation_loads_a_board(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (LEADERBOARDS.parent / "docs" / "leaderboards.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    monkeypatch.chdir(LEADERBOARDS.parent)
    found: dict[str, Any] = {}
    exec(snippet, found)
    assert len(found["rows"]) > 0
