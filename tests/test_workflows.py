"""GitHub's workflows, as far as they can be tried here: what they call exists, and without network they do not fail."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

TOP = Path(__file__).parents[1]
WORKFLOWS = sorted(TOP.glob(".github/workflows/*.yml"))


def jobs(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())["jobs"]
    return found


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in jobs(path).values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_what_a_workflow_calls_exists(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (TOP / "Makefile").read_text(), re.MULTILINE))
    extras = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()
    for step in steps(path):
        assert ("run" in step) is not ("uses" in step)
        command = step.get("run", "")
        assert set(re.findall(r"(?:^|[ '])make ([a-z-]+)", command)) <= targets
        assert all(os.access(TOP / name, os.X_OK) for name in re.findall(r"\.ci/\w+", command))
        for named in re.findall(r"'\.\[([\w,]+)\]'", command):
            assert set(named.split(",")) <= extras
    for job in jobs(path).values():
        assert job["runs-on"] and {*([job["needs"]] if "needs" in job else [])} <= jobs(path).keys()


def test_the_bill_of_materials_is_not_among_what_is_published() -> None:
    (made,) = [
        step["run"] for step in steps(TOP / ".github/workflows/release.yml") if "cyclonedx" in step.get("run", "")
    ]
    output = re.search(r"--output-file (\S+)", made)
    assert output is not None and not output[1].startswith("dist/")  # all of which goes to the package index
    kept = [
        step["with"]["path"]
        for step in steps(TOP / ".github/workflows/release.yml")
        if "with" in step and "path" in step["with"]
    ]
    assert output[1] in kept


@pytest.mark.parametrize(("on_github", "start"), [("", "no package"), ("true", "::notice::no package")])
def test_without_network_dependencies_are_not_checked_and_that_is_said(on_github: str, start: str) -> None:
    away = {**os.environ, "PIP_NO_INDEX": "1", "GITHUB_ACTIONS": on_github}
    done = subprocess.run([TOP / ".ci/audit", sys.executable], env=away, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{start} registry is reached: dependencies were not checked\n"


BOARDS = TOP / ".github/workflows/boards.yml"


def test_exported_boards_have_the_same_workflow() -> None:
    assert (TOP / "plbench/board/templates/boards.yml").read_bytes() == BOARDS.read_bytes()


def test_what_reads_a_submission_may_not_write() -> None:
    verify, keep, publish = (jobs(BOARDS)[name] for name in ("verify", "keep", "publish"))
    assert yaml.safe_load(BOARDS.read_text())["permissions"] == {"contents": "read"} and "permissions" not in verify
    assert not verify["steps"][0]["with"]["persist-credentials"] and "secrets." not in BOARDS.read_text()
    assert keep["permissions"] == {"contents": "write"} and "contents" not in publish["permissions"]
    moves = keep["steps"] + publish["steps"]
    assert not any("plbench" in step.get("run", "") or "checkout" in step.get("uses", "") for step in moves)
    assert all("pull_request" in job["if"] or "'push'" in job["if"] for job in (keep, publish))
    for step in steps(BOARDS):  # text of strangers, such as a branch's name, would be part of a script
        assert "${{" not in step.get("run", "")


@pytest.fixture
def machine(tmp_path: Path) -> Callable[[str, str], tuple[list[str], str]]:
    """Runs a step of the workflow by its name, where plbench and gh note what they are called with."""
    (tmp_path / "bin").mkdir()
    for name in ("plbench", "gh"):
        stub = tmp_path / "bin" / name
        stub.write_text(f'#!/bin/sh\necho {name} "$@" >> "$CALLS"\ncase "$*" in *--json*) cat "$THERE";; esac\n')
        stub.chmod(0o755)
    calls, output, there = (tmp_path / name for name in ("calls", "output", "there"))
    for path in (calls, output, there):
        path.touch()
    own = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "CALLS": calls, "GITHUB_OUTPUT": output, "THERE": there}
    own |= {"RUNNER_TEMP": tmp_path, "GITHUB_SERVER_URL": "https://host", "GITHUB_REPOSITORY": "a/b", "AGAINST": "main"}

    def run(name: str, folder: str) -> tuple[list[str], str]:
        (script,) = [step["run"] for step in steps(BOARDS) if step.get("name", "").startswith(name)]
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
        environment = {**os.environ, **{key: str(value) for key, value in own.items()}}
        subprocess.run(command, cwd=tmp_path / folder, env=environment, check=True, capture_output=True)
        return calls.read_text().splitlines(), output.read_text()

    return run


def test_cells_are_asked_of_the_boards_that_changed(
    machine: Callable[[str, str], tuple[list[str], str]], tmp_path: Path
) -> None:
    top = tmp_path / "checkout"
    for board in ("old", "new one", "--to"):
        (top / "leaderboards" / board).mkdir(parents=True)
        (top / "leaderboards" / board / "ledger.json").write_text("{}")
    git = ["git", "-C", str(top), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    commit = ["commit", "-q", "--no-gpg-sign", "-m", "a commit"]
    for words in (["init", "-q", "-b", "main"], ["add", "."], commit, ["checkout", "-q", "-b", "submission"]):
        subprocess.run([*git, *words], check=True)
    assert machine("Recompute", "checkout") == ([], "")
    (top / "leaderboards" / "old" / "README.md").write_text("built")
    (top / "leaderboards" / "new one" / "ledger.json").write_text("{} ")
    (top / "leaderboards" / "--to" / "cells.sha256").write_text("{} ")
    for words in (["add", "."], commit):
        subprocess.run([*git, *words], check=True)
    calls, output = machine("Recompute", "checkout")
    kept = "https://host/a/b/releases/download/cells"
    assert calls == [
        f"plbench board fetch --to {tmp_path}/cells --kept {kept} -- --to new one",
        f"plbench board verify --cells {tmp_path}/cells --against main -- --to new one",
    ]
    assert output == ""
    (tmp_path / "cells" / "archives").mkdir(parents=True)
    assert machine("Recompute", "checkout")[1] == "brought=yes\n"


def test_what_was_brought_is_kept_once(machine: Callable[[str, str], tuple[list[str], str]], tmp_path: Path) -> None:
    names = [hashlib.sha256(content).hexdigest() for content in (b"a", b"b")]
    (tmp_path / "keep" / "cells").mkdir(parents=True)
    for name, content in zip(names, (b"a", b"b"), strict=True):
        (tmp_path / "keep" / "cells" / name).write_bytes(content)
    (tmp_path / "there").write_text(names[0] + "\n")
    calls, _ = machine("Add to the release", "keep")
    assert [call for call in calls if "upload" in call] == [f"gh release upload cells {names[1]}"]
    (tmp_path / "keep" / "cells" / names[1]).write_bytes(b"another")
    with pytest.raises(subprocess.CalledProcessError):
        machine("Add to the release", "keep")
