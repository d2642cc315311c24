"""The training and evaluation loops: reductions, schedule, averages, seeds, and what a method may see."""

import copy
import math
import random
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plbench.api import Batch, Loss, Method, PartialLabels, Plan, PlbenchError, Progress, Task, TrainView
from plbench.errors import TrainingError
from plbench.randomness import derive_seed, generator, seeded
from plbench.training import evaluation
from plbench.training.engine import fit, prepare_fit
from plbench.training.evaluation import View, collect_cells, predict
from plbench.training.execution import Execution, widened
from plbench.training.inputs import FeatureInputs
from plbench.training.optimizer import make_optimizer
from plbench.training.state import FitState

CPU = Execution(torch.device("cpu"), "float32")
NUM_ROWS, NUM_FEATURES, NUM_CLASSES = 48, 20, 5
PLAN = Plan(epochs=3, batch_size=16, lr=1e-2, weight_decay=0.1, ema_horizon=0.5)


class Known(Method):
    """Cross-entropy on known labels, per known label."""

    name, title = "known", "Known"

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        known = batch.labels != 0
        return Loss(known_loss(output, batch.labels), known.sum())


class Images(Method):
    """Cross-entropy on known labels, per image."""

    name, title = "images", "Images"

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        return Loss(known_loss(output, batch.labels), float(len(batch.index)))


def known_loss(logits: Tensor, labels: Tensor) -> Tensor:
    terms = F.binary_cross_entropy_with_logits(logits, (labels > 0).to(logits.dtype), reduction="none")
    return terms[labels != 0].sum()


def some_inputs(*, num_rows: int = NUM_ROWS, known: float = 0.4, seed: int = 0, double: bool = False) -> FeatureInputs:
    rng = np.random.default_rng(5)
    features = rng.standard_normal((num_rows, NUM_FEATURES)).astype(np.float64 if double else np.float32)
    present = features @ rng.standard_normal((NUM_FEATURES, NUM_CLASSES)) > 0
    labels = np.where(present, 1, -1) * (rng.random(present.shape) < known)
    return FeatureInputs(
        features, np.arange(num_rows), PartialLabels.from_dense(labels, [str(c) for c in range(NUM_CLASSES)]), seed
    )


@pytest.fixture
def build(make_task: Callable[..., Task]) -> Callable[..., Method]:
    def make(kind: type[Method], seed: int = 0) -> Method:
        return kind(kind.Params(), make_task(NUM_CLASSES, seed=seed))

    return make


def a_model(*, dropout: float = 0.0, seed: int = 0) -> nn.Module:
    with seeded(seed):
        return nn.Sequential(nn.Linear(NUM_FEATURES, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, NUM_CLASSES))


def train(
    method: Method, model: nn.Module, inputs: FeatureInputs, plan: Plan = PLAN, *, seed: int = 0, **options: Any
) -> FitState:
    state = prepare_fit(model, method, plan, math.ceil(len(inputs) / plan.batch_size), CPU)
    fit(state, inputs, plan, CPU, seed=seed, **options)
    return state


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)


def scores_of(state: FitState, inputs: FeatureInputs) -> Tensor:
    return torch.cat([scores for _, scores in predict(state.averaged(), state.method, inputs, CPU)])


