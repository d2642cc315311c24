"""Several processes take the steps that one takes, for every installed method; each evaluates its share, none twice."""

import math
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing
from torch import nn

from plbench.api import Batch, Loss, Method, MethodParams, ModelSpec, PartialLabels, Plan, Progress, Task
from plbench.errors import PlbenchError, TrainingError
from plbench.metrics import evaluate_cells
from plbench.metrics.cells import joined_cells
from plbench.models.backbones import make_head
from plbench.randomness import derive_seed, generator, seeded
from plbench.runs.registry import Registry
from plbench.spec import Regime
from plbench.training import evaluation
from plbench.training.distributed import ALONE, World, joined
from plbench.training.engine import fit, prepare_fit
from plbench.training.evaluation import View, collect_cells, predict, predict_share
from plbench.training.execution import Execution
from plbench.training.inputs import FeatureInputs
from plbench.training.state import FitState, own_copy

WORLDS = (2, 4)
NUM_SCORED, EVAL_BATCH_SIZE = 61, 8  # as many batches as deal unevenly to two and to four, the last one short
NUM_CLASSES, NUM_ROWS, BATCH_SIZE, NUM_FEATURES, IMAGE_SIZE = 6, 29, 10, 12, 32
PLAN = Plan(epochs=7, batch_size=BATCH_SIZE, lr=1e-2, weight_decay=1e-2, ema_horizon=0.3)
REGISTRY = Registry.discover()


@dataclass(frozen=True)
class Case:
    """One training to be repeated by several processes."""

    method: str
    regime: Regime = "probe"
    num_rows: int = NUM_ROWS
    plan: Plan = PLAN
    params: Mapping[str, Any] = field(default_factory=dict)  # of a stage, not its defaults

    @property
    def name(self) -> str:
        pieces = f"-{self.plan.accumulate}-pieces" if self.plan.accumulate > 1 else ""
        clipped = "-clipped" if self.plan.clip_grad else ""
        return f"{self.method}-{self.regime}-{self.num_rows}{pieces}{clipped}"


def all_cases() -> list[Case]:
    """Every method on features where it takes them and on images; short batches; fewer images than processes."""
    found = []
    for name in REGISTRY.names("method"):
        method = REGISTRY.method(name)
        if not method.learns:
            continue
        needs_images = bool(method.needs & {"images", "feature_map"})  # maps come from images here
        found += [] if needs_images else [Case(name), Case(name, num_rows=3)]
        found.append(Case(name, "finetune"))
    in_pieces = PLAN.model_copy(update={"accumulate": 3, "clip_grad": 0.05})
    found += [Case("bce-mean-known", plan=in_pieces), Case("ce-negative", "finetune", plan=in_pieces)]
    return found


CASES = {case.name: case for case in all_cases()}


