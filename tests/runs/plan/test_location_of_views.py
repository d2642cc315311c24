"""A method that must know where its views lie: refused or left out before anything runs, else estimated and run."""

from collections.abc import Callable

import pytest

from plbench.api import PlbenchError
from plbench.comparison.candidates import choose_candidates
from plbench.comparison.plan import plan_comparison
from plbench.runs import run as runner
from plbench.runs.estimate import measured
from plbench.runs.estimate.estimate import estimate_runs
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.workspace import Workspace

pytestmark = pytest.mark.usefixtures("quick_records")

# the tiny recipe's own plan has a RandAugment that moves pixels
CROPS = {"randaugment": "rand-m9-mstd0.5-t3a", "random_resized_crop": 0.3, "horizontal_flip": 0.5}


@pytest.fixture
def workspace(make_workspace: Callable[..., Workspace]) -> Workspace:
    return make_workspace()


def test_a_plan_that_moves_pixels_is_refused_at_once(workspace: Workspace) -> None:
    with pytest.raises(PlbenchError, match="may move pixels"):
        plan_run(Request("tiny", "spatial-consistency", regime="finetune"), workspace)


def test_a_comparison_of_all_leaves_it_out_with_the_reason(workspace: Workspace) -> None:
    candidates, _ = choose_candidates(["all"], workspace.registry)
    chosen = [each for each in candidates if each.method in ("ce-negative", "lac-plc", "spatial-consistency")]
    comparison = plan_comparison(Request("tiny", "", regime="finetune"), chosen, 1, workspace)
    assert [entry.who for entry in comparison.skipped] == ["spatial-consistency"]
    assert "may move pixels" in comparison.skipped[0].why
    assert len(comparison.rows) == 2


def test_on_crops_it_is_estimated_and_runs(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "_STEPS", 1)
    plan = plan_run(Request("tiny", "spatial-consistency", regime="finetune", plan=CROPS), workspace)
    found = estimate_runs([plan], workspace, thorough=True).measured
    assert found is not None and found.step_seconds > 0 and found.activation_bytes > 0
    record = runner.run(plan, workspace)
    assert set(record.metrics) >= {"test", "test_raw"}
    assert not any("no map was compared" in warning for warning in record.warnings)
