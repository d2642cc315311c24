"""The SPA loss against its formula, and strict properness: what minimises the expected loss scores eta."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from plbench.api import Batch, Method, PlbenchError, Progress, Task
from plbench.runs.plan.resolved import validate_params
from plbench.runs.registry import Registry

START = Progress(0, 40, 0, 10)
VALUES: list[dict[str, float]] = [
    {},
    {"zeta_pos": 0.5, "k_pos": 2.0, "b_pos": -1.0, "zeta_neg": 8.0, "k_neg": 0.7, "b_neg": 2.0},
    {"zeta_pos": 4.0, "k_pos": 0.5, "b_pos": 1.5, "zeta_neg": 1.0, "k_neg": 5.0, "b_neg": -1.0},
]
ETAS = [0.01, 0.1, 0.3, 0.5, 0.75, 0.97]


@pytest.fixture
def build(make_task: Callable[..., Task]) -> Callable[..., Method]:
    def make(name: str = "spasl", num_classes: int = 5, **params: Any) -> Method:
        method = Registry.discover().method(name)
        return method(validate_params(method, params), make_task(num_classes))

    return make


def of_one_label(method: Method, logits: Tensor, label: int) -> Tensor:
    """Losses [n] of a label at n logits, one image each."""
    labels = torch.tensor([[label]], dtype=torch.int8)
    index = torch.zeros(1, dtype=torch.int64)
    return torch.stack([method.loss(z.view(1, 1), Batch(z.view(1, 1), labels, index), START).total for z in logits])


def best_score(method: Method, eta: float) -> float:
    """The score of the logit at which the expected loss of a label present with probability eta is least."""
    low, high = -60.0, 60.0
    for _ in range(4):  # each time 80 logits, over a fortieth of the range before it
        logits = torch.linspace(low, high, 81, dtype=torch.float64)
        expected = eta * of_one_label(method, logits, 1) + (1 - eta) * of_one_label(method, logits, -1)
        best, step = float(logits[expected.argmin()]), (high - low) / 80
        low, high = best - step, best + step
    return float(method.scores(torch.tensor([[best]], dtype=torch.float64)))


@pytest.mark.parametrize("values", VALUES)
def test_it_is_strictly_proper(build: Callable[..., Method], values: Mapping[str, float]) -> None:
    method = build(num_classes=1, **values)
    for eta in ETAS:
        assert best_score(method, eta) == pytest.approx(eta, abs=1e-4)


def test_the_losses_that_it_replaces_are_not_proper(build: Callable[..., Method]) -> None:
    """So that the test above can tell: ASL's and the focal loss's best scores lie elsewhere; cross-entropy's do not."""
    for name, values in (("asl-negative", {"gamma_pos": 1.0}), ("focal", {})):
        method = build(name, num_classes=1, **values)
        assert any(abs(best_score(method, eta) - eta) > 0.05 for eta in ETAS), name
    for eta in ETAS:
        assert best_score(build("ce-negative", num_classes=1), eta) == pytest.approx(eta, abs=1e-4)


@pytest.mark.parametrize("values", VALUES)
def test_the_score_is_where_the_slope_of_the_expected_loss_is_0(
    build: Callable[..., Method], values: Mapping[str, float]
) -> None:
    """A second derivation: eta l+'(z) + (1 - eta) l-'(z) = 0, so eta = l-' / (l-' - l+')."""
    method = build(num_classes=1, **values)
    logits = torch.linspace(-6, 6, 25, dtype=torch.float64).requires_grad_()
    rise, fall = (torch.autograd.grad(of_one_label(method, logits, y).sum(), logits)[0] for y in (-1, 1))
    scores = method.scores(logits.detach()[:, None]).squeeze(1)
    torch.testing.assert_close(scores, rise / (rise - fall), rtol=1e-9, atol=0)
    assert (scores.diff() > 0).all()  # so that it ranks as its logits do


@pytest.mark.parametrize("unknown", ["negative", "ignore"])
@pytest.mark.parametrize("values", VALUES)
def test_formula(build: Callable[..., Method], values: Mapping[str, float], unknown: str) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(6, 5, generator=generator, dtype=torch.float64)
    labels = (torch.randint(3, logits.shape, generator=generator) - 1).to(torch.int8)
    assert {-1, 0, 1} == set(labels.flatten().tolist())
    p = {"zeta_pos": 1.0, "k_pos": 1.0, "b_pos": 0.0, "zeta_neg": 5.0, "k_neg": 3.0, "b_neg": 1.0, **values}
    expected = 0.0
    for z, y in zip(logits.flatten().tolist(), labels.flatten().tolist(), strict=True):
        if y == 1:
            expected += math.log(1 + math.exp(-p["k_pos"] * (z - p["b_pos"]))) / p["zeta_pos"]
        elif y == -1 or unknown == "negative":
            expected += math.log(1 + math.exp(p["k_neg"] * (z - p["b_neg"]))) / p["zeta_neg"]
    loss = build(unknown=unknown, **values).loss(logits, Batch(logits, labels, torch.arange(6)), START)
    assert float(loss.total) / float(loss.weight) == pytest.approx(expected / 6, rel=1e-12)


@pytest.mark.parametrize(("unknown", "name"), [("negative", "ce-negative"), ("ignore", "ce-ignore")])
def test_with_slopes_and_scales_of_1_it_is_cross_entropy(build: Callable[..., Method], unknown: str, name: str) -> None:
    generator = torch.Generator().manual_seed(4)
    logits = 2 * torch.randn(6, 5, generator=generator, dtype=torch.float64)
    batch = Batch(logits, (torch.randint(3, logits.shape, generator=generator) - 1).to(torch.int8), torch.arange(6))
    plain = dict.fromkeys(("zeta_pos", "k_pos", "zeta_neg", "k_neg"), 1.0)
    method = build(unknown=unknown, b_neg=0.0, **plain)
    expected = build(name).loss(logits, batch, START).total
    assert float(method.loss(logits, batch, START).total) == pytest.approx(float(expected), rel=1e-12)
    torch.testing.assert_close(method.scores(logits), torch.sigmoid(logits), rtol=1e-12, atol=0)


def test_extreme_logits_have_finite_scores(build: Callable[..., Method]) -> None:
    scores = build(num_classes=2).scores(torch.tensor([[-1e4, 1e4]]))
    assert scores.tolist() == [[0.0, 1.0]]


def test_without_verified_negatives_unknown_labels_cannot_be_ignored(make_task: Callable[..., Task]) -> None:
    task = make_task(3)
    object.__setattr__(task, "negatives", 0 * task.negatives)
    kind = Registry.discover().method("spasl")
    assert kind.stages(validate_params(kind, {}), task) == ()
    with pytest.raises(PlbenchError, match=r"'spasl'.*verified negatives.*unknown=negative"):
        kind.stages(validate_params(kind, {"unknown": "ignore"}), task)
