"""Verification from published cells, and labels against other records and the dataset."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_cli import plbench

from plbench.board.boards import BoardFolder, open_boards
from plbench.board.cells import export_cells
from plbench.board.checks import verify_board
from plbench.board.submit import add, new_board
from plbench.runs import run as runner
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.record import write_record
from plbench.runs.workspace import Workspace

METHODS = ("ce-negative", "ce-ignore", "asl-negative")
_MADE: list[Path] = []


@pytest.fixture
def workspace(make_workspace: Callable[..., Workspace]) -> Workspace:
    return make_workspace()


@pytest.fixture
def board(workspace: Workspace, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> BoardFolder:
    """A board of three runs, whose runs are in the workspace and whose cells are published in `scores`. Made once."""
    names = ("boards", "scores", "store")
    if _MADE:
        for name in names:
            shutil.copytree(_MADE[0] / name, tmp_path / name)
        return open_boards(tmp_path / "boards")[0]
    folders = []
    for method in METHODS:
        record = runner.run(plan_run(Request("tiny", method), workspace), workspace)
        environment = {**record.environment, "git_commit": "0" * 40, "git_dirty": False}
        folders.append(workspace.store.run_folder(record.key))
        write_record(folders[-1], record.model_copy(update={"environment": environment}))
    new_board(tmp_path / "boards", "tiny", "Tiny blocks", record.spec.protocol)
    add(folders, tmp_path / "boards")
    (made,) = open_boards(tmp_path / "boards")
    export_cells(made, tmp_path / "scores", workspace)
    _MADE.append(tmp_path_factory.mktemp("evidence"))
    for name in names:
        shutil.copytree(tmp_path / name, _MADE[0] / name)
    return made


def verify(board: BoardFolder, cells: Path, **options: Any) -> tuple[list[str], list[str]]:
    notes: list[str] = []
    return [str(problem) for problem in verify_board(board, cells=cells, note=notes.append, **options)], notes


def change(board: BoardFolder, scores: Path, edit: Callable[[pd.DataFrame], Any]) -> str:
    """Changes the published cells of one record; returns its key."""
    key = sorted(board.added)[0]
    (path,) = scores.glob(f"cells/*/{key}.parquet")
    table = pd.read_parquet(path)
    changed = edit(table)
    (table if changed is None else changed).to_parquet(path, index=False)
    return key


def test_published_cells_give_every_figure_and_replicate(board: BoardFolder, tmp_path: Path) -> None:
    problems, notes = verify(board, tmp_path / "scores")
    assert problems == [] and not any("recomputed" in note or "labels" in note for note in notes)
    (tmp_path / "all").mkdir()
    (tmp_path / "scores").rename(tmp_path / "all" / "tiny")  # as a release of several boards has them
    problems, notes = verify(board, tmp_path / "all")
    assert problems == [] and not any("recomputed" in note for note in notes)


def permuted(table: pd.DataFrame) -> None:
    """Labels of each class go to the highest scores: counts stay, and each AP is 100."""
    for _, own in table.groupby("class_id"):
        order = own.sort_values("score").index
        table.loc[order, "label"] = np.sort(own.label.to_numpy())


def higher(table: pd.DataFrame) -> None:
    table.score = table.score + np.float32(1)


CHANGES: dict[str, tuple[Callable[[pd.DataFrame], Any], str]] = {
    "permuted labels": (permuted, "cells: label is other labels than in the cells of other records"),
    "scores above 1": (higher, "expected scores between 0 and 1"),
    "a score": (lambda t: t.__setitem__("score", t.score.iloc[::-1].to_numpy()), "per_class.csv[a].ap"),
    "an image of its own": (lambda t: t.replace({"image_id": {t.image_id[0]: "mine"}}), "not one of the record's"),
    "a label of 2": (lambda t: t.assign(label=t.label.where(t.label < 0, 2)), "a label is neither 1 nor -1"),
    "fewer cells": (lambda t: t.iloc[1:], "of 143 cells; expected 144, as the record has them"),
    "a cell twice": (lambda t: pd.concat([t.iloc[1:], t.iloc[-1:]]), "is scored twice"),
    "no scores": (lambda t: t.drop(columns="score"), "no file of this record's cells"),
    "scores that are none": (lambda t: t.assign(score=np.float32(np.nan)), "(a score is missing)"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_was_changed_in_published_cells_is_refused(board: BoardFolder, tmp_path: Path, name: str) -> None:
    edit, sentence = CHANGES[name]
    key = change(board, tmp_path / "scores", edit)
    problems, _ = verify(board, tmp_path / "scores")
    assert any(sentence in problem for problem in problems), problems
    assert all(f"record {key}: " in problem for problem in problems)


@pytest.mark.parametrize("content", [b"", b"PAR1" + bytes(40) + b"PAR1"])
def test_damaged_files_are_one_sentence_each(board: BoardFolder, tmp_path: Path, content: bytes) -> None:
    key = sorted(board.added)[0]
    (path,) = (tmp_path / "scores").glob(f"cells/*/{key}.parquet")
    path.write_bytes(content)
    problems, _ = verify(board, tmp_path / "scores")
    assert len(problems) == 1 and "no file of this record's cells" in problems[0]
    (tmp_path / "scores" / "images.parquet").write_bytes(content)
    problems, _ = verify(board, tmp_path / "scores")
    assert len(problems) == 3 and all("images.parquet beside the published cells" in problem for problem in problems)


class TestLabels:
    """A record made from permuted labels as a whole: every hash and figure is in order."""

    @pytest.fixture
    def forged(self, board: BoardFolder, workspace: Workspace, tmp_path: Path) -> str:
        """Key of a record of a run that plbench itself evaluated on test labels of its own."""
        kind = workspace.registry.dataset("tiny")

        class Permuted(kind):  # type: ignore[valid-type, misc]
            def truth(self, split: str) -> np.ndarray:
                truth = super().truth(split)
                return truth if split == "train" else truth[::-1]

        source = workspace.registry.sources["dataset"]["tiny"]
        kept, source[0] = source[0], source[0].__class__("tiny", "the tests", loaded=Permuted)
        record = runner.run(plan_run(Request("tiny", "focal"), workspace), workspace)
        source[0] = kept
        told = {**record.environment, "git_commit": "0" * 40, "git_dirty": False}
        folder = workspace.store.run_folder(record.key)
        write_record(folder, record.model_copy(update={"environment": told}))
        assert add([folder], board.path.parent) == [("tiny", record.key)]
        return record.key

    def test_files_alone_do_not_tell_and_cells_of_others_do(
        self, board: BoardFolder, forged: str, workspace: Workspace, tmp_path: Path
    ) -> None:
        board = BoardFolder(board.path)
        assert verify_board(board) == []  # counts of labels are as they were
        problems, _ = verify(board, workspace.store.runs)
        assert len(problems) == 1 and f"record {forged}: cells: label is other labels" in problems[0]

    def test_alone_the_data_tell(self, board: BoardFolder, forged: str, workspace: Workspace, tmp_path: Path) -> None:
        board, only = BoardFolder(board.path), tmp_path / "only"
        shutil.copytree(workspace.store.run_folder(forged), only / forged)
        problems, notes = verify(board, only)
        assert problems == [] and any(f"labels of record {forged} were compared with nothing" in n for n in notes)
        problems, _ = verify(board, only, workspace=workspace)
        assert len(problems) == 1 and "other labels than in the dataset" in problems[0]
        assert verify(board, tmp_path / "scores", workspace=workspace)[0] == []


def test_the_command_takes_published_cells_and_the_data(
    board: BoardFolder, workspace: Workspace, tmp_path: Path
) -> None:
    where = ["--boards", board.path.parent, "--plugin", Path(__file__).parents[1] / "conftest.py"]
    said = plbench("board", "verify", "--cells", tmp_path / "scores", "--data-root", tmp_path / "drawn", *where)
    assert (said.code, said.out.strip()) == (0, "OK: no problems found"), said
    change(board, tmp_path / "scores", permuted)
    said = plbench("board", "verify", "--cells", tmp_path / "scores", "--data-root", tmp_path / "drawn", *where)
    assert said.code == 2 and "other labels than in the dataset" in said.out
    said = plbench("board", "verify", "--data-root", tmp_path / "drawn", *where)
    assert said.code == 2 and "add --cells" in said.err
