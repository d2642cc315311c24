"""Boards and what lies outside: links are refused, changes wait for one another, a killed process leaves nothing."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packing import change_member, contents_of, pack_of

from plbench.board import build, submit
from plbench.board.boards import BOARD, BoardFolder, Event, open_boards
from plbench.board.checks import verify_board
from plbench.board.publish import export
from plbench.board.submit import add, new_board, withdraw
from plbench.errors import PlbenchError
from plbench.runs import environment
from plbench.runs import run as runner
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.record import read_record, write_record
from plbench.runs.workspace import Workspace

SEEDS = (0, 1, 2, 3)
SECRET = "TOKEN=what the environment of the process says"
_MADE: dict[str, Path] = {}


@pytest.fixture
def runs(
    make_workspace: Callable[..., Workspace],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> list[Path]:
    """Four seeds of a method, as a clean checkout makes them: fresh copies of what is made once."""
    if "runs" not in _MADE:
        monkeypatch.setattr(environment, "git_state", lambda: {"git_commit": "0" * 40, "git_dirty": False})
        workspace = make_workspace()
        for seed in SEEDS:
            runner.run(plan_run(Request("tiny", "ce-negative", seed=seed), workspace), workspace)
        _MADE["runs"] = tmp_path_factory.mktemp("made") / "runs"
        shutil.copytree(workspace.store.runs, _MADE["runs"])
    shutil.copytree(_MADE["runs"], tmp_path / "runs")
    return sorted(path.parent for path in (tmp_path / "runs").glob("*/record.json"))


@pytest.fixture
def root(runs: list[Path], tmp_path: Path) -> Path:
    new_board(tmp_path / "boards", "tiny", "Tiny", read_record(runs[0]).spec.protocol)
    return tmp_path / "boards"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder with a file that is nobody's submission."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "environ").write_text(SECRET)
    return tmp_path / "outside"


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text(errors="replace") for p in folder.rglob("*") if p.is_file()}


def complaints(root: Path) -> list[str]:
    return [str(problem) for board in open_boards(root) for problem in verify_board(board)]


def built(root: Path, runs: list[Path]) -> Path:
    """Returns the only pack."""
    add(runs, root)
    build.write(root, build.build(root))
    return pack_of(root, read_record(runs[0]).key)


class TestLinks:
    def test_a_link_beside_the_records_is_not_published(self, root: Path, runs: list[Path], outside: Path) -> None:
        """As found: records/KEY/environ -> /proc/self/environ went out with the site."""
        pack = built(root, runs)
        (pack.parent / "environ").symlink_to(outside / "environ")
        pack.with_name(f"{'0' * 16}.tar.xz").symlink_to(outside / "environ")
        (pack.parent / "extra").symlink_to(outside)
        (root / "tiny" / "more").symlink_to(outside)
        (pack.parent / "plain.txt").write_text(SECRET)  # a plain file that no ledger names is nobody's business either
        export(root, root.parent / "site")
        found = contents(root.parent / "site")
        assert not any(SECRET in text for text in found.values())
        assert [Path(name).name for name in found if "records" in name] == [pack.name]

    @pytest.mark.parametrize(
        "place",
        [
            "tiny",
            "tiny/board.json",
            "tiny/ledger.json",
            "tiny/records",
            "tiny/records/PACK",
            "tiny/table.json",
            "tiny/README.md",
            "index.html",
            "published",
            "published/tiny.json",
        ],
    )
    def test_a_link_to_the_very_same_is_refused_all_the_same(self, root: Path, runs: list[Path], place: str) -> None:
        path = root / place.replace("PACK", built(root, runs).name)
        (root / "published").mkdir()
        (root / "published" / "tiny.json").write_text('{"board": "tiny", "rows": []}')
        path.rename(root.parent / "moved")
        path.symlink_to(root.parent / "moved")
        with pytest.raises(PlbenchError, match=r"is a link to|not a plain file"):
            export(root, root.parent / "site")
        assert not (root.parent / "site" / "index.html").exists()

    @pytest.mark.parametrize("place", ["records", "records/PACK", "", "ledger.json"])
    def test_nothing_is_added_through_a_link(self, root: Path, runs: list[Path], outside: Path, place: str) -> None:
        """As found: a record -> outside, and it was written there."""
        target = outside / "environ" if place.endswith(("PACK", ".json")) else outside
        path = root / "tiny" / place.replace("PACK", f"{min(read_record(run).key for run in runs)}.tar.xz")
        if not place:
            shutil.move(root / "tiny" / BOARD, outside / BOARD)
            path.rmdir()
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(target)
        before = contents(outside)
        with pytest.raises(PlbenchError, match="is a link to"):
            add(runs, root)
        assert contents(outside) == before

    @pytest.mark.parametrize("name", [".tiny.lock", ".tiny.unfinished"])
    def test_hidden_files_of_ours_are_no_way_out(self, root: Path, runs: list[Path], outside: Path, name: str) -> None:
        (root / name).symlink_to(outside / "environ" if name.endswith("lock") else outside)
        with pytest.raises(PlbenchError, match="is a link to"):
            add(runs, root)
        assert contents(outside) == {"environ": SECRET}

    @pytest.mark.parametrize("place", ["tiny", ".github", ".github/workflows", "index.html", "tiny/records"])
    def test_a_site_is_not_written_through_links(self, root: Path, runs: list[Path], outside: Path, place: str) -> None:
        built(root, runs)
        path = root.parent / "site" / place
        path.parent.mkdir(parents=True)
        path.symlink_to(outside / "environ" if path.suffix else outside)
        with pytest.raises(PlbenchError, match="is a link to"):
            export(root, root.parent / "site")
        assert contents(outside) == {"environ": SECRET}

    def test_pages_are_not_built_through_links(self, root: Path, runs: list[Path], outside: Path) -> None:
        built(root, runs)
        (root / "tiny" / "table.csv").unlink()
        (root / "tiny" / "table.csv").symlink_to(outside / "environ")
        assert build.differing(build.build(root)) == [root / "tiny" / "table.csv"]
        with pytest.raises(PlbenchError, match="is a link to"):
            build.write(root, build.build(root))
        assert contents(outside) == {"environ": SECRET}

    @pytest.mark.parametrize("name", ["record.json", "per_class.csv", "replicates.csv"])
    def test_a_run_with_a_link_is_not_taken(self, root: Path, runs: list[Path], name: str) -> None:
        (runs[0] / name).rename(root.parent / "kept")
        (runs[0] / name).symlink_to(root.parent / "kept")
        with pytest.raises(PlbenchError, match="not a plain file"):
            add(runs[:1], root)
        assert open_boards(root)[0].ledger == ()

    @pytest.mark.parametrize("name", ["../elsewhere", "/tmp/elsewhere", "a/b", "..", "A", ""])
    def test_a_board_is_founded_below_its_root(self, root: Path, runs: list[Path], name: str) -> None:
        before = contents(root.parent)
        with pytest.raises(PlbenchError, match="is not valid for a board"):
            new_board(root, name, "Tiny", read_record(runs[0]).spec.protocol)
        assert contents(root.parent) == before


class TestFigures:
    def test_a_page_shows_no_figure_that_the_tables_do_not_give(self, root: Path, runs: list[Path]) -> None:
        built(root, runs)
        found = read_record(runs[0])
        test = found.test.model_copy(update={"map_c": found.test.map_c.model_copy(update={"value": 99.0})})
        false = found.model_copy(update={"metrics": {**found.metrics, "test": test}})
        change_member(root, f"{found.key}/record.json", lambda _: false.model_dump_json().encode())
        with pytest.raises(PlbenchError, match=r"metrics.test.map_c.value: 99.0; expected \d"):
            build.build(root)
        write_record(runs[0], false)
        with pytest.raises(PlbenchError, match=r"map_c.value: 99.0; expected \d"):
            add(runs, root)


def test_what_is_packed_is_what_was_checked(root: Path, runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that changes while it is added is added as it was."""
    before, admit = (runs[0] / "replicates.csv").read_bytes(), submit._admit

    def admit_and_change(*arguments: Any) -> None:
        admit(*arguments)
        (runs[0] / "replicates.csv").write_bytes(b"changed")

    monkeypatch.setattr(submit, "_admit", admit_and_change)
    add(runs[:1], root)
    assert contents_of(root, read_record(runs[0]).key)["replicates.csv"] == before
    assert complaints(root) == []


