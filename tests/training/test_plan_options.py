"""What a plan may ask for beside AdamW under one cycle: other optimisers, other schedules, a head of its own rate."""

import copy
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from plbench.api import Batch, Loss, Method, ModelSpec, PartialLabels, Plan, Progress
from plbench.models.backbones import Backbone
from plbench.randomness import seeded
from plbench.training.engine import fit, prepare_fit
from plbench.training.execution import Execution
from plbench.training.inputs import FeatureInputs
from plbench.training.state import FitState

CPU = Execution(torch.device("cpu"), "float32")
NUM_ROWS, NUM_FEATURES, NUM_CLASSES, BATCH = 24, 6, 3, 8
STEPS = NUM_ROWS // BATCH


class Squares(Method):
    """Squared distance of each logit to its label, where that is known."""

    name, title = "squares", "Squares"

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        known = batch.labels != 0
        return Loss(((output - batch.labels) ** 2)[known].sum(), known.sum())


def inputs(*, known_from: int = 0) -> FeatureInputs:
    rng = np.random.default_rng(1)
    labels = rng.choice([-1, 1], (NUM_ROWS, NUM_CLASSES))
    labels[:known_from] = 0
    features = rng.standard_normal((NUM_ROWS, NUM_FEATURES)).astype(np.float32)
    classes = [str(number) for number in range(NUM_CLASSES)]
    return FeatureInputs(features, np.arange(NUM_ROWS), PartialLabels.from_dense(labels, classes))


def a_model() -> nn.Module:
    with seeded(0):
        return nn.Sequential(nn.Linear(NUM_FEATURES, 4), nn.Tanh(), nn.Linear(4, NUM_CLASSES))


def a_plan(**values: Any) -> Plan:
    return Plan.model_validate({"epochs": 4, "batch_size": BATCH, "lr": 0.05, "ema_decay": 0.0, **values})


@pytest.fixture
def method(make_task: Any) -> Method:
    return Squares(Squares.Params(), make_task(NUM_CLASSES))


def start(method: Method, plan: Plan, model: nn.Module | None = None) -> FitState:
    return prepare_fit(a_model() if model is None else model, method, plan, STEPS, CPU)


def rates(state: FitState, plan: Plan) -> list[float]:
    """The rate of each step, of the first group."""
    found: list[float] = []
    state.optimizer.register_step_pre_hook(lambda own, *rest: found.append(own.param_groups[0]["lr"]))
    fit(state, inputs(), plan, CPU, seed=0)
    return found


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1.0] * 12),
        ("step=1,3,factor=0.5", [1.0] * 3 + [0.5] * 6 + [0.25] * 3),
        ("step=2", [1.0] * 6 + [0.1] * 6),
        ("cosine", [(1 + math.cos(math.pi * step / 12)) / 2 for step in range(12)]),
    ],
)
def test_the_rate_of_each_step(method: Method, optimizer: str, schedule: str, expected: list[float]) -> None:
    plan = a_plan(schedule=schedule, optimizer=optimizer)
    assert rates(start(method, plan), plan) == pytest.approx([0.05 * share for share in expected])


