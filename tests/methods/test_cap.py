"""CAP: which unknown labels get which pseudo-label, and what the loss is, against loops over images and classes."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from plbench.api import Batch, Method, PartialLabels, PlbenchError, Progress, Task
from plbench.methods.cap import CAP, class_aware_labels, class_proportions
from plbench.runs.plan.resolved import validate_params
from plbench.runs.registry import Registry

NUM_ROWS, NUM_CLASSES = 40, 4
WARM, LATER = Progress(0, 40, 0, 10), Progress(20, 40, 5, 10)


def known() -> np.ndarray:
    """Labels [N, C] of which a quarter of the images knows all, but for class 3, of which nothing is known."""
    rng = np.random.default_rng(1)
    labels = np.where(rng.random((NUM_ROWS, NUM_CLASSES)) < [0.6, 0.3, 0.1, 0.5], 1, -1).astype(np.int8)
    labels[NUM_ROWS // 4 :] = 0
    labels[3, 0] = 0
    labels[:, 3] = 0
    return labels


def scores() -> Tensor:
    return torch.from_numpy(np.random.default_rng(2).random((NUM_ROWS, NUM_CLASSES)).astype(np.float32))


class Stream:
    """A model that gives fixed scores for all rows, in portions."""

    labels = PartialLabels.from_dense(known(), [str(column) for column in range(NUM_CLASSES)])

    def predict(self, weights: Literal["ema", "raw"] = "ema", **kinds: Any) -> Iterator[tuple[Tensor, Tensor]]:
        assert weights == "ema"
        for rows in torch.arange(NUM_ROWS).split(7):
            yield rows, scores()[rows]


@pytest.fixture
def build(make_task: Callable[..., Task]) -> Callable[..., Method]:
    def make(**params: Any) -> Method:
        labels = known()
        task = dataclasses.replace(
            make_task(NUM_CLASSES),
            num_train=NUM_ROWS,
            positives=(labels > 0).sum(axis=0),
            negatives=(labels < 0).sum(axis=0),
        )
        return CAP(validate_params(CAP, params), task)

    return make


def expected_labels(positive_share: float, negative_share: float) -> dict[tuple[int, int], int]:
    """Pseudo-labels by (row, class), by sorting each class's unknown labels."""
    labels, values = known(), scores().double()
    found = {}
    for column in range(NUM_CLASSES):
        num_positive, num_negative = ((labels[:, column] == sign).sum() for sign in (1, -1))
        if num_positive + num_negative == 0:
            continue
        gamma = num_positive / (num_positive + num_negative)
        unknown = sorted(
            (row for row in range(NUM_ROWS) if labels[row, column] == 0), key=lambda row: -float(values[row, column])
        )
        for place, row in enumerate(unknown):
            if place + 1 <= positive_share * gamma * len(unknown) + 1e-9:
                found[row, column] = 1
            elif len(unknown) - place <= negative_share * (1 - gamma) * len(unknown) + 1e-9:
                found[row, column] = -1
    return found


def pseudo_labels(method: Method) -> dict[tuple[int, int], int]:
    cells, values = method.pseudo.cells.tolist(), method.pseudo.values.tolist()
    return {divmod(cell, NUM_CLASSES): int(value) for cell, value in zip(cells, values, strict=True)}


@pytest.mark.parametrize("shares", [(1.0, 1.0), (0.5, 0.998), (0.0, 1.0), (0.7, 0.0)])
def test_which_unknown_labels_get_which_pseudo_label(build: Callable[..., Method], shares: tuple[float, float]) -> None:
    method = build(positive_share=shares[0], negative_share=shares[1])
    method.epoch_start(Stream(), LATER)
    expected = expected_labels(*shares)
    assert pseudo_labels(method) == expected
    assert 15 < len(expected) < NUM_ROWS * NUM_CLASSES
    method.epoch_start(Stream(), LATER)  # given anew, not added up
    assert pseudo_labels(method) == expected


def test_nothing_has_a_pseudo_label_in_the_warm_up(build: Callable[..., Method]) -> None:
    method = build(warmup=0.3)
    given = []
    for epoch in range(10):
        method.epoch_start(Stream(), Progress(4 * epoch, 40, epoch, 10))
        given.append(bool(method.pseudo.cells.numel()))
    assert given == [False] * 3 + [True] * 7
    assert "no unknown label" in build().idle()[0]
    assert not method.idle()