class Convolutions(nn.Module):
    """Stands for a backbone without batch statistics: images to a map of 2 x 2 places, or to its mean."""

    num_features = NUM_FEATURES

    def __init__(self, gives_maps: bool) -> None:
        super().__init__()
        self.gives_maps = gives_maps
        self.stem = nn.Conv2d(3, 8, kernel_size=4, stride=4)
        self.last = nn.Conv2d(8, NUM_FEATURES, kernel_size=4, stride=4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps: torch.Tensor = self.last(nn.functional.gelu(self.stem(images)))
        return maps if self.gives_maps else maps.mean(dim=(-2, -1))


def some_inputs(case: Case) -> FeatureInputs:
    rng = np.random.default_rng(3)
    shape = (NUM_FEATURES,) if case.regime == "probe" else (3, IMAGE_SIZE, IMAGE_SIZE)
    values = rng.standard_normal((case.num_rows, *shape))
    present = values.reshape(case.num_rows, -1) @ rng.standard_normal((math.prod(shape), NUM_CLASSES)) > 0
    labels = np.where(present, 1, -1) * (rng.random(present.shape) < 0.6)
    return FeatureInputs(values, np.arange(case.num_rows), PartialLabels.from_dense(labels, list("abcdef")), seed=1)


def prepared(case: Case, inputs: FeatureInputs, execution: Execution) -> FitState:
    """A method with what its stages give it, and a model in float64."""
    method = REGISTRY.method(case.method)
    params, positives, negatives = method.Params(**case.params), *inputs.labels.counts()
    steps = math.ceil(case.num_rows / case.plan.batch_size)
    task = Task(
        num_classes=NUM_CLASSES,
        class_ids=inputs.labels.class_ids,
        class_names=inputs.labels.class_names,
        positives=positives,
        negatives=negatives,
        num_train=case.num_rows,
        epochs=case.plan.epochs,
        steps_per_epoch=steps,
        regime=case.regime,
        generator=generator(0, "method"),
        expected_positives=2.0,
    )
    artifacts = {}
    if "embeddings" in method.needs:
        rng = np.random.default_rng(4)
        artifacts["similarity"] = torch.from_numpy(rng.uniform(0, 0.3, (case.num_rows, NUM_CLASSES)).astype(np.float32))
    for stage in method.stages(params, task):
        plan = case.plan.model_copy(update={"epochs": 1, "accumulate": 1})
        first = replace(case, method=stage.method, plan=plan, params=stage.params)
        state = prepared(first, inputs, execution)
        fit(state, inputs, plan, execution, seed=0)
        artifacts[stage.name] = stage.reduce(View(state, inputs, execution))
    spec = ModelSpec(backbone="convolutions", weights="random", image_size=IMAGE_SIZE, head_dropout=0.3)
    made = method(params, replace(task, artifacts=artifacts))
    with seeded(derive_seed(0, "model")):
        backbone = nn.Identity() if case.regime == "probe" else Convolutions("feature_map" in method.needs)
        model = made.build(backbone, lambda: make_head(spec, NUM_FEATURES, NUM_CLASSES))
    return prepare_fit(model.double(), made, case.plan, steps, execution)


def outcome(case: Case, world: World) -> dict[str, Any]:
    """Weights, history and figures of one training, as the main process has them."""
    execution = Execution(torch.device("cpu"), "float32", world)
    inputs = some_inputs(case)
    state = prepared(case, inputs, execution)
    fit(state, inputs, case.plan, execution, seed=0)
    scored = some_inputs(replace(case, num_rows=NUM_SCORED))
    share = collect_cells(predict_share(state.averaged(), state.method, scored, execution), scored.labels)
    cells = joined_cells(world.gather_objects(share))
    streamed = torch.cat([chunk for _, chunk in predict(state.averaged(), state.method, scored, execution)])
    return {
        "model": own_copy(state.model),
        "ema": own_copy(state.averaged()),
        "method": state.method.state_dict(),
        "loss": [row["loss"] for row in state.history],
        "map_c": evaluate_cells(cells).map_c,
        "num_cells": len(cells.rows),
        "num_known": scored.labels.num_known,
        "scores": streamed,
    }


def work(rank: int, size: int, port: int, folder: Path) -> None:
    """What each process does: all cases, one after another."""
    torch.set_num_threads(1)
    evaluation.EVAL_BATCH_SIZE = EVAL_BATCH_SIZE
    environment = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in environment.items()})
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    with joined(torch.device("cpu")) as world:
        outcomes = {name: outcome(case, world) for name, case in CASES.items()}
        outcomes |= {"behaviour": behaviour(world)}
        if world.is_main:
            torch.save(outcomes, folder / f"{size}.pt")


class Exploding(Method):
    """Its loss is not finite in one process only, at step 4."""

    name, title = "exploding", "Exploding"

    class Params(MethodParams):
        pass

    def loss(self, output: torch.Tensor, batch: Batch, progress: Progress) -> Loss:
        bad = progress.step == 4 and bool((batch.index == BAD_ROW).any())
        return Loss.of_images((output**2).sum(dim=-1) * (torch.nan if bad else 1.0))


BAD_ROW = 7


