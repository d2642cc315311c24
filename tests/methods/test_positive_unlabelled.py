"""nnPU and PU-MLC against their formulas in plain Python, their limits, and what their risks estimate."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from plbench.api import Batch, Method, PlbenchError, Progress, Task
from plbench.runs.plan.resolved import validate_params
from plbench.runs.registry import Registry

NUM_ROWS, NUM_CLASSES = 8, 5
START = Progress(0, 40, 0, 10)
PRIOR = torch.tensor([0.05, 0.3, 0.6, 0.9, 0.4])
Term = Callable[[float], float]


@pytest.fixture
def build(make_task: Callable[..., Task]) -> Callable[..., Method]:
    def make(name: str, **params: Any) -> Method:
        method = Registry.discover().method(name)
        return method(validate_params(method, params), make_task(NUM_CLASSES, {"prior": PRIOR}))

    return make


@pytest.fixture
def batch() -> Batch:
    """Class 0 has no positive, class 1 no negative, class 4 neither; of class 3 the positives are known by heart."""
    generator = torch.Generator().manual_seed(5)
    logits = 2 * torch.randn(NUM_ROWS, NUM_CLASSES, generator=generator, dtype=torch.float64)
    labels = torch.tensor([1, -1, 0, 0])[torch.randint(4, logits.shape, generator=generator)]
    labels[:, 0].clamp_(max=0)
    labels[:, 1].clamp_(min=0)
    labels[:, 4] = 0
    logits[:, 3] = logits[:, 3] / 4 + 3.0 * labels[:, 3].clamp(min=0) - 1.5
    assert {1, -1} <= set(labels[:, 2].tolist()) & set(labels[:, 3].tolist()) and 1 in labels[:, 1]
    return Batch(logits, labels.to(torch.int8), torch.arange(NUM_ROWS))


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def mean_loss(method: Method, batch: Batch) -> float:
    loss = method.loss(batch.inputs, batch, START)
    return float(loss.total.detach()) / float(loss.weight)


def gradient(method: Method, batch: Batch) -> Tensor:
    logits = batch.inputs.clone().requires_grad_()
    loss = method.loss(logits, batch, START)
    return torch.autograd.grad(loss.total / loss.weight, logits)[0]


def columns(batch: Batch) -> list[list[tuple[float, int]]]:
    """Logit and label of each image, class by class."""
    return [
        [(float(batch.inputs[row, column]), int(batch.labels[row, column])) for row in range(NUM_ROWS)]
        for column in range(NUM_CLASSES)
    ]


LOSSES: dict[str, tuple[Term, Term]] = {
    "sigmoid": (lambda z: sigmoid(-z), sigmoid),
    "logistic": (lambda z: math.log(1 + math.exp(-z)), lambda z: math.log(1 + math.exp(z))),
}


class TestNNPU:
    def risks(self, batch: Batch, loss: str) -> list[tuple[float, float, float] | None]:
        """Of each class: pi R_P(l+), the rest, and the risk by verified negatives or NaN; None without positives."""
        as_present, as_absent = LOSSES[loss]
        found: list[tuple[float, float, float] | None] = []
        for pi, cells in zip(PRIOR.double().tolist(), columns(batch), strict=True):
            positives = [z for z, y in cells if y > 0]
            negatives = [z for z, y in cells if y < 0]
            if not positives:
                found.append(None)
                continue
            of_positives = pi * mean([as_present(z) for z in positives])
            rest = mean([as_absent(z) for z, _ in cells]) - pi * mean([as_absent(z) for z in positives])
            pn = of_positives + (1 - pi) * mean([as_absent(z) for z in negatives]) if negatives else math.nan
            found.append((of_positives, rest, pn))
        return found

    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("beta", [0.0, 0.1])
    @pytest.mark.parametrize("correction", ["ascent", "max", "none"])
    @pytest.mark.parametrize("pn_weight", [0.0, 0.4, 1.0])
    def test_formula(
        self, build: Callable[..., Method], batch: Batch, loss: str, beta: float, correction: str, pn_weight: float
    ) -> None:
        expected, corrected, kept = 0.0, 0, 0
        for risk in filter(None, self.risks(batch, loss)):
            of_positives, rest, pn = risk
            value = of_positives + rest
            if correction != "none" and rest < -beta:
                value = -0.7 * rest if correction == "ascent" else of_positives
                corrected += 1
            else:
                kept += 1
            expected += value if math.isnan(pn) else (1 - pn_weight) * value + pn_weight * pn
        assert kept and (corrected or correction == "none" or beta)
        method = build("nnpu", loss=loss, correction=correction, beta=beta, gamma=0.7, pn_weight=pn_weight)
        assert mean_loss(method, batch) == pytest.approx(expected, rel=1e-6)

    def test_the_steps_of_algorithm_1(self, build: Callable[..., Method], batch: Batch) -> None:
        """Down the whole risk where the rest is not negative, gamma times up the rest where it is."""
        is_negative = torch.tensor([risk is not None and risk[1] < 0 for risk in self.risks(batch, "sigmoid")])
        has_positive = (batch.labels > 0).any(dim=0)
        assert (is_negative & has_positive).any() and (~is_negative & has_positive).any()
        unbiased = gradient(build("nnpu", correction="none"), batch)
        pi, positives = PRIOR.double(), (batch.labels > 0).double()
        share = positives / positives.sum(dim=0).clamp(min=1)
        p = torch.sigmoid(batch.inputs)
        rest = p * (1 - p) * (1 / NUM_ROWS - pi * share) * has_positive
        expected = torch.where(is_negative, -0.5 * rest, unbiased)
        torch.testing.assert_close(gradient(build("nnpu", gamma=0.5), batch), expected, rtol=1e-6, atol=1e-9)
        stopped = torch.where(is_negative, -p * (1 - p) * pi * share, unbiased)
        torch.testing.assert_close(gradient(build("nnpu", correction="max"), batch), stopped, rtol=1e-6, atol=1e-9)

    def test_max_is_the_estimator_of_the_paper(self, build: Callable[..., Method], batch: Batch) -> None:
        expected = sum(risk[0] + max(0.0, risk[1]) for risk in self.risks(batch, "logistic") if risk)
        assert mean_loss(build("nnpu", loss="logistic", correction="max"), batch) == pytest.approx(expected, rel=1e-6)

    def test_the_unbiased_risk_is_unbiased(self, make_task: Callable[..., Task]) -> None:
        """With the true prior and positives that are a random sample, its mean is the risk on complete labels."""
        generator = np.random.default_rng(0)
        truth = generator.random(64) < 0.3
        logits = torch.from_numpy(generator.normal(2 * truth - 1.0))[:, None]
        z, y = logits.squeeze(1).tolist(), truth.tolist()
        expected = mean(
            [LOSSES["logistic"][0](a) if b else LOSSES["logistic"][1](a) for a, b in zip(z, y, strict=True)]
        )
        kind = Registry.discover().method("nnpu")
        task = make_task(1, {"prior": torch.tensor([truth.mean()])})
        for pn_weight in (0.0, 0.6):
            values = {"loss": "logistic", "correction": "none", "pn_weight": pn_weight}
            method, risks = kind(validate_params(kind, values), task), []
            for _ in range(600):
                labels = np.zeros(64, np.int8)
                labels[generator.choice(np.flatnonzero(truth), 5, replace=False)] = 1
                labels[generator.choice(np.flatnonzero(~truth), 10, replace=False)] = -1
                risks.append(mean_loss(method, Batch(logits, torch.from_numpy(labels)[:, None], torch.arange(64))))
            error = float(np.std(risks)) / math.sqrt(len(risks))
            assert abs(mean(risks) - expected) < 4 * error < 0.1

    def test_complete_labels_and_true_shares_are_cross_entropy(self, make_task: Callable[..., Task]) -> None:
        """Where every label is known and pi is the batch's share of positives, R_P and R_X are all there is to know."""
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(NUM_ROWS, 2, generator=generator, dtype=torch.float64)
        labels = torch.tensor([[1, -1]] * 3 + [[-1, 1]] * 5, dtype=torch.int8)
        batch = Batch(logits, labels, torch.arange(NUM_ROWS))
        registry = Registry.discover()
        kind, plain = registry.method("nnpu"), registry.method("ce-negative")
        task = make_task(2, {"prior": torch.tensor([3 / 8, 5 / 8])})
        expected = mean_loss(plain(validate_params(plain, {}), task), batch)
        for values in ({"correction": "none"}, {"pn_weight": 1.0}):
            method = kind(validate_params(kind, {"loss": "logistic", **values}), task)
            assert mean_loss(method, batch) == pytest.approx(expected, rel=1e-6)

    def test_a_prior_may_be_made_to_sum_to_the_expected_positives(self, make_task: Callable[..., Task]) -> None:
        kind = Registry.discover().method("nnpu")
        task = make_task(3, {"prior": torch.tensor([0.9, 0.6, 0.5])})
        prior = kind(validate_params(kind, {"prior": "scaled", "num_positives": 1.0}), task).prior
        torch.testing.assert_close(prior, torch.tensor([0.45, 0.3, 0.25]))
        object.__setattr__(task, "positives", np.array([10, 30, 40]))
        prior = kind(validate_params(kind, {"prior": "counts"}), task).prior  # k is 2
        torch.testing.assert_close(prior, torch.tensor([0.25, 0.75, 1.0]))
        prior = kind(validate_params(kind, {"prior": "counts", "num_positives": 0.8}), task).prior
        torch.testing.assert_close(prior, torch.tensor([0.1, 0.3, 0.4]))

    def test_where_the_prior_comes_from(self, make_task: Callable[..., Task]) -> None:
        kind, task = Registry.discover().method("nnpu"), make_task(3)
        (stage,) = kind.stages(validate_params(kind, {}), task)
        assert (stage.name, stage.method) == ("prior", "ce-ignore")
        assert kind.stages(validate_params(kind, {"prior": "counts"}), task) == ()
        assert kind.stages(validate_params(kind, {"prior": "scaled"}), task) == (stage,)
        object.__setattr__(task, "negatives", 0 * task.negatives)
        with pytest.raises(PlbenchError, match=r"'nnpu'.*verified negatives.*-P prior=counts"):
            kind.stages(validate_params(kind, {}), task)
        object.__setattr__(task, "expected_positives", None)
        with pytest.raises(PlbenchError, match=r"num_positives.*-P num_positives=K.*prior=ce-ignore"):
            kind(validate_params(kind, {"prior": "counts"}), task)

    def test_it_says_when_nothing_was_corrected(self, build: Callable[..., Method], batch: Batch) -> None:
        method = build("nnpu")
        assert "unbiased" in method.idle()[0]
        method.loss(batch.inputs, batch, START)
        assert method.idle() == []


