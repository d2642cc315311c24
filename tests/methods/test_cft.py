"""Category-wise fine-tuning: what is trained, what is kept and why, and the genetic search, against plain code."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from plbench.api import Batch, Method, PartialLabels, Plan, PlbenchError, Progress, Task
from plbench.methods.asl_negative import ASLNegative
from plbench.methods.cft import CFT, Refitted, evolved, precisions, whole_state
from plbench.randomness import seeded
from plbench.runs.estimate.synthetic import about_to_train
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.plan.resolved import validate_params
from plbench.runs.run import run
from plbench.runs.workspace import Workspace
from plbench.training.engine import fit, prepare_fit
from plbench.training.evaluation import View
from plbench.training.execution import Execution
from plbench.training.inputs import FeatureInputs
from plbench.training.state import FitState

NUM_ROWS, NUM_FEATURES, WIDTH, NUM_CLASSES, EPOCHS = 90, 6, 5, 4, 5
PLAN = Plan(epochs=EPOCHS, batch_size=15, lr=5e-2, weight_decay=0.0, ema_horizon=0.2)
STEPS = NUM_ROWS // PLAN.batch_size
CPU = Execution(torch.device("cpu"), "float32")
START = Progress(0, STEPS * EPOCHS, 0, EPOCHS)


def features() -> np.ndarray:
    return np.random.default_rng(5).standard_normal((NUM_ROWS, NUM_FEATURES), dtype=np.float32)


def known() -> np.ndarray:
    """Labels [N, C] that features tell, half of them known; class 3 is never known to be absent."""
    rng = np.random.default_rng(7)
    noise = rng.standard_normal((NUM_ROWS, NUM_CLASSES))
    labels = np.where(features() @ rng.standard_normal((NUM_FEATURES, NUM_CLASSES)) + noise > 0.0, 1, -1)
    labels = labels * (rng.random(labels.shape) < 0.5)
    labels[:, 3] = np.maximum(labels[:, 3], 0)
    return labels.astype(np.int8)


def inputs(labels: np.ndarray | None = None) -> FeatureInputs:
    names = [str(column) for column in range(NUM_CLASSES)]
    return FeatureInputs(
        features(), np.arange(NUM_ROWS), PartialLabels.from_dense(known() if labels is None else labels, names)
    )


def head() -> nn.Module:
    return nn.Sequential(nn.Linear(NUM_FEATURES, WIDTH), nn.ReLU(), nn.Dropout(0.5), nn.Linear(WIDTH, NUM_CLASSES))


def base_model() -> nn.Module:
    with seeded(1):
        return nn.Sequential(nn.Identity(), head())


def state_of(model: nn.Module) -> Tensor:
    return torch.cat([value.flatten() for value in model.state_dict().values()])


@pytest.fixture
def build(make_task: Callable[..., Task]) -> Callable[..., Method]:
    def make(**params: Any) -> Method:
        task = make_task(NUM_CLASSES, {"base": state_of(base_model())})
        task = dataclasses.replace(task, num_train=NUM_ROWS, epochs=EPOCHS, steps_per_epoch=STEPS)
        return CFT(validate_params(CFT, {"held_out": 0.4, **params}), task)

    return make


def prepared(method: Method) -> FitState:
    with seeded(0):
        return prepare_fit(method.build(nn.Identity(), head), method, PLAN, STEPS, CPU)


def train(state: FitState, labels: np.ndarray | None = None, until: int = EPOCHS) -> FitState:
    fit(state, inputs(labels), PLAN, CPU, seed=0, stop_after=until)
    return state


def logits_of(model: nn.Module, weight: Tensor, bias: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval().body(torch.from_numpy(features())) @ weight.T + bias


def held_out_precision(method: Method, logits: Tensor, column: int) -> float:
    labels = known()[:, column]
    rows = [row for row in range(NUM_ROWS) if method.is_held[row] and labels[row]]
    return float(average_precision_score(labels[rows] > 0, logits[rows, column].numpy()))


class TestStart:
    def test_it_begins_as_the_model_of_its_base(self, build: Callable[..., Method]) -> None:
        """Whatever was initialised, scores are the base's until something better is kept; the body drops nothing."""
        base = base_model().eval()
        for by in ("bp", "ga"):
            method = build(by=by)
            state = prepared(method)
            output = method.forward(state.model.train(), Batch(torch.from_numpy(features()), None, None), START)
            expected = torch.sigmoid(base(torch.from_numpy(features())))
            torch.testing.assert_close(method.scores(output), expected)

    def test_what_a_stage_hands_on_is_the_averaged_state(self, build: Callable[..., Method]) -> None:
        method = build(only_base=True)
        state = train(prepared(method))
        view = View(state, inputs(), CPU)
        assert view.model() is state.ema.module and view.model("raw") is state.model
        assert torch.equal(whole_state(view), state_of(state.ema.module))
        assert not torch.equal(whole_state(view), state_of(state.model))

    def test_stage_and_refit_hold_out_the_same_images(self, build: Callable[..., Method]) -> None:
        refit = build(held_out=0.3)
        (stage,) = CFT.stages(refit.params, refit.task)
        alone = build(**stage.params)
        assert torch.equal(alone.is_held, refit.is_held)
        assert int(refit.is_held.sum()) == round(0.3 * NUM_ROWS)
        assert not CFT.stages(alone.params, alone.task)

    def test_the_base_learns_nothing_of_held_out_images(self, build: Callable[..., Method]) -> None:
        method, other = build(only_base=True), known()
        other[method.is_held.numpy()] *= -1
        first, second = train(prepared(method)), train(prepared(build(only_base=True)), other)
        assert torch.equal(state_of(first.model), state_of(second.model))
        assert not torch.equal(state_of(first.model), state_of(train(prepared(method), -known()).model))

    def test_base_loss_is_that_of_its_method(self, build: Callable[..., Method]) -> None:
        method = build(only_base=True)
        logits = torch.randn(NUM_ROWS, NUM_CLASSES, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        batch = Batch(logits, torch.from_numpy(known()), torch.arange(NUM_ROWS))
        rows = (~method.is_held).nonzero().squeeze(1)
        own = Batch(logits[rows], batch.labels[rows], rows)
        expected = ASLNegative(ASLNegative.Params(), method.task).loss(own.inputs, own, START)
        loss = method.loss(logits, batch, START)
        assert float(loss.total) == pytest.approx(float(expected.total), rel=1e-12)
        assert loss.weight == len(rows)

    def test_refusals(self, build: Callable[..., Method]) -> None:
        with pytest.raises(PlbenchError, match=r"base 'boostlu' of method 'cft' is none of asl-negative, "):
            build(base="boostlu")
        with pytest.raises(PlbenchError, match="this one ends otherwise"):
            build().build(nn.Identity(), lambda: nn.Sequential(nn.Linear(3, 2), nn.ReLU()))


@pytest.mark.parametrize("params", [{}, {"gamma_neg": 0.0, "clip": 0.0}, {"by": "ga"}])
def test_loss(build: Callable[..., Method], params: dict[str, Any]) -> None:
    """ASL (0, gamma-, m) of known labels of images that are not held out, a mean over images; cross-entropy by ga."""
    method = build(**params)
    gamma, clip = (0.0, 0.0) if params else (4.0, 0.05)
    logits = torch.randn(NUM_ROWS, NUM_CLASSES, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = 0.0
    for row, column in itertools.product(range(NUM_ROWS), range(NUM_CLASSES)):
        if known()[row, column] and not method.is_held[row]:
            p = 1 / (1 + math.exp(-float(logits[row, column])))
            q = max(p - clip, 0.0)
            expected += -math.log(p) if known()[row, column] > 0 else -(q**gamma) * math.log(1 - q)
    batch = Batch(logits, torch.from_numpy(known()), torch.arange(NUM_ROWS))
    loss = method.loss((logits, logits), batch, START)
    assert float(loss.total) / float(loss.weight) == pytest.approx(expected / NUM_ROWS, rel=1e-6)


class TestBP:
    def test_each_class_keeps_its_best_epoch_on_held_out_images(self, build: Callable[..., Method]) -> None:
        """Against a training that is looked at after each epoch; class 3 has no known negative and stays."""
        method = build()
        state = prepared(method)
        base = state.model.last
        candidates = [(base.weight.detach().clone(), base.bias.detach().clone())]
        for epoch in range(1, EPOCHS + 1):
            last = train(state, until=epoch).ema.module.last
            candidates.append((last.weight.detach().clone(), last.bias.detach().clone()))
        chosen = []
        for column in range(3):
            values = [held_out_precision(method, logits_of(state.model, *one), column) for one in candidates]
            chosen.append(int(np.argmax(values)))  # of equal ones the first
            for model in (state.model, state.ema.module):
                assert float(model.kept_precision[column]) == pytest.approx(values[chosen[-1]], rel=1e-6)
                assert torch.equal(model.kept_weight[column], candidates[chosen[-1]][0][column])
                assert torch.equal(model.kept_bias[column], candidates[chosen[-1]][1][column])
        assert any(chosen) and len(set(chosen)) > 1
        assert torch.equal(state.model.kept_weight[3], candidates[0][0][3])
        assert not method.idle()
        assert torch.equal(state.model.body[1].weight, base_model()[1][0].weight)  # all else is as it was

    def test_classes_do_not_touch_each_other(self, build: Callable[..., Method]) -> None:
        """What is known of other classes changes nothing: the paper fits one class after another."""
        together = train(prepared(build())).model
        for column in range(3):
            alone = np.zeros_like(known())
            alone[:, column] = known()[:, column]
            model = train(prepared(build()), alone).model
            torch.testing.assert_close(model.last.weight[column], together.last.weight[column])
            torch.testing.assert_close(model.kept_weight[column], together.kept_weight[column])

    def test_where_nothing_is_better_all_stay(self, build: Callable[..., Method]) -> None:
        """Labels that cannot be learnt from: every class lacks known negatives."""
        method = build()
        model = train(prepared(method), np.maximum(known(), 0)).model
        assert torch.equal(model.kept_weight, base_model()[1][3].weight)
        assert "no class had a higher" in method.idle()[0]


@pytest.mark.parametrize("decimals", [8, 1, 0])
def test_average_precisions(decimals: int) -> None:
    """As of scikit-learn, also where scores are equal."""
    rng = np.random.default_rng(1)
    scores, positives = rng.standard_normal((5, 40)).round(decimals), rng.random(40) < 0.3
    expected = [average_precision_score(positives, row) for row in scores]
    assert precisions(torch.from_numpy(scores), torch.from_numpy(positives)).tolist() == pytest.approx(expected)


class TestGA:
    PARAMS = CFT.Params(by="ga", population=6, generations=8, mutation_range=0.3)

    def data(self, seed: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((30, 4))
        positives = x @ [1.0, -1.0, 0.5, 0.0] + rng.standard_normal(30) > 0
        return torch.from_numpy(x).float(), torch.from_numpy(positives)

    def test_it_is_the_algorithm(self) -> None:
        """The same draws, one weight at a time; fitness by scikit-learn."""
        own, held, params = self.data(1), self.data(2), self.PARAMS
        origin, chance = torch.tensor([0.2, 0.4, -0.3, 0.1]), torch.Generator().manual_seed(3)

        def precision(weights: Tensor, side: tuple[Tensor, Tensor]) -> float:
            return float(average_precision_score(side[1].numpy(), (side[0] @ weights).numpy()))

        population = [origin] * params.population
        best, value = origin, precision(origin, held)
        start = value
        for _ in range(params.generations):
            fitness = [precision(one, own) for one in population]
            champion = population[int(np.argmax(fitness))]
            if precision(champion, held) > value + 1e-12:
                best, value = champion, precision(champion, held)
            weights = torch.tensor(fitness, dtype=torch.float64)
            parents = torch.multinomial(weights, 2 * len(population), replacement=True, generator=chance).tolist()
            crossed, shifts = (torch.rand(len(population), 4, generator=chance) for _ in range(2))
            mutated = torch.rand(len(population), 1, generator=chance)
            children = []
            for number in range(len(population)):
                child = torch.zeros(4)
                for place in range(4):
                    parent = parents[number if crossed[number, place] < params.crossover else number + len(population)]
                    child[place] = population[parent][place]
                    if mutated[number, 0] < params.mutation:
                        child[place] += params.mutation_range * (2 * shifts[number, place] - 1)
                children.append(child)
            population = [champion, *children[1:]]
        found, found_value = evolved(origin, own, held, start, params, torch.Generator().manual_seed(3))
        torch.testing.assert_close(found, best)
        assert found_value == pytest.approx(value) and value > start

    def test_without_mutation_nothing_moves(self) -> None:
        still = self.PARAMS.model_copy(update={"mutation": 0.0})
        origin = torch.ones(4)
        found, value = evolved(origin, self.data(1), self.data(2), 0.1, still, torch.Generator().manual_seed(3))
        assert torch.equal(found, origin) and value > 0.1

    def test_a_run_keeps_what_is_better_and_then_changes_no_order(self, build: Callable[..., Method]) -> None:
        method = build(by="ga", generations=30, mutation_range=0.3)
        state = train(prepared(method))
        base, better = base_model()[1][3], 0
        for column in range(3):
            first = held_out_precision(method, logits_of(state.model, base.weight, base.bias), column)
            kept = float(state.model.kept_precision[column])
            better += kept > first
            assert kept >= first - 1e-9
            for model in (state.model, state.ema.module):
                assert isinstance(model, Refitted)
                with torch.no_grad():
                    scores = method.scores(model.eval()(torch.from_numpy(features())))
                assert held_out_precision(method, scores, column) == pytest.approx(kept, rel=1e-6)
                assert model.log_scale[column].item() and model.offset[column].item()  # they learnt
        assert better
        assert torch.equal(state.model.kept_weight[3], base.weight[3])
        assert torch.equal(state.model.last.weight, base.weight)


@pytest.mark.usefixtures("quick_records")
@pytest.mark.parametrize(("by", "regime"), [("bp", "probe"), ("ga", "probe"), ("bp", "finetune")])
def test_from_plan_to_record(make_workspace: Callable[..., Workspace], by: str, regime: str) -> None:
    workspace = make_workspace()
    request = Request("tiny", "cft", {"by": by, "generations": 5}, simulate="fpc=12", regime=regime, plan={"epochs": 2})
    plan = plan_run(request, workspace)
    (stage,) = plan.prerequisites
    assert stage.params.only_base and stage.spec.method.name == "cft"
    if regime == "probe":  # it can be measured before the stage is trained
        about_to_train(plan, None, (NUM_FEATURES,), CPU)
    assert run(plan, workspace).status == "done"
    assert stage.finished(workspace.store) is not None
