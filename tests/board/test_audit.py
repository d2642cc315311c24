"""A random sample of rows that is run again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from packing import change_member
from test_cli import plbench

from plbench.board.audit import audit, sample_rows
from plbench.board.boards import BoardFolder, open_boards
from plbench.board.submit import add, new_board, withdraw
from plbench.errors import PlbenchError
from plbench.runs import run as runner
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.record import write_record
from plbench.runs.workspace import Workspace


@pytest.fixture
def workspace(make_workspace: Callable[..., Workspace]) -> Workspace:
    return make_workspace()


@pytest.fixture
def board(workspace: Workspace, tmp_path: Path) -> BoardFolder:
    """Two rows: ce-ignore, and ce-negative with two seeds."""
    folders = []
    for method, seed in (("ce-ignore", 0), ("ce-negative", 0), ("ce-negative", 1)):
        record = runner.run(plan_run(Request("tiny", method, seed=seed), workspace), workspace)
        environment = {**record.environment, "git_commit": "0" * 40, "git_dirty": False}
        folders.append(workspace.store.run_folder(record.key))
        write_record(folders[-1], record.model_copy(update={"environment": environment}))
    new_board(tmp_path / "boards", "tiny", "Tiny blocks", record.spec.protocol)
    add(folders, tmp_path / "boards")
    return open_boards(tmp_path / "boards")[0]


def test_genuine_rows_are_within_and_an_invented_one_is_not(
    board: BoardFolder, workspace: Workspace, tmp_path: Path
) -> None:
    found = list(audit([board], 5, 0, workspace))
    assert [one.row for one in found if one.within] == [one.row for one in found] and len(found) == 2
    key = found[0].key

    def better(content: bytes) -> bytes:
        record = json.loads(content)
        value = record["metrics"]["test"]["map_c"]["value"]
        record["metrics"]["test"]["map_c"]["value"] = value + 3 if value < 90 else value - 3
        return json.dumps(record).encode()

    change_member(tmp_path / "boards", f"{key}/record.json", better)
    again = {one.key: one for one in audit([board], 5, 0, workspace)}
    assert not again[key].within and "map_c" in again[key].why
    assert [one.within for one in again.values() if one.key != key] == [True]
    where = ["--boards", tmp_path / "boards", "--runs", workspace.store.runs, "--data-root", tmp_path / "drawn", "-q"]
    where += ["--plugin", Path(__file__).parents[1] / "conftest.py", "--seed", 0]
    without_dataset = where[: where.index("--plugin")]
    said = plbench("board", "audit", "tiny", "--sample", 5, *without_dataset)
    assert said.code == 2 and "2 of 2 rows could not be run here" in said.err
    said = plbench("board", "audit", "tiny", "--sample", 5, *where)
    assert said.code == 2 and f"record {key}: " in said.out and "1 of 2 rows not reproduced" in said.err


def test_the_draw_is_of_rows_and_of_records_that_stand(board: BoardFolder, tmp_path: Path) -> None:
    draws = [sample_rows([board], 1, seed)[0][1] for seed in range(60)]
    assert draws == [sample_rows([board], 1, seed)[0][1] for seed in range(60)]
    one_seed, *_ = (key for key in draws if draws.count(key) == max(map(draws.count, draws)))
    assert set(draws) == set(board.added) and 20 <= draws.count(one_seed) <= 40  # half of the draws: a row, not a run
    for key in board.added:
        withdraw(key, "of no use", tmp_path / "boards")
    with pytest.raises(PlbenchError, match="no record to run again on tiny"):
        sample_rows(open_boards(tmp_path / "boards"), 1, 0)


def test_what_cannot_be_run_here_is_said(board: BoardFolder, make_workspace: Callable[..., Workspace]) -> None:
    bare = make_workspace(name="bare")
    del bare.registry.sources["dataset"]["tiny"]
    (one,) = audit([board], 1, 0, bare)
    assert one.within is None and one.compared == () and one.why.startswith("could not be run here: ")
