"""LogicMix against its definitions in plain Python, one label after another, and its limits."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from plbench.api import Batch, Method, PartialLabels, Progress, Task
from plbench.losses import partial_asymmetric_loss
from plbench.runs.plan.resolved import validate_params
from plbench.runs.registry import Registry

NUM_ROWS, NUM_CLASSES = 64, 5  # as many rows as make_task says
EPOCHS = 6


def at_epoch(epoch: int) -> Progress:
    return Progress(4 * epoch, 4 * EPOCHS, epoch, EPOCHS)


@pytest.fixture
def build(make_task: Callable[..., Task]) -> Callable[..., Any]:
    def make(seed: int = 0, **params: Any) -> Method:
        method = Registry.discover().method("logicmix")
        return method(validate_params(method, params), make_task(NUM_CLASSES, seed=seed))

    return make


def random_labels(seed: int = 1) -> np.ndarray:
    """A third of each kind."""
    return np.random.default_rng(seed).integers(-1, 2, (NUM_ROWS, NUM_CLASSES)).astype(np.int8)


def view_of(labels: np.ndarray, logits: Tensor) -> Any:
    """What epoch hooks look at: the labels, and a model with these logits, in batches of 20 images."""
    classes = [str(column) for column in range(NUM_CLASSES)]
    scores = torch.sigmoid(logits)
    rows = torch.arange(NUM_ROWS).split(20)
    return SimpleNamespace(
        labels=PartialLabels.from_dense(labels, classes),
        predict=lambda weights="ema": ((index, scores[index]) for index in rows if weights == "ema"),
    )


def started(method: Any, labels: np.ndarray, logits: Tensor | None = None, epoch: int = 0) -> Any:
    """The method after the starts of its first epoch and of one more."""
    view = view_of(labels, torch.zeros(NUM_ROWS, NUM_CLASSES) if logits is None else logits)
    method.epoch_start(view, at_epoch(0))
    if epoch:
        method.epoch_start(view, at_epoch(epoch))
    return method


def whole(labels: np.ndarray, logits: Tensor | None = None) -> Batch:
    inputs = torch.zeros(NUM_ROWS, NUM_CLASSES, dtype=torch.float64) if logits is None else logits
    return Batch(inputs, torch.from_numpy(labels), torch.arange(NUM_ROWS))


def parts(method: Any, row: int, epoch: int) -> list[int]:
    """The rows that an input is the mean of, by its own word."""
    rows, weights = method.mixture(torch.arange(NUM_ROWS), epoch)
    return [int(r) for r, w in zip(rows[row], weights[row], strict=True) if w > 0]


def logical_or(labels: list[int]) -> int:
    if 1 in labels:
        return 1
    return -1 if all(label == -1 for label in labels) else 0


class TestMixture:
    def test_an_image_is_one_of_equal_parts_and_their_number_is_uniform(self, build: Callable[..., Any]) -> None:
        method = build(probability=0.5, max_images=3)
        counts = []
        for epoch in range(60):
            rows, weights = method.mixture(torch.arange(NUM_ROWS), epoch)
            assert torch.equal(rows[:, 0], torch.arange(NUM_ROWS))
            assert torch.allclose(weights.sum(dim=1), torch.ones(NUM_ROWS))
            used = weights > 0
            assert torch.equal(weights[used], (1 / used.sum(dim=1, keepdim=True)).expand_as(weights)[used])
            assert torch.equal(rows[~used], rows[:, :1].expand_as(rows)[~used])  # nothing more has to be loaded
            counts.append(used.sum(dim=1))
        share = torch.bincount(torch.cat(counts), minlength=4) / (60 * NUM_ROWS)
        assert share.tolist() == pytest.approx([0, 0.5, 0.25, 0.25], abs=0.03)

    def test_it_follows_from_row_and_epoch_alone(self, build: Callable[..., Any]) -> None:
        one, other = build(), build()
        both = one.mixture(torch.arange(NUM_ROWS), 3)
        other.mixture(torch.arange(NUM_ROWS), 0)
        some = torch.tensor([40, 2, 2, 63])
        for expected, seen in zip(both, other.mixture(some, 3), strict=True):
            assert torch.equal(expected[some], seen)
        assert not torch.equal(both[0], one.mixture(torch.arange(NUM_ROWS), 4)[0])
        assert not torch.equal(both[0], build(seed=1).mixture(torch.arange(NUM_ROWS), 3)[0])


class TestLabels:
    def test_they_are_the_or_of_what_is_known(self, build: Callable[..., Any]) -> None:
        labels, method = random_labels(), build(probability=0.8, max_images=4)
        started(method, labels)
        mixed, is_mix = method.mixed_labels(whole(labels), at_epoch(2))
        seen = set()
        for row in range(NUM_ROWS):
            rows = parts(method, row, epoch=2)
            assert bool(is_mix[row]) == (len(rows) > 1)
            for column in range(NUM_CLASSES):
                of_parts = [int(labels[each, column]) for each in rows]
                assert int(mixed[row, column]) == logical_or(of_parts)
                seen.add((len(rows), *sorted(set(of_parts))))
        assert {(2, -1, 0), (2, -1, 1), (2, 0, 1), (3, -1, 0, 1)} <= seen

    def test_with_complete_labels_they_are_the_maximum(self, build: Callable[..., Any]) -> None:
        labels = np.where(random_labels() > 0, 1, -1).astype(np.int8)
        method = started(build(probability=1.0), labels)
        rows, _ = method.mixture(torch.arange(NUM_ROWS), 1)
        mixed, is_mix = method.mixed_labels(whole(labels), at_epoch(1))
        assert is_mix.all()
        assert torch.equal(mixed, torch.from_numpy(labels)[rows].amax(dim=1))

    def test_pseudo_labels_are_mixed_as_known_ones_are(self, build: Callable[..., Any]) -> None:
        labels = random_labels()
        logits = 6 * torch.randn(NUM_ROWS, NUM_CLASSES, generator=torch.Generator().manual_seed(2))
        method = started(build(probability=0.7, theta=4.0, warmup=0.5), labels, logits, epoch=3)
        completed = labels.copy()
        for row, column in np.argwhere(labels == 0):
            z = float(logits[row, column])
            completed[row, column] = 1 if z > 4 else -1 if z < -4 else 0
        assert 0 < (completed != labels).sum() < (labels == 0).sum()
        mixed, _ = method.mixed_labels(whole(labels), at_epoch(3))
        for row in range(NUM_ROWS):
            rows = parts(method, row, epoch=3)
            expected = [logical_or([int(completed[each, column]) for each in rows]) for column in range(NUM_CLASSES)]
            assert mixed[row].tolist() == expected

    def test_they_are_given_anew_and_not_before_the_warmup_ends(self, build: Callable[..., Any]) -> None:
        labels = np.zeros((NUM_ROWS, NUM_CLASSES), np.int8)
        sure = torch.full((NUM_ROWS, NUM_CLASSES), 5.0)
        method = started(build(warmup=1 / 3), labels, sure, epoch=1)
        assert not len(method.pseudo.cells)
        assert method.idle()
        started(method, labels, sure, epoch=2)  # 2 of 6 epochs are a third
        assert len(method.pseudo.cells) == NUM_ROWS * NUM_CLASSES
        assert not method.idle()
        started(method, labels, torch.zeros(NUM_ROWS, NUM_CLASSES), epoch=3)
        assert not len(method.pseudo.cells)


class TestLoss:
    def test_formula(self, build: Callable[..., Any]) -> None:
        labels = random_labels()
        logits = 3 * torch.randn(NUM_ROWS, NUM_CLASSES, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        method = started(build(), labels)
        loss = method.loss(logits, whole(labels, logits), at_epoch(1))
        total = 0.0
        for row in range(NUM_ROWS):
            rows = parts(method, row, epoch=1)
            gamma_pos, gamma_neg, shift = (4, 0, 0.0) if len(rows) > 1 else (0, 4, 0.05)
            for column in range(NUM_CLASSES):
                label = logical_or([int(labels[each, column]) for each in rows])
                p = 1 / (1 + math.exp(-float(logits[row, column])))
                if label > 0:
                    total -= (1 - p) ** gamma_pos * math.log(p)
                elif label < 0:
                    p = max(p - shift, 0.0)
                    total -= p**gamma_neg * math.log(1 - p)
        assert float(loss.total) == pytest.approx(total, rel=1e-9)
        assert float(loss.weight) == NUM_ROWS

    def test_without_mixes_it_is_asl_on_known_labels(self, build: Callable[..., Any]) -> None:
        labels = random_labels()
        logits = torch.randn(NUM_ROWS, NUM_CLASSES, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        method = started(build(probability=0.0), labels)
        assert "no images were mixed" in method.idle()[0]
        expected = partial_asymmetric_loss(
            logits,
            torch.from_numpy(labels),
            gamma_pos=0.0,
            gamma_neg=4.0,
            gamma_unann=0.0,
            clip=0.05,
            unann_weight=0.0,
        )
        assert float(method.loss(logits, whole(labels), at_epoch(0)).total) == pytest.approx(float(expected.sum()))

    def test_what_it_remembers_comes_back(self, build: Callable[..., Any]) -> None:
        labels = random_labels()
        logits = 6 * torch.randn(NUM_ROWS, NUM_CLASSES, generator=torch.Generator().manual_seed(2))
        method = started(build(), labels, logits, epoch=4)
        resumed = build()
        resumed.load_state_dict(method.state_dict())
        for one, other in zip(
            method.mixed_labels(whole(labels), at_epoch(4)),
            resumed.mixed_labels(whole(labels), at_epoch(4)),
            strict=True,
        ):
            assert torch.equal(one, other)
