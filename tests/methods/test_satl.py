"""SATL: thresholds, pseudo-labels and the ranking loss against loops over images, classes and pairs."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from plbench.api import Batch, Method, PartialLabels, Progress, Task
from plbench.methods.satl import SATL, class_thresholds, ranking_loss
from plbench.runs.plan.resolved import validate_params
from plbench.runs.registry import Registry

NUM_ROWS, NUM_CLASSES = 40, 4
WARM, LATER = Progress(0, 40, 0, 10), Progress(20, 40, 5, 10)


def known() -> np.ndarray:
    """Labels [N, C]; class 2 is never known to be absent, of class 3 nothing is known."""
    labels = np.random.default_rng(1).choice([1, -1, 0, 0], (NUM_ROWS, NUM_CLASSES)).astype(np.int8)
    labels[:, 2] = np.maximum(labels[:, 2], 0)
    labels[:, 3] = 0
    return labels


def scores() -> np.ndarray:
    """Scores of a model that has learned something: class 1 better than class 0."""
    rng = np.random.default_rng(2)
    noise = rng.uniform(0, [0.8, 0.5, 0.5, 0.5], (NUM_ROWS, NUM_CLASSES))
    return np.where(known() > 0, 1 - noise, np.where(known() < 0, noise, rng.random(noise.shape)))


class Stream:
    """A model that gives fixed scores for all rows, in portions."""

    labels = PartialLabels.from_dense(known(), [str(column) for column in range(NUM_CLASSES)])

    def predict(self, weights: Literal["ema", "raw"] = "ema", **kinds: Any) -> Iterator[tuple[Tensor, Tensor]]:
        assert weights == "ema"
        for rows in torch.arange(NUM_ROWS).split(7):
            yield rows, torch.from_numpy(scores()[rows.numpy()])


@pytest.fixture
def build(make_task: Callable[..., Task]) -> Callable[..., Method]:
    def make(**params: Any) -> Method:
        task = dataclasses.replace(make_task(NUM_CLASSES), num_train=NUM_ROWS)
        return SATL(validate_params(SATL, params), task)

    return make


def expected_thresholds(deviations: float) -> list[tuple[float, float]]:
    """Upper and lower of each class, by numpy's mean and standard deviation."""
    found = []
    for column in range(NUM_CLASSES):
        present, absent = (scores()[known()[:, column] == sign, column] for sign in (1, -1))
        upper, lower = 2.0, -1.0
        if len(present) and len(absent):
            high, low = present.mean() + deviations * present.std(), absent.mean() - deviations * absent.std()
            upper, lower = (high, low) if high > low else (upper, lower)
        found.append((upper, lower))
    return found


@pytest.mark.parametrize("deviations", [0.0, 0.5, -0.3, -1.0])
def test_thresholds(build: Callable[..., Method], deviations: float) -> None:
    method = build(deviations=deviations)
    method.epoch_start(Stream(), WARM)
    assert (method.upper > 1).all()  # in the warm-up there are none
    method.epoch_start(Stream(), LATER)
    found = list(zip(method.upper.tolist(), method.lower.tolist(), strict=True))
    assert found == [pytest.approx(pair, rel=1e-6) for pair in expected_thresholds(deviations)]
    assert found[2] == found[3] == (2.0, -1.0)
    assert found[1][0] < 1.0


def test_thresholds_that_cross_are_none() -> None:
    """Scores tell such a class's labels no better than chance."""
    sums = torch.tensor([[[4.0], [1.6], [0.7]], [[5.0], [2.5], [1.3]]])  # means 0.4 and 0.5
    assert class_thresholds(sums, 0.0) == (torch.tensor([2.0]), torch.tensor([-1.0]))


def hinge(p: np.ndarray, labels: np.ndarray, margin: float) -> list[float]:
    """The ranking loss of each class, pair by pair."""
    found = []
    for column in range(p.shape[1]):
        present, absent = (p[labels[:, column] == sign, column] for sign in (1, -1))
        pairs = [max(0.0, margin - (one - other)) for one, other in itertools.product(present, absent)]
        found.append(sum(pairs) / len(pairs) if pairs else 0.0)
    return found


