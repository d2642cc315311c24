"""What a plan says before any time is spent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from plbench.distributed import World
from plbench.planning.resolve import Request, plan_run
from plbench.workspace import Workspace


@pytest.mark.parametrize(
    ("regime", "backbone", "size", "expected"),
    [
        ("finetune", "test_resnet", 2, 2),  # batch normalisation, of each process's share on a CPU
        ("finetune", "test_resnet", 1, None),
        ("probe", "test_resnet", 2, None),
        ("finetune", "test_vit", 2, None),
    ],
)
def test_the_number_of_processes_is_in_the_key_where_it_decides(
    make_workspace: Callable[..., Workspace], regime: Any, backbone: str, size: int, expected: int | None
) -> None:
    workspace = make_workspace()
    request = Request("tiny", "ce-ignore", regime=regime, model={"backbone": backbone, "weights": "random"})
    spec = plan_run(request, replace(workspace, world=World(0, size))).spec
    assert spec.processes == expected
    assert (spec.key == plan_run(request, workspace).spec.key) is (expected is None)
