"""The seven methods of table 1 against the formulas of semantics.md in plain Python, one label after another."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from plbench.api import Batch, Method, PlbenchError, Progress, Task
from plbench.runs.plan.resolved import validate_params
from plbench.runs.registry import Registry

NUM_ROWS, NUM_CLASSES = 5, 7
PROGRESS = Progress(0, 1, 0, 1)
PRIOR = [0.9, 0.05, 0.6, 0.3, 0.55, 0.02, 0.4]
GAMMAS = {"gamma_pos": 0.5, "gamma_neg": 2.0, "gamma_unann": 4.0}
Rows = list[list[float]]


@pytest.fixture
def build(make_task: Callable[..., Task]) -> Callable[..., Method]:
    def make(name: str, **params: Any) -> Method:
        method = Registry.discover().method(name)
        task = make_task(NUM_CLASSES, {"prior": torch.tensor(PRIOR, dtype=torch.float64)})
        return method(validate_params(method, params), task)

    return make


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(NUM_ROWS, NUM_CLASSES, generator=generator, dtype=torch.float64)
    labels = torch.tensor([1, -1, 0, 0])[torch.randint(4, logits.shape, generator=generator)]
    labels[0] = 0  # an image with nothing known
    return Batch(logits, labels.to(torch.int8), torch.arange(NUM_ROWS))


def total(method: Method, batch: Batch) -> float:
    """The method's loss of the batch, whose inputs serve as its logits, summed over images."""
    loss = method.loss(batch.inputs, batch, PROGRESS)
    assert float(loss.weight) == NUM_ROWS  # all seven are means over images of sums over classes
    return float(loss.total)


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def focal(p: float, gamma: float) -> float:
    """LF(p, g) of eq. 2, with its sign made a loss."""
    return -((1 - p) ** gamma) * math.log(p)


def eq3(
    logits: Rows, labels: Rows, gammas: Sequence[float], weight: Callable[[int, int], float], clip: float = 0.0
) -> list[float]:
    """Eq. 3 of each image; `weight` gives w_c of an unknown label by row and class."""
    losses = []
    for row, (z_row, y_row) in enumerate(zip(logits, labels, strict=True)):
        loss = 0.0
        for c, (z, y) in enumerate(zip(z_row, y_row, strict=True)):
            shifted = max(sigmoid(z) - clip, 0.0)
            if y == 1:
                loss += focal(sigmoid(z), gammas[0])
            elif y == -1:
                loss += focal(1 - shifted, gammas[1])
            else:
                loss += weight(row, c) * focal(1 - shifted, gammas[2])
        losses.append(loss)
    return losses


def likeliest(logits: Rows, labels: Rows, k: int, *, of_batch: bool = False) -> set[tuple[int, int]]:
    """O_L: the k unknown labels of each image with the highest probability, or the k * B of the batch."""
    unknown = [(row, c) for row in range(NUM_ROWS) for c in range(NUM_CLASSES) if labels[row][c] == 0]
    unknown.sort(key=lambda cell: -logits[cell[0]][cell[1]])
    if of_batch:
        return set(unknown[: k * NUM_ROWS])
    return {cell for row in range(NUM_ROWS) for cell in [u for u in unknown if u[0] == row][:k]}


def plain(batch: Batch) -> tuple[Rows, Rows]:
    return batch.inputs.tolist(), batch.labels.tolist()


def known_count(labels: Rows) -> list[int]:
    return [sum(y != 0 for y in row) for row in labels]