class TestTwoAtOnce:
    def test_two_adders_add_all(self, root: Path, runs: list[Path], in_a_process: Callable[..., Any]) -> None:
        boards = open_boards(root)  # before either writes, as a slow check would have it
        halves = [runs[0::2], runs[1::2]]
        processes = [in_a_process(lambda half=half: add(half, root)) for half in halves]
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0, 0]
        board = open_boards(root)[0]
        assert sorted(board.added) == sorted(read_record(folder).key for folder in runs)
        assert complaints(root) == []
        boards[0].append([Event(event="verified", key=next(iter(board.added)), at="2099-01-01T00:00:00Z", by="x")])
        assert len(open_boards(root)[0].ledger) == len(runs) + 1  # the others' lines are kept

    def test_lines_of_two_processes_all_stand(self, root: Path, in_a_process: Callable[..., Any]) -> None:
        def work(start: int) -> None:
            board = BoardFolder(root / "tiny")
            for number in range(start, start + 20):
                event = Event(event="added", key=f"{number:016x}", at="2026-01-01T00:00:00Z", sha256="0" * 64)
                board.append([event])

        processes = [in_a_process(lambda start=start: work(start)) for start in (0, 100)]
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0, 0]
        assert len(BoardFolder(root / "tiny").ledger) == 40
        assert sorted(path.name for path in root.iterdir()) == ["tiny"]  # no lock, nothing unfinished

    def test_the_same_runs_are_added_once(self, root: Path, runs: list[Path], in_a_process: Callable[..., Any]) -> None:
        processes = [in_a_process(lambda: add(runs, root)) for _ in range(2)]
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0, 0]
        assert len(open_boards(root)[0].ledger) == len(runs) and complaints(root) == []

    def test_what_another_withdrew_meanwhile_is_not_verified(self, root: Path, runs: list[Path]) -> None:
        add(runs, root)
        before, key = open_boards(root)[0], read_record(runs[0]).key
        withdraw(key, "wrong data", root)
        with pytest.raises(PlbenchError, match=f"record {key} can no longer be verified"):
            before.append([Event(event="verified", key=key, at="2099-01-01T00:00:00Z", by="x")])


