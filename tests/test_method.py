"""The contract of a method: `plbench.method`."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from pydantic import create_model

from plbench.api import Batch, BatchScope, Loss, Method, MethodParams, Progress, Task
from plbench.randomness import generator

TASK = Task(2, ("a", "b"), ("a", "b"), np.ones(2), np.ones(2), 4, 1, 1, "probe", generator(0, "test"))


class Plain(Method):
    """Has the parameters that a test gives it."""

    name, title = "plain", "Plain"

    def loss(self, output: Any, batch: Batch, progress: Progress) -> Loss:
        """Sum of the outputs."""
        return Loss.of_images(output.sum(dim=-1))


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        (BatchScope, "batch"),
        (Literal["sample", "batch"], "batch"),  # how methods spelled it before it had a name
        (str, "sample"),
        (BatchScope | None, "sample"),
        (Literal["sample", "batch", "class"], "sample"),
    ],
)
def test_a_parameter_sets_the_batch_scope_only_by_its_type(declared: Any, expected: str) -> None:
    params = create_model("Params", __base__=MethodParams, scope=(declared, "batch"))()
    assert Plain(params, TASK).batch_scope == expected


def test_its_value_sample_changes_nothing() -> None:
    params = create_model("Params", __base__=MethodParams, scope=(BatchScope, "sample"))()
    assert Plain(params, TASK).batch_scope == "sample"