class TestOneFormulaEach:
    def test_ce_ignore(self, build: Callable[..., Method], batch: Batch) -> None:
        expected = sum(eq3(*plain(batch), (0, 0, 0), lambda row, c: 0.0))
        assert total(build("ce-ignore"), batch) == pytest.approx(expected, rel=1e-12)

    def test_ce_negative(self, build: Callable[..., Method], batch: Batch) -> None:
        expected = sum(eq3(*plain(batch), (0, 0, 0), lambda row, c: 1.0))
        assert total(build("ce-negative"), batch) == pytest.approx(expected, rel=1e-12)

    def test_wce_ignore_by_proportion(self, build: Callable[..., Method], batch: Batch) -> None:
        logits, labels = plain(batch)
        losses = eq3(logits, labels, (0, 0, 0), lambda row, c: 0.0)
        g = [-4.45 * (n / NUM_CLASSES) ** 1 + 5.45 for n in known_count(labels)]
        expected = sum(weight / NUM_CLASSES * loss for weight, loss in zip(g, losses, strict=True))
        assert total(build("wce-ignore"), batch) == pytest.approx(expected, rel=1e-6)  # its weight is float32
        g = [-2.0 * (n / NUM_CLASSES) ** 2 + 3.0 for n in known_count(labels)]
        expected = sum(weight / NUM_CLASSES * loss for weight, loss in zip(g, losses, strict=True))
        method = build("wce-ignore", alpha=-2.0, beta=3.0, gamma=2.0)
        assert total(method, batch) == pytest.approx(expected, rel=1e-6)

    def test_wce_ignore_by_count(self, build: Callable[..., Method], batch: Batch) -> None:
        logits, labels = plain(batch)
        losses = eq3(logits, labels, (0, 0, 0), lambda row, c: 0.0)
        weights = [1 + 1 / (1 + n) for n in known_count(labels)]
        expected = sum(weight * loss for weight, loss in zip(weights, losses, strict=True))
        assert total(build("wce-ignore", variant="count"), batch) == pytest.approx(expected, rel=1e-6)

    def test_se_negative_by_label_smoothing(self, build: Callable[..., Method], batch: Batch) -> None:
        expected = 0.0
        for z_row, y_row in zip(*plain(batch), strict=True):
            for z, y in zip(z_row, y_row, strict=True):
                target = 0.8 if y == 1 else 0.2
                expected -= target * math.log(sigmoid(z)) + (1 - target) * math.log(1 - sigmoid(z))
        assert total(build("se-negative", epsilon=0.2), batch) == pytest.approx(expected, rel=1e-12)

    def test_se_negative_by_temperature(self, build: Callable[..., Method], batch: Batch) -> None:
        expected = 0.0
        for z_row, y_row in zip(*plain(batch), strict=True):
            for z, y in zip(z_row, y_row, strict=True):
                expected -= math.log({1: sigmoid(z), -1: 1 - sigmoid(z), 0: 1 - sigmoid(z / 3)}[y])
        method = build("se-negative", variant="temperature", temperature=3.0)
        assert total(method, batch) == pytest.approx(expected, rel=1e-12)

    def test_asl_negative(self, build: Callable[..., Method], batch: Batch) -> None:
        expected = sum(eq3(*plain(batch), (0, 4, 4), lambda row, c: 1.0, clip=0.05))
        assert total(build("asl-negative"), batch) == pytest.approx(expected, rel=1e-12)
        expected = sum(eq3(*plain(batch), (1, 2, 2), lambda row, c: 1.0, clip=0.1))
        method = build("asl-negative", gamma_pos=1.0, gamma_neg=2.0, clip=0.1)
        assert total(method, batch) == pytest.approx(expected, rel=1e-12)

    def test_pasl_negative(self, build: Callable[..., Method], batch: Batch) -> None:
        expected = sum(eq3(*plain(batch), (0, 3, 4), lambda row, c: 1.0))
        assert total(build("pasl-negative"), batch) == pytest.approx(expected, rel=1e-12)
        expected = sum(eq3(*plain(batch), (0.5, 2, 4), lambda row, c: 1.0, clip=0.1))
        assert total(build("pasl-negative", **GAMMAS, clip=0.1), batch) == pytest.approx(expected, rel=1e-12)


