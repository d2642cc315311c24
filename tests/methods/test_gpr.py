"""GPR Loss against its formula in plain Python, one label after another, and its limits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_vlpl import NUM_CLASSES, NUM_ROWS, a_batch, build, similarity

from plbench.api import Batch, Method, Progress, Task
from plbench.runs.registry import Registry

USUAL: dict[str, Any] = {
    **{"slope": (0.0, 10.0), "offset": (-2.0, -8.0), "mu": (0.5, 0.8), "sigma": (2.0, 0.5), "q2": 0.01, "q3": 1.0},
    **{"weights": (0.5, 0.7), "rho": 0.9, "penalty": 0.001, "k": 2.0, "temperature": 0.01, "threshold": 0.5},
    **{"top_k": 3, "negative_share": 0.3, "negatives": True},
}


def at_epoch(epoch: int) -> Progress:
    return Progress(4 * epoch, 40, epoch, 10)


def mean_loss(method: Method, batch: Batch, epoch: int = 0) -> float:
    loss = method.loss(batch.inputs, batch, at_epoch(epoch))
    return float(loss.total) / float(loss.weight)


def kinds(cosines: list[float], said: dict[str, Any]) -> list[str]:
    """What each class of an image would be where its label is unknown."""
    exponentials = [math.exp((cosine - max(cosines)) / said["temperature"]) for cosine in cosines]
    order = sorted(range(len(cosines)), key=lambda column: (-cosines[column], column))
    lowest = order[len(order) - int(said["negative_share"] * len(order) + 1e-9) :]
    found = ["unknown"] * len(cosines)
    for column in order[: said["top_k"]]:
        if exponentials[column] / sum(exponentials) >= said["threshold"]:
            found[column] = "positive"
    for column in lowest:
        found[column] = "negative" if said["negatives"] else "unknown"
    return found


def plainly(batch: Batch, epoch: int, said: dict[str, Any]) -> float:
    """The formula, one label after another."""
    table, total, predicted, done = similarity().tolist(), 0.0, 0.0, epoch / 10
    slope, offset, mu, sigma = (
        said[name][0] + done * (said[name][1] - said[name][0]) for name in ("slope", "offset", "mu", "sigma")
    )
    for row in range(NUM_ROWS):
        kind_of = kinds(table[int(batch.index[row])], said)
        for column in range(NUM_CLASSES):
            p, label = 1 / (1 + math.exp(-float(batch.inputs[row, column]))), int(batch.labels[row, column])
            predicted += p / NUM_ROWS
            v = math.exp(-((p - mu) ** 2) / (2 * sigma**2))
            present = 1 / (1 + math.exp(-(slope * p + offset)))
            if label == 1:
                total -= math.log(p)
            elif label == -1:
                total -= math.log(1 - p)
            elif kind_of[column] == "positive":
                weight = min(max(1 - v, said["weights"][0]), said["weights"][1])
                total -= weight * (said["rho"] * math.log(p) + (1 - said["rho"]) * math.log(1 - p))
            elif kind_of[column] == "negative":
                total -= v * math.log(1 - p)
            else:
                as_positive, as_negative = (1 - p ** said["q2"]) / said["q2"], (1 - (1 - p) ** said["q3"]) / said["q3"]
                total += v * (present * as_positive + (1 - present) * as_negative)
    return total / NUM_ROWS + said["penalty"] * NUM_CLASSES * ((predicted - said["k"]) / NUM_CLASSES) ** 2


@pytest.mark.parametrize("epoch", [0, 7])
@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({}, {}),
        ({"variant": "no-negatives"}, {"negatives": False}),
        (
            {"negative_share": 0.45, "threshold": 0.1, "top_k": 2},
            {"negative_share": 0.45, "threshold": 0.1, "top_k": 2},
        ),
        # the lowest classes are no positives, however many of the highest may be
        ({"top_k": 5, "threshold": 0.0, "temperature": 0.1}, {"top_k": 5, "threshold": 0.0, "temperature": 0.1}),
        (
            {"weight_min": 0.1, "weight_max": 0.2, "rho": 0.7, "penalty": 3.0, "num_positives": 1.0, "q3": 1.5},
            {"weights": (0.1, 0.2), "rho": 0.7, "penalty": 3.0, "k": 1.0, "q3": 1.5},
        ),
    ],
)
def test_the_loss_is_the_formula(
    make_task: Callable[..., Task], epoch: int, params: dict[str, Any], said: dict[str, Any]
) -> None:
    batch = a_batch()
    expected = plainly(batch, epoch, {**USUAL, **said})
    assert mean_loss(build(make_task, "gpr", **params), batch, epoch) == pytest.approx(expected)


def test_a_share_of_classes_is_counted_without_rounding_errors(make_task: Callable[..., Task]) -> None:
    batch = a_batch()
    for number in range(NUM_CLASSES + 1):
        method = build(make_task, "gpr", negative_share=number / NUM_CLASSES)
        unknown = Batch(batch.inputs, torch.zeros_like(batch.labels), batch.index)
        marked = method.diagnostics(batch.inputs, unknown)["pseudo_negative"]
        assert marked.sum(dim=1).tolist() == [number] * NUM_ROWS


def test_without_pseudo_labels_and_penalty_it_is_gr_loss(make_task: Callable[..., Task]) -> None:
    batch = a_batch()
    method = build(make_task, "gpr", top_k=0, negative_share=0.0, penalty=0.0, slope_end=2.0, offset_end=-2.0)
    gr = Registry.discover().method("gr-loss")
    for epoch in (0, 4):
        expected = mean_loss(gr(gr.Params(), make_task(NUM_CLASSES)), batch, epoch)
        assert mean_loss(method, batch, epoch) == pytest.approx(expected)
    assert method.idle() == ["no unknown label had a pseudo-label, so this was GR Loss with a penalty"]


def test_weights_carry_no_gradient(make_task: Callable[..., Task]) -> None:
    batch = a_batch()
    method = build(make_task, "gpr", penalty=0.0, negative_share=0.4)
    logits = batch.inputs.clone().requires_grad_()
    method.loss(logits, batch, at_epoch(0)).total.backward()
    negative = method.diagnostics(batch.inputs, batch)["pseudo_negative"]
    p = torch.sigmoid(batch.inputs)
    expected = torch.exp(-((p - 0.5) / 2).square() / 2) * p  # v times the slope of -log(1 - p)
    assert negative.any() and logits.grad is not None
    torch.testing.assert_close(logits.grad[negative], expected[negative])
