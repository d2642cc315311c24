"""Pseudo-label consistency against the formula in plain Python, its limits, and its two views."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from plbench.api import Batch, Method, Plan, Progress, Task
from plbench.loading.transforms import EvalTransform, TrainTransform
from plbench.losses import partial_asymmetric_loss
from plbench.randomness import seeded
from plbench.runs.plan.resolved import validate_params
from plbench.runs.registry import Registry

NUM_ROWS, NUM_CLASSES = 6, 5
FIRST = Progress(0, 40, 0, 10)
BASE = EvalTransform(32, (0.5, 0.4, 0.3), (0.2, 0.25, 0.5))


@pytest.fixture
def build(make_task: Callable[..., Task]) -> Callable[..., Method]:
    def make(**params: Any) -> Method:
        method = Registry.discover().method("lac-plc")
        return method(validate_params(method, params), make_task(NUM_CLASSES))

    return make


@pytest.fixture
def views() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    weak, strong = (2 * torch.randn(NUM_ROWS, NUM_CLASSES, generator=generator).double() for _ in range(2))
    return {"weak": weak, "strong": strong}


@pytest.fixture
def labels() -> Tensor:
    chosen = torch.randint(4, (NUM_ROWS, NUM_CLASSES), generator=torch.Generator().manual_seed(4))
    return torch.tensor([1, -1, 0, 0], dtype=torch.int8)[chosen]


def batch_of(labels: Tensor) -> Batch:
    return Batch(torch.empty(NUM_ROWS, 3, 4, 4), labels, torch.arange(NUM_ROWS))


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def cross_entropy(z: float, is_present: bool) -> float:
    return -math.log(sigmoid(z)) if is_present else -math.log(1 - sigmoid(z))


@pytest.mark.parametrize("tau", [0.5, 0.6, 0.9])
def test_formula(build: Callable[..., Method], views: dict[str, Tensor], labels: Tensor, tau: float) -> None:
    method = build(threshold=tau, plc_weight=1.5)
    loss = method.loss(views, batch_of(labels), FIRST)
    plain, sure = 0.0, []
    taken = 0
    for row in range(NUM_ROWS):
        for column in range(NUM_CLASSES):
            z, q, label = float(views["weak"][row, column]), float(views["strong"][row, column]), labels[row, column]
            plain += cross_entropy(z, bool(label > 0))
            p = sigmoid(z)
            if label > 0 or (label == 0 and p >= tau):
                sure.append(cross_entropy(q, True))
                taken += int(label == 0)
            elif label < 0 or p < 1 - tau:
                sure.append(cross_entropy(q, False))
    assert taken > 0
    # the mean over images of sums over classes, where the code takes means of both
    expected = plain / NUM_ROWS + 1.5 * NUM_CLASSES * sum(sure) / len(sure)
    assert float(loss.total) / float(loss.weight) == pytest.approx(expected, rel=1e-12)
    assert method.marked.total() == taken


def test_limits(build: Callable[..., Method], views: dict[str, Tensor], labels: Tensor) -> None:
    gammas = {"gamma_pos": 0.0, "gamma_neg": 0.0, "gamma_unann": 0.0}
    negative = partial_asymmetric_loss(views["weak"], labels, **gammas).sum()
    alone = build(plc_weight=0.0).loss(views, batch_of(labels), FIRST).total
    assert float(alone) == pytest.approx(float(negative), rel=1e-12)
    # nothing is as sure as tau = 1: known labels alone are consistent
    method = build(threshold=1.0)
    known = partial_asymmetric_loss(views["strong"], labels, unann_weight=0.0, **gammas).sum() / (labels != 0).sum()
    whole = method.loss(views, batch_of(labels), FIRST).total
    assert float(whole) == pytest.approx(float(negative + labels.numel() * known), rel=1e-12)
    assert "no unknown label" in method.idle()[0]


def test_the_weak_view_is_no_pupil_of_the_strong_one(
    build: Callable[..., Method], views: dict[str, Tensor], labels: Tensor
) -> None:
    weak = views["weak"].requires_grad_()
    with_strong = build().loss(views, batch_of(labels), FIRST).total
    alone = build(plc_weight=0.0).loss(views, batch_of(labels), FIRST).total
    gradients = [torch.autograd.grad(total, weak)[0] for total in (with_strong, alone)]
    assert torch.equal(*gradients)


def test_forward_takes_both_views_through_one_model(build: Callable[..., Method]) -> None:
    method, model = build(), nn.Flatten()
    one, two = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    output = method.forward(model, Batch(one, torch.zeros(4, 12), torch.arange(4), (one, two)), FIRST)
    assert torch.equal(output["weak"], one.flatten(1)) and torch.equal(output["strong"], two.flatten(1))
    alone = method.forward(model, Batch(one, torch.zeros(4, 12), torch.arange(4)), FIRST)
    assert torch.equal(method.scores(alone), torch.sigmoid(one.flatten(1)))


class TestTransform:
    def image(self) -> Image.Image:
        return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))

    def transform(self, method: Method) -> Callable[[Any], Any]:
        return method.transform(TrainTransform(BASE, Plan(epochs=1, batch_size=4, lr=1.0)))

    def test_the_weak_view_is_the_runs_own_and_the_strong_one_is_not(self, build: Callable[..., Method]) -> None:
        image, transform = self.image(), self.transform(build())
        before = image.tobytes()
        with seeded(0):
            weak, strong = transform(image)
        assert image.tobytes() == before
        with seeded(0):
            again = transform(image)
        assert torch.equal(weak, again[0]) and torch.equal(strong, again[1])
        assert weak.shape == strong.shape == (3, 32, 32)
        assert torch.equal(weak, BASE(image)) or torch.equal(weak, BASE(image).flip(-1))
        with seeded(1):
            assert not torch.equal(strong, transform(image)[1])

    def test_what_is_painted_over_is_half_as_wide_and_high(self, build: Callable[..., Method]) -> None:
        black = Image.new("RGB", (40, 60))
        with seeded(3):
            sizes = [self.transform(build())._painted(black).getbbox() for _ in range(40)]
        widths, heights = ([box[end] - box[end - 2] for box in sizes if box] for end in (2, 3))
        assert max(widths) == 21 and max(heights) == 31  # both edges of a rectangle belong to it
        assert min(widths) < 15 and min(heights) < 20  # part of it may lie outside
        assert self.transform(build(cutout=0.0))._painted(black).getbbox() is None
