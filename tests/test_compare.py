"""Which runs may be paired image by image."""

from __future__ import annotations

from collections.abc import Callable

from plbench.compare import compare
from plbench.resolve import Request, plan_run
from plbench.runner import run
from plbench.workspace import Workspace


def test_runs_that_left_out_other_images_are_not_paired(make_workspace: Callable[..., Workspace]) -> None:
    workspace = make_workspace()
    plan = plan_run(Request("tiny", "ce-negative"), workspace)
    record = run(plan, workspace)
    folder = workspace.store.run_folder(record.key)
    fewer = record.model_copy(update={"spec": record.spec.model_copy(update={"skipped_images": ("test/tiny-3",)})})
    assert len(compare([(folder, record), (folder, fewer)])) == 2
    assert len(compare([(folder, record), (folder, record)])) == 1
