"""Methods that remember single labels: what they remember, and that a resumed training remembers the same."""

import copy
import dataclasses
import io
import itertools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from plbench.api import Batch, Method, PartialLabels, Plan, PlbenchError, Progress, Task
from plbench.randomness import seeded
from plbench.runs.plan.resolved import validate_params
from plbench.runs.registry import Registry
from plbench.training.engine import fit, prepare_fit
from plbench.training.execution import Execution
from plbench.training.inputs import FeatureInputs
from plbench.training.state import FitState

NUM_ROWS, NUM_FEATURES, NUM_CLASSES, EPOCHS = 48, 8, 5, 6
PLAN = Plan(epochs=EPOCHS, batch_size=16, lr=2e-2, weight_decay=0.1, ema_horizon=0.2)
STEPS_PER_EPOCH = NUM_ROWS // PLAN.batch_size
CPU = Execution(torch.device("cpu"), "float32")
PARAMS: dict[str, dict[str, Any]] = {
    "ll-cp": {"delta_percent": 3.0},
    "em-apl": {"warmup": 0.3},
    "role": {"num_positives": 1.5},
    "curriculum": {"theta": 0.3, "warmup": 0.3, "stages": 1},
    "kundu-tighe": {"neighbours": 3},
}
remembering = pytest.mark.parametrize("name", PARAMS)


@pytest.fixture
def build(make_task: Callable[..., Task]) -> Callable[..., Method]:
    def make(name: str, **params: Any) -> Method:
        method = Registry.discover().method(name)
        task = dataclasses.replace(
            make_task(NUM_CLASSES), num_train=NUM_ROWS, epochs=EPOCHS, steps_per_epoch=STEPS_PER_EPOCH
        )
        return method(validate_params(method, {**PARAMS[name], **params}), task)

    return make


def partial_labels() -> PartialLabels:
    """One positive a row, a few verified negatives, classes that a linear model can tell."""
    rng = np.random.default_rng(7)
    present = features() @ rng.standard_normal((NUM_FEATURES, NUM_CLASSES)) > 0.0
    labels = np.where(present, 0, -1) * (rng.random(present.shape) < 0.2)
    labels[np.arange(NUM_ROWS), rng.integers(NUM_CLASSES, size=NUM_ROWS)] = 1
    return PartialLabels.from_dense(labels, [str(column) for column in range(NUM_CLASSES)])


def features() -> np.ndarray:
    return np.random.default_rng(5).standard_normal((NUM_ROWS, NUM_FEATURES), dtype=np.float32)


def inputs() -> FeatureInputs:
    return FeatureInputs(features(), np.arange(NUM_ROWS), partial_labels())


def prepared(method: Method) -> FitState:
    with seeded(0):
        model = method.build(
            nn.Identity(), lambda: nn.Sequential(nn.Dropout(0.2), nn.Linear(NUM_FEATURES, NUM_CLASSES))
        )
    return prepare_fit(model, method, PLAN, STEPS_PER_EPOCH, CPU)


def train(state: FitState, *, until: int = EPOCHS) -> FitState:
    fit(state, inputs(), PLAN, CPU, seed=0, stop_after=until)
    return state


def equal(one: Any, other: Any) -> bool:
    """Whether nested states agree to the bit."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(equal(a, b) for a, b in zip(one, other, strict=True))
    return one == other


def reread(state: dict[str, Any]) -> dict[str, Any]:
    """A state as it comes back from a checkpoint."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@remembering
@pytest.mark.parametrize("stop", [1, 3, EPOCHS - 1])
def test_a_resumed_training_equals_an_uninterrupted_one(build: Callable[..., Method], name: str, stop: int) -> None:
    whole = train(prepared(build(name))).state_dict()
    saved = reread(train(prepared(build(name)), until=stop).state_dict())
    resumed = prepared(build(name))
    resumed.load_state_dict(saved)
    again = train(resumed).state_dict()
    for state in (whole, again):  # but for the time that it took
        del state["seconds"], state["clock"]
        for row in state["history"]:
            del row["seconds"]
    assert whole["method"]
    assert equal(whole, again)


@remembering
def test_what_is_remembered_decides_the_result(build: Callable[..., Method], name: str) -> None:
    """A resumed training that had forgotten it would end elsewhere, so that the test above can fail."""
    whole = train(prepared(build(name)))
    saved = reread(train(prepared(build(name)), until=4).state_dict())
    forgetful = prepared(build(name))
    saved["method"] = build(name).state_dict()
    forgetful.load_state_dict(saved)
    assert not equal(whole.weights(), train(forgetful).weights())


