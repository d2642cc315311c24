"""What every installed method must do, whatever its loss: a new method is tested by existing."""

import copy
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from plbench.api import Batch, Method, PartialLabels, Plan, Progress, Task
from plbench.engine import FitState, fit, predict, prepare_fit
from plbench.execution import Execution
from plbench.inputs import FeatureInputs
from plbench.randomness import seeded
from plbench.registry import Registry
from plbench.resolve import validate_params

NUM_CLASSES, NUM_FEATURES, NUM_ROWS = 6, 20, 64
CPU = Execution(torch.device("cpu"), "float32")
PROGRESS = Progress(3, 8, 1, 2)
REGISTRY = Registry.discover()


def variants() -> Iterator[Any]:
    """Every method at its defaults, and once more for each further value of a parameter that names a variant."""
    for name in REGISTRY.names("method"):
        yield pytest.param(name, {}, id=name)
        for parameter, info in REGISTRY.method(name).Params.model_fields.items():
            if get_origin(info.annotation) is Literal:
                for value in get_args(info.annotation):
                    if value != info.default:
                        yield pytest.param(name, {parameter: value}, id=f"{name}-{parameter}={value}")


every_method = pytest.mark.parametrize(("name", "params"), list(variants()))


@pytest.fixture
def build(make_task: Callable[..., Task]) -> Callable[..., Method]:
    """Builds a method; each stage's artifact is a prior that falls evenly from 0.95 to 0.05."""

    def make(name: str, params: dict[str, Any], seed: int = 0) -> Method:
        method = REGISTRY.method(name)
        valid = validate_params(method, params)
        stages = method.stages(valid, make_task(NUM_CLASSES))
        artifacts = {stage.name: torch.linspace(0.95, 0.05, NUM_CLASSES, dtype=torch.float64) for stage in stages}
        return method(valid, make_task(NUM_CLASSES, artifacts, seed))

    return make


class ConstantMap(nn.Module):
    """Stands for a convolutional backbone: its feature map of 2 x 2 places repeats the features that it is given."""

    num_features = NUM_FEATURES

    @property
    def net(self) -> nn.Module:
        return self

    def forward_features(self, features: Tensor) -> Tensor:
        return features[:, :, None, None].expand(-1, -1, 2, 2)


def linear_model(method: Method, seed: int = 0) -> nn.Module:
    backbone = ConstantMap() if "feature_map" in method.needs else nn.Identity()
    with seeded(seed):
        return method.build(backbone, lambda: nn.Linear(NUM_FEATURES, NUM_CLASSES))


def task_inputs(seed: int = 0) -> FeatureInputs:
    """Rows whose classes a linear model can tell; of 384 labels about half are known."""
    rng = np.random.default_rng(7)
    features = rng.standard_normal((NUM_ROWS, NUM_FEATURES), dtype=np.float32)
    present = features @ rng.standard_normal((NUM_FEATURES, NUM_CLASSES)) > 1.0
    labels = np.where(present, 1, -1) * (rng.random(present.shape) < 0.5)
    partial = PartialLabels.from_dense(labels, [str(column) for column in range(NUM_CLASSES)])
    return FeatureInputs(features, np.arange(NUM_ROWS), partial, seed)


