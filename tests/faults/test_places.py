"""Folders of a person's own: who may read what is written is theirs to say, and what may only be read is read."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plbench.errors import PlbenchError, UnwritableError
from plbench.files import fresh_folder, locked, write_text
from plbench.files.paths import in_home
from plbench.runs import run as runner
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.store import Store


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o027, 0o002])
def test_the_umask_is_respected(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "file", "x")
        folder = fresh_folder(tmp_path, ".new-")
    finally:
        os.umask(before)
    assert mode(tmp_path / "file") == 0o666 & ~umask and mode(folder) == 0o777 & ~umask


def test_a_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLBENCH_CACHE", "~/cache")
    assert Store.at(Path("~/runs")) == Store(tmp_path / "runs", tmp_path / "cache")
    assert Store.at(Path("runs~")).runs == Path("runs~")
    with pytest.raises(PlbenchError, match="no home folder is known; give the path"):
        in_home("~nobody-of-this-name/cache")


@pytest.fixture
def read_only() -> Iterator[Callable[[Path], None]]:
    """Makes a folder one that may only be read, for root too; skips where mounting is not permitted."""
    mounted: list[Path] = []

    def protect(folder: Path) -> None:
        bind = ["mount", "--bind", str(folder), str(folder)]
        if shutil.which("mount") is None or subprocess.run(bind, capture_output=True).returncode != 0:
            pytest.skip("mounting is not permitted here")
        mounted.append(folder)
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)

    yield protect
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.usefixtures("quick_records")
def test_a_cache_that_is_whole_may_be_read_only(
    make_workspace: Callable[..., Any], tmp_path: Path, read_only: Callable[[Path], None]
) -> None:
    workspace = make_workspace()
    first = runner.run(plan_run(Request("tiny", "selective"), workspace), workspace)
    read_only(workspace.store.cache)
    other = replace(workspace, store=replace(workspace.store, runs=tmp_path / "other"))
    plan = plan_run(Request("tiny", "selective"), other)
    assert runner.run(plan, other).metrics == first.metrics
    with pytest.raises(UnwritableError, match="Read-only file system"):  # other features: they are not there
        runner.run(plan_run(Request("tiny", "selective", model={"image_size": 48}), other), other)
    with pytest.raises(UnwritableError, match="Read-only"), locked(workspace.store.cache / "new" / "file"):
        pass