@remembering
def test_it_is_said_to_remember_and_refused_where_that_would_not_fit(build: Callable[..., Method], name: str) -> None:
    method = build(name)
    assert "sample_state" in method.needs
    sizes = {"ll-cp": "9,000,000 x 9,600 cells.* 19 GB", "em-apl": "9,000,000 x 9,600.* 1,279 GB", "role": "1,382 GB"}
    sizes |= {"curriculum": "100% of 9,000,000 x 9,600 labels.* 1,037 GB", "kundu-tighe": "9,000,000 images.* 7 GB"}
    annotated = np.full(9_600, 20_000)
    large = dataclasses.replace(
        method.task, num_train=9_000_000, num_classes=9_600, epochs=10, positives=annotated, negatives=0 * annotated
    )
    params = method.params.model_copy(update={"delta_percent": 0.2} if name == "ll-cp" else {})
    with pytest.raises(PlbenchError, match=f"method '{name}' keeps .*{sizes[name]}.*; "):
        type(method)(params, large)
    if name == "ll-cp":  # at the paper's delta for OpenImages it is little
        type(method)(method.params.model_copy(update={"delta_percent": 0.005}), large)


class TestLLCp:
    def test_what_is_found_stays_positive_for_good(self, build: Callable[..., Method]) -> None:
        method = build("ll-cp")
        seen: list[set[int]] = []
        state = prepared(method)
        for epoch in range(1, EPOCHS + 1):
            train(state, until=epoch)
            seen.append(set(method.corrected.cells.tolist()))
        assert not seen[0]  # nothing in the first epoch
        assert all(earlier < later for earlier, later in itertools.pairwise(seen))
        labels = torch.from_numpy(partial_labels().rows(np.arange(NUM_ROWS)))
        batch = Batch(torch.zeros(NUM_ROWS, NUM_FEATURES), labels, torch.arange(NUM_ROWS))
        current = method.current_labels(batch)
        changed = {row * NUM_CLASSES + column for row, column in (current != labels).nonzero().tolist()}
        assert changed == seen[-1]  # all were unknown
        assert (current[current != labels] == 1).all()

    def test_how_many_and_which(self, build: Callable[..., Method]) -> None:
        """Of 10 unknown labels 30 % are 3, then 30 % of the 7 left, rounded up: 3 more, those of largest logit."""
        method = build("ll-cp", delta_percent=30.0)
        logits = torch.tensor([[0.1, 0.9, -0.5, 0.3, 0.0], [0.8, -0.2, 0.7, 0.6, 0.2]])
        batch = Batch(logits, torch.zeros(2, NUM_CLASSES, dtype=torch.int8), torch.tensor([7, 3]))
        expected = [[], [(7, 1), (3, 0), (3, 2)], [(7, 1), (3, 0), (3, 2), (3, 3), (7, 3), (3, 4)]]
        for epoch, cells in enumerate(expected):
            progress = Progress(epoch, EPOCHS, epoch, EPOCHS)
            first = method.loss(logits, batch, progress).total
            assert torch.equal(method.loss(logits, batch, progress).total, first)  # a step asked twice is the same step
            method.epoch_end(None, progress)  # type: ignore[arg-type]
            assert method.corrected.cells.tolist() == sorted(row * NUM_CLASSES + column for row, column in cells)


class Stream:
    """A model that gives fixed scores for all rows, in portions of 20."""

    def __init__(self, scores: Tensor) -> None:
        self.labels, self.scores = partial_labels(), scores

    def predict(self, weights: Literal["ema", "raw"] = "ema", **kinds: Any) -> Iterator[tuple[Tensor, Tensor]]:
        assert weights == "raw"
        for rows in torch.arange(NUM_ROWS).split(20):
            yield rows, self.scores[rows]