def train(method: Method, *, epochs: int = 2, seed: int = 0, execution: Execution = CPU) -> FitState:
    plan = Plan(epochs=epochs, batch_size=16, lr=2e-2, ema_horizon=0.2)
    state = prepare_fit(linear_model(method, seed), method, plan, NUM_ROWS // 16, execution)
    fit(state, task_inputs(seed), plan, execution, seed=seed)
    return state


def mixed_labels() -> Tensor:
    return torch.tensor([1, -1, 0, 0])[torch.randint(4, (8, NUM_CLASSES), generator=torch.Generator().manual_seed(1))]


LABELS = {
    "mixed": mixed_labels(),
    "all unknown": torch.zeros(8, NUM_CLASSES),
    "all present": torch.ones(8, NUM_CLASSES),
    "all absent": -torch.ones(8, NUM_CLASSES),
    "a single row": mixed_labels()[:1],
    "a class without known labels": mixed_labels() * (torch.arange(NUM_CLASSES) > 0),
    "a row without known labels": mixed_labels() * (torch.arange(8) > 0)[:, None],
}


def a_batch(labels: Tensor, scale: float = 1.0) -> Batch:
    generator = torch.Generator().manual_seed(2)
    inputs = scale * torch.randn(len(labels), NUM_FEATURES, generator=generator)
    return Batch(inputs, labels.to(torch.int8), torch.arange(len(labels)))


@every_method
@pytest.mark.parametrize("scale", [1.0, 1000.0])
@pytest.mark.parametrize("kind", LABELS)
def test_loss_and_gradient_are_finite(
    build: Callable[..., Method], name: str, params: dict[str, Any], kind: str, scale: float
) -> None:
    method = build(name, params)
    model = linear_model(method)
    batch = a_batch(LABELS[kind], scale)
    loss = method.loss(method.forward(model, batch, PROGRESS), batch, PROGRESS)
    loss.total.backward()
    assert loss.total.shape == ()
    assert torch.isfinite(loss.total)
    assert float(loss.weight) >= 0
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@every_method
def test_neither_inputs_nor_labels_nor_outputs_are_changed(
    build: Callable[..., Method], name: str, params: dict[str, Any]
) -> None:
    method = build(name, params)
    model = linear_model(method)
    batch = a_batch(LABELS["mixed"])
    before = [tensor.clone() for tensor in (batch.inputs, batch.labels, batch.index)]
    output = method.forward(model, batch, PROGRESS)
    seen = output.detach().clone()
    method.loss(output, batch, PROGRESS).total.backward()
    method.scores(output)
    masks = method.diagnostics(output, batch)
    assert torch.equal(output, seen)
    after = (batch.inputs, batch.labels, batch.index)
    assert all(torch.equal(now, then) for now, then in zip(after, before, strict=True))
    for mask in masks.values():  # diagnostics speak of unknown labels only
        assert mask.dtype == torch.bool
        assert not (mask & (batch.labels != 0)).any()


@every_method
def test_the_loss_falls(build: Callable[..., Method], name: str, params: dict[str, Any]) -> None:
    plan = Plan(epochs=13, batch_size=16, lr=2e-2, ema_horizon=0.2)  # 52 steps
    method = build(name, params)
    state = prepare_fit(linear_model(method), method, plan, NUM_ROWS // 16, CPU)
    before = copy.deepcopy(state.model)
    fit(state, task_inputs(), plan, CPU, seed=0)
    batch = next(iter(task_inputs().shuffled(NUM_ROWS, epoch=0)))

    def loss(model: nn.Module) -> float:
        """By the labels, estimates and weights that the method ends with: some change them as they go."""
        progress = Progress(51, 52, 12, 13)
        return float(method.loss(method.forward(model, batch, progress), batch, progress).total.detach())

    assert loss(state.model) < 0.9 * loss(before)


@every_method
def test_the_same_seed_gives_the_same_bits(build: Callable[..., Method], name: str, params: dict[str, Any]) -> None:
    first, second, other = (train(build(name, params, seed), seed=seed) for seed in (0, 0, 1))
    weights = [state.averaged().state_dict() for state in (first, second, other)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert not all(torch.equal(weights[0][key], weights[2][key]) for key in weights[0])


@every_method
def test_scores_lie_between_0_and_1(build: Callable[..., Method], name: str, params: dict[str, Any]) -> None:
    state = train(build(name, params))
    scores = torch.cat([chunk for _, chunk in predict(state.averaged(), state.method, task_inputs(), CPU)])
    assert scores.shape == (NUM_ROWS, NUM_CLASSES)
    assert scores.min() >= 0
    assert scores.max() <= 1
    assert scores.std() > 0


@every_method
def test_half_precision_logits_reach_the_loss_widened(
    build: Callable[..., Method], monkeypatch: pytest.MonkeyPatch, name: str, params: dict[str, Any]
) -> None:
    method = build(name, params)
    forward, loss = method.forward, method.loss
    given, taken = set(), set()

    def spied_forward(*args: Any) -> Any:
        given.add((output := forward(*args)).dtype)
        return output

    def spied_loss(output: Tensor, *args: Any) -> Any:
        taken.add(output.dtype)
        return loss(output, *args)

    monkeypatch.setattr(method, "forward", spied_forward)
    monkeypatch.setattr(method, "loss", spied_loss)
    state = train(method, execution=Execution(torch.device("cpu"), "bfloat16"))
    assert given <= {torch.bfloat16, torch.float32}
    assert torch.bfloat16 in given or type(method).forward is not Method.forward  # which may widen some of it itself
    assert taken == {torch.float32}
    assert all(np.isfinite(row["loss"]) for row in state.history)


@every_method
def test_state_survives_a_safe_save(
    build: Callable[..., Method], tmp_path: Any, name: str, params: dict[str, Any]
) -> None:
    method = train(build(name, params)).method
    torch.save(method.state_dict(), tmp_path / "state.pt")
    build(name, params).load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))


@pytest.mark.parametrize("name", REGISTRY.names("method"))
@pytest.mark.parametrize("num_classes", [6, 80, 9600])
def test_search_ranges_hold_valid_values(make_task: Callable[..., Task], name: str, num_classes: int) -> None:
    method, task = REGISTRY.method(name), make_task(num_classes)
    for parameter, search in method.Params.search_space().items():
        low, high = search.bounds(task)
        assert low < high
        assert not search.log or low > 0
        for value in (low, high):
            params = validate_params(method, {parameter: value})
            assert getattr(params, parameter) == value
            assert validate_params(method, {parameter: str(value)}) == params  # as typed after -P
            assert validate_params(method, params.model_dump(mode="json", exclude_none=True)) == params
            method.stages(params, task)


@pytest.mark.parametrize("name", REGISTRY.names("method"))
def test_a_method_says_what_it_is(name: str) -> None:
    method = REGISTRY.method(name)
    assert method.title
    assert method.__doc__
    described = [info.description for info in method.Params.model_fields.values()]
    assert all(described), "every parameter has a line of description"
