"""A run that a stranger wrote down fetches and reads no model but timm's own."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from plbench.errors import PlbenchError
from plbench.runs.plan.resolve import Request, plan_from_spec, plan_run
from plbench.runs.workspace import Workspace


@pytest.mark.parametrize("name", ["local-dir:{folder}", "hf-hub:somebody/model", "hf_hub:somebody/model", "../model"])
def test_a_backbone_is_no_address(make_workspace: Callable[..., Workspace], tmp_path: Path, name: str) -> None:
    """timm itself takes addresses: of a folder, whose files it reads, and of a hub, which it asks."""
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_resnet", "pretrained_cfg": {}}))
    workspace = make_workspace()
    spec = plan_run(Request("tiny", "ce-negative"), workspace).spec
    model = spec.model.model_copy(update={"backbone": name.format(folder=tmp_path)})
    with pytest.raises(PlbenchError, match="is not a timm model"):
        plan_from_spec(spec.model_copy(update={"model": model}), workspace)