class TestPUMLC:
    def formula(self, batch: Batch, gamma: float, alpha: float) -> float:
        total = 0.0
        for cells in columns(batch):
            logits = [z for z, _ in cells]
            center = mean(logits)
            temperature = min(1.0, alpha * math.sqrt(mean([(z - center) ** 2 for z in logits])))
            hits = [sigmoid(z / temperature) for z in logits]
            total += mean(hits) ** gamma * math.log(mean(hits))
            positives = [math.log(hit) for hit, (_, y) in zip(hits, cells, strict=True) if y > 0]
            total -= mean(positives) if positives else 0.0
        return total

    @pytest.mark.parametrize(("gamma", "alpha"), [(0.55, 1.0), (0.85, 2.0), (0.0, 0.3), (1.0, 0.4)])
    def test_formula(self, build: Callable[..., Method], batch: Batch, gamma: float, alpha: float) -> None:
        loss = mean_loss(build("pu-mlc", gamma=gamma, alpha=alpha), batch)
        assert loss == pytest.approx(self.formula(batch, gamma, alpha), rel=1e-9)

    def test_gradient_with_constant_factors(self, build: Callable[..., Method], batch: Batch) -> None:
        """dL/dz = (w s (1 - s) / sum s - (1 - s) / n_P of the positives) / T."""
        logits = batch.inputs
        temperature = (0.4 * logits.std(dim=0, correction=0)).clamp(max=1)
        hit = torch.sigmoid(logits / temperature)
        balance = hit.mean(dim=0) ** 0.7
        positive = (batch.labels > 0).double()
        expected = balance * hit * (1 - hit) / hit.sum(dim=0)
        expected -= positive * (1 - hit) / positive.sum(dim=0).clamp(min=1)
        actual = gradient(build("pu-mlc", gamma=0.7, alpha=0.4), batch)
        torch.testing.assert_close(actual, expected / temperature, rtol=1e-9, atol=1e-12)

    def test_the_variant_is_the_variational_risk(self, build: Callable[..., Method], batch: Batch) -> None:
        """log E_x phi - E_P log phi: the risk of VPU, of each class by itself."""
        expected = 0.0
        for cells in columns(batch):
            hits = [sigmoid(z) for z, _ in cells]
            positives = [math.log(hit) for hit, (_, y) in zip(hits, cells, strict=True) if y > 0]
            expected += math.log(mean(hits)) - (mean(positives) if positives else 0.0)
        method = build("pu-mlc", **Registry.discover().method("pu-mlc").variants["vpu"])
        assert mean_loss(method, batch) == pytest.approx(expected, rel=1e-9)

    def test_the_variational_risk_is_least_at_the_true_probabilities(self, build: Callable[..., Method]) -> None:
        """What VPU proves: phi is the posterior up to a factor. Two kinds of images, positives with .8 and with .2."""
        labels = torch.zeros(20, NUM_CLASSES, dtype=torch.int8)
        labels[:8] = labels[10:12] = 1  # of the first ten images 8, of the others 2: a sample of the right proportions
        logits = torch.zeros(2, NUM_CLASSES, dtype=torch.float64, requires_grad=True)
        method = build("pu-mlc", gamma=0.0, alpha=1e6)
        for _ in range(400):
            whole = logits.repeat_interleave(10, dim=0)
            loss = method.loss(whole, Batch(whole, labels, torch.arange(20)), START)
            (slope,) = torch.autograd.grad(loss.total / loss.weight, logits)
            logits = (logits.detach() - 2.0 * slope).requires_grad_()
        high, low = torch.sigmoid(logits.detach())
        torch.testing.assert_close(high / low, torch.full((NUM_CLASSES,), 4.0).double(), rtol=1e-3, atol=0)

    def test_verified_negatives_are_unlabelled_images(self, build: Callable[..., Method], batch: Batch) -> None:
        discarded = Batch(batch.inputs, batch.labels.clamp(min=0), batch.index)
        assert mean_loss(build("pu-mlc"), batch) == mean_loss(build("pu-mlc"), discarded)

    @pytest.mark.parametrize("num_images", [1, 4])
    def test_equal_logits_have_a_temperature_of_1(self, build: Callable[..., Method], num_images: int) -> None:
        logits = torch.full((num_images, NUM_CLASSES), 0.5, dtype=torch.float64)
        batch = Batch(logits, torch.ones(num_images, NUM_CLASSES, dtype=torch.int8), torch.arange(num_images))
        hit = sigmoid(0.5)
        expected = NUM_CLASSES * (hit**0.55 * math.log(hit) - math.log(hit))
        assert mean_loss(build("pu-mlc"), batch) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("name", "values"), [("nnpu", {}), ("nnpu", {"prior": "counts"}), ("pu-mlc", {})])
def test_heads_stacked_equal_heads_alone(
    build: Callable[..., Method], batch: Batch, name: str, values: dict[str, Any]
) -> None:
    kind, space = type(build(name)), type(build(name)).Params.search_space()
    bounds = {key: search.bounds(build(name).task) for key, search in space.items()}
    members = [
        build(name, **{key: low + share * (high - low) for key, (low, high) in bounds.items()}, **values)
        for share in (0.0, 0.4, 1.0)
    ]
    logits = torch.stack([batch.inputs, batch.inputs.flip(0), 0.5 * batch.inputs]).float()
    stacked = kind.stack(members).loss(logits, Batch(logits, batch.labels[None], batch.index), START)
    assert stacked.total.shape == (3,)
    for head, method in enumerate(members):
        alone = method.loss(logits[head], Batch(logits[head], batch.labels, batch.index), START)
        assert float(stacked.total[head]) == pytest.approx(float(alone.total), rel=1e-5)
        assert float(stacked.weight) == float(alone.weight)
