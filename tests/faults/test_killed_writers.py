"""What a killed process leaves half written is never among what is published, and goes at the next start."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plbench.board.boards import open_boards
from plbench.board.checks import verify_board
from plbench.board.submit import new_board
from plbench.files import write_text
from plbench.runs.store import Store
from plbench.spec import Protocol

QUESTION = Protocol(name="tiny/v1", dataset="tiny")


def killed_at(name: str, work: Callable[[], Any], in_a_process: Callable[..., Any]) -> None:
    """Does some work in a process that is killed before its first call of a function of `os`."""

    def die(*arguments: Any, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def fatal() -> None:
        setattr(os, name, die)
        work()

    process = in_a_process(fatal)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_killed_founder_leaves_no_half_board(name: str, tmp_path: Path, in_a_process: Callable[..., Any]) -> None:
    root = tmp_path / "boards"
    killed_at(name, lambda: new_board(root, "tiny", "Tiny", QUESTION), in_a_process)
    assert list(root.glob("tiny/*")) == []
    new_board(root, "tiny", "Tiny", QUESTION)
    assert [problem for board in open_boards(root) for problem in verify_board(board)] == []
    assert sorted(path.name for path in root.rglob("*")) == ["board.json", "tiny"]


def test_half_a_file_of_a_run_goes_when_the_run_is_held_again(tmp_path: Path, in_a_process: Callable[..., Any]) -> None:
    store = Store(tmp_path / "runs", tmp_path / "cache")
    folder = store.run_folder("0123456789abcdef")
    write_text(folder / "spec.toml", "seed = 0")
    killed_at("replace", lambda: write_text(folder / "record.json", "{}"), in_a_process)
    assert len(list(folder.iterdir())) == 2
    with store.lock(folder.name, pytest.fail):
        assert [path.name for path in folder.iterdir()] == ["spec.toml"]
