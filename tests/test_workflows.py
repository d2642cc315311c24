"""GitHub's workflows, as far as they can be tried here: what they call exists, and without network they do not fail."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
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