@pytest.mark.parametrize(
    ("values", "make"),
    [
        ({"optimizer": "adam"}, lambda groups: torch.optim.Adam(groups, lr=0.05)),
        ({"optimizer": "sgd"}, lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9)),
        ({"optimizer": "sgd", "momentum": 0.0}, lambda groups: torch.optim.SGD(groups, lr=0.05)),
        (
            {"optimizer": "sgd", "momentum": 0.5, "nesterov": True},
            lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.5, nesterov=True),
        ),
    ],
    ids=["adam", "sgd", "sgd without momentum", "nesterov"],
)
def test_it_takes_torchs_steps(method: Method, values: dict[str, Any], make: Any) -> None:
    plan, data, model = a_plan(**values, schedule="constant", weight_decay=0.1), inputs(), a_model()
    state = start(method, plan)
    fit(state, data, plan, CPU, seed=0)
    decays = [[p for p in model.parameters() if (p.ndim > 1) == own] for own in (True, False)]
    optimizer = make([{"params": decays[0], "weight_decay": 0.1}, {"params": decays[1], "weight_decay": 0.0}])
    for epoch in range(plan.epochs):
        for batch in data.shuffled(BATCH, epoch):
            optimizer.zero_grad()
            ((model(batch.inputs) - batch.labels) ** 2).mean().backward()
            optimizer.step()
    for ours, theirs in zip(state.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_one_cycle_leaves_the_momentum_of_sgd_alone(method: Method) -> None:
    plan, found = a_plan(optimizer="sgd", momentum=0.7), set[float]()
    state = start(method, plan)
    state.optimizer.register_step_pre_hook(lambda own, *rest: found.update(g["momentum"] for g in own.param_groups))
    fit(state, inputs(), plan, CPU, seed=0)
    assert found == {0.7}


@pytest.mark.filterwarnings("ignore:Detected call of")  # torch's, of a schedule that runs ahead of the optimiser
def test_batches_without_known_labels_leave_no_momentum(method: Method) -> None:
    """The first step may be suppressed on the device, where torch would leave the buffers that it makes unset."""
    plan = a_plan(optimizer="sgd", schedule="constant", epochs=6)
    state, before = start(method, plan), a_model()
    assert len(state.optimizer.state) == 4
    fit(state, inputs(known_from=NUM_ROWS), plan, CPU, seed=0)
    assert all(torch.equal(ours, own) for ours, own in zip(state.model.parameters(), before.parameters(), strict=True))
    assert all((moments["momentum_buffer"] == 0).all() for moments in state.optimizer.state.values())


@pytest.mark.parametrize(
    "values",
    [{"schedule": "step=1,3"}, {"schedule": "cosine"}, {"schedule": "constant"}, {"optimizer": "sgd"}],
    ids=str,
)
def test_it_goes_on_from_a_checkpoint_as_if_never_stopped(method: Method, values: dict[str, Any]) -> None:
    plan, data = a_plan(**values), inputs()
    whole = start(method, plan)
    fit(whole, data, plan, CPU, seed=0)
    first = start(method, plan)
    fit(first, data, plan, CPU, seed=0, stop_after=2)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    again = start(method, plan)
    again.load_state_dict(torch.load(file, weights_only=True))
    fit(again, data, plan, CPU, seed=0)
    assert all(
        torch.equal(ours, own) for ours, own in zip(whole.model.parameters(), again.model.parameters(), strict=True)
    )
    assert [row["lr"] for row in whole.history] == [row["lr"] for row in again.history]


class TestHead:
    @pytest.fixture
    def model(self) -> nn.Sequential:
        backbone = Backbone(ModelSpec(backbone="test_resnet", weights="random", image_size=32))
        return nn.Sequential(backbone, nn.Linear(backbone.num_features, NUM_CLASSES))

    def rates(self, method: Method, model: nn.Sequential, **values: Any) -> dict[str, set[float]]:
        """Rates of backbone and head."""
        state = start(method, a_plan(schedule="constant", **values), copy.deepcopy(model))
        own = {id(p): g["lr"] for g in state.optimizer.param_groups for p in g["params"]}
        parts = dict(zip(("backbone", "head"), state.model.children(), strict=True))
        return {name: {round(own[id(p)], 9) for p in part.parameters()} for name, part in parts.items()}

    def test_it_learns_at_a_rate_of_its_own(self, method: Method, model: nn.Sequential) -> None:
        assert self.rates(method, model) == {"backbone": {0.05}, "head": {0.05}}
        assert self.rates(method, model, head_lr_multiplier=10) == {"backbone": {0.05}, "head": {0.5}}

    def test_a_method_that_says_a_rate_keeps_it(self, make_task: Any, model: nn.Sequential) -> None:
        class FourTimes(Squares):
            def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
                backbone, head = model.children()
                return [{"params": list(backbone.parameters())}, {"params": list(head.parameters()), "lr_scale": 4.0}]

        own = FourTimes(FourTimes.Params(), make_task(NUM_CLASSES))
        assert self.rates(own, model, head_lr_multiplier=10) == {"backbone": {0.05}, "head": {0.2}}