class TestReduction:
    def test_gradients_are_those_of_the_loss_per_unit_of_weight(self, build: Callable[..., Method]) -> None:
        inputs, plan = some_inputs(), Plan(epochs=1, batch_size=NUM_ROWS, lr=1e-2)
        for kind, weight in ((Known, inputs.labels.num_known), (Images, NUM_ROWS)):
            model, reference = a_model(), a_model()
            state = train(build(kind), model, inputs, plan)
            labels = torch.from_numpy(inputs.labels.rows(np.arange(NUM_ROWS)))
            direct = known_loss(reference(torch.from_numpy(inputs.features)), labels) / weight
            direct.backward()
            for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
                torch.testing.assert_close(ours.grad, theirs.grad)
            assert state.history[0]["loss"] == pytest.approx(direct.item(), rel=1e-5)

    @pytest.mark.parametrize("kind", [Known, Images])
    @pytest.mark.parametrize("pieces", [4, 5, 16])
    def test_accumulation_changes_nothing(self, build: Callable[..., Method], kind: type[Method], pieces: int) -> None:
        inputs = some_inputs(double=True, num_rows=44)  # the last batch is short
        whole = train(build(kind), a_model().double(), inputs)
        plan = PLAN.model_copy(update={"accumulate": pieces})
        in_pieces = train(build(kind), a_model().double(), inputs, plan)
        for one, other in zip(whole.model.parameters(), in_pieces.model.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(whole.history[-1]["loss"], in_pieces.history[-1]["loss"])

    @pytest.mark.filterwarnings("ignore:Detected call of")  # torch's, of a schedule that runs ahead of the optimiser
    def test_a_weight_of_0_takes_no_step(self, build: Callable[..., Method]) -> None:
        inputs = some_inputs(known=0.0)
        state = train(build(Known), a_model(), inputs)
        assert same_bits(state.model, a_model())
        assert not state.optimizer.state
        assert state.step == 9
        assert [row["loss"] for row in state.history] == [0.0, 0.0, 0.0]

    def test_the_gradient_is_clipped_after_it_is_scaled(self, build: Callable[..., Method]) -> None:
        plan = PLAN.model_copy(update={"clip_grad": 1e-3, "epochs": 1})
        state = train(build(Known), a_model(), some_inputs(), plan)
        norm = torch.stack([p.grad.norm() for p in state.model.parameters() if p.grad is not None]).norm()
        assert norm.item() == pytest.approx(1e-3, rel=1e-3)

    def test_a_method_of_whole_batches_refuses_accumulation(self, build: Callable[..., Method]) -> None:
        class Whole(Known):
            name, batch_scope = "whole", "batch"

        with pytest.raises(PlbenchError, match="'whole' needs the whole batch at once; use accumulate = 1"):
            train(build(Whole), a_model(), some_inputs(), PLAN.model_copy(update={"accumulate": 2}))


class TestSchedule:
    @pytest.mark.parametrize("pct_start", [0.2, 0.5, 0.9])
    @pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 10])
    def test_short_runs_are_run_to_their_end(
        self, build: Callable[..., Method], num_steps: int, pct_start: float
    ) -> None:
        plan = Plan(epochs=num_steps, batch_size=NUM_ROWS, lr=1e-2, pct_start=pct_start)
        state = train(build(Known), a_model(), some_inputs(), plan)
        assert state.step == num_steps
        assert all(torch.isfinite(p).all() for p in state.model.parameters())
        assert all(0 < row["lr"] <= 1e-2 * (1 + 1e-9) for row in state.history)
        assert not same_bits(state.model, a_model())

    def test_it_is_torchs_one_cycle(self, build: Callable[..., Method]) -> None:
        plan = Plan(epochs=20, batch_size=NUM_ROWS, lr=1e-2, pct_start=0.3)
        state = train(build(Known), a_model(), some_inputs(), plan)
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=20, pct_start=0.3)
        for row in state.history:
            optimizer.step()
            schedule.step()
            assert row["lr"] == pytest.approx(schedule.get_last_lr()[0], rel=1e-12)


