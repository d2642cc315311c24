"""Heads trained in one pass take the steps that each would take alone."""

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from plbench import stacked
from plbench.api import Batch, Loss, Method, MethodParams, ModelSpec, PartialLabels, Plan, Progress, Task
from plbench.engine import FitState, fit, prepare_fit
from plbench.errors import PlbenchError, PluginError, TrainingError
from plbench.execution import Execution
from plbench.inputs import FeatureInputs
from plbench.models import make_head
from plbench.randomness import derive_seed, seeded
from plbench.registry import Registry
from plbench.resolve import validate_params
from plbench.stacked import Head, bytes_per_head, fit_together, is_stackable

CPU = Execution(torch.device("cpu"), "float32")
NUM_ROWS, NUM_FEATURES, NUM_CLASSES = 72, 20, 6
PLAN = Plan(epochs=4, batch_size=16, lr=1e-2, weight_decay=0.05, ema_horizon=0.3)  # 20 steps; the last batch is short
REGISTRY = Registry.discover()
MODELS = {
    "linear": ModelSpec(backbone="x", weights="random", image_size=32, head="linear", head_dropout=0.2),
    "mlp": ModelSpec(backbone="x", weights="random", image_size=32, head="mlp", head_width=16, head_dropout=0.2),
    "bottleneck": ModelSpec(backbone="x", weights="random", image_size=32, head="bottleneck", head_width=8),
}
Build = Callable[..., Method]


def stackable() -> Iterator[Any]:
    """Every stackable method, and once more for each further value of a parameter that names a variant."""
    for name in REGISTRY.names("method"):
        method = REGISTRY.method(name)
        if is_stackable(method):
            yield pytest.param(name, {}, id=name)
            for parameter, info in method.Params.model_fields.items():
                for value in get_args(info.annotation) if get_origin(info.annotation) is Literal else ():
                    if value != info.default:
                        yield pytest.param(name, {parameter: value}, id=f"{name}-{parameter}={value}")


@pytest.fixture
def build(make_task: Callable[..., Task]) -> Build:
    """Builds a method; each stage's artifact is a prior that depends on the seed."""

    def make(name: str | type[Method], params: dict[str, Any], seed: int = 0) -> Method:
        method = REGISTRY.method(name) if isinstance(name, str) else name
        valid = validate_params(method, params)
        stages = method.stages(valid, make_task(NUM_CLASSES))
        chance = torch.Generator().manual_seed(seed)
        artifacts = {s.name: torch.rand(NUM_CLASSES, generator=chance, dtype=torch.float64) for s in stages}
        return method(valid, make_task(NUM_CLASSES, artifacts, seed))

    return make


def some_inputs(*, double: bool = True, known: float = 0.4) -> FeatureInputs:
    rng = np.random.default_rng(5)
    features = rng.standard_normal((NUM_ROWS, NUM_FEATURES)).astype(np.float64 if double else np.float32)
    present = features @ rng.standard_normal((NUM_FEATURES, NUM_CLASSES)) > 0.5
    labels = np.where(present, 1, -1) * (rng.random(present.shape) < known)
    partial = PartialLabels.from_dense(labels, [str(c) for c in range(NUM_CLASSES)])
    return FeatureInputs(features, np.arange(NUM_ROWS), partial)


def a_state(method: Method, plan: Plan, seed: int, model: str, *, double: bool = True) -> FitState:
    with seeded(seed):
        network = method.build(nn.Identity(), lambda: make_head(MODELS[model], NUM_FEATURES, NUM_CLASSES))
    network = network.double() if double else network
    return prepare_fit(network, method, plan, math.ceil(NUM_ROWS / plan.batch_size), CPU)


def a_head(method: Method, plan: Plan = PLAN, seed: int = 0, model: str = "linear", **options: Any) -> Head:
    return Head(a_state(method, plan, seed, model), plan, seed, **options)


def alone(head: Head, inputs: FeatureInputs, model: str, rebuilt: Method) -> FitState:
    state = a_state(rebuilt, head.plan, head.seed, model)
    fit(state, inputs.reseeded(head.seed), head.plan, CPU, seed=head.seed, stop_after=head.stop_after)
    return state


def assert_same(one: FitState, other: FitState, tolerance: float = 1e-8) -> None:
    for kind in ("model", "ema"):
        ours, theirs = one.weights()[kind], other.weights()[kind]
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")
    assert (one.epoch, one.step) == (other.epoch, other.step)
    for ours, theirs in zip(one.history, other.history, strict=True):
        assert ours.keys() == theirs.keys()
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=tolerance)
        assert (ours["epoch"], ours["step"], ours["lr"]) == (theirs["epoch"], theirs["step"], theirs["lr"])
    assert one.schedule.get_last_lr() == other.schedule.get_last_lr()


def some_params(name: str, fixed: dict[str, Any], number: int, task: Task) -> dict[str, Any]:
    """The defaults first, then values drawn from the ranges."""
    method, rng = REGISTRY.method(name), np.random.default_rng(number)
    params = dict(fixed)
    for parameter, search in method.Params.search_space().items() if number else ():
        low, high = search.bounds(task)
        whole = method.Params.model_fields[parameter].annotation is int
        params[parameter] = int(rng.integers(low, high + 1)) if whole else float(rng.uniform(low, high))
    return params


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("name", "fixed"), list(stackable()))
def test_each_head_is_what_it_would_be_alone(
    build: Build, make_task: Callable[..., Task], name: str, fixed: dict[str, Any], model: str
) -> None:
    """Other parameters, rates, decays, seeds and shuffles in one pass; float64, 20 steps."""
    inputs, task = some_inputs(), make_task(NUM_CLASSES)
    chosen = [(some_params(name, fixed, n, task), n % 2, 10 ** -(1.5 + n / 3), 0.02 * n) for n in range(5)]
    heads = [
        a_head(build(name, params, seed), PLAN.model_copy(update={"lr": lr, "weight_decay": decay}), seed, model)
        for params, seed, lr, decay in chosen
    ]
    fit_together(heads, inputs, CPU)
    for head, (params, seed, _, _) in zip(heads, chosen, strict=True):
        assert head.error is None
        assert head.state.step == 20
        assert_same(head.state, alone(head, inputs, model, build(name, params, seed)))
    assert not torch.equal(heads[0].state.model[1][-1].weight, heads[2].state.model[1][-1].weight)


def test_heads_of_other_methods_share_a_pass(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """All stackable methods and variants at once, in blocks of three heads."""
    inputs = some_inputs()
    chosen = [(param.values[0], param.values[1], seed) for param in stackable() for seed in (0, 1)]
    heads = [a_head(build(name, params, seed), seed=seed, model="mlp") for name, params, seed in chosen]
    parameters = sum(p.numel() * p.element_size() for p in heads[0].state.model.parameters())
    monkeypatch.setattr(stacked, "BLOCK_BYTES", 3 * parameters)
    fit_together(heads, inputs, CPU)
    for head, (name, params, seed) in zip(heads, chosen, strict=True):
        assert_same(head.state, alone(head, inputs, "mlp", build(name, params, seed)))
