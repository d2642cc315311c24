"""Killed at any moment: each record is whole or absent, and the same call then gives the undisturbed figures.

`PLBENCH_KILLS` is how often each kind of work is killed (`make soak`: hundreds), `PLBENCH_KILL_SEED` at which moments.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import signal
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from plbench.board import build, submit
from plbench.board.boards import open_boards
from plbench.board.checks import verify_board
from plbench.comparison.candidates import choose_candidates
from plbench.comparison.plan import make_runs, plan_comparison
from plbench.data.download.files import download
from plbench.data.download.remote import RemoteFile
from plbench.errors import PlbenchError
from plbench.metrics.cells import Cells
from plbench.runs import environment, schedule, summary
from plbench.runs import run as runner
from plbench.runs.inspect.prepare import prepare
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.record import read_record
from plbench.runs.store import RECORD, Store
from plbench.runs.workspace import Workspace
from plbench.sweeps.expansion import expand
from plbench.sweeps.grid import read_grid
from plbench.tuning import tune

pytestmark = pytest.mark.slow

NUM_KILLS = int(os.environ.get("PLBENCH_KILLS", "1"))
SEED = int(os.environ.get("PLBENCH_KILL_SEED", "0"))
SHORT = {"epochs": 2, "batch_size": 16}


@dataclass(frozen=True)
class Work:
    """Something that is killed again and again.

    Attributes:
        make: does it in a folder. outcome: of what is done, as plain values that an undisturbed one has too.
        tolerance: of numbers in the outcome. Heads that train together round otherwise when some are done already.
    """

    make: Callable[[Path], None]
    outcome: Callable[[Path], Any]
    tolerance: float = 0.0


def figures(folder: Path) -> dict[str, Any]:
    """Of every record: metrics, and the hash of the scores that they are from."""
    records = [read_record(path.parent) for path in (folder / "runs").glob(f"*/{RECORD}")]
    return {one.key: [one.model_dump(include={"metrics", "selection"}), scores(folder, one.key)] for one in records}


def scores(folder: Path, key: str) -> Any:
    return Cells.load(folder / "runs" / key / "cells.npz").scores.tolist()


def differences(found: Any, expected: Any, tolerance: float, place: str = "") -> list[str]:
    """Where two outcomes differ, by more than the tolerance where they are numbers."""
    if isinstance(expected, dict) and isinstance(found, dict) and found.keys() == expected.keys():
        pairs = [(f"{place}.{name}", found[name], expected[name]) for name in expected]
    elif isinstance(expected, list | tuple) and isinstance(found, list | tuple) and len(found) == len(expected):
        pairs = [(f"{place}[{row}]", *pair) for row, pair in enumerate(zip(found, expected, strict=True))]
    elif isinstance(expected, float) and isinstance(found, float):
        return [] if abs(found - expected) <= tolerance else [f"{place}: {found!r}, not {expected!r}"]
    else:
        return [] if found == expected else [f"{place}: {found!r:.200}, not {expected!r:.200}"]
    return [one for where, *pair in pairs for one in differences(*pair, tolerance, where)]


def studied(folder: Path) -> Any:
    (path,) = folder.glob("runs/studies/*/study.json")
    study = json.loads(path.read_text())
    return (
        figures(folder),
        sorted([list(one["values"].values()), one["value"]] for one in study["trials"]),
        study["rows"],
    )


def complaints(root: Path) -> list[str]:
    return [str(problem) for board in open_boards(root) for problem in verify_board(board)]


def built(root: Path) -> Any:
    assert complaints(root) == []
    (board,) = open_boards(root)
    assert [path.name for path in root.rglob("*") if path.name.startswith(".")] == []
    return sorted(board.added), {path.name: path.read_bytes() for path in root.glob("*/table.*")}


def packed(folder: Path) -> Any:
    """Every file of a prepared folder but locks and what begins with a dot, which a killed process may leave."""
    files = [path for path in (folder / "packed").rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def fetched(folder: Path) -> Any:
    """What was downloaded and unpacked; archives are gone."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted((folder / "data").rglob("*.bin"))}


@pytest.fixture
def published() -> Iterator[list[RemoteFile]]:
    """Files of a server on 127.0.0.1, which sends slowly and goes on where it is asked to: one plain, one archive."""
    plain, archive = random.Random(0).randbytes(60_000), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        for number in range(8):
            made.writestr(f"images/{number}.bin", random.Random(number).randbytes(8_000))
    contents = {"/plain.bin": plain, "/images.zip": archive.getvalue()}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(b"")

        def do_GET(self) -> None:
            self.answer(contents[self.path])

        def answer(self, body: bytes) -> None:
            whole, asked = contents[self.path], self.headers.get("Range")
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
            self.send_response(206 if asked else 200)
            self.send_header("ETag", f'"{hashlib.sha256(whole).hexdigest()}"')
            self.send_header("Content-Length", str(len(whole) - start))
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
            self.end_headers()
            try:
                for at in range(start, len(body), 4096):
                    self.wfile.write(body[at : at + 4096])
                    time.sleep(0.01)
            except OSError:  # the client was killed
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that was killed
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    yield [
        RemoteFile(
            f"{address}/plain.bin", "plain.bin", "images", checksum=f"sha256:{hashlib.sha256(plain).hexdigest()}"
        ),
        RemoteFile(f"{address}/images.zip", "images.zip", "images", unpack=".", makes=("images",)),
    ]
    server.shutdown()
    server.server_close()