class TestAverage:
    @pytest.mark.parametrize(
        ("num_epochs", "decay", "horizon", "expected"),
        [(100, 0.9997, 0.05, 0.8), (100, 0.7, 0.05, 0.7), (100, 0.9997, 0.5, 0.98), (38000, 0.9997, 0.1, 0.9997)],
    )
    def test_its_horizon_is_a_share_of_the_run(
        self, build: Callable[..., Method], num_epochs: int, decay: float, horizon: float, expected: float
    ) -> None:
        plan = Plan(epochs=num_epochs, batch_size=NUM_ROWS, lr=1e-2, ema_decay=decay, ema_horizon=horizon)
        assert prepare_fit(a_model(), build(Known), plan, 1, CPU).ema.decay == pytest.approx(expected)

    @pytest.mark.parametrize("changes", [{"ema_decay": 0.0}, {"ema_horizon": 0.0}, {"ema_horizon": 0.01}])
    def test_without_a_horizon_there_is_none(self, build: Callable[..., Method], changes: dict[str, float]) -> None:
        plan = Plan(epochs=100, batch_size=NUM_ROWS, lr=1e-2).model_copy(update=changes)
        state = prepare_fit(a_model(), build(Known), plan, 1, CPU)
        assert state.ema is None
        assert state.averaged("ema") is state.averaged("raw") is state.model

    def test_a_short_run_forgets_its_initial_weights(self, build: Callable[..., Method]) -> None:
        plan = Plan(epochs=100, batch_size=NUM_ROWS, lr=1e-2, ema_decay=0.9997, ema_horizon=0.1)
        state = train(build(Known), a_model(), some_inputs(), plan)
        gap = [
            sum((p - q).norm() ** 2 for p, q in zip(one.parameters(), other.parameters(), strict=True)) ** 0.5
            for one, other in ((state.averaged(), state.model), (state.model, a_model()))
        ]
        assert gap[0] > 0
        assert gap[0] < 0.05 * gap[1]