class TestEMAPL:
    def test_how_many_and_which(self, build: Callable[..., Method]) -> None:
        """After 3 of 6 epochs, a third of theta = 60 % of each class's unknown labels in each, lowest scores first."""
        method = build("em-apl", warmup=0.5, theta=0.6)
        scores = torch.rand(EPOCHS, NUM_ROWS, NUM_CLASSES, generator=torch.Generator().manual_seed(1))
        labels = partial_labels().rows(np.arange(NUM_ROWS))
        expected: dict[int, float] = {}
        for epoch in range(EPOCHS):
            method.epoch_start(Stream(scores[epoch]), Progress(3 * epoch, 18, epoch, EPOCHS))
            if epoch >= 3:
                for column in range(NUM_CLASSES):
                    unknown = [row for row in range(NUM_ROWS) if labels[row, column] == 0]
                    free = [row for row in unknown if row * NUM_CLASSES + column not in expected]
                    free.sort(key=lambda row: float(scores[epoch, row, column]))
                    for row in free[: int(0.2 * len(unknown) + 1e-9)]:
                        expected[row * NUM_CLASSES + column] = float(scores[epoch, row, column])
            assert dict(zip(method.pseudo.cells.tolist(), method.pseudo.values.tolist(), strict=True)) == expected
        assert expected

    def test_theta_of_1_ends_with_every_unknown_label(self, build: Callable[..., Method]) -> None:
        method = build("em-apl", warmup=0.8, theta=1.0)  # 5 of 6 epochs
        method.epoch_start(Stream(torch.rand(NUM_ROWS, NUM_CLASSES)), Progress(15, 18, 5, EPOCHS))
        assert len(method.pseudo.cells) == NUM_ROWS * NUM_CLASSES - partial_labels().num_known

    @pytest.mark.parametrize(("warmup", "theta"), [(1.0, 0.9), (0.5, 0.0)])
    def test_without_pseudo_labels_it_is_entropy_alone(
        self, build: Callable[..., Method], warmup: float, theta: float
    ) -> None:
        method = build("em-apl", warmup=warmup, theta=theta)
        train(prepared(method))
        assert len(method.pseudo.cells) == 0


class TestROLE:
    def test_the_table_starts_from_what_is_known(self, build: Callable[..., Method]) -> None:
        method = build("role")
        view = Stream(torch.rand(NUM_ROWS, NUM_CLASSES))
        method.epoch_start(view, Progress(0, 18, 0, EPOCHS))
        start = method.table.detach().sigmoid().view(NUM_ROWS, NUM_CLASSES)
        labels = torch.from_numpy(view.labels.rows(np.arange(NUM_ROWS)))
        torch.testing.assert_close(start[labels == 1], torch.full_like(start[labels == 1], 0.995))
        torch.testing.assert_close(start[labels == -1], torch.full_like(start[labels == -1], 0.005))
        unknown = start[labels == 0]
        assert unknown.min() >= 0.4
        assert unknown.max() <= 0.6
        assert unknown.std() > 0.03
        with torch.no_grad():
            method.table.zero_()
        method.epoch_start(view, Progress(3, 18, 1, EPOCHS))  # only once
        assert not method.table.any()

    def test_the_table_is_drawn_from_the_generator_of_the_run(self, build: Callable[..., Method]) -> None:
        assert torch.equal(build("role").table, build("role").table)
        other = build("role")
        other.task.generator.manual_seed(1)
        assert not torch.equal(type(other)(other.params, other.task).table, build("role").table)

    def test_the_table_follows_adam_at_ten_times_the_rate_without_decay(self, build: Callable[..., Method]) -> None:
        """Against a textbook Adam on the table's gradients, over two epochs of one-cycle rates and momenta."""
        method = build("role")
        state = prepared(method)
        steps: list[tuple[float, float, float, Tensor]] = []

        def note(optimizer: torch.optim.Optimizer, *rest: Any) -> None:
            model, table = optimizer.param_groups[0], optimizer.param_groups[-1]
            assert table["params"] == [method.table]
            steps.append((model["lr"], table["lr"], table["betas"][0], method.table.grad.double().clone()))

        state.optimizer.register_step_pre_hook(note)
        method.epoch_start(Stream(torch.rand(NUM_ROWS, NUM_CLASSES)), Progress(0, 18, 0, EPOCHS))
        position = method.table.detach().double().clone()
        m, v = torch.zeros_like(position), torch.zeros_like(position)
        train(state, until=2)
        assert len(steps) == 2 * STEPS_PER_EPOCH
        for number, (rate_of_model, rate, beta, gradient) in enumerate(steps, 1):
            assert rate == pytest.approx(10 * rate_of_model, rel=1e-9)
            m = beta * m + (1 - beta) * gradient
            v = 0.999 * v + 0.001 * gradient**2
            position -= rate * (m / (1 - beta**number)) / ((v / (1 - 0.999**number)).sqrt() + 1e-8)
        torch.testing.assert_close(method.table.detach().double(), position, rtol=1e-4, atol=1e-5)

    def test_the_model_does_not_hold_the_table(self, build: Callable[..., Method]) -> None:
        state = prepared(build("role"))
        assert sum(p.numel() for p in state.model.parameters()) == (NUM_FEATURES + 1) * NUM_CLASSES
        assert sum(p.numel() for p in state.averaged().parameters()) == (NUM_FEATURES + 1) * NUM_CLASSES

    def test_it_learns_what_it_was_not_told(self, build: Callable[..., Method]) -> None:
        method = build("role")
        before = copy.deepcopy(method.table)
        train(prepared(method))
        assert (method.table - before).abs().min() > 0  # every estimate moved