class TestSelective:
    def ignoring(self, batch: Batch, ignored: Callable[[int, int], bool]) -> float:
        return sum(eq3(*plain(batch), tuple(GAMMAS.values()), lambda row, c: 0.0 if ignored(row, c) else 1.0))

    def test_likelihood(self, build: Callable[..., Method], batch: Batch) -> None:
        chosen = likeliest(*plain(batch), 2)
        expected = self.ignoring(batch, lambda row, c: (row, c) in chosen)
        method = build("selective", **GAMMAS, mode="likelihood", top_k=2)
        assert total(method, batch) == pytest.approx(expected, rel=1e-12)

    def test_prior(self, build: Callable[..., Method], batch: Batch) -> None:
        expected = self.ignoring(batch, lambda row, c: PRIOR[c] > 0.5)
        method = build("selective", **GAMMAS, mode="prior", top_k=2, eta=0.5)
        assert total(method, batch) == pytest.approx(expected, rel=1e-12)

    def test_both(self, build: Callable[..., Method], batch: Batch) -> None:
        chosen = likeliest(*plain(batch), 2)
        expected = self.ignoring(batch, lambda row, c: (row, c) in chosen or PRIOR[c] > 0.35)
        method = build("selective", **GAMMAS, mode="both", top_k=2, eta=0.35)
        assert total(method, batch) == pytest.approx(expected, rel=1e-12)

    def test_soft_prior(self, build: Callable[..., Method], batch: Batch) -> None:
        chosen = likeliest(*plain(batch), 2)
        gammas = tuple(GAMMAS.values())
        expected = sum(
            eq3(*plain(batch), gammas, lambda row, c: 0.0 if (row, c) in chosen else math.exp(-3 * PRIOR[c]))
        )
        method = build("selective", **GAMMAS, mode="soft-prior", top_k=2, alpha=3.0)
        assert total(method, batch) == pytest.approx(expected, rel=1e-6)  # its prior is float32

    def test_k_of_the_whole_batch_is_not_computed_in_shares(self, build: Callable[..., Method]) -> None:
        """Of what several processes or pieces hold apart, the highest K x B would be others."""
        scopes = {"sample": "sample", "batch": "batch"}
        assert {scope: build("selective", scope=scope).batch_scope for scope in scopes} == scopes
        assert Registry.discover().method("selective").batch_scope == "sample"

    def test_k_of_the_whole_batch(self, build: Callable[..., Method], batch: Batch) -> None:
        chosen = likeliest(*plain(batch), 2, of_batch=True)
        assert chosen != likeliest(*plain(batch), 2)
        expected = self.ignoring(batch, lambda row, c: (row, c) in chosen)
        method = build("selective", **GAMMAS, mode="likelihood", top_k=2, scope="batch")
        assert total(method, batch) == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize("number", range(1, NUM_CLASSES + 1))
    def test_eta_as_a_number_of_classes(self, build: Callable[..., Method], batch: Batch, number: int) -> None:
        top = sorted(range(NUM_CLASSES), key=lambda c: -PRIOR[c])[:number]
        expected = self.ignoring(batch, lambda row, c: c in top)
        method = build("selective", **GAMMAS, mode="prior", eta_top=number)
        assert total(method, batch) == pytest.approx(expected, rel=1e-12)

    def test_k_of_0_is_p_asl_negative(self, build: Callable[..., Method], batch: Batch) -> None:
        selective = build("selective", **GAMMAS, mode="likelihood", top_k=0)
        assert total(selective, batch) == total(build("pasl-negative", **GAMMAS), batch)

    def test_k_of_all_classes_is_p_asl_ignore(self, build: Callable[..., Method], batch: Batch) -> None:
        selective = build("selective", **GAMMAS, mode="likelihood", top_k=NUM_CLASSES)
        expected = sum(eq3(*plain(batch), tuple(GAMMAS.values()), lambda row, c: 0.0))
        assert total(selective, batch) == pytest.approx(expected, rel=1e-12)
        weight = selective.weight(batch.inputs, batch.labels)
        assert torch.equal(weight == 1, batch.labels != 0)  # known labels are never ignored

    def test_gammas_of_0_are_cross_entropy(self, build: Callable[..., Method], batch: Batch) -> None:
        zero = dict.fromkeys(GAMMAS, 0.0)
        negative, ignore = total(build("ce-negative"), batch), total(build("ce-ignore"), batch)
        assert total(build("selective", **zero, mode="likelihood", top_k=0), batch) == negative
        assert total(build("pasl-negative", **zero), batch) == negative
        assert total(build("asl-negative", gamma_neg=0.0, clip=0.0), batch) == negative
        assert total(build("selective", **zero, mode="likelihood", top_k=NUM_CLASSES), batch) == ignore

    def test_what_it_ignores_is_what_it_reports(self, build: Callable[..., Method], batch: Batch) -> None:
        chosen = likeliest(*plain(batch), 2)
        mask: Tensor = build("selective", mode="likelihood", top_k=2).diagnostics(batch.inputs, batch)["ignored"]
        assert {(int(row), int(c)) for row, c in mask.nonzero()} == chosen

    @pytest.mark.parametrize(("name", "mode"), [("top_k", "likelihood"), ("eta_top", "prior")])
    def test_more_classes_than_there_are_is_refused(
        self, build: Callable[..., Method], make_task: Callable[..., Task], name: str, mode: str
    ) -> None:
        sentence = f"{name} = 8 of method 'selective' exceeds the 7 classes.*-P {name}=N with N up to 7"
        with pytest.raises(PlbenchError, match=sentence):
            build("selective", mode=mode, **{name: 8})
        method = Registry.discover().method("selective")
        with pytest.raises(PlbenchError, match=sentence):  # before any stage is trained
            method.stages(validate_params(method, {"mode": mode, name: 8}), make_task(NUM_CLASSES))

    def test_only_the_modes_that_use_a_prior_ask_for_one(self, make_task: Callable[..., Task]) -> None:
        method = Registry.discover().method("selective")
        for mode, names in {"both": ["prior"], "prior": ["prior"], "soft-prior": ["prior"], "likelihood": []}.items():
            stages = method.stages(validate_params(method, {"mode": mode}), make_task(NUM_CLASSES))
            assert [stage.name for stage in stages] == names
            assert all(stage.method == "ce-ignore" for stage in stages)
