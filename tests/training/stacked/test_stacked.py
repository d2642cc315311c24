"""Heads trained in one pass take the steps that each would take alone."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from plbench.api import (
    Batch,
    Loss,
    Method,
    MethodParams,
    ModelSpec,
    PartialLabels,
    Plan,
    Progress,
    Task,
    stacked_value,
)
from plbench.errors import PlbenchError, PluginError, TrainingError
from plbench.models.backbones import make_head
from plbench.randomness import seeded
from plbench.runs.plan.resolved import validate_params
from plbench.runs.registry import Registry
from plbench.training.engine import fit, prepare_fit
from plbench.training.execution import Execution
from plbench.training.inputs import FeatureInputs
from plbench.training.stacked import heads as stacked
from plbench.training.stacked.heads import Head, bytes_per_head, fit_together, is_stackable
from plbench.training.state import FitState

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
        if "embeddings" in method.needs:  # cosines to the classes in a vision-language model, which all heads share
            artifacts["similarity"] = torch.rand(NUM_ROWS, NUM_CLASSES, generator=torch.Generator().manual_seed(9)) / 4
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
    fit(state, inputs.reseeded(head.seed, head.labels), head.plan, CPU, seed=head.seed, stop_after=head.stop_after)
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
    params, start = dict(fixed), validate_params(method, fixed)
    for parameter, search in method.Params.search_space().items() if number else ():
        if search.applies(start):
            low, high = search.bounds(task)
            whole = method.Params.is_whole(parameter)
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
    # a prior has 32 bits, and so has the power of it that weighs a label
    tolerance = 1e-7 if fixed.get("mode") == "soft-prior" else 1e-8
    for head, (params, seed, _, _) in zip(heads, chosen, strict=True):
        assert head.error is None
        assert head.state.step == 20
        assert_same(head.state, alone(head, inputs, model, build(name, params, seed)), tolerance)
    assert not torch.equal(heads[0].state.model[1][-1].weight, heads[2].state.model[1][-1].weight)


def test_heads_of_other_labels_share_a_pass(build: Build) -> None:
    """Each seed has its own labels; two heads of one seed with other labels do not see each other's."""
    inputs = some_inputs()
    masks = [some_inputs(known=share).labels for share in (0.2, 0.7)]
    chosen = [(0, None), (1, masks[0]), (2, masks[1]), (1, masks[1]), (1, masks[0])]
    heads = [a_head(build("pasl-negative", {}, seed), seed=seed, labels=labels) for seed, labels in chosen]
    fit_together(heads, inputs, CPU)
    for head, (seed, _) in zip(heads, chosen, strict=True):
        assert_same(head.state, alone(head, inputs, "linear", build("pasl-negative", {}, seed)))
    weights = [head.state.model[1][-1].weight for head in heads]
    assert torch.equal(weights[1], weights[4]) and not torch.equal(weights[1], weights[3])


def test_heads_that_say_the_threshold_in_two_ways_share_a_pass(build: Build) -> None:
    """`eta_top` is a number or None, and becomes an eta: the stack has no use for it."""
    inputs, chosen = some_inputs(), [{"eta": 0.4}, {"eta_top": 3}, {"eta_top": 1, "top_k": 2}]
    heads = [a_head(build("selective", params)) for params in chosen]
    fit_together(heads, inputs, CPU)
    for head, params in zip(heads, chosen, strict=True):
        assert_same(head.state, alone(head, inputs, "linear", build("selective", params)))


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


class PerKnown(Method):
    """Cross-entropy on known labels per known label, times a factor; NaN from `fails_from` on."""

    name, title = "per-known", "Per known label"
    stackable = True

    class Params(MethodParams):
        factor: float = 1.0
        fails_from: int = 1000

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        known = batch.labels != 0
        terms = nn.functional.softplus(-output * batch.labels) * known * self.params.factor
        fails = torch.as_tensor(self.params.fails_from) <= progress.step
        total = torch.where(fails, float("nan"), terms).sum(dim=(-2, -1))
        return Loss(total, known.sum(dim=(-2, -1)).expand(total.shape))