def test_pseudo_labels_have_the_proportions_of_known_ones(build: Callable[..., Method]) -> None:
    """The paper's aim: with shares of 1 nothing of a class is left but for rounding, and as much of it is positive."""
    method = build()
    method.epoch_start(Stream(), LATER)
    for column, proportion in enumerate(class_proportions(method.task)[:3]):
        unknown = int((known()[:, column] == 0).sum())
        of_class = [value for (_, c), value in pseudo_labels(method).items() if c == column]
        assert unknown - 1 <= len(of_class) <= unknown
        assert of_class.count(1) == pytest.approx(proportion * unknown, abs=1.0)


def test_a_model_that_ranks_perfectly_gives_the_truth() -> None:
    """Whatever the thresholds of its scores: each class has a scale of its own."""
    rng = np.random.default_rng(5)
    truth = rng.permuted(np.repeat([[1] * 10 + [-1] * 30], 3, axis=0), axis=1).T.astype(np.int8)
    of_truth = torch.from_numpy(truth > 0) * torch.tensor([0.1, 0.5, 0.001])
    nothing = PartialLabels.from_dense(np.zeros_like(truth), ["a", "b", "c"])
    cells, values = class_aware_labels(of_truth, nothing, np.full(3, 0.25), positive_share=1.0, negative_share=1.0)
    found = np.zeros(truth.size)
    found[cells.numpy()] = values.numpy()
    assert (found.reshape(truth.shape) == truth).all()


def test_loss(build: Callable[..., Method]) -> None:
    """The mean over images with a label of ASL (0, 4, 0.05), of known labels and pseudo-labels alike."""
    method = build(positive_share=0.5, negative_share=0.5)
    rows = [0, 3, 12, 17, 25, 30, 39]
    logits = torch.randn(len(rows), NUM_CLASSES, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    batch = Batch(logits, torch.from_numpy(known()[rows]), torch.tensor(rows))
    for progress, pseudo in ((WARM, {}), (LATER, expected_labels(0.5, 0.5))):
        method.epoch_start(Stream(), progress)
        total, images = 0.0, set()
        for place, column in itertools.product(range(len(rows)), range(NUM_CLASSES)):
            label = known()[rows[place], column] or pseudo.get((rows[place], column), 0)
            p = 1 / (1 + math.exp(-float(logits[place, column])))
            q = max(p - 0.05, 0.0)
            total += {1: -math.log(p), -1: -(q**4) * math.log(1 - q), 0: 0.0}[int(label)]
            images |= {place} if label else set()
        loss = method.loss(logits, batch, progress)
        assert float(loss.total) == pytest.approx(total, rel=1e-6)
        assert int(loss.weight) == len(images)
    masks = method.diagnostics(logits, batch)
    for name, sign in (("pseudo_positive", 1), ("pseudo_negative", -1)):
        marked = {(rows[place], column) for place, column in masks[name].nonzero().tolist()}
        assert marked == {cell for cell, value in pseudo.items() if value == sign and cell[0] in rows}


def test_without_focusing_and_pseudo_labels_it_is_ce_ignore_on_images_with_a_label(
    build: Callable[..., Method], make_task: Callable[..., Task]
) -> None:
    method = build(gamma_neg=0.0, clip=0.0)
    logits = torch.randn(NUM_ROWS, NUM_CLASSES, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    batch = Batch(logits, torch.from_numpy(known()), torch.arange(NUM_ROWS))
    kind = Registry.discover().method("ce-ignore")
    ignore = kind(validate_params(kind, {}), make_task(NUM_CLASSES)).loss(logits, batch, WARM)
    loss = method.loss(logits, batch, WARM)
    assert float(loss.total) == pytest.approx(float(ignore.total), rel=1e-12)
    assert (int(loss.weight), float(ignore.weight)) == (NUM_ROWS // 4, NUM_ROWS)


def test_pseudo_labels_come_back(build: Callable[..., Method]) -> None:
    method, other = build(), build()
    method.epoch_start(Stream(), LATER)
    other.load_state_dict(method.state_dict())
    assert pseudo_labels(other) == pseudo_labels(method)


def test_what_would_not_fit_is_refused(make_task: Callable[..., Task]) -> None:
    task = dataclasses.replace(make_task(9_600), num_train=9_000_000)
    with pytest.raises(PlbenchError, match=r"method 'cap' keeps pseudo-labels.* 1,382 GB .*; use hill or gr-loss"):
        CAP(validate_params(CAP, {}), task)
