"""One optimiser step: as on a device whose host does not look, in blocks, traced, compiled, and where its time goes."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import PropertyMock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from plbench.api import Batch, Loss, Method, PartialLabels, Plan, Progress, Task
from plbench.errors import PlbenchError, TrainingError
from plbench.losses import partial_asymmetric_loss, selective_weight
from plbench.models.backbones import build_backbone
from plbench.randomness import seeded
from plbench.runs import run as runner
from plbench.runs.active import ActiveRun
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.workspace import Workspace
from plbench.training import profiling, step
from plbench.training.clock import PHASES, Clock
from plbench.training.dropout import Dropout
from plbench.training.engine import fit, prepare_fit
from plbench.training.execution import Execution
from plbench.training.hooks import Guarded
from plbench.training.inputs import FeatureInputs
from plbench.training.state import FitState

CPU = Execution(torch.device("cpu"), "float32")
NUM_ROWS, NUM_FEATURES, NUM_CLASSES = 40, 12, 7
PLAN = Plan(epochs=3, batch_size=16, lr=1e-2, weight_decay=0.1, ema_horizon=0.5)


class Likely(Method):
    """P-ASL that ignores what is likely: a loss with a mask that follows from the logits."""

    name, title = "likely", "Likely"

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        weight = selective_weight(output, batch.labels, top_k=2)
        gammas = {"gamma_pos": 0.0, "gamma_neg": 1.0, "gamma_unann": 4.0}
        return Loss.of_images(partial_asymmetric_loss(output, batch.labels, unann_weight=weight, **gammas))


class PerLabel(Likely):
    """Divides by the known labels, of which one batch has none."""

    name = "per-label"

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        known = batch.labels != 0
        return Loss((torch.nn.functional.softplus(output) * known).sum(), known.sum())


class Exploding(Likely):
    """Its loss is infinite at step 4; its gradient already at step 2, if it says so."""

    name = "exploding"
    gradient = False

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        if self.gradient and progress.step == 2:  # the square root of 0 has no slope
            return Loss.of_images((output - output.detach()).abs().sqrt().sum(dim=-1))
        return Loss.of_images((output**2).sum(dim=-1) * (torch.inf if progress.step == 4 else 1.0))


def some_inputs(known: float = 0.5) -> FeatureInputs:
    rng = np.random.default_rng(2)
    features = rng.standard_normal((NUM_ROWS, NUM_FEATURES)).astype(np.float32)
    labels = np.where(rng.random((NUM_ROWS, NUM_CLASSES)) < 0.4, 1, -1) * (rng.random((NUM_ROWS, NUM_CLASSES)) < known)
    return FeatureInputs(features, np.arange(NUM_ROWS), PartialLabels.from_dense(labels, list("abcdefg")))


@pytest.fixture
def train(make_task: Callable[..., Task]) -> Callable[..., FitState]:
    def trained(kind: type[Method], plan: Plan = PLAN, known: float = 0.5, **options: Any) -> FitState:
        method = kind(kind.Params(), make_task(NUM_CLASSES))
        with seeded(0):
            model = nn.Sequential(nn.Linear(NUM_FEATURES, 9), nn.ReLU(), nn.Linear(9, NUM_CLASSES))
        inputs = some_inputs(known)
        state = prepare_fit(model, method, plan, -(-NUM_ROWS // plan.batch_size), CPU)
        options.get("seen", []).append(state)
        fit(state, inputs, plan, CPU, seed=0)
        return state

    return trained


@pytest.fixture
def reads_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a GPU, on the CPU: nothing is looked at but every few steps."""
    monkeypatch.setattr(Execution, "reads_late", PropertyMock(return_value=True))


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)