@pytest.fixture
def works(
    published: list[RemoteFile],
    make_workspace: Callable[..., Workspace],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> dict[str, Work]:
    monkeypatch.setattr(environment, "git_state", lambda: {"git_commit": "0" * 40, "git_dirty": False})
    if "board" not in request.node.name:  # which takes records of 1,000 alone
        monkeypatch.setattr(summary, "NUM_REPLICATES", 20)
    monkeypatch.setattr(tune, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(os, "sync", lambda: None)  # nothing here need outlive a power cut, and others' disks wait
    usual = make_workspace(name="usual")

    def workspace(folder: Path) -> Workspace:
        return replace(usual, store=Store(folder / "runs", folder / "cache"), save_every=0.0)

    def run(folder: Path) -> None:
        where = workspace(folder)
        runner.run(plan_run(Request("tiny", "selective", plan={**SHORT, "epochs": 6}), where), where)

    def compare(folder: Path) -> None:
        where = workspace(folder)
        candidates, _ = choose_candidates(["ce-negative", "pasl-negative", "selective"], where.registry)
        _, failed = make_runs(plan_comparison(Request("tiny", "", plan=SHORT), candidates, 2, where), where)
        assert not failed

    def study(folder: Path) -> None:
        where = workspace(folder)
        plan = plan_run(Request("tiny", "pasl-negative", plan=SHORT), where)
        tune.tune(plan, tune.Settings(3), where, num_seeds=1)

    def sweep(folder: Path) -> None:
        where, path = workspace(folder), folder / "grid.toml"
        folder.mkdir(exist_ok=True)
        path.write_text(
            'methods = ["ce-negative", "selective"]\ndatasets = ["tiny"]\nseeds = 2\n[plan]\nlr = [1e-2, 3e-3]\n'
            + "".join(f"{name} = {value}\n" for name, value in SHORT.items())
        )
        plans = expand(read_grid(path), where).plans
        assert not [one for one in schedule.run_here(plans, where) if isinstance(one, Exception)]

    def pack(folder: Path) -> None:
        prepare("tiny", workspace(folder), folder / "packed", short_side=12, quality=90)

    def fetch(folder: Path) -> None:
        download(published, folder / "data", lambda done, total: None, parallel=2, note=lambda text: None)

    def made() -> list[Path]:
        where = workspace(tmp_path / "made")
        for seed in range(3) if not where.store.runs.exists() else ():
            runner.run(plan_run(Request("tiny", "ce-negative", seed=seed, plan=SHORT), where), where)
        return sorted(path.parent for path in where.store.runs.glob(f"*/{RECORD}"))

    def add(root: Path) -> None:
        if not (root / "tiny" / "board.json").exists():
            submit.new_board(root, "tiny", "Tiny", read_record(made()[0]).spec.protocol)
        submit.add(made(), root)
        build.write(root, build.build(root))

    return {
        "run": Work(run, figures),
        "compare": Work(compare, figures, 1e-4),
        "tune": Work(study, studied, 1e-4),
        "sweep": Work(sweep, figures, 1e-4),
        "prepare": Work(pack, packed),
        "download": Work(fetch, fetched),
        "board": Work(add, built),
    }


def alone(work: Callable[[], None]) -> None:
    torch.set_num_threads(1)
    work()


@pytest.mark.parametrize("name", ["run", "compare", "tune", "sweep", "prepare", "download", "board"])
def test_what_is_killed_ends_as_what_never_was(
    name: str, works: dict[str, Work], tmp_path: Path, in_a_process: Callable[..., Any]
) -> None:
    work, chance = works[name], random.Random(f"{SEED} {name}")

    def started(folder: Path) -> Any:
        return in_a_process(lambda: alone(lambda: work.make(folder)))

    def ended(process: Any) -> None:
        process.join(300)
        assert process.exitcode == 0

    alone(lambda: work.make(tmp_path / "whole"))  # here, so that what is forked has imported all
    expected, start = work.outcome(tmp_path / "whole"), time.monotonic()
    assert expected
    ended(started(tmp_path / "again"))
    took = time.monotonic() - start
    assert differences(work.outcome(tmp_path / "again"), expected, 0.0) == []
    folder, kills = tmp_path / "disturbed", 0
    while kills < NUM_KILLS:
        process = started(folder)
        process.join(chance.uniform(0, 1.2 * took))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join(60)
        if process.exitcode == -signal.SIGKILL:
            kills += 1
            for path in folder.rglob(RECORD):
                read_record(path.parent)  # whole, or it raises
            if name == "board" and (folder / "tiny" / "board.json").exists():
                assert complaints(folder) == []
            if chance.random() < 0.6 and kills < NUM_KILLS:
                continue  # again, before it has ended
            ended(started(folder))
        assert process.exitcode in (0, -signal.SIGKILL)
        assert differences(work.outcome(folder), expected, work.tolerance) == []
        shutil.rmtree(folder)


def test_what_a_kill_leaves_of_the_first_file_of_all_is_not_in_the_way(works: dict[str, Work], tmp_path: Path) -> None:
    left = tmp_path / "again" / "packed" / ".prepared.json.0123abcd.tmp"
    left.parent.mkdir(parents=True)
    left.write_text("{")
    for folder in ("whole", "again"):
        works["prepare"].make(tmp_path / folder)
    assert packed(tmp_path / "again") == packed(tmp_path / "whole") != {}
    (tmp_path / "other" / "packed").mkdir(parents=True)
    (tmp_path / "other" / "packed" / ".notes.tmp").touch()
    with pytest.raises(PlbenchError, match="holds other files"):
        works["prepare"].make(tmp_path / "other")
