"""Expected negatives and moving averages of scores, against plain Python, and the limits."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from plbench.api import Batch, Task
from plbench.losses import partial_asymmetric_loss
from plbench.method import Progress
from plbench.runs.plan.resolved import validate_params
from plbench.runs.registry import Registry

NUM_ROWS, NUM_CLASSES = 64, 6  # as many rows as make_task says
FIRST = Progress(0, 40, 0, 10)
GAMMAS = {"gamma_pos": 0.0, "gamma_neg": 0.0, "gamma_unann": 0.0}


@pytest.fixture
def build(make_task: Callable[..., Task]) -> Callable[..., Any]:
    def make(**params: Any) -> Any:
        method = Registry.discover().method("ema-consistency")
        return method(validate_params(method, params), make_task(NUM_CLASSES))

    return make


def scores_of(seed: int) -> Tensor:
    return torch.rand(NUM_ROWS, NUM_CLASSES, generator=torch.Generator().manual_seed(seed))


def after_epochs(method: Any, *scores: Tensor) -> Any:
    """The method after epochs at whose ends the model had these scores, in batches of 20 images."""
    for each in scores:
        parts = [(rows, each[rows]) for rows in torch.arange(NUM_ROWS).split(20)]
        method.epoch_end(SimpleNamespace(predict=lambda weights, parts=parts: iter(parts)), FIRST)
    return method


@pytest.fixture
def batch() -> Batch:
    """Some rows, in no order; present, absent and unknown labels, and a row with nothing known."""
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(12, NUM_CLASSES, generator=generator, dtype=torch.float64)
    labels = torch.tensor([1, -1, 0, 0, 0], dtype=torch.int8)[torch.randint(5, logits.shape, generator=generator)]
    labels[0] = 0
    return Batch(logits, labels, torch.randperm(NUM_ROWS, generator=generator)[:12])


def mean_loss(method: Any, batch: Batch) -> float:
    loss = method.loss(batch.inputs, batch, FIRST)
    return float(loss.total) / float(loss.weight)


def test_formula(build: Callable[..., Any], batch: Batch) -> None:
    k, mu, weight = 3, 0.7, 0.4
    history = [scores_of(seed) for seed in (1, 2, 3)]
    method = after_epochs(build(num_positives=k, momentum=mu, consistency=weight), *history)
    total, left_out = 0.0, 0
    for row, index in enumerate(batch.index.tolist()):
        average = []
        for column in range(NUM_CLASSES):
            s = float(history[0][index, column])
            for scores in history[1:]:
                s = mu * s + (1 - mu) * float(scores[index, column])
            average.append(s)
        labels = batch.labels[row].tolist()
        unknown = [column for column in range(NUM_CLASSES) if labels[column] == 0]
        missing = max(0, k - labels.count(1))
        positives = sorted(unknown, key=lambda column: -average[column])[:missing]
        left_out += len(positives)
        for column in range(NUM_CLASSES):
            p = 1 / (1 + math.exp(-float(batch.inputs[row, column])))
            if labels[column] == 1:
                total -= math.log(p)
            elif column not in positives:
                total -= math.log(1 - p)
            if labels[column] == 0:
                total += weight * abs(p - average[column])
    assert 0 < left_out < int((batch.labels == 0).sum())
    assert mean_loss(method, batch) == pytest.approx(total / 12, rel=1e-6)
    assert method.marked.total() == left_out
    assert int(method.diagnostics(batch.inputs, batch)["ignored"].sum()) == left_out


def test_the_first_epoch_is_ce_negative(build: Callable[..., Any], batch: Batch) -> None:
    method = build()
    negative = partial_asymmetric_loss(batch.inputs, batch.labels, **GAMMAS).mean()
    assert mean_loss(method, batch) == pytest.approx(float(negative), rel=1e-12)
    assert not method.diagnostics(batch.inputs, batch)["ignored"].any()
    assert "expected negative" in method.idle()[0]


def test_k_of_0_is_ce_negative_and_of_all_classes_ce_ignore(build: Callable[..., Any], batch: Batch) -> None:
    for k, unknown in ((0, 1.0), (2 * NUM_CLASSES, 0.0)):
        method = after_epochs(build(num_positives=k, consistency=0.0), scores_of(1))
        limit = partial_asymmetric_loss(batch.inputs, batch.labels, unann_weight=unknown, **GAMMAS).mean()
        assert mean_loss(method, batch) == pytest.approx(float(limit), rel=1e-12)
        assert bool(method.idle()) == (k == 0)


def test_without_momentum_the_last_epoch_is_all_that_counts(build: Callable[..., Any], batch: Batch) -> None:
    one = after_epochs(build(momentum=0.0), scores_of(1), scores_of(2))
    other = after_epochs(build(momentum=0.0), scores_of(2))
    assert torch.equal(one.average, other.average)
    assert mean_loss(one, batch) == mean_loss(other, batch)


def test_consistency_pulls_unknown_labels_towards_their_average(build: Callable[..., Any]) -> None:
    method = after_epochs(build(num_positives=2.0, consistency=1.0), torch.full((NUM_ROWS, NUM_CLASSES), 0.5))
    logits = torch.tensor([[1.0, -1.0, 1.0, 1.0, 1.0, 1.0]], requires_grad=True)
    labels = torch.tensor([[0, 0, 1, -1, 1, 1]], dtype=torch.int8)
    one = Batch(logits, labels, torch.zeros(1, dtype=torch.int64))
    (pull,) = torch.autograd.grad(method.loss(logits, one, FIRST).total, logits)
    (plain,) = torch.autograd.grad(partial_asymmetric_loss(logits, labels, **GAMMAS).sum(), logits)
    slope = torch.sigmoid(torch.tensor(1.0)) * torch.sigmoid(torch.tensor(-1.0))
    expected = slope * torch.tensor([[1.0, -1.0, 0.0, 0.0, 0.0, 0.0]])
    assert torch.allclose(pull - plain, expected, atol=1e-6)


def test_verified_negatives_are_ordinary_ones(build: Callable[..., Any], batch: Batch) -> None:
    """Whatever their averages are, and however many positives are expected."""
    labels = torch.full_like(batch.labels, -1)
    method = after_epochs(build(num_positives=NUM_CLASSES), scores_of(1))
    expected = partial_asymmetric_loss(batch.inputs, labels, **GAMMAS).mean()
    assert mean_loss(method, Batch(batch.inputs, labels, batch.index)) == pytest.approx(float(expected), rel=1e-12)


def test_what_it_remembers_comes_back(build: Callable[..., Any], batch: Batch) -> None:
    method, resumed = after_epochs(build(), scores_of(1), scores_of(2)), build()
    resumed.load_state_dict(method.state_dict())
    assert mean_loss(method, batch) == mean_loss(resumed, batch)
