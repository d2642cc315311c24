"""Cells that a submission brings: fetched from where the board says, kept by hash, and required of new records."""

from __future__ import annotations

import functools
import hashlib
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from test_cli import plbench

from plbench.board import brought
from plbench.board.boards import LEDGER, BoardFolder, open_boards
from plbench.board.brought import ARCHIVES, LIST, read_archives
from plbench.board.cells import export_cells
from plbench.board.submit import add, new_board
from plbench.data.download import transfer
from plbench.errors import PlbenchError
from plbench.runs import run as runner
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.record import write_record
from plbench.runs.workspace import Workspace

METHODS = ("ce-negative", "ce-ignore")
HASH, ADDRESS = "0" * 64, "https://example.org/cells.zip"


@pytest.fixture
def board(make_workspace: Callable[..., Workspace], tmp_path: Path) -> BoardFolder:
    """A board of two runs in a git checkout, whose first commit has one of them; of both, cells lie in `web`."""
    workspace, folders, checkout = make_workspace(), [], tmp_path / "checkout"
    for method in METHODS:
        record = runner.run(plan_run(Request("tiny", method), workspace), workspace)
        environment = {**record.environment, "git_commit": "0" * 40, "git_dirty": False}
        folders.append(workspace.store.run_folder(record.key))
        write_record(folders[-1], record.model_copy(update={"environment": environment}))
    new_board(checkout / "leaderboards", "tiny", "Tiny blocks", record.spec.protocol)
    add(folders[:1], checkout / "leaderboards")
    git = ["git", "-C", str(checkout), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "--no-gpg-sign", "-m", "first"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    add(folders[1:], checkout / "leaderboards")
    (made,) = open_boards(checkout / "leaderboards")
    export_cells(made, tmp_path / "cells", workspace)
    (tmp_path / "web").mkdir()
    subprocess.run(["tar", "-czf", tmp_path / "web" / "published.tar.gz", "-C", tmp_path / "cells", "."], check=True)
    shutil.make_archive(str(tmp_path / "web" / "runs"), "zip", folders[1].parent, f"{folders[1].name}/cells.npz")
    return made


class Web(ThreadingHTTPServer):
    """A server on 127.0.0.1 of the files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, list[str]()
        asked = self.asked

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                asked.append(f"{self.command} {self.path}")

        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))

    def line(self, name: str) -> str:
        content = (self.folder / name).read_bytes()
        return f"{hashlib.sha256(content).hexdigest()}  http://127.0.0.1:{self.server_port}/{name}\n"


@pytest.fixture
def web(board: BoardFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """The server of `web`, which stands for one of https."""
    monkeypatch.setattr(brought, "_LINE", re.compile(brought._LINE.pattern.replace("https", "http")))
    monkeypatch.setattr(transfer, "_BACKOFF", 0.001)
    with Web(tmp_path / "web") as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def commands(board: BoardFolder, tmp_path: Path) -> Callable[..., Any]:
    where = ["--boards", board.path.parent]
    plugin = ["--plugin", Path(__file__).parents[1] / "conftest.py"]

    def command(name: str, *arguments: object) -> Any:
        return plbench("board", name, *arguments, *where, *(plugin if name == "verify" else []))

    return command


@pytest.mark.parametrize("name", ["published.tar.gz", "runs.zip"])
def test_a_submission_is_verified_from_what_it_brought(board: BoardFolder, web: Web, tmp_path: Path, name: str) -> None:
    command, here = commands(board, tmp_path), tmp_path / "here"
    said = command("fetch", "--to", here)
    assert said.code == 0 and said.out == "no board has a cells.sha256\n"
    here.mkdir(exist_ok=True)
    said = command("verify", "--cells", here, "--against", "main")
    new = newest(board)
    assert said.code == 2 and f"record {new}: cells is missing; expected those of a record that is new" in said.out
    assert said.out.count("cells is missing") == 1  # the other one was there before
    assert command("verify", "--cells", here).code == 0
    (board.path / LIST).write_text(web.line(name))
    said = command("fetch", "--to", here)
    assert said.code == 0 and said.out.startswith("1 archive of cells")
    assert command("verify", "--cells", here, "--against", "main").code == 0
    asked = len(web.asked)
    assert command("fetch", "--to", here).code == 0 and len(web.asked) == asked  # it is here
    (archive,) = (here / ARCHIVES).glob("[0-9a-f]*")
    assert archive.read_bytes() == (web.folder / name).read_bytes()


def newest(board: BoardFolder) -> str:
    """The record that was added last."""
    return board.ledger[-1].key


def test_what_was_kept_outlives_its_address(board: BoardFolder, web: Web, tmp_path: Path) -> None:
    line = web.line("runs.zip")
    (board.path / LIST).write_text(line)
    (web.folder / "kept").mkdir()
    shutil.move(web.folder / "runs.zip", web.folder / "kept" / line[:64])
    command, here = commands(board, tmp_path), tmp_path / "here"
    said = command("fetch", "--to", here)
    assert said.code == 2 and "/runs.zip does not answer with an archive of cells and its size" in said.err
    kept = f"http://127.0.0.1:{web.server_port}/kept"
    assert command("fetch", "--to", here, "--kept", kept).code == 0
    assert command("verify", "--cells", here, "--against", "main").code == 0


def test_another_archive_and_a_large_one_are_refused(
    board: BoardFolder, web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, here = commands(board, tmp_path), tmp_path / "here"
    (board.path / LIST).write_text(HASH + web.line("runs.zip")[64:])
    said = command("fetch", "--to", here)
    assert said.code == 2 and f"instead of sha256:{HASH}" in said.err
    assert not list((here / ARCHIVES).glob("[0-9a-f]*")) and not (here / "tiny").exists()
    monkeypatch.setattr(brought, "MAX_ARCHIVE", 99)
    said = command("fetch", "--to", here)
    assert said.code == 2 and "more than the 99 bytes that an archive of cells may have" in said.err


def test_cells_that_are_not_the_records_are_refused(board: BoardFolder, web: Web, tmp_path: Path) -> None:
    key = newest(board)
    other = tmp_path / "other" / key
    other.mkdir(parents=True)
    first = board.ledger[0].key
    shutil.copy(next(tmp_path.glob(f"**/{first}/cells.npz")), other / "cells.npz")
    shutil.make_archive(str(web.folder / "other"), "gztar", tmp_path / "other")
    (board.path / LIST).write_text(web.line("other.tar.gz"))
    command, here = commands(board, tmp_path), tmp_path / "here"
    assert command("fetch", "--to", here).code == 0
    said = command("verify", "--cells", here, "--against", "main")
    assert said.code == 2 and f"record {key}: files.cells.npz.sha256" in said.out


@pytest.mark.parametrize(
    "line",
    [
        f"{HASH}  http://example.org/cells.zip",
        f"{HASH}  file:///etc/passwd",
        f"{HASH}  https://user@example.org/cells.zip",
        f"{HASH}  https://[::1/cells.zip",
        f"{HASH}  {ADDRESS} --to /",
        f"{HASH}  cells.zip",
        f"{HASH[:-1]}  {ADDRESS}",
        "é",
        "x" * 100_000,
        "",
    ],
)
def test_what_no_line_is(line: str, tmp_path: Path) -> None:
    folder = BoardFolder.__new__(BoardFolder)
    folder.path = tmp_path / "tiny"
    folder.path.mkdir()
    assert read_archives(folder) == {}
    (folder.path / LIST).write_text(f"{HASH}  {ADDRESS}\n")
    assert read_archives(folder) == {HASH: ADDRESS}
    (folder.path / LIST).write_text(f"{HASH} *{ADDRESS}\n{line}\n")
    with pytest.raises(PlbenchError, match=r"cells.sha256, line 2: .{0,150} is not a sha256, two blanks and the https"):
        read_archives(folder)
    (folder.path / LIST).unlink()
    (folder.path / LIST).symlink_to(tmp_path / LEDGER)
    with pytest.raises(PlbenchError, match="is a link"):
        read_archives(folder)
