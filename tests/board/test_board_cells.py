"""The scores behind a board, as files from which others compute."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_cli import plbench

from plbench.board import cells as exporting
from plbench.board.boards import BoardFolder, open_boards
from plbench.board.cells import export_cells
from plbench.board.submit import add, new_board
from plbench.errors import PlbenchError
from plbench.metrics.cells import Cells
from plbench.runs import run as runner
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.record import read_record, write_record
from plbench.runs.workspace import Workspace

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of mlcroissant
METHODS = ("ce-negative", "ce-ignore")


@pytest.fixture
def workspace(make_workspace: Callable[..., Workspace]) -> Workspace:
    return make_workspace()


@pytest.fixture
def board(workspace: Workspace, tmp_path: Path) -> BoardFolder:
    """A board with a record of each method, whose runs are in the workspace."""
    folders = []
    for method in METHODS:
        record = runner.run(plan_run(Request("tiny", method), workspace), workspace)
        environment = {**record.environment, "git_commit": "0" * 40, "git_dirty": False}
        folders.append(workspace.store.run_folder(record.key))
        write_record(folders[-1], record.model_copy(update={"environment": environment}))
    new_board(tmp_path / "boards", "tiny", "Tiny blocks", record.spec.protocol)
    assert len(add(folders, tmp_path / "boards")) == 2
    return open_boards(tmp_path / "boards")[0]


def test_figures_and_cells_come_back_from_the_files_alone(
    board: BoardFolder, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_GROUP_ROWS", 50)  # several row groups
    to = tmp_path / "scores"
    found = export_cells(board, to, workspace)
    assert found.missing == {} and len(found.files) == 2
    records = pd.read_csv(to / "records.csv").set_index("key")
    classes = pd.read_csv(to / "classes.csv", dtype=str)
    dataset = plan_run(Request("tiny", "ce-ignore"), workspace).protocol_data.test()
    assert sum(records.num_cells) == found.num_cells
    for key, row in records.iterrows():
        whole = (to / row.file).read_bytes()
        assert hashlib.sha256(whole).hexdigest() == row.file_sha256
        run = workspace.store.run_folder(str(key))
        assert read_record(run).files["cells.npz"].sha256 == row.cells_sha256
        table, cells = pd.read_parquet(to / row.file), Cells.load(run / "cells.npz")
        assert set(table.key) == {key} and set(table.method) == {row.method} and set(table.row) == {row.row}
        assert table.score.to_numpy().tobytes() == cells.scores.tobytes()
        assert np.array_equal(table.label > 0, cells.positives) and set(table.label) == {-1, 1}
        assert table.image_id.tolist() == [dataset.images.ids[i] for i in cells.rows]
        assert table.class_id.tolist() == [classes.class_id[c] for c in cells.class_index]
        assert cells.in_top is not None and np.array_equal(table.top3, cells.in_top)
    card = (to / "README.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    shown: list[tuple[Any, ...]] = []
    monkeypatch.chdir(to)
    exec(snippet, {"print": lambda *values: shown.append(values)})
    assert len(shown) == 2 and all(again == pytest.approx(stated, abs=1e-5) for *_, again, stated in shown)
    mlcroissant = pytest.importorskip("mlcroissant")
    described = mlcroissant.Dataset(jsonld=to / "croissant.json")
    loaded = list(described.records("cell"))
    assert len(loaded) == found.num_cells and {one["cell/method"].decode() for one in loaded} == set(METHODS)
    assert [one["record/key"].decode() for one in described.records("record")] == list(records.index)
    assert len(list(described.records("class"))) == len(classes)
    images = [one["image/image_id"].decode() for one in described.records("image")]
    assert images == list(dataset.images.ids)


def test_other_scores_are_no_cells_of_a_record(board: BoardFolder, workspace: Workspace, tmp_path: Path) -> None:
    first, second = (workspace.store.run_folder(key) / "cells.npz" for key in sorted(board.added))
    whole = first.read_bytes()
    first.write_bytes(second.read_bytes())
    found = export_cells(board, tmp_path / "scores", workspace)
    assert list(found.missing) == [first.parent.name] and "holds other scores" in found.missing[first.parent.name]
    records = pd.read_csv(tmp_path / "scores" / "records.csv").set_index("key")
    assert records.file.isna().to_dict() == {first.parent.name: True, second.parent.name: False}
    second.unlink()
    with pytest.raises(PlbenchError, match=r"none of the 2 records of tiny .* where 1 run of the same key gave other"):
        export_cells(board, tmp_path / "none", workspace)
    first.write_bytes(whole)
    with pytest.raises(PlbenchError, match="already exists"):
        export_cells(board, tmp_path / "scores", workspace)
    assert not (tmp_path / "none").exists()


def test_the_command_says_what_it_wrote_and_what_is_missing(
    board: BoardFolder, workspace: Workspace, tmp_path: Path
) -> None:
    gone, kept = sorted(board.added)
    (workspace.store.run_folder(gone) / "cells.npz").unlink()
    where = ["--boards", board.path.parent, "--runs", workspace.store.runs, "--data-root", tmp_path / "data", "-q"]
    where += ["--plugin", Path(__file__).parents[1] / "conftest.py"]
    said = plbench("board", "export", "tiny", "--cells", tmp_path / "scores", *where)
    assert (said.code, said.err) == (0, "")
    assert f"no cells: record {gone}: " in said.out and "1 of the board's 2 records" in said.out
    assert "under the dataset's licence: " in said.out and (tmp_path / "scores").stat().st_mode & 0o777 == 0o755
    as_json = plbench("board", "export", "tiny", "--cells", tmp_path / "again", *where, "--json").json
    assert as_json["files"] == [
        f"cells/{read_record(workspace.store.run_folder(kept)).spec.method.name}/{kept}.parquet"
    ]
    for words, says in {
        ("tiny",): "give --to DIR for the site, or BOARD --cells DIR",
        ("tiny", "--to", "site"): "--to writes all boards; leave 'tiny' out",
        ("--cells", "scores"): "which board? plbench board export BOARD --cells scores",
        ("tiny", "--cells", "scores", "--sources", "x"): "--sources links the methods of the site",
        ("tyni", "--cells", "scores"): "did you mean tiny?",
    }.items():
        refused = plbench("board", "export", *words, "--boards", board.path.parent)
        assert refused.code == 2 and says in refused.err, refused


def test_what_fails_half_way_leaves_nothing(
    board: BoardFolder, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "write_text", full)
    before = set(tmp_path.iterdir())
    with pytest.raises(PlbenchError, match=r"could not write .*scores: No space left"):
        export_cells(board, tmp_path / "scores", workspace)
    assert set(tmp_path.iterdir()) == before
