"""A parameter that only the dataset determines: published, from complete labels, given, or asked for."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from plbench.errors import PlbenchError
from plbench.runs.plan.resolve import Request, plan_from_spec, plan_run
from plbench.runs.plan.resolved import is_default
from plbench.runs.workspace import Workspace


@pytest.mark.parametrize("method", ["epr", "role"])
@pytest.mark.parametrize("simulate", ["single-positive", "rpa=0.5", "none"])
def test_k_is_the_mean_of_complete_labels(
    make_workspace: Callable[..., Workspace], tiny_dataset: Any, method: str, simulate: str
) -> None:
    workspace = make_workspace()
    plan = plan_run(Request("tiny", method, simulate=simulate), workspace)
    truth = (tiny_dataset(workspace.store.cache).truth("train") > 0).sum(axis=1).mean()
    assert plan.spec.method.params["num_positives"] == round(float(truth), 2) == plan.params.num_positives
    assert is_default(plan)
    assert plan_from_spec(plan.spec, workspace).spec == plan.spec


def test_what_is_published_or_given_comes_first(make_workspace: Callable[..., Workspace], tiny_dataset: Any) -> None:
    class Published(tiny_dataset):  # type: ignore[misc]
        name = "published"
        expected_positives = 1.5

    workspace = make_workspace(Published)
    assert plan_run(Request("published", "epr"), workspace).params.num_positives == 1.5
    given = plan_run(Request("published", "epr", method_params={"num_positives": "3"}), workspace)
    assert given.params.num_positives == 3.0
    assert not is_default(given)


@pytest.mark.parametrize("method", ["epr", "role"])
def test_partial_labels_do_not_tell_it(
    make_workspace: Callable[..., Workspace], tiny_dataset: Any, method: str
) -> None:
    class Partial(tiny_dataset):  # type: ignore[misc]
        name = "partial"
        protocols = (tiny_dataset.protocols[0].model_copy(update={"name": "partial/v1", "simulation": "none"}),)

        def truth(self, split: str) -> np.ndarray:
            labels: np.ndarray = super().truth(split)
            labels[0, 0] = 0
            return labels

    workspace = make_workspace(Partial)
    with pytest.raises(PlbenchError, match="-P num_positives=K"):
        plan_run(Request("partial", method), workspace)
    assert plan_run(Request("partial", method, method_params={"num_positives": 2}), workspace).params.num_positives == 2