class TestReadingLate:
    @pytest.mark.parametrize("clip", [None, 0.05])
    @pytest.mark.parametrize("kind", [Likely, PerLabel])
    def test_it_is_the_same_training(
        self, train: Callable[..., FitState], kind: type[Method], clip: float | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plan = PLAN.model_copy(update={"clip_grad": clip, "accumulate": 2})
        at_once = train(kind, plan)
        monkeypatch.setattr(Execution, "reads_late", PropertyMock(return_value=True))
        late = train(kind, plan)
        for one, other in zip(at_once.model.parameters(), late.model.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(
            [row["loss"] for row in at_once.history], [row["loss"] for row in late.history], rtol=1e-6, atol=0
        )

    @pytest.mark.usefixtures("reads_late")
    @pytest.mark.parametrize(("gradient", "bad_step"), [(False, 4), (True, 2)])
    def test_what_is_not_finite_moves_nothing_and_is_found_at_the_next_look(
        self, train: Callable[..., FitState], gradient: bool, bad_step: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Exploding, "gradient", gradient)
        what = "the gradient of method 'exploding' is not finite" if gradient else "loss of method 'exploding' is inf"
        seen: list[FitState] = []
        with pytest.raises(TrainingError, match=rf"{what} at step {bad_step} \(epoch {bad_step // 3 + 1}\)"):
            train(Exploding, seen=seen)
        assert seen[0].step == 3 * (bad_step // 3 + 1)  # it went on to the end of the epoch, where it is looked at
        assert all(torch.isfinite(value).all() for value in seen[0].model.state_dict().values())
        assert all(torch.isfinite(value).all() for value in seen[0].averaged().state_dict().values())

    def test_a_gradient_that_is_not_finite_is_found_at_once_where_that_is_free(
        self, train: Callable[..., FitState], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Exploding, "gradient", True)
        with pytest.raises(TrainingError, match=r"gradient of method 'exploding' is not finite at step 2 \(epoch 1\)"):
            train(Exploding)

    @pytest.mark.usefixtures("reads_late")
    @pytest.mark.filterwarnings("ignore:Detected call of")
    def test_a_weight_of_0_takes_no_step(self, train: Callable[..., FitState]) -> None:
        seen: list[FitState] = []
        state = train(PerLabel, known=0.0, seen=seen)
        with seeded(0):
            untouched = nn.Sequential(nn.Linear(NUM_FEATURES, 9), nn.ReLU(), nn.Linear(9, NUM_CLASSES))
        assert same_bits(state.model, untouched)
        assert [row["loss"] for row in state.history] == [0.0, 0.0, 0.0]


class TestBlocks:
    @pytest.mark.parametrize("block_bytes", [1, 4 * 3 * NUM_CLASSES, 4 * 7 * NUM_CLASSES])
    @pytest.mark.parametrize("kind", [Likely, PerLabel])
    def test_they_change_no_gradient(
        self, train: Callable[..., FitState], kind: type[Method], block_bytes: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = train(kind)
        monkeypatch.setattr(step, "LARGE_LOGITS_BYTES", 1)
        monkeypatch.setattr(step, "LOSS_BLOCK_BYTES", block_bytes)
        in_blocks = train(kind)
        for one, other in zip(whole.model.parameters(), in_blocks.model.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        assert [row["loss"] for row in in_blocks.history] == pytest.approx([row["loss"] for row in whole.history])

    def test_their_size(self) -> None:
        small, large = torch.empty(128, 80), torch.empty(1024, 9600, device="meta")
        assert step.rows_per_block(small, 128) is None
        rows = step.rows_per_block(large, 1024)
        assert rows is not None and 4 * rows * 9600 <= step.LOSS_BLOCK_BYTES < 4 * (rows + 1) * 9600
        assert step.rows_per_block({"logits": large}, 1024) is None  # what it is, only its method knows

    def test_logits_of_9600_classes_take_no_two_further_tensors_of_their_size(
        self, make_task: Callable[..., Task]
    ) -> None:
        """Counted by torch's own profiler: what forward and backward take at once, beside the logits."""
        method = Likely(Likely.Params(), make_task(9600))
        logits = torch.randn(1024, 9600, requires_grad=True)
        batch = Batch(torch.zeros(1024, 1), torch.zeros(1024, 9600, dtype=torch.int8), torch.arange(1024))
        state = prepare_fit(nn.Linear(1, 9600), method, PLAN, 1, CPU)
        stepper = step.Stepper(
            nn.Identity(), Guarded(method), PLAN, CPU, state.tally, state.clock, Dropout(0, nn.Identity())
        )
        peak = peak_bytes(lambda: stepper._of_share(state.scaler, logits, batch, 1024, Progress(0, 1, 0, 1)))
        assert logits.grad is not None
        size = 4 * logits.numel()
        beside = peak - size  # a leaf keeps its gradient; what a network does with it is not the loss's affair
        assert size <= beside < 1.25 * size  # the gradient once, and what a block takes


def peak_bytes(work: Callable[[], Any]) -> int:
    """Most bytes of tensors that work holds at once, beyond what there was before."""
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


class TestClock:
    @pytest.mark.usefixtures("quick_records")
    def test_phases_of_a_training_are_in_its_record(self, make_workspace: Callable[..., Workspace]) -> None:
        workspace = make_workspace()
        cost = runner.run(plan_run(Request("tiny", "ce-negative", regime="finetune"), workspace), workspace).cost
        assert cost is not None and cost.phases.keys() == set(PHASES)
        assert all(cost.phases[name] > 0 for name in ("data", "forward", "loss", "backward", "optimizer"))
        assert 0.5 * cost.seconds["training"] < sum(cost.phases.values()) < 1.5 * cost.seconds["training"]

    def test_laps_go_to_their_phase(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = iter([0.0, 1.0, 3.0, 6.0])
        monkeypatch.setattr("plbench.training.clock.time.perf_counter", lambda: next(now))
        clock = Clock(torch.device("cpu"))
        clock.start_step()
        clock.lap("data")
        clock.lap("forward")
        assert {name: value for name, value in clock.seconds().items() if value} == {
            "other": 1.0,
            "data": 2.0,
            "forward": 3.0,
        }

    def test_a_resumed_training_adds_to_what_it_took_before(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("plbench.training.clock.time.perf_counter", lambda: 0.0)
        clock = Clock(torch.device("cpu"))
        clock.go_on_from({"data": 2.0, "loss": 1.0})
        monkeypatch.setattr("plbench.training.clock.time.perf_counter", lambda: 5.0)
        clock.lap("data")
        assert (clock.seconds()["data"], clock.seconds()["loss"]) == (7.0, 1.0)
        again = Clock(torch.device("cpu"))
        again.go_on_from(clock.seconds())
        assert again.seconds() == clock.seconds()


class TestOptions:
    @pytest.fixture
    def workspace(self, make_workspace: Callable[..., Workspace], quick_records: None) -> Workspace:
        return make_workspace()

    def test_a_trace_holds_the_steps_it_says(self, workspace: Workspace, tmp_path: Path) -> None:
        plan = plan_run(Request("tiny", "ce-negative", plan={"epochs": 6}), workspace)
        runner.run(plan, replace(workspace, profiles=True))
        trace = json.loads((workspace.store.run_folder(plan.spec.key) / "profile" / "rank-0.json").read_text())
        steps = {event["name"] for event in trace["traceEvents"] if event.get("name", "").startswith("ProfilerStep#")}
        first = profiling.SKIPPED + profiling.WARM_UP
        assert steps == {f"ProfilerStep#{number}" for number in range(first, first + profiling.TRACED)}

    def test_activations_computed_twice_give_the_same_gradients(self, workspace: Workspace) -> None:
        """On a backbone without batch statistics, the weights are equal after a whole training."""
        found = []
        for value in (None, True):
            options = {"regime": "finetune", "model": {"backbone": "test_convnext", "weights": "random"}}
            plan = plan_run(Request("tiny", "ce-negative", plan={"grad_checkpointing": value}, **options), workspace)  # type: ignore[arg-type]
            work = ActiveRun(plan, workspace, {})
            work.prepare()
            calls = count_forwards(work.state.model)
            work._fit()
            found.append((work.state.model.state_dict(), len(calls) / work.state.step))
        (kept, once), (computed, more) = found
        assert more > once  # some module's forward pass ran again in the backward pass
        for name, value in kept.items():
            torch.testing.assert_close(value, computed[name], rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize(
        "plan",
        [
            {"grad_checkpointing": True},
            {"randaugment": "rand-m9-mstd0.5"},
            {"cutout": 0.5},
            {"horizontal_flip": 0.5},
            {"random_resized_crop": 0.25},
            {"head_lr_multiplier": 10.0},
        ],
    )
    def test_a_head_alone_has_no_images_and_nothing_to_compute_twice(
        self, workspace: Workspace, plan: dict[str, Any]
    ) -> None:
        with pytest.raises(PlbenchError, match="the probe regime trains a head on cached features; leave it out"):
            plan_run(Request("tiny", "ce-negative", plan=plan), workspace)

    def test_a_backbone_that_cannot_is_refused(self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        options = {"regime": "finetune", "plan": {"grad_checkpointing": True}}
        plan = plan_run(Request("tiny", "ce-negative", **options), workspace)  # type: ignore[arg-type]

        def refuse(self: nn.Module, enable: bool = True) -> None:
            assert not enable, "gradient checkpointing not supported"

        work = ActiveRun(plan, workspace, {})
        backbone = build_backbone(plan.spec.model, None, 0)
        monkeypatch.setattr(type(backbone.net), "set_grad_checkpointing", refuse)
        with pytest.raises(PlbenchError, match="has no gradient checkpointing; leave out `grad_checkpointing=True`"):
            work.prepare()

    def test_a_compiled_model_trains_alike(self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        plan = plan_run(Request("tiny", "ce-negative", model={"head_dropout": 0.0}), workspace)
        plain = runner.run(plan, workspace)
        compiled: list[nn.Module] = []

        def compile(self: nn.Module) -> None:
            compiled.append(self)
            self._compiled_call_impl = torch.compile(self._call_impl, backend="aot_eager")

        monkeypatch.setattr(nn.Module, "compile", compile)
        again = runner.run(plan, replace(workspace, compiles=True), force=True)
        assert compiled
        assert again.test.map_c.value == pytest.approx(plain.test.map_c.value, abs=0.05)


def count_forwards(model: nn.Module) -> list[nn.Module]:
    calls: list[nn.Module] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, *_: calls.append(module))
    return calls
