"""Soft negatives by visual patterns: distances and temperatures against loops over images and labels."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from plbench.api import Batch, Method, PartialLabels, Plan, PlbenchError, Progress, Task
from plbench.methods.kundu_tighe import KunduTighe, label_distances, neighbour_distances
from plbench.runs.plan.resolved import validate_params
from plbench.runs.registry import Registry
from plbench.training.engine import fit, prepare_fit
from plbench.training.evaluation import View
from plbench.training.execution import Execution
from plbench.training.inputs import FeatureInputs

NUM_ROWS, NUM_CLASSES, NUM_FEATURES = 15, 5, 3
START = Progress(0, 40, 0, 10)


@pytest.fixture
def build(make_task: Callable[..., Task]) -> Callable[..., Method]:
    def make(**params: Any) -> Method:
        task = dataclasses.replace(make_task(NUM_CLASSES), num_train=NUM_ROWS)
        return KunduTighe(validate_params(KunduTighe, params), task)

    return make


def known() -> np.ndarray:
    """Labels [N, C]: class 4 is never known to be present, class 3 of one image only; two rows know nothing."""
    labels = np.random.default_rng(2).choice([1, -1, 0, 0, 0], (NUM_ROWS, NUM_CLASSES)).astype(np.int8)
    labels[:2] = 0
    labels[:, 3:] = np.minimum(labels[:, 3:], 0)
    labels[5, 3] = 1
    return labels


def labels() -> PartialLabels:
    return PartialLabels.from_dense(known(), [str(column) for column in range(NUM_CLASSES)])


def features() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((NUM_ROWS, NUM_FEATURES)).astype(np.float32)


def unit() -> np.ndarray:
    return features() / np.linalg.norm(features(), axis=1, keepdims=True)


def cosine_distance(one: np.ndarray, other: np.ndarray) -> float:
    return min(1.0, 1.0 - float(one @ other) / float(np.linalg.norm(one) * np.linalg.norm(other)))


class Features:
    """Stands for a model before training, as the engine shows it: streams what its parts make of all images."""

    def __init__(self) -> None:
        self.labels = labels()
        self.model = nn.Sequential(nn.Identity(), nn.Linear(NUM_FEATURES, NUM_CLASSES))

    def compute(
        self, function: Callable[[nn.Module, Tensor], Tensor], weights: Literal["ema", "raw"] = "ema"
    ) -> Iterator[tuple[Tensor, Tensor]]:
        assert weights == "raw"
        for rows in torch.arange(NUM_ROWS).split(4):
            yield rows, function(self.model, torch.from_numpy(features()[rows.numpy()]))


def started(method: Method) -> Method:
    method.epoch_start(Features(), START)  # type: ignore[arg-type]
    return method


def medians() -> list[np.ndarray | None]:
    shown = [[row for row in range(NUM_ROWS) if known()[row, column] == 1] for column in range(NUM_CLASSES)]
    return [np.array([np.median(unit()[rows][:, d]) for d in range(NUM_FEATURES)]) if rows else None for rows in shown]


def neighbours(row: int, number: int) -> list[int]:
    others = [other for other in range(NUM_ROWS) if other != row]
    return sorted(others, key=lambda other: -float(unit()[row] @ unit()[other]))[:number]


def evidence(row: int, column: int, sign: int, number: int) -> float:
    """Smallest distance of a cell to labels of its image, and to neighbours, that are known with a sign."""
    distances = [1.0]
    middle = medians()
    for label in range(NUM_CLASSES):
        mine, theirs = middle[column], middle[label]
        if known()[row, label] == sign and mine is not None and theirs is not None:
            distances.append(cosine_distance(mine, theirs))
    for other in neighbours(row, number):
        if known()[other, column] == sign:
            distances.append(cosine_distance(unit()[row], unit()[other]))
    return min(distances)


def batch(rows: list[int], seed: int = 4) -> Batch:
    logits = torch.randn(len(rows), NUM_CLASSES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Batch(logits, torch.from_numpy(known()[rows]), torch.tensor(rows))


def mean_loss(method: Method, batch: Batch) -> float:
    loss = method.loss(batch.inputs, batch, START)
    return float(loss.total) / float(loss.weight)


def test_distances_between_labels_are_those_of_medians() -> None:
    found = label_distances(unit(), labels())
    middle = medians()
    for one, other in itertools.product(range(NUM_CLASSES), repeat=2):
        mine, theirs = middle[one], middle[other]
        expected = 1.0 if mine is None or theirs is None else max(0.0, cosine_distance(mine, theirs))
        assert float(found[one, other]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("number", [1, 4, 100])
def test_distances_to_neighbours(number: int) -> None:
    for values, sign in zip(neighbour_distances(unit(), labels(), number), (1, -1), strict=True):
        has_value, distance = values.dense(torch.arange(NUM_ROWS))
        for row, column in itertools.product(range(NUM_ROWS), range(NUM_CLASSES)):
            near = [other for other in neighbours(row, number) if known()[other, column] == sign]
            assert bool(has_value[row, column]) == bool(near)
            if near:
                expected = min(cosine_distance(unit()[row], unit()[other]) for other in near)
                assert float(distance[row, column]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("number", [2, 5])
def test_loss_and_temperatures(build: Callable[..., Method], number: int) -> None:
    method = started(build(max_temperature=3.0, neighbours=number))
    rows = [0, 14, 3, 7, 5, 9]
    of_rows = batch(rows)
    expected, temperatures = 0.0, []
    for place, row in enumerate(rows):
        for column in range(NUM_CLASSES):
            present, absent = (evidence(row, column, sign, number) for sign in (1, -1))
            temperature = 1 + 2 * absent / (present + absent)
            z, y = float(of_rows.inputs[place, column]), known()[row, column]
            if y == 0:
                assert float(method.temperature(of_rows)[place, column]) == pytest.approx(temperature, rel=1e-4)
                temperatures.append(temperature)
                expected += math.log(1 + math.exp(z / temperature))
            else:
                expected += math.log(1 + math.exp(-y * z))
    assert mean_loss(method, of_rows) == pytest.approx(expected / len(rows), rel=1e-5)
    assert max(temperatures) - min(temperatures) > 0.5


def test_a_highest_temperature_of_1_is_ce_negative(
    build: Callable[..., Method], make_task: Callable[..., Task]
) -> None:
    of_rows = batch([1, 2, 3])
    kind = Registry.discover().method("ce-negative")
    expected = mean_loss(kind(validate_params(kind, {}), make_task(NUM_CLASSES)), of_rows)
    assert mean_loss(started(build(max_temperature=1.0)), of_rows) == pytest.approx(expected, rel=1e-12)


def test_without_evidence_all_unknown_labels_have_the_middle_temperature(
    build: Callable[..., Method], make_task: Callable[..., Task]
) -> None:
    of_rows = batch([1, 2, 3])
    kind = Registry.discover().method("se-negative")
    even = kind(validate_params(kind, {"variant": "temperature", "temperature": 2.5}), make_task(NUM_CLASSES))
    assert mean_loss(build(max_temperature=4.0), of_rows) == pytest.approx(
        mean_loss(even, of_rows), rel=1e-6
    )  # float32


def test_distances_are_measured_once_and_come_back(build: Callable[..., Method]) -> None:
    method = started(build())
    method.epoch_start(None, Progress(4, 40, 1, 10))  # type: ignore[arg-type]  # looks at nothing any more
    other = build()
    other.load_state_dict(method.state_dict())
    of_rows = batch(list(range(NUM_ROWS)))
    assert torch.equal(method.temperature(of_rows), other.temperature(of_rows))
    assert not torch.equal(method.temperature(of_rows), build().temperature(of_rows))


def test_a_training_measures_the_features_of_its_backbone_before_it_starts(build: Callable[..., Method]) -> None:
    """With a backbone that learns: distances are those of its first weights, and every row is seen in order."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(NUM_FEATURES, 4), nn.Dropout(0.9))
    method = build()
    model = method.build(backbone, lambda: nn.Linear(4, NUM_CLASSES))
    with torch.no_grad():
        expected = nn.functional.normalize(backbone.eval()(torch.from_numpy(features()))).numpy()
    execution = Execution(torch.device("cpu"), "float32")
    plan = Plan(epochs=2, batch_size=4, lr=0.1, ema_horizon=0.5)
    inputs = FeatureInputs(features(), np.arange(NUM_ROWS), labels())
    state = prepare_fit(model, method, plan, 4, execution)
    seen = list(View(state, inputs, execution).compute(lambda model, inputs: model[0](inputs), weights="raw"))
    assert torch.cat([rows for rows, _ in seen]).tolist() == list(range(NUM_ROWS))
    fit(state, inputs, plan, execution, seed=0)
    torch.testing.assert_close(method.between_labels, label_distances(expected, labels()))
    present, absent = neighbour_distances(expected, labels(), 10)
    assert torch.equal(method.to_present.cells, present.cells)
    torch.testing.assert_close(method.to_absent.values, absent.values, atol=1e-5, rtol=1e-4)


def test_what_would_not_fit_is_refused(make_task: Callable[..., Task], build: Callable[..., Method]) -> None:
    task = dataclasses.replace(make_task(9_600), num_train=9_000_000, positives=np.full(9_600, 5_000))
    with pytest.raises(PlbenchError, match=r"method 'kundu-tighe' keeps what 10 neighbours.* 6 GB .*; give a smaller"):
        KunduTighe(validate_params(KunduTighe, {}), task)
    large = build()
    large.task = dataclasses.replace(large.task, num_train=500_000_000)
    with pytest.raises(PlbenchError, match=r"3 features of each of 500,000,000 images.* 12 GB .*; use se-negative"):
        started(large)


def test_a_single_image_has_no_neighbours() -> None:
    with pytest.raises(PlbenchError, match="there is only one"):
        neighbour_distances(unit()[:1], labels().subset([0]), 3)
