"""A run that is handed to several processes: the same record, and what goes wrong is said by the process that asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plbench.errors import PlbenchError, TrainingError
from plbench.runs import processes, schedule
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.record import Record
from plbench.runs.registry import Registry
from plbench.runs.workspace import Workspace
from plbench.training.interruption import Stopped

TESTS = Path(__file__).parents[1]


@pytest.fixture
def workspace(make_workspace: Callable[..., Workspace]) -> Workspace:
    """One whose tiny dataset other processes can load, too."""
    return replace(make_workspace(), registry=Registry.discover((TESTS / "conftest.py",)), nproc=2)


def plans(workspace: Workspace, *methods: str) -> list[ResolvedRun]:
    return [plan_run(Request("tiny", method), workspace) for method in methods]


@pytest.mark.slow
def test_two_processes_make_the_run_that_one_makes(workspace: Workspace, tmp_path: Path) -> None:
    (plan,) = plans(workspace, "ce-negative")
    (record,) = schedule.run_all([plan], workspace)
    assert isinstance(record, Record) and record == plan.finished(workspace.store)
    alone = replace(workspace, nproc=1, store=replace(workspace.store, runs=tmp_path / "alone"))
    (same,) = schedule.run_all(plans(alone, "ce-negative"), alone)
    assert isinstance(same, Record) and same.key == record.key
    assert record.test.map_c.value == pytest.approx(same.test.map_c.value, abs=0.01)
    assert record.training["steps"] == same.training["steps"]


LEFT = {
    "a training that fails": (3, "its loss is NaN at step 3", TrainingError, "^its loss is NaN at step 3$"),
    "a process that was killed": (1, "plbench: error: process 1 was ended by SIGKILL", TrainingError, "^process 1 was"),
    "a mistake of ours": (1, "Traceback …\n  File\nKeyError: 'x'\n", TrainingError, "^KeyError: 'x'$"),
    "data that is missing": (2, "dataset 'tiny' needs files", PlbenchError, "needs files"),
    "a signal": (143, "", Stopped, "SIGTERM"),
}


@pytest.mark.parametrize("what", LEFT)
def test_what_processes_leave_is_said(what: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    code, text, kind, words = LEFT[what]
    monkeypatch.setattr(processes, "launch", lambda *_, **__: (code, text))
    with pytest.raises(kind, match=words) as error:
        processes.run(*plans(workspace, "ce-negative"), workspace)
    assert type(error.value) is kind


def test_runs_are_handed_on_one_by_one_with_what_they_need(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def fail(plan: ResolvedRun, workspace: Workspace) -> Any:
        asked.append(plan.spec.method.name)
        raise TrainingError("it does not learn")

    monkeypatch.setattr(processes, "run", fail)
    results = schedule.run_all(plans(workspace, "selective", "ce-negative", "focal"), workspace)
    assert asked == ["ce-ignore", "ce-negative", "focal"]  # in no stack, though all could be
    assert [str(result) for result in results] == [
        "a run that it depends on failed: it does not learn",
        "it does not learn",
        "it does not learn",
    ]


def test_the_number_is_part_of_a_run_only_where_it_decides(workspace: Workspace) -> None:
    (probe,) = plans(workspace, "ce-negative")
    assert probe.spec.processes is None
    finetune = plan_run(Request("tiny", "ce-negative", regime="finetune"), workspace)
    assert finetune.spec.processes == 2  # batch normalisation on CPUs
