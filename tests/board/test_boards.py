"""A board's question and ledger, read and written."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from plbench.board.boards import BOARD, LEDGER, Board, BoardFolder, Event, open_boards
from plbench.board.submit import asked_for
from plbench.errors import PlbenchError

QUESTION: dict[str, Any] = {
    "name": "tiny",
    "title": "Tiny",
    "dataset": "tiny",
    "protocol": "tiny/v1",
    "protocol_sha256": "0" * 64,
}
ADDED = {"event": "added", "key": "a" * 16, "at": "2026-01-01T00:00:00Z", "sha256": "1" * 64}


def found(root: Path, name: str = "tiny", **changes: Any) -> Path:
    path = root / name
    path.mkdir(parents=True)
    (path / BOARD).write_text(json.dumps({**QUESTION, "name": name, **changes}))
    return path


def test_the_ledger_says_what_became_of_each_record(tmp_path: Path) -> None:
    board = BoardFolder(found(tmp_path))
    assert board.ledger == ()
    other = {**ADDED, "key": "b" * 16}
    board.append([Event(**ADDED), Event(**other)])
    board.append([Event(event="verified", key="a" * 16, at="2026-01-02T00:00:00Z", by="somebody")])
    board.append([Event(event="withdrawn", key="b" * 16, at="2026-01-03T00:00:00Z", why="wrong data")])
    again = BoardFolder(board.path)
    assert again.ledger == board.ledger
    assert list(again.added) == ["a" * 16, "b" * 16]
    assert again.added["a" * 16].sha256 == "1" * 64
    assert again.verified == {"a" * 16}
    assert again.withdrawn == {"b" * 16: "wrong data"}


def test_appending_keeps_what_is_there_to_the_byte(tmp_path: Path) -> None:
    board = BoardFolder(found(tmp_path))
    board.append([Event(**ADDED)])
    before = (board.path / LEDGER).read_text()
    board.append([Event(**{**ADDED, "key": "b" * 16})])
    after = (board.path / LEDGER).read_text()
    assert after.startswith(before[: before.rindex("}")].rstrip().removesuffix("]").rstrip())


def test_boards_come_in_their_order_and_then_by_name(tmp_path: Path) -> None:
    for name, order in {"drawn": {}, "aerial": {"order": 2}, "zoo": {"order": 1}, "coco": {}}.items():
        found(tmp_path, name, **order)
    assert [folder.path.name for folder in open_boards(tmp_path)] == ["zoo", "aerial", "coco", "drawn"]
    assert [folder.path.name for folder in open_boards(tmp_path, ["coco", "aerial"])] == ["aerial", "coco"]


def test_a_changed_board_is_written(tmp_path: Path) -> None:
    board = BoardFolder(found(tmp_path))
    board.append([], board.board.model_copy(update={"version": 2}))
    assert BoardFolder(board.path).board.version == 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"title": "<script>"}, "title: "),
        ({"title": "a\nb"}, "title: "),
        ({"about": "x" * 501}, "about: "),
        ({"protocol_sha256": "0"}, "protocol_sha256: "),
        ({"version": 0}, "version: "),
        ({"max_trials": -1}, "max_trials: "),
        ({"colour": "red"}, "colour: "),
    ],
)
def test_a_damaged_board_is_named(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PlbenchError, match=f"{BOARD}: {sentence}"):
        BoardFolder(found(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"event": "loved"}, "events.0.event"),
        ({"key": "../../etc"}, "events.0.key"),
        ({"key": "A" * 16}, "events.0.key"),
        ({"at": "yesterday"}, "events.0.at"),
        ({"sha256": "0" * 63}, "events.0.sha256"),
        ({"why": "<b>"}, "events.0.why"),
        ({"more": 1}, "events.0.more"),
    ],
)
def test_a_damaged_ledger_is_named(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    path = found(tmp_path)
    (path / LEDGER).write_text(json.dumps({"events": [{**ADDED, **changes}]}))
    with pytest.raises(PlbenchError, match=f"{LEDGER}: {field}: "):
        BoardFolder(path)


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "null", "[]"])
def test_what_is_no_board_is_said(tmp_path: Path, content: str) -> None:
    path = found(tmp_path)
    (path / BOARD).write_text(content)
    with pytest.raises(PlbenchError, match=BOARD):
        BoardFolder(path)


def test_a_folder_is_named_as_its_board(tmp_path: Path) -> None:
    path = found(tmp_path).rename(tmp_path / "other")
    with pytest.raises(PlbenchError, match="name is 'tiny', but its folder is 'other'"):
        BoardFolder(path)


@pytest.mark.parametrize("name", ["", "..", "a/b", "-a", "A", ".hidden", "a" * 65, "a b", "a\n"])
def test_names_of_boards_are_names_of_folders(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        Board(**{**QUESTION, "name": name})


def test_boards_are_opened_by_name(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        found(tmp_path, name)
    (tmp_path / "published").mkdir()
    assert [board.board.name for board in open_boards(tmp_path)] == ["a", "b", "c"]
    assert [board.board.name for board in open_boards(tmp_path, ["c", "a"])] == ["a", "c"]
    with pytest.raises(PlbenchError, match="has no board 'd'"):
        open_boards(tmp_path, ["d"])
    with pytest.raises(PlbenchError, match="holds no boards"):
        open_boards(tmp_path / "published")


def test_all_leaves_out_what_a_method_trained_for_itself_alone(tmp_path: Path) -> None:
    """A base that is refitted is no row; the CE-Ignore run behind a prior is one."""

    def record(key: str, method: str, **stages: str) -> tuple[Path, Any]:
        protocol = SimpleNamespace(sha256=lambda: QUESTION["protocol_sha256"])
        spec = SimpleNamespace(protocol=protocol, method=SimpleNamespace(name=method), stages=stages)
        return Path(key), SimpleNamespace(key=key, spec=spec, status="done", metrics={"test": 1})

    found(tmp_path)
    runs = [
        record("base", "cft"),
        record("refit", "cft", base="base"),
        record("ignore", "ce-ignore"),
        record("selective", "selective", prior="ignore"),
        record("other", "selective", prior="not here"),
    ]
    assert [path.name for path in asked_for(runs, tmp_path)] == ["refit", "ignore", "selective", "other"]
