"""What training heads together saves: against one at a time in the same process, and against the products alone."""

from __future__ import annotations

import dataclasses
import os
import resource
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from platformdirs import user_cache_path
from torch import nn

from plbench.api import ModelSpec, PartialLabels, Plan, Task
from plbench.metrics import evaluate_cells
from plbench.models.backbones import make_head
from plbench.progress import Reporter
from plbench.randomness import seeded
from plbench.runs import run as runner
from plbench.runs.active import ActiveRun
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.plan.resolved import ResolvedRun, complete
from plbench.runs.registry import Registry
from plbench.runs.store import Store
from plbench.runs.workspace import Workspace
from plbench.training.engine import prepare_fit
from plbench.training.execution import Execution
from plbench.training.inputs import FeatureInputs
from plbench.training.stacked.heads import Head, fit_together
from plbench.tuning import trials
from plbench.tuning.study import with_values

ALONE = 4  # trials that are also trained one at a time
BATCH = 16  # trials that `tune` asks for at once


@pytest.fixture(autouse=True)
def all_cores() -> Iterator[None]:
    """The suite keeps torch to one thread, since pytest-xdist fills the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    yield
    torch.set_num_threads(before)


def trial_plans(head: str, number: int, workspace: Workspace) -> list[ResolvedRun]:
    """Trials of `selective` on scenes: parameters, rate and decay drawn from their ranges."""
    first = plan_run(Request("scenes", "selective", simulate="fpc=300", model={"head": head}), workspace)
    fit = with_values(first, {}, {"train_part": "fit"}, workspace.registry)
    rng = np.random.default_rng(0)
    plans = []
    for _ in range(number):
        params = {
            "gamma_neg": rng.uniform(0, 4),
            "gamma_unann": rng.uniform(2, 7),
            "top_k": int(rng.integers(0, 15)),
            "eta": rng.uniform(0.01, 0.9),
            "eta_top": None,
        }
        values = {"lr": 10 ** rng.uniform(-4, -2), "weight_decay": 10 ** rng.uniform(-3, -1)}
        base = fit.spec.model_copy(update={"plan": fit.spec.plan.model_copy(update=values)})
        plan = complete(base, fit.spec.method.params | params, fit.protocol_data, fit.recipe, workspace.registry)
        plans.append(dataclasses.replace(plan, protocol_data=fit.protocol_data))
    return plans


def one_at_a_time(plan: ResolvedRun, workspace: Workspace) -> float | None:
    """One trial by the ordinary training loop, scored, without the files of a run."""
    active = ActiveRun(plan, workspace, {name: runner.stage_artifact(plan, name, workspace) for name in plan.stages})
    active.prepare()
    active.open_scored_part()
    active.train()
    return evaluate_cells(active.cells(active.headline_weights)).map_c


def product_seconds(num_heads: int, layers: list[int], batch_size: int) -> float:
    """Time of the matrix products of a step of all heads: what no training of them can go below.

    Args:
        layers: features, hidden units where there are some, classes.
    """
    times, (wide, *inner) = [], layers
    inputs, weight = torch.randn(batch_size, wide), torch.randn(num_heads * inner[0], wide)
    gradient = torch.randn(batch_size, num_heads * inner[0])
    given = [torch.randn(num_heads, batch_size, size) for size in inner]
    weights = [torch.randn(num_heads, size, after) for size, after in pairwise(inner)]
    out, weight_gradient = torch.empty_like(gradient), torch.empty_like(weight)
    for _ in range(10):
        start = time.perf_counter()
        torch.mm(inputs, weight.T, out=out)  # one product of all heads, on the same features
        torch.mm(gradient.T, inputs, out=weight_gradient)
        for place, matrix in enumerate(weights):
            torch.bmm(given[place], matrix)
            torch.bmm(given[place].transpose(1, 2), given[place + 1])
            torch.bmm(given[place + 1], matrix.transpose(1, 2))
        times.append(time.perf_counter() - start)
    return float(np.median(times))


@pytest.mark.bench
@pytest.mark.parametrize(("head", "num_trials"), [("linear", 32), ("mlp", 16)])
def test_trials_of_selective_on_scenes(
    head: str, num_trials: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "runs", user_cache_path("plbench"))  # scenes and their features are made once
    workspace = Workspace(store, Registry.discover(), Reporter(), torch.device("cpu"), workers=2)
    plans = trial_plans(head, num_trials, workspace)
    trials.score_together(plans[:2], workspace)  # features and the prior are there from now on
    seconds: dict[str, float] = {}  # of a trial
    scored = {}
    sizes = {"together": num_trials, f"in batches of {BATCH}, as tune asks for them": BATCH}
    for name, size in list(sizes.items())[num_trials == BATCH :]:  # of as many trials both are the same
        start = time.perf_counter()
        batches = [plans[first : first + size] for first in range(0, num_trials, size)]
        scored[name] = [trial for batch in batches for trial in trials.score_together(batch, workspace)]
        seconds[name] = (time.perf_counter() - start) / num_trials
    start = time.perf_counter()
    alone = [one_at_a_time(plan, workspace) for plan in plans[:ALONE]]
    seconds["one at a time"] = (time.perf_counter() - start) / ALONE
    gaps = [abs(one.value - other) for found in scored.values() for one, other in zip(found, alone, strict=False)]  # type: ignore[operator]
    assert max(gaps) < 0.1  # mAP(C), percentage points
    train, spec = plans[0].protocol_data.train("fit"), plans[0].spec
    steps = spec.plan.epochs * -(-len(train.rows) // spec.plan.batch_size)
    layers = [2560, *([spec.model.head_width] if head == "mlp" else []), train.labels.num_classes]
    floor = steps * product_seconds(num_trials, layers, spec.plan.batch_size) / num_trials
    with capsys.disabled():
        print(f"\n{num_trials} trials of selective, {head} head, {steps} steps; largest gap {max(gaps):.4f} mAP(C)")
        for name, value in seconds.items():
            ratio, share = seconds["one at a time"] / value, floor / value
            print(f"  {name}: {value:.2f} s each, {ratio:.1f} times as fast; products alone are {share:.0%} of it")
        print(f"  peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB")


@pytest.mark.bench
def test_an_epoch_of_16_heads_on_features_of_cocos_size(capsys: pytest.CaptureFixture[str]) -> None:
    num_rows, num_features, num_classes = 82_081, 2_048, 80
    rng = np.random.default_rng(0)
    features = rng.standard_normal((num_rows, num_features), dtype=np.float32)
    known = rng.integers(0, num_classes, (num_rows, 4))
    labels = np.zeros((num_rows, num_classes), np.int8)
    np.put_along_axis(labels, known, rng.choice([-1, 1], known.shape).astype(np.int8), axis=1)
    inputs = FeatureInputs(
        features, np.arange(num_rows), PartialLabels.from_dense(labels, [str(c) for c in range(num_classes)])
    )
    model = ModelSpec(backbone="x", weights="random", image_size=224, head="linear")
    method = Registry.discover().method("selective")
    execution = Execution(torch.device("cpu"), "float32")
    heads = []
    for number in range(16):
        plan = Plan(epochs=1, batch_size=128, lr=1e-3 * (1 + number))
        steps = -(-num_rows // plan.batch_size)
        counts = np.zeros(num_classes, int)
        names = tuple(str(c) for c in range(num_classes))
        prior = {"prior": torch.linspace(0.9, 0.0, num_classes)}
        task = Task(
            num_classes, names, names, counts, counts, num_rows, 1, steps, "probe", torch.Generator(), artifacts=prior
        )
        with seeded(0):
            network = nn.Sequential(nn.Identity(), make_head(model, num_features, num_classes))
        state = prepare_fit(network, method(method.Params(top_k=number), task), plan, steps, execution)
        heads.append(Head(state, plan, 0))
    start = time.perf_counter()
    fit_together(heads, inputs, execution)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    with capsys.disabled():
        print(f"\n16 linear heads, one epoch of 82,081 x 2,048 features: {seconds:.1f} s, peak memory {peak:.2f} GB")