class TestOptimiser:
    def by_hand(
        self, kind: type[torch.optim.Optimizer], inputs: FeatureInputs, decay: float, share: float
    ) -> nn.Module:
        """Trains on the summed loss times `share`."""
        model, labels = a_model(), torch.from_numpy(inputs.labels.rows(np.arange(NUM_ROWS)))
        weights = [p for p in model.parameters() if p.ndim > 1]
        biases = [p for p in model.parameters() if p.ndim == 1]
        groups = [{"params": weights, "weight_decay": decay}, {"params": biases, "weight_decay": 0.0}]
        optimizer = kind(groups, lr=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=12, pct_start=0.2)
        for epoch in range(12):
            order = next(inputs.shuffled(NUM_ROWS, epoch)).index
            optimizer.zero_grad()
            loss = known_loss(model(torch.from_numpy(inputs.features)[order]), labels[order])
            (loss * share).backward()
            optimizer.step()
            schedule.step()
        return model

    def test_each_is_what_its_name_says(self, build: Callable[..., Method]) -> None:
        inputs = some_inputs()
        plan = Plan(epochs=12, batch_size=NUM_ROWS, lr=1e-2, weight_decay=0.1)
        trained = {}
        for name, kind, method, share in (
            ("adamw", torch.optim.AdamW, Known, 1 / inputs.labels.num_known),
            ("adam-coupled", torch.optim.Adam, Images, 1.0),  # as CSL: summed over images
        ):
            state = train(build(method), a_model(), inputs, plan.model_copy(update={"optimizer": name}))
            expected = self.by_hand(kind, inputs, 0.1, share)
            for ours, theirs in zip(state.model.parameters(), expected.parameters(), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
            trained[name] = state.model[0].weight.detach()
        assert (trained["adamw"] - trained["adam-coupled"]).abs().max() > 1e-3

    @pytest.mark.parametrize("batch_size", [NUM_ROWS, NUM_ROWS // 2, NUM_ROWS // 4])
    def test_coupled_decay_is_that_of_a_summed_loss_whatever_the_batch(self, batch_size: int) -> None:
        model = nn.Linear(3, 2).double()
        plan = Plan(epochs=1, batch_size=batch_size, lr=1e-2, weight_decay=0.1, optimizer="adam-coupled")
        summed = copy.deepcopy(model)
        method = SimpleNamespace(name="x", param_groups=lambda model: [{"params": list(model.parameters())}])
        ours, _ = make_optimizer(model, method, plan)  # type: ignore[arg-type]
        theirs = torch.optim.Adam(
            [{"params": [summed.weight], "weight_decay": 0.1}, {"params": [summed.bias], "weight_decay": 0.0}], lr=1e-2
        )
        for step in range(20):
            values = torch.randn(batch_size, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
            for net, optimizer, share in ((model, ours, 1 / batch_size), (summed, theirs, 1.0)):
                optimizer.zero_grad()
                (share * net(values).square().sum()).backward()
                optimizer.step()
        torch.testing.assert_close(model.weight, summed.weight, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(model.bias, summed.bias, rtol=1e-12, atol=1e-14)

    def test_only_matrices_decay(self, build: Callable[..., Method]) -> None:
        class Still(Known):
            name = "still"

            def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
                return Loss.of_images(0.0 * output.sum(dim=-1))

        state, start = train(build(Still), a_model(), some_inputs()), a_model()
        for now, then in zip(state.model.parameters(), start.parameters(), strict=True):
            if then.ndim == 1:
                assert torch.equal(now, then)
            else:
                assert now.norm() < then.norm()

    def test_a_group_may_learn_faster_than_the_rest(self, build: Callable[..., Method]) -> None:
        class FastHead(Known):
            name = "fast-head"

            def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
                assert isinstance(model, nn.Sequential)
                return [
                    {"params": list(model[0].parameters())},
                    {"params": list(model[3].parameters()), "lr_scale": 10.0},
                ]

        state = prepare_fit(a_model(), build(FastHead), PLAN, 3, CPU)
        assert [group["max_lr"] for group in state.optimizer.param_groups] == pytest.approx([0.01, 0.01, 0.1, 0.1])
        assert [group["weight_decay"] for group in state.optimizer.param_groups] == [0.1, 0.0, 0.1, 0.0]

    def test_a_model_that_is_all_frozen_is_refused(self, build: Callable[..., Method]) -> None:
        with pytest.raises(PlbenchError, match="'known' has no parameter to train"):
            prepare_fit(a_model().requires_grad_(False), build(Known), PLAN, 3, CPU)


class TestSeeds:
    def test_the_same_seed_gives_the_same_bits(self, build: Callable[..., Method]) -> None:
        one, other = (train(build(Known), a_model(dropout=0.5), some_inputs()) for _ in range(2))
        assert same_bits(one.model, other.model)
        assert same_bits(one.averaged(), other.averaged())
        assert [row["loss"] for row in one.history] == [row["loss"] for row in other.history]

    def test_another_seed_does_not(self, build: Callable[..., Method]) -> None:
        one = train(build(Known), a_model(dropout=0.5), some_inputs())
        other_order = train(build(Known), a_model(dropout=0.5), some_inputs(seed=1))
        other_dropout = train(build(Known), a_model(dropout=0.5), some_inputs(), seed=1)
        assert not same_bits(one.model, other_order.model)
        assert not same_bits(one.model, other_dropout.model)

    def test_the_callers_random_state_is_left_alone(self, build: Callable[..., Method]) -> None:
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
        state = train(build(Known), a_model(dropout=0.5), some_inputs())
        list(predict(state.model, state.method, some_inputs(), CPU, dropout_seed=1))
        after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
        assert before[:2] == after[:2]
        assert torch.equal(before[2], after[2])

    def test_streams_of_other_names_are_others(self) -> None:
        names = [("shuffle", 0), ("shuffle", 1), ("init", "head"), ("init", "backbone"), ("method", "selective")]
        seeds = {derive_seed(seed, *name) for seed in range(20) for name in names}
        assert len(seeds) == 20 * len(names)
        assert derive_seed(1, "a", "b") != derive_seed(1, "ab")
        assert all(0 <= seed < 2**63 for seed in seeds)
        assert derive_seed(0, "shuffle", 1) == 4918843990233923725  # the same on every machine, for good
        assert torch.equal(torch.rand(3, generator=generator(0, "x")), torch.rand(3, generator=generator(0, "x")))


class TestEvaluation:
    @pytest.mark.parametrize("size", [1, 7, 48])
    def test_the_batch_size_does_not_matter(
        self, build: Callable[..., Method], monkeypatch: pytest.MonkeyPatch, size: int
    ) -> None:
        model = nn.Sequential(a_model(dropout=0.5), nn.BatchNorm1d(NUM_CLASSES))
        state = train(build(Known), model, some_inputs())
        whole = scores_of(state, some_inputs())
        monkeypatch.setattr(evaluation, "EVAL_BATCH_SIZE", size)
        torch.testing.assert_close(scores_of(state, some_inputs()), whole, rtol=1e-5, atol=1e-7)

    def test_every_row_comes_once_and_in_order(
        self, build: Callable[..., Method], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(evaluation, "EVAL_BATCH_SIZE", 7)
        rows = [rows for rows, _ in predict(a_model(), build(Known), some_inputs(), CPU)]
        assert torch.cat(rows).tolist() == list(range(NUM_ROWS))

    def test_the_method_sees_no_labels(self, build: Callable[..., Method]) -> None:
        class Peeking(Known):
            name = "peeking"
            seen: ClassVar[list[Tensor]] = []

            def forward(self, model: nn.Module, batch: Batch, progress: Progress) -> Tensor:
                self.seen.append(batch.labels)
                return model(batch.inputs)

        inputs = some_inputs()
        list(predict(a_model(), build(Peeking), inputs, CPU))
        assert [labels.shape for labels in Peeking.seen] == [(NUM_ROWS, NUM_CLASSES)]
        assert not Peeking.seen[0].any()

    def test_modules_are_in_eval_mode_and_then_as_they_were(self, build: Callable[..., Method]) -> None:
        model = a_model(dropout=0.9).train()
        model[1].eval()
        plain = torch.cat([scores for _, scores in predict(model, build(Known), some_inputs(), CPU)])
        assert torch.equal(plain, torch.sigmoid(a_model()(torch.from_numpy(some_inputs().features))))
        assert [module.training for module in model] == [True, False, True, True]

    def test_dropout_is_on_where_asked_and_seeded(self, build: Callable[..., Method]) -> None:
        state = train(build(Known), a_model(dropout=0.5), some_inputs())
        view: TrainView = View(state, some_inputs(), CPU)

        def scores(*weights: Any, **options: Any) -> Tensor:
            return torch.cat([chunk for _, chunk in view.predict(*weights, **options)])

        assert torch.equal(scores(dropout=True), scores(dropout=True))
        assert not torch.equal(scores(dropout=True), scores())
        assert not torch.equal(scores("raw"), scores("ema"))
        spread = [(scores(dropout=True, passes=n) - scores()).abs().mean().item() for n in (1, 30)]
        assert spread[1] < 0.5 * spread[0]

    def test_cells_hold_the_scores_of_known_labels_only(self, build: Callable[..., Method]) -> None:
        inputs, model = some_inputs(), a_model()
        cells = collect_cells(predict(model, build(Known), inputs, CPU), inputs.labels)
        rows, columns, values = inputs.labels.cells()
        scores = torch.cat([chunk for _, chunk in predict(model, build(Known), inputs, CPU)]).numpy()
        assert np.array_equal(cells.rows, rows)
        assert np.array_equal(cells.class_index, columns)
        assert np.array_equal(cells.positives, values > 0)
        assert np.array_equal(cells.scores, scores[rows, columns])
        assert (cells.num_images, cells.num_classes) == (NUM_ROWS, NUM_CLASSES)

    @pytest.mark.parametrize(
        ("broken", "sentence"),
        [(torch.nan, "gave scores.*not finite"), (None, r"scores gave \[48, 4\] where .*48, 5\]")],
    )
    def test_scores_that_cannot_be_are_refused(
        self, build: Callable[..., Method], broken: float | None, sentence: str
    ) -> None:
        class Broken(Known):
            name = "broken"

            def scores(self, output: Tensor) -> Tensor:
                return output[:, :-1] if broken is None else torch.full_like(output, broken)

        with pytest.raises(PlbenchError, match=f"method 'broken'.* {sentence}"):
            list(predict(a_model(), build(Broken), some_inputs(), CPU))


class TestLoop:
    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_a_loss_that_is_not_finite_stops_it(self, build: Callable[..., Method], value: float) -> None:
        class Exploding(Known):
            name = "exploding"

            def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
                return Loss(output.sum() * (value if progress.step == 4 else 1.0), 1.0)

        state = prepare_fit(a_model(), build(Exploding), PLAN, 3, CPU)
        with pytest.raises(TrainingError, match=rf"method 'exploding' is {value} at step 4 \(epoch 2\)"):
            fit(state, some_inputs(), PLAN, CPU, seed=0)
        assert all(torch.isfinite(p).all() for p in state.model.parameters())  # no step was taken with it

    def test_hooks_and_progress_come_in_order(self, build: Callable[..., Method]) -> None:
        class Noting(Known):
            name = "noting"
            notes: ClassVar[list[tuple[str, int, int]]] = []

            def epoch_start(self, view: TrainView, progress: Progress) -> None:
                assert sum(len(rows) for rows, _ in view.predict()) == NUM_ROWS
                self.notes.append(("start", progress.epoch, progress.step))

            def epoch_end(self, view: TrainView, progress: Progress) -> None:
                self.notes.append(("end", progress.epoch, progress.step))

            def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
                assert progress.num_steps == 9
                assert progress.num_epochs == 3
                self.notes.append(("loss", progress.epoch, progress.step))
                return super().loss(output, batch, progress)

        train(build(Noting), a_model(), some_inputs())
        expected: list[tuple[str, int, int]] = []
        for epoch in range(3):
            steps = range(3 * epoch, 3 * epoch + 3)
            expected += [("start", epoch, steps[0]), *(("loss", epoch, step) for step in steps)]
            expected += [("end", epoch, steps[-1])]
        assert Noting.notes == expected

    def test_stopping_after_fewer_epochs_is_the_beginning_of_the_whole(self, build: Callable[..., Method]) -> None:
        kept = []

        def keep(state: FitState) -> None:
            kept.append({name: value.clone() for name, value in state.model.state_dict().items()})

        train(build(Known), a_model(dropout=0.5), some_inputs(), after_epoch=keep)
        short = train(build(Known), a_model(dropout=0.5), some_inputs(), stop_after=2)
        assert short.epoch == 2
        assert all(torch.equal(value, kept[1][name]) for name, value in short.model.state_dict().items())

    def test_each_epoch_takes_every_row_once_in_a_fresh_order(self) -> None:
        inputs = some_inputs(num_rows=44)
        orders = [torch.cat([batch.index for batch in inputs.shuffled(16, epoch)]).tolist() for epoch in range(3)]
        assert all(sorted(order) == list(range(44)) for order in orders)
        assert orders[0] != orders[1] != orders[2]
        for batch in inputs.shuffled(16, 0):
            assert torch.equal(batch.inputs, torch.from_numpy(inputs.features)[batch.index])
            assert np.array_equal(batch.labels.numpy(), inputs.labels.rows(batch.index.numpy()))


def test_half_precision_is_widened_wherever_it_lies_in_an_output() -> None:
    def leaves(value: Any) -> Iterator[Tensor]:
        if isinstance(value, Tensor):
            yield value
        else:
            for part in value.values() if isinstance(value, dict) else value:
                yield from leaves(part)

    half, double = torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.float64)
    output = {"logits": half, "maps": (half, [half.half(), double]), "index": torch.arange(2)}
    dtypes = [leaf.dtype for leaf in leaves(widened(output))]
    assert dtypes == [torch.float32, torch.float32, torch.float32, torch.float64, torch.int64]
