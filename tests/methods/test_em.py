"""Entropy maximisation alone against its formula, its gradient, and the limits in which `em-apl` is it."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from plbench.api import Batch, Method, PartialLabels, Progress, Task
from plbench.runs.plan.resolved import validate_params
from plbench.runs.registry import Registry

NUM_ROWS, NUM_CLASSES, NUM_EPOCHS = 6, 5, 10


def at_epoch(epoch: int) -> Progress:
    return Progress(4 * epoch, 4 * NUM_EPOCHS, epoch, NUM_EPOCHS)


@pytest.fixture
def build(make_task: Callable[..., Task]) -> Callable[..., Method]:
    def make(name: str, **params: Any) -> Method:
        method = Registry.discover().method(name)
        return method(validate_params(method, params), make_task(NUM_CLASSES))

    return make


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(NUM_ROWS, NUM_CLASSES, generator=generator, dtype=torch.float64)
    labels = torch.tensor([1, -1, 0, 0])[torch.randint(4, logits.shape, generator=generator)]
    labels[0] = 0
    return Batch(logits, labels.to(torch.int8), torch.arange(NUM_ROWS))


def loss_and_gradient(method: Method, batch: Batch, epoch: int = 0) -> tuple[float, torch.Tensor]:
    logits = batch.inputs.clone().requires_grad_()
    loss = method.loss(logits, batch, at_epoch(epoch))
    (gradient,) = torch.autograd.grad(loss.total / loss.weight, logits)
    return float(loss.total.detach()) / float(loss.weight), gradient


@pytest.mark.parametrize("alpha", [0.0, 0.01, 0.3])
def test_loss_and_gradient_are_those_of_the_formula(build: Callable[..., Method], batch: Batch, alpha: float) -> None:
    """dL/dz is p - 1 of a present label, p of an absent one, and alpha z p (1 - p) of an unknown one."""
    expected, slopes = 0.0, torch.zeros_like(batch.inputs)
    for row in range(NUM_ROWS):
        for column in range(NUM_CLASSES):
            z, y = float(batch.inputs[row, column]), int(batch.labels[row, column])
            p = 1 / (1 + math.exp(-z))
            entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
            expected += {1: -math.log(p), -1: -math.log(1 - p), 0: -alpha * entropy}[y]
            slopes[row, column] = {1: p - 1, -1: p, 0: alpha * z * p * (1 - p)}[y]
    loss, gradient = loss_and_gradient(build("em", alpha=alpha), batch)
    assert loss == pytest.approx(expected / NUM_ROWS, rel=1e-12)
    torch.testing.assert_close(gradient, slopes / NUM_ROWS, rtol=1e-9, atol=1e-12)


def test_alpha_0_is_ce_ignore(build: Callable[..., Method], batch: Batch) -> None:
    loss, gradient = loss_and_gradient(build("em", alpha=0.0), batch)
    of_known, expected = loss_and_gradient(build("ce-ignore"), batch)
    assert loss == of_known
    torch.testing.assert_close(gradient, expected, rtol=0, atol=0)


class ConstantView:
    """A view of training images whose scores are all different."""

    def __init__(self, labels: Any, num_rows: int) -> None:
        self.labels, self.num_rows = labels, num_rows

    def predict(self, weights: str = "ema", **kwargs: Any) -> Any:
        values = torch.rand(self.num_rows, NUM_CLASSES, generator=torch.Generator().manual_seed(0))
        yield torch.arange(self.num_rows), values


@pytest.mark.parametrize(
    ("params", "epoch"), [({}, 0), ({}, 4), ({"theta": 0.0, "warmup": 0.8}, 9), ({"warmup": 1.0}, 9)]
)
def test_em_apl_is_em_with_theta_0_and_before_its_warm_up_ends(
    build: Callable[..., Method], batch: Batch, params: dict[str, float], epoch: int
) -> None:
    with_apl = build("em-apl", alpha=0.3, **params)
    names = tuple(str(column) for column in range(NUM_CLASSES))
    view = ConstantView(PartialLabels.from_dense(batch.labels.numpy(), names), NUM_ROWS)
    for number in range(epoch + 1):
        with_apl.epoch_start(view, at_epoch(number))
    (loss, gradient), (expected, slopes) = (
        loss_and_gradient(method, batch, epoch) for method in (with_apl, build("em", alpha=0.3))
    )
    assert loss == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(gradient, slopes, rtol=1e-12, atol=1e-15)


def test_after_the_warm_up_em_apl_is_another_method(build: Callable[..., Method], batch: Batch) -> None:
    with_apl = build("em-apl", alpha=0.3, warmup=0.8)
    names = tuple(str(column) for column in range(NUM_CLASSES))
    view = ConstantView(PartialLabels.from_dense(batch.labels.numpy(), names), NUM_ROWS)
    for number in range(NUM_EPOCHS):
        with_apl.epoch_start(view, at_epoch(number))
    assert len(with_apl.pseudo.cells)
    assert loss_and_gradient(with_apl, batch, 9)[0] != loss_and_gradient(build("em", alpha=0.3), batch, 9)[0]


def test_it_says_when_the_entropy_does_nothing(build: Callable[..., Method]) -> None:
    assert build("em").idle() == []
    assert "alpha is 0" in build("em", alpha=0.0).idle()[0]
