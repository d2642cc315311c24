"""What only a GPU can show: the same run there as on the CPU, to the tolerance of its arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.run import run
from plbench.runs.workspace import Workspace

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("regime", ["probe", "finetune"])
def test_a_gpu_gives_the_loss_of_the_cpu(make_workspace: Callable[..., Workspace], regime: Any) -> None:
    request = Request("tiny", "selective", regime=regime, precision="float32", plan={"epochs": 1})
    losses = {}
    for name in ("cpu", "cuda"):
        workspace = replace(make_workspace(name=name), device=torch.device(name))
        record = run(plan_run(request, workspace), workspace)
        assert record.cost is not None and record.cost.peak_memory_mb > 0
        losses[name] = record.training["final_loss"]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=0.05)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_trains(make_workspace: Callable[..., Workspace], precision: Any) -> None:
    workspace = replace(make_workspace(), device=torch.device("cuda"))
    request = Request("tiny", "asl-negative", regime="finetune", precision=precision)
    record = run(plan_run(request, workspace), workspace)
    assert record.status == "done" and record.spec.precision == precision
