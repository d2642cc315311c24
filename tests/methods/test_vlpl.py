"""VLPL against its formula in plain Python, one label after another, and its limits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from plbench.api import Batch, Method, Progress, Task
from plbench.runs.plan.resolved import validate_params
from plbench.runs.registry import Registry

NUM_ROWS, NUM_CLASSES = 6, 5
NOW = Progress(0, 40, 0, 10)
ROWS = torch.tensor([3, 9, 0, 17, 2, 5])  # of the training images, in the batch's order


def similarity() -> torch.Tensor:
    """[64, 5] cosines of which some pass a threshold of 0.3 at T = 0.01, and most do not."""
    return 0.25 + 0.02 * torch.randn(64, NUM_CLASSES, generator=torch.Generator().manual_seed(5))


def build(make_task: Callable[..., Task], name: str = "vlpl", **params: Any) -> Method:
    method = Registry.discover().method(name)
    return method(validate_params(method, params), make_task(NUM_CLASSES, {"similarity": similarity()}))


def a_batch() -> Batch:
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(NUM_ROWS, NUM_CLASSES, generator=generator, dtype=torch.float64)
    labels = torch.tensor([1, -1, 0, 0, 0])[torch.randint(5, logits.shape, generator=generator)]
    labels[0] = 0
    return Batch(logits, labels.to(torch.int8), ROWS)


def mean_loss(method: Method, batch: Batch) -> float:
    loss = method.loss(batch.inputs, batch, NOW)
    return float(loss.total) / float(loss.weight)


def plainly(batch: Batch, alpha: float, beta: float, threshold: float, temperature: float, rho: float) -> float:
    """The formula: softmax over classes, one term for each label."""
    table, total = similarity().tolist(), 0.0
    for row in range(NUM_ROWS):
        cosines = table[int(batch.index[row])]
        weights = [math.exp((cosine - max(cosines)) / temperature) for cosine in cosines]
        for column in range(NUM_CLASSES):
            p, label = 1 / (1 + math.exp(-float(batch.inputs[row, column]))), int(batch.labels[row, column])
            if label == 1:
                total -= math.log(p)
            elif label == -1:
                total -= math.log(1 - p)
            elif weights[column] / sum(weights) > threshold:
                total -= beta * (rho * math.log(p) + (1 - rho) * math.log(1 - p))
            else:
                total -= alpha * -(p * math.log(p) + (1 - p) * math.log(1 - p))
    return total / NUM_ROWS


@pytest.mark.parametrize(
    "params",
    [{}, {"alpha": 0.3, "beta": 0.2, "threshold": 0.15, "temperature": 0.05, "rho": 0.8}, {"threshold": 0.0}],
)
def test_the_loss_is_the_formula(make_task: Callable[..., Task], params: dict[str, float]) -> None:
    batch = a_batch()
    usual = {"alpha": 0.1, "beta": 0.7, "threshold": 0.3, "temperature": 0.01, "rho": 0.9}
    assert mean_loss(build(make_task, **params), batch) == pytest.approx(plainly(batch, **{**usual, **params}))


def test_without_pseudo_labels_it_is_em(make_task: Callable[..., Task]) -> None:
    batch = a_batch()
    method = build(make_task, threshold=1.0)
    em = Registry.discover().method("em-apl")  # whose pseudo-labels have not been given yet
    assert mean_loss(method, batch) == pytest.approx(mean_loss(em(em.Params(), make_task(NUM_CLASSES)), batch))
    assert method.idle() == ["no unknown label had a pseudo-label: to the vision-language model none was likely enough"]


def test_hard_pseudo_labels_of_full_weight_are_labels(make_task: Callable[..., Task]) -> None:
    batch = a_batch()
    method = build(make_task, rho=1.0, beta=1.0)
    (mask,) = method.diagnostics(batch.inputs, batch).values()
    assert mask.any() and not mask[batch.labels != 0].any()
    known = Batch(batch.inputs, torch.where(mask, 1, batch.labels), batch.index)
    assert mean_loss(method, batch) == pytest.approx(mean_loss(build(make_task, threshold=1.0), known))
    assert method.idle() == []


def test_an_images_cosines_are_found_by_its_row_in_train(make_task: Callable[..., Task]) -> None:
    batch, method = a_batch(), build(make_task)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    shuffled = Batch(batch.inputs[order], batch.labels[order], batch.index[order])
    assert mean_loss(method, shuffled) == pytest.approx(mean_loss(method, batch))
    elsewhere = Batch(batch.inputs, batch.labels, batch.index.flip(0))
    assert mean_loss(method, elsewhere) != pytest.approx(mean_loss(method, batch))


def test_heads_of_other_parameters_are_stacked(make_task: Callable[..., Task]) -> None:
    batch = a_batch()
    members = [
        build(make_task, threshold=threshold, temperature=temperature, beta=beta)
        for threshold, temperature, beta in ((0.3, 0.01, 0.7), (0.1, 0.05, 0.2))
    ]
    logits = torch.stack([batch.inputs, -batch.inputs])
    stacked = type(members[0]).stack(members).loss(logits, Batch(batch.inputs, batch.labels[None], batch.index), NOW)
    for head, member in enumerate(members):
        assert float(stacked.total[head]) == pytest.approx(float(member.loss(logits[head], batch, NOW).total))