def behaviour(world: World) -> dict[str, Any]:
    """What processes tell each other."""
    found: dict[str, Any] = {"shares": world.shares(5), "objects": world.gather_objects(f"process {world.rank}")}
    found["shared"] = world.shared(lambda: f"made by {world.rank}")
    found["sum"] = float(world.sum_(torch.tensor(float(world.rank + 1))))
    rows = torch.full((world.shares(5)[world.rank], 2), float(world.rank), requires_grad=True)
    whole = world.gather(rows, world.shares(5))
    (whole * torch.arange(1.0, 6.0)[:, None]).sum().backward()
    assert rows.grad is not None
    found["gathered"] = whole.detach()
    found["gradients"] = world.gather_objects(rows.grad[:, 0].tolist())
    try:
        world.check_same({"plbench": "0.1" if world.rank < world.size - 1 else "0.2"})
    except PlbenchError as error:
        found["mixed"] = str(error)
    inputs = some_inputs(Case("ce-negative"))
    execution = Execution(torch.device("cpu"), "float32", world)
    state = prepared(Case("ce-negative"), inputs, execution)
    exploding = Exploding(Exploding.Params(), state.method.task)
    state = prepare_fit(state.model, exploding, Case("ce-negative").plan, 3, execution)
    try:
        fit(state, inputs, Case("ce-negative").plan, execution, seed=0)
    except TrainingError as error:
        found["explosions"] = world.gather_objects(str(error))
    return found


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], dict[str, Any]]]:
    """Outcomes of all cases by number of processes."""
    folder = tmp_path_factory.mktemp("worlds")
    for size in WORLDS:
        torch.multiprocessing.start_processes(work, (size, free_port(), folder), nprocs=size, start_method="forkserver")
    found = {size: torch.load(folder / f"{size}.pt", weights_only=False) for size in WORLDS}  # our own, of just now
    patch = pytest.MonkeyPatch()
    patch.setattr(evaluation, "EVAL_BATCH_SIZE", EVAL_BATCH_SIZE)
    found[1] = {name: outcome(case, ALONE) for name, case in CASES.items()}
    patch.undo()
    yield lambda size: found[size]


def assert_close(one: Any, other: Any, where: str) -> None:
    """Equal structures, tensors within 1e-8."""
    if isinstance(one, torch.Tensor):
        assert one.shape == other.shape, where
        if one.numel():
            assert (one.double() - other.double()).abs().max() < 1e-8, where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name in one:
            assert_close(one[name], other[name], f"{where}.{name}")
    elif isinstance(one, float):
        assert one == pytest.approx(other, abs=1e-8), where
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_close(left, right, f"{where}[{number}]")
    else:
        assert one == other, where


@pytest.mark.slow
@pytest.mark.parametrize("size", WORLDS)
@pytest.mark.parametrize("name", CASES)
def test_several_processes_train_as_one(outcomes: Callable[[int], dict[str, Any]], name: str, size: int) -> None:
    one, several = outcomes(1)[name], outcomes(size)[name]
    for part in ("model", "ema", "method", "loss", "scores"):
        assert_close(one[part], several[part], part)
    assert several["map_c"] == pytest.approx(one["map_c"], abs=1e-9, nan_ok=True)
    assert several["num_cells"] == several["num_known"]  # every known cell once, none twice: Cells refuses that


@pytest.mark.slow
@pytest.mark.parametrize("size", WORLDS)
class TestTalk:
    def test_each_hears_of_the_others(self, outcomes: Callable[[int], dict[str, Any]], size: int) -> None:
        found = outcomes(size)["behaviour"]
        assert found["objects"] == [f"process {rank}" for rank in range(size)]
        assert found["shared"] == "made by 0"
        assert found["sum"] == size * (size + 1) / 2
        assert sum(found["shares"]) == 5 and max(found["shares"]) - min(found["shares"]) <= 1

    def test_rows_are_gathered_in_order_and_gradients_go_to_their_own(
        self, outcomes: Callable[[int], dict[str, Any]], size: int
    ) -> None:
        found = outcomes(size)["behaviour"]
        owners = [rank for rank, share in enumerate(found["shares"]) for _ in range(share)]
        assert found["gathered"][:, 0].tolist() == owners
        assert [value for own in found["gradients"] for value in own] == [1.0, 2.0, 3.0, 4.0, 5.0]

    def test_mixed_versions_are_refused(self, outcomes: Callable[[int], dict[str, Any]], size: int) -> None:
        sentence = outcomes(size)["behaviour"]["mixed"]
        assert sentence.startswith(f"process {size - 1} has plbench 0.2, process 0 has 0.1; give all of them")

    def test_a_loss_that_is_not_finite_in_one_stops_all_at_that_step(
        self, outcomes: Callable[[int], dict[str, Any]], size: int
    ) -> None:
        sentences = set(outcomes(size)["behaviour"]["explosions"])
        assert sentences == {"the loss of method 'exploding' is nan at step 4 (epoch 2)"}
