"""Numbers that explode stop a training with step and cause, alone and in a stack, and never reach a record."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest

from plbench.errors import TrainingError
from plbench.files.plain_json import parse_json
from plbench.runs import run as runner
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.record import read_record
from plbench.runs.schedule import run_all
from plbench.runs.store import RECORD

pytestmark = pytest.mark.usefixtures("quick_records")

EXPLODING = {"epochs": 2, "batch_size": 16, "lr": 1e38}


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict | list):
        return [number for one in (value.values() if isinstance(value, dict) else value) for number in numbers(one)]
    return [value] if isinstance(value, float) else []


def check_failure(folder: Any) -> None:
    record = read_record(folder)
    assert record.status == "failed" and record.error is not None and not record.metrics
    assert re.search(r"(no longer finite|not finite|is nan|is inf) at step \d+ \(epoch \d\); ", record.error)
    assert "\n" not in record.error
    assert all(map(math.isfinite, numbers(parse_json((folder / RECORD).read_bytes()))))  # which also refuses NaN


def test_alone(make_workspace: Callable[..., Any]) -> None:
    workspace = make_workspace()
    plan = plan_run(Request("tiny", "ce-negative", plan=EXPLODING), workspace)
    with pytest.raises(TrainingError, match=r"at step \d+ \(epoch \d\)"):
        runner.run(plan, workspace)
    check_failure(workspace.store.run_folder(plan.spec.key))


def test_in_a_stack_the_others_go_on(make_workspace: Callable[..., Any]) -> None:
    workspace = make_workspace()
    exploding, sound = (
        plan_run(Request("tiny", "ce-negative", plan={**EXPLODING, "lr": lr}), workspace) for lr in (1e38, 1e-2)
    )
    failed, done = run_all([exploding, sound], workspace)
    assert isinstance(failed, TrainingError) and not isinstance(done, TrainingError)
    check_failure(workspace.store.run_folder(exploding.spec.key))
    alone = make_workspace(name="alone")
    record = runner.run(plan_run(Request("tiny", "ce-negative", plan={**EXPLODING, "lr": 1e-2}), alone), alone)
    assert done.test.map_c.value == pytest.approx(record.test.map_c.value)
