"""The systems of table 3 from plan to record, on features and on images, with verified negatives and without."""

from collections.abc import Callable

import pytest

from plbench.api import PlbenchError
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.run import run
from plbench.runs.workspace import Workspace

pytestmark = pytest.mark.usefixtures("quick_records")

SYSTEMS = ["curriculum", "imcl", "latent-noise", "cnn-rnn", "kundu-tighe"]
NEED_NEGATIVES = ["curriculum", "imcl"]


@pytest.mark.parametrize("regime", ["probe", "finetune"])
@pytest.mark.parametrize("name", SYSTEMS)
def test_it_learns_from_some_known_labels(make_workspace: Callable[..., Workspace], name: str, regime: str) -> None:
    workspace = make_workspace()
    params = {"warmup": 0.0, "theta": 0.1} if name == "curriculum" else {}
    request = Request("tiny", name, params, simulate="fpc=12", regime=regime, plan={"epochs": 4})
    record = run(plan_run(request, workspace), workspace)
    assert record.status == "done"
    assert record.metrics["test"].num_classes_scored == 6
    if name == "curriculum":
        assert record.hidden_truth is not None
        assert sum(record.hidden_truth.num_marked.values()) > 0


@pytest.mark.parametrize("name", SYSTEMS)
def test_single_positives(make_workspace: Callable[..., Workspace], name: str) -> None:
    workspace = make_workspace()
    request = Request("tiny", name, simulate="single-positive", plan={"epochs": 2})
    if name in NEED_NEGATIVES:
        with pytest.raises(PlbenchError, match=f"method '{name}' needs verified negatives"):
            plan_run(request, workspace)
    else:
        assert run(plan_run(request, workspace), workspace).status == "done"