def die_at(name: str, count: int) -> None:
    """Has this process killed before its so manyth call of a function of `os`."""
    real, left = getattr(os, name), [count]

    def call(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)

    setattr(os, name, call)


@pytest.mark.parametrize(
    ("name", "count"),
    [*(("fsync", n) for n in (1, 2, 3)), ("link", 1), *(("replace", n) for n in (1, 2, 3)), ("rmdir", 1)],
)
def test_a_killed_adder_leaves_nothing_among_the_records(
    root: Path, runs: list[Path], in_a_process: Callable[..., Any], name: str, count: int
) -> None:
    def work() -> None:
        die_at(name, count)
        add(runs, root)

    process = in_a_process(work)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert [path for path in (root / "tiny").rglob("*") if path.name.startswith(".") or "tmp" in path.name] == []
    assert complaints(root) == []
    build.build(root)
    add(runs[2:], root)  # of other keys: another name
    add(runs, root)
    open_boards(root)[0].append([])  # by the next change at the latest
    assert complaints(root) == [] and len(open_boards(root)[0].ledger) == len(runs)
    assert sorted(path.name for path in root.iterdir()) == ["tiny"]


def test_a_killed_builder_leaves_nothing_among_the_pages(
    root: Path, runs: list[Path], in_a_process: Callable[..., Any]
) -> None:
    add(runs, root)

    def work() -> None:
        die_at("fsync", 3)
        build.write(root, build.build(root))

    process = in_a_process(work)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert [path for path in (root / "tiny").rglob(".*")] == []
    build.write(root, build.build(root))
    assert [path.name for path in root.iterdir() if path.name.startswith(".")] == []
    assert build.differing(build.build(root)) == []
