"""A board in git: rows change or go only with its version, and the ledger only grows."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plbench.board.boards import LEDGER, RECORDS, BoardFolder
from plbench.board.history import check_commits, check_history
from plbench.runs.findings import Problem

KEYS = ("a" * 16, "b" * 16)
BOARD: dict[str, Any] = {
    "name": "tiny",
    "title": "Tiny",
    "dataset": "tiny",
    "protocol": "tiny/v1",
    "protocol_sha256": "0" * 64,
    "max_trials": 50,
}


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *identity, "-C", str(folder), *arguments], check=True, capture_output=True)


def events(*keys: str) -> list[dict[str, str]]:
    return [{"event": "added", "key": key, "at": "2026-01-01T00:00:00Z", "sha256": "0" * 64} for key in keys]


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """A board of two records in a commit of its own."""
    path = tmp_path / "checkout" / "leaderboards" / "tiny"
    write(path / "board.json", BOARD)
    write(path / LEDGER, {"events": events(*KEYS)})
    write(path / RECORDS / f"{KEYS[0]}.tar.xz", KEYS)
    git(path, "init", "-q", str(tmp_path / "checkout"))
    git(path, "add", "-A", "..")
    git(path, "commit", "-q", "-m", "first")
    return path


def check(path: Path, against: str | None = None) -> list[Problem]:
    notes: list[str] = []
    problems = check_history(BoardFolder(path), against, notes.append)
    assert notes == []
    return problems


def add_a_record(path: Path) -> None:
    write(path / LEDGER, {"events": events(*KEYS, "c" * 16)})
    write(path / RECORDS / f"{'c' * 16}.tar.xz", {})


def withdraw(path: Path) -> None:
    last = {"event": "withdrawn", "key": KEYS[0], "at": "2026-01-02T00:00:00Z", "why": "wrong"}
    write(path / LEDGER, {"events": [*events(*KEYS), last]})


def other_words(path: Path) -> None:
    write(
        path / "board.json",
        {**BOARD, "title": "Tiny, better", "ceiling_sha256": "1" * 64, "dataset_fingerprint": "2" * 64},
    )


def forget_an_event(path: Path) -> None:
    write(path / LEDGER, {"events": events(KEYS[0])})


def change_an_event(path: Path) -> None:
    first, second = events(*KEYS)
    write(path / LEDGER, {"events": [first, {**second, "sha256": "1" * 64}]})


def swap_events(path: Path) -> None:
    write(path / LEDGER, {"events": events(*reversed(KEYS))})


def forget_the_ledger(path: Path) -> None:
    (path / LEDGER).unlink()


def another_question(path: Path) -> None:
    write(path / "board.json", {**BOARD, "protocol_sha256": "1" * 64})


def more_trials(path: Path) -> None:
    write(path / "board.json", {**BOARD, "max_trials": 500})


@pytest.mark.parametrize("act", [lambda path: None, add_a_record, withdraw, other_words])
def test_a_board_may_grow(board: Path, act: Callable[[Path], None]) -> None:
    act(board)
    assert check(board) == []


REFUSED = {
    forget_an_event: (KEYS[1], f"{LEDGER}: events.1", "missing"),
    change_an_event: (KEYS[1], f"{LEDGER}: events.1", "added"),
    swap_events: (KEYS[0], f"{LEDGER}: events.0", "added"),
    forget_the_ledger: (KEYS[0], f"{LEDGER}: events.0", "missing"),
    another_question: ("", "board.json: protocol_sha256", "'111"),
    more_trials: ("", "board.json: max_trials", "500"),
}


@pytest.mark.parametrize("act", REFUSED, ids=lambda act: act.__name__)
def test_it_may_not_change(board: Path, act: Callable[[Path], None]) -> None:
    key, field, found = REFUSED[act]
    act(board)
    problems = check(board)
    named = [problem for problem in problems if (problem.key, problem.field) == (key, field)]
    assert named and named[0].found.startswith(found), problems
    assert "HEAD" in named[0].expected


@pytest.mark.parametrize("act", REFUSED, ids=lambda act: act.__name__)
def test_it_may_change_with_its_version(board: Path, act: Callable[[Path], None]) -> None:
    act(board)
    content = json.loads((board / "board.json").read_text())
    write(board / "board.json", {**content, "version": 2, "about": "why"})
    assert check(board) == []


def test_a_version_never_falls(board: Path) -> None:
    write(board / "board.json", {**BOARD, "version": 3})
    git(board, "commit", "-q", "-a", "-m", "third")
    write(board / "board.json", {**BOARD, "version": 2})
    assert [problem.field for problem in check(board)] == ["board.json: version"]


def test_the_commit_may_be_named(board: Path) -> None:
    """What was committed by now is still a change against what was there before."""
    change_an_event(board)
    git(board, "commit", "-q", "-a", "-m", "second")
    assert check(board) == []
    assert [problem.field for problem in check(board, "HEAD~1")] == [f"{LEDGER}: events.1"]


def test_the_index_does_not_hide_a_change(board: Path) -> None:
    forget_the_ledger(board)
    git(board, "rm", "-q", "--cached", str(board / LEDGER))
    assert {problem.found for problem in check(board)} == {"missing"}


def test_a_new_board_has_no_history(board: Path) -> None:
    other = board.with_name("new")
    write(other / "board.json", {**BOARD, "name": "new"})
    assert check(other) == []


@pytest.mark.parametrize("against", ["nowhere", "--output=/tmp/x", "HEAD:README.md", ""])
def test_a_commit_that_is_not_there_is_said(board: Path, against: str) -> None:
    notes: list[str] = []
    assert check_history(BoardFolder(board), against or "HEAD~7", notes.append) == []
    assert len(notes) == 1
    assert "history was not checked" in notes[0]


def test_no_checkout_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    write(tmp_path / "tiny" / "board.json", BOARD)
    notes: list[str] = []
    assert check_history(BoardFolder(tmp_path / "tiny"), None, notes.append) == []
    monkeypatch.setenv("PATH", str(tmp_path))
    assert check_history(BoardFolder(tmp_path / "tiny"), None, notes.append) == []
    assert len(notes) == 2


@pytest.mark.parametrize("name", ["clean", "process", "textconv"])
def test_what_the_checkout_names_is_not_run(board: Path, tmp_path: Path, name: str) -> None:
    """A folder from a stranger may come with a .git of its own, whose filters `git diff` would run."""
    section = "diff.x" if name == "textconv" else "filter.x"
    git(board, "config", f"{section}.{name}", f"touch {tmp_path / 'ran'}; cat")
    (board / ".gitattributes").write_text("* filter=x diff=x\n")
    change_an_event(board)
    assert check(board)
    assert not (tmp_path / "ran").exists()


def test_commits_of_a_rewritten_history_are_not_judged(board: Path) -> None:
    """Where a repository has none of a board's commits it tells nothing of any of them."""
    source = board.parents[1] / "plbench" / "__init__.py"
    source.parent.mkdir()
    source.touch()
    git(board, "add", "-A", str(source))
    git(board, "commit", "-q", "-m", "second")
    done = subprocess.run(["git", "-C", str(board), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    here, elsewhere = done.stdout.strip(), "0" * 40
    notes: list[str] = []
    (problem,) = check_commits(BoardFolder(board), {KEYS[0]: here, KEYS[1]: elsewhere}, notes.append)
    assert problem.key == KEYS[1] and notes == []
    assert check_commits(BoardFolder(board), {KEYS[1]: elsewhere}, notes.append) == []
    assert notes == ["board tiny: commits of records were not checked: this repository has none of them"]