@pytest.mark.parametrize(
    "update",
    [
        {"clip_grad": 0.05},
        {"ema_decay": 0.0},
        {"optimizer": "adam-coupled"},
        {"optimizer": "sgd", "nesterov": True},
        {"schedule": "step=1"},
        {"batch_size": NUM_ROWS + 1},
        {"epochs": 1, "batch_size": 7, "pct_start": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [PerKnown, "ce-negative"])
def test_whatever_the_plan(build: Build, update: dict[str, Any], kind: Any) -> None:
    inputs = some_inputs()
    plans = [PLAN.model_copy(update={**update, "lr": lr}) for lr in (1e-2, 3e-2, 1e-3)]
    heads = [a_head(build(kind, {}), plan, seed=n % 2) for n, plan in enumerate(plans)]
    fit_together(heads, inputs, CPU)
    for head in heads:
        theirs = alone(head, inputs, "linear", build(kind, {}))
        if plans[0].ema_decay:
            assert_same(head.state, theirs)
        else:
            assert head.state.ema is None
            torch.testing.assert_close(head.state.weights()["model"], theirs.weights()["model"], rtol=0, atol=1e-8)


@pytest.mark.filterwarnings("ignore:Detected call of")  # torch's, of a schedule that runs ahead of the optimiser
def test_a_step_without_weight_is_not_taken(build: Build) -> None:
    """Batches of rows without known labels: neither weights nor averages move then, and the schedule goes on."""
    inputs = some_inputs(known=0.01)
    heads = [a_head(build(PerKnown, {"factor": factor})) for factor in (1.0, 2.0)]
    fit_together(heads, inputs, CPU)
    for head, factor in zip(heads, (1.0, 2.0), strict=True):
        assert_same(head.state, alone(head, inputs, "linear", build(PerKnown, {"factor": factor})))
    silent = [a_head(build(PerKnown, {})) for _ in range(2)]
    before = silent[0].state.weights()["model"]
    fit_together(silent, some_inputs(known=0.0), CPU)
    assert all(torch.equal(value, silent[0].state.model.state_dict()[name]) for name, value in before.items())
    assert silent[0].state.step == 20


def test_heads_stop_where_they_are_told_and_say_each_epoch(build: Build) -> None:
    inputs = some_inputs()
    seen: list[tuple[int, int]] = []
    heads = [
        a_head(
            build("ce-negative", {}), seed=seed, stop_after=stop, after_epoch=lambda s, n=n: seen.append((n, s.epoch))
        )
        for n, (seed, stop) in enumerate([(0, 2), (1, None), (0, 1)])
    ]
    reports: list[tuple[int, int]] = []
    fit_together(heads, inputs, CPU, report=lambda done, total: reports.append((done, total)))
    assert [head.state.epoch for head in heads] == [2, 4, 1]
    assert sorted(seen) == [(0, 1), (0, 2), (1, 1), (1, 2), (1, 3), (1, 4), (2, 1)]
    assert all(0 < done <= total for done, total in reports)
    for head in heads:
        assert_same(head.state, alone(head, inputs, "linear", build("ce-negative", {})))
        assert head.seconds > 0


def test_one_that_diverges_is_given_up_and_spoils_no_other(build: Build) -> None:
    inputs = some_inputs()
    heads = [a_head(build(PerKnown, {"fails_from": step})) for step in (1000, 7, 900)]
    fit_together(heads, inputs, CPU)
    assert [head.error is None for head in heads] == [True, False, True]
    assert str(heads[1].error) == "the loss of method 'per-known' is no longer finite at step 7 (epoch 2)"
    assert heads[1].state.epoch == 2
    for head in (heads[0], heads[2]):
        assert_same(head.state, alone(head, inputs, "linear", build(PerKnown, {})))
    with pytest.raises(TrainingError, match="at step 7"):
        alone(heads[1], inputs, "linear", build(PerKnown, {"fails_from": 7}))


def test_half_precision_is_close_to_each_head_alone(build: Build) -> None:
    half = Execution(torch.device("cpu"), "bfloat16")
    inputs = some_inputs(double=False)
    for model in MODELS:
        heads = [Head(a_state(build("ce-negative", {}), PLAN, 0, model, double=False), PLAN, 0) for _ in range(2)]
        fit_together(heads, inputs, half)
        lonely = a_state(build("ce-negative", {}), PLAN, 0, model, double=False)
        fit(lonely, inputs, PLAN, half, seed=0)
        for head in heads:
            assert_same(head.state, lonely, tolerance=0.02)


def test_threads_and_memory_are_given_back(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads own their parameters again, and torch has its threads; with several workers the results are the same."""
    monkeypatch.setattr(stacked, "HEADS_PER_THREAD", 1)
    inputs, before = some_inputs(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        heads = [a_head(build("selective", {"top_k": k})) for k in range(5)]
        fit_together(heads, inputs, CPU)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    for k, head in enumerate(heads):
        assert_same(head.state, alone(head, inputs, "linear", build("selective", {"top_k": k})))
        for parameter in (*head.state.model.parameters(), *head.state.ema.module.parameters()):
            assert parameter.untyped_storage().nbytes() == parameter.numel() * parameter.element_size()


@pytest.mark.parametrize("model", MODELS)
def test_orders_side_by_side_and_one_by_one_are_the_same_to_the_bit(build: Build, model: str) -> None:
    """Few heads of several seeds take a lane for each seed where there are cores; dropout is drawn as ever."""
    inputs, before, ended = some_inputs(), torch.get_num_threads(), []
    for cores in (1, 2):
        heads = [a_head(build("selective", {"top_k": k}), seed=seed, model=model) for seed in (0, 1, 2) for k in (0, 3)]
        reports: list[tuple[int, int]] = []
        try:
            torch.set_num_threads(cores)
            assert stacked._shape(heads, CPU.device) == ((1, 1) if cores == 1 else (3, 1))
            fit_together(heads, inputs, CPU, report=lambda *counts, to=reports: to.append(counts))
        finally:
            torch.set_num_threads(before)
        assert reports == sorted(reports)
        assert reports[-1] == (heads[0].state.step * 3, heads[0].state.step * 3)
        ended.append([head.state for head in heads])
    for one, other in zip(*ended, strict=True):
        assert_same(one, other, tolerance=0)
    assert_same(heads[-1].state, alone(heads[-1], inputs, model, build("selective", {"top_k": 3})))


def test_where_one_order_fails_the_threads_of_all_end_before_heads_are_given_back(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a step that was handed out would move parameters that are being copied."""
    steps, released, step, release = [], [], stacked._Block.step, stacked._Order.release

    def failing(block: Any, batch: Any, noise: Any, progress: Any) -> None:
        if block.heads[0].seed == 1 and progress.step == 1:
            raise PluginError("no more")
        time.sleep(0.05)
        step(block, batch, noise, progress)
        steps.append(progress.step)

    def noting(order: Any) -> None:
        released.append(len(steps))
        release(order)

    monkeypatch.setattr(stacked._Block, "step", failing)
    monkeypatch.setattr(stacked._Order, "release", noting)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(PluginError, match="no more"):
            fit_together([a_head(build("ce-negative", {}), seed=seed) for seed in (0, 1, 2)], some_inputs(), CPU)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert released == [len(steps)] * 3


def test_memory_of_a_head_is_bounded(build: Build) -> None:
    model = a_state(build("ce-negative", {}), PLAN, 0, "mlp").model
    parameters = 20 * 16 + 16 + 16 * 6 + 6
    assert bytes_per_head(model, 10) == 5 * 8 * parameters + 4 * 24 * 10 * (16 + 6)


@pytest.mark.parametrize("hook", ["forward", "build", "epoch_end", "state_dict"])
def test_hooks_that_a_stack_would_not_call_are_an_error(hook: str) -> None:
    kind = type("Own", (PerKnown,), {hook: lambda self, *arguments: None})
    with pytest.raises(PluginError, match=f"stackable = True but has its own {hook}; set it to False"):
        is_stackable(kind)
    assert not is_stackable(type("Honest", (kind,), {"stackable": False}))


def test_what_is_no_number_cannot_differ() -> None:
    assert stacked_value(["a", "a"]) == "a"
    assert stacked_value([2, 2]) == 2
    assert stacked_value([2, 3]).dtype == torch.int64 and stacked_value([2, 3.5]).dtype == torch.float64
    assert stacked_value([torch.zeros(3), torch.ones(3)]).shape == (2, 1, 3)
    with pytest.raises(PlbenchError, match="a, b cannot be stacked"):
        stacked_value(["a", "b"])