@pytest.mark.parametrize("margin", [0.1, 0.5, 1.0])
def test_ranking_loss_and_its_gradient(margin: float) -> None:
    """Against all pairs; scores with ties, among them differences of just the margin."""
    rng = np.random.default_rng(4)
    p = np.round(rng.random((60, NUM_CLASSES)), 1)
    labels = rng.choice([1, -1, 0], p.shape).astype(np.int8)
    labels[:, 1], labels[:, 2] = 1, np.minimum(labels[:, 2], 0)  # no pairs
    given = torch.from_numpy(p).requires_grad_()
    found = ranking_loss(given, torch.from_numpy(labels), margin)
    assert found.tolist() == pytest.approx(hinge(p, labels, margin), rel=1e-12)
    assert found[0] > 0
    assert found[1] == found[2] == 0.0
    smooth = torch.from_numpy(rng.random((12, 2))).requires_grad_()  # away from the kinks
    of_these = torch.from_numpy(rng.choice([1, -1, 0], (12, 2)).astype(np.int8))
    assert torch.autograd.gradcheck(lambda x: ranking_loss(x, of_these, margin), smooth)


def test_scores_that_are_apart_have_no_ranking_loss() -> None:
    labels = torch.tensor([[1], [1], [-1], [0]], dtype=torch.int8)
    assert ranking_loss(torch.tensor([[0.9], [0.8], [0.25], [0.99]]), labels, 0.5).item() == 0.0


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_loss(build: Callable[..., Method], weight: float) -> None:
    method = build(ranking_weight=weight, margin=0.4)
    rows = np.arange(3, NUM_ROWS, 2)
    logits = torch.randn(len(rows), NUM_CLASSES, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    batch = Batch(logits, torch.from_numpy(known()[rows]), torch.from_numpy(rows))
    p = (1 / (1 + torch.exp(-logits))).numpy()
    for progress, thresholds in ((WARM, [(2.0, -1.0)] * 4), (LATER, expected_thresholds(0.0))):
        method.epoch_start(Stream(), progress)
        total = weight * len(rows) * sum(hinge(p, known()[rows], 0.4))
        pseudo = {}
        for place, column in itertools.product(range(len(rows)), range(NUM_CLASSES)):
            label, (upper, lower) = int(known()[rows[place], column]), thresholds[column]
            if label == 0:
                label = int(p[place, column] >= upper) - int(p[place, column] <= lower)
                pseudo[place, column] = label
            total -= {1: math.log(p[place, column]), -1: math.log(1 - p[place, column]), 0: 0.0}[label]
        loss = method.loss(logits, batch, progress)
        assert float(loss.total) == pytest.approx(total, rel=1e-9)
        assert loss.weight == len(rows)
        assert (method.idle() == []) == (progress is LATER)
    masks = method.diagnostics(logits, batch)
    for name, sign in (("pseudo_positive", 1), ("pseudo_negative", -1)):
        assert sign in pseudo.values()
        assert set(map(tuple, masks[name].nonzero().tolist())) == {cell for cell, v in pseudo.items() if v == sign}


def test_warm_up_without_ranking_is_ce_ignore(build: Callable[..., Method], make_task: Callable[..., Task]) -> None:
    method = build(ranking_weight=0.0)
    logits = torch.randn(NUM_ROWS, NUM_CLASSES, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    batch = Batch(logits, torch.from_numpy(known()), torch.arange(NUM_ROWS))
    kind = Registry.discover().method("ce-ignore")
    ignore = kind(validate_params(kind, {}), make_task(NUM_CLASSES)).loss(logits, batch, WARM)
    assert float(method.loss(logits, batch, WARM).total) == pytest.approx(float(ignore.total), rel=1e-12)


def test_thresholds_come_back(build: Callable[..., Method]) -> None:
    method, other = build(), build()
    method.epoch_start(Stream(), LATER)
    other.load_state_dict(method.state_dict())
    assert (other.upper.tolist(), other.lower.tolist()) == (method.upper.tolist(), method.lower.tolist())
