"""Zero-shot scores are a softmax or sigmoid of cosines, and nothing moves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from plbench.api import Batch, Method, PlbenchError, Progress, Task
from plbench.runs.plan.resolved import validate_params
from plbench.runs.registry import Registry

COSINES = torch.tensor([[0.31, 0.22, 0.18], [0.2, 0.21, 0.25]])
LOGITS = {"logit_scale": torch.tensor(50.0), "logit_bias": torch.tensor(-12.0)}


def build(make_task: Callable[..., Task], artifacts: dict[str, torch.Tensor], **params: Any) -> Method:
    kind = Registry.discover().method("zero-shot")
    return kind(validate_params(kind, params), make_task(3, artifacts))


def scores(method: Method) -> list[list[float]]:
    model = method.build(torch.nn.Identity(), lambda: torch.nn.Identity())
    batch = Batch(COSINES, torch.zeros(2, 3, dtype=torch.int8), torch.arange(2))
    found: list[list[float]] = method.scores(method.forward(model, batch, Progress(0, 1, 0, 1))).tolist()
    return found


@pytest.mark.parametrize(("params", "temperature"), [({}, 0.02), ({"temperature": 0.1}, 0.1)])
def test_scores_are_a_softmax_at_the_models_temperature(
    make_task: Callable[..., Task], params: dict[str, float], temperature: float
) -> None:
    found = scores(build(make_task, {"logit_scale": LOGITS["logit_scale"]}, **params))
    for row, cosines in zip(found, COSINES.tolist(), strict=True):
        weights = [math.exp(cosine / temperature) for cosine in cosines]
        assert row == pytest.approx([weight / sum(weights) for weight in weights], rel=1e-4)


def test_a_sigmoid_has_the_models_offset(make_task: Callable[..., Task]) -> None:
    found = scores(build(make_task, LOGITS, activation="sigmoid"))
    for row, cosines in zip(found, COSINES.tolist(), strict=True):
        assert row == pytest.approx([1 / (1 + math.exp(-(50 * cosine - 12))) for cosine in cosines], rel=1e-4)
    with pytest.raises(PlbenchError, match="needs the model's logit_bias, which the file of embeddings does not have"):
        build(make_task, {"logit_scale": LOGITS["logit_scale"]}, activation="sigmoid")


def test_a_temperature_that_the_file_does_not_say_is_asked_for(make_task: Callable[..., Task]) -> None:
    with pytest.raises(PlbenchError, match=r"which has no logit_scale; give it with -P temperature=T"):
        build(make_task, {})
    assert build(make_task, {}, temperature=0.01).params.temperature == 0.01
