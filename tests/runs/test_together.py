"""Runs that train together leave what each would leave alone; sweeps make what is missing, stages first and once."""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from plbench.api import Batch, Loss, Method, MethodParams, Progress, tunable
from plbench.errors import TrainingError
from plbench.runs import run as runner
from plbench.runs import schedule, together
from plbench.runs.active import ActiveRun
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.record import Record, read_record, reference
from plbench.runs.store import CHECKPOINT, RECORD
from plbench.runs.together import can_stack, groups
from plbench.runs.workspace import Workspace
from plbench.training import checkpoint
from plbench.training.stacked import heads as stacked
from plbench.tuning import trials
from plbench.tuning.study import with_values

pytestmark = pytest.mark.usefixtures("quick_records")

MakeWorkspace = Callable[..., Workspace]
ON_FIT = {"train_part": "fit"}


class Sometimes(Method):
    """Cross-entropy on known labels times a factor; the loss of a head with `breaks` is no number from epoch 2 on."""

    name, title = "sometimes", "Sometimes broken"
    stackable = True

    class Params(MethodParams):
        breaks: float = tunable(0.0, 0.0, 1.0, description="whether it breaks")
        factor: float = tunable(1.0, 0.5, 2.0, description="of the loss")

    def loss(self, output: Tensor, batch: Batch, progress: Progress) -> Loss:
        known = (batch.labels != 0).to(output)
        terms = torch.nn.functional.softplus(-output * batch.labels) * known * self.params.factor
        breaks = torch.as_tensor(self.params.breaks) > 0.5
        return Loss.of_images(torch.where(breaks & (progress.epoch > 0), float("nan"), terms).sum(dim=-1))


def a_plan(workspace: Workspace, method: str = "ce-negative", **request: Any) -> ResolvedRun:
    return plan_run(Request("tiny", method, **request), workspace)


def some_plans(workspace: Workspace) -> list[ResolvedRun]:
    """Methods with and without stages, other parameters, rates and seeds."""
    return [
        a_plan(workspace, "ce-ignore"),
        a_plan(workspace, "selective", method_params={"top_k": 2}),
        a_plan(workspace, "selective", method_params={"top_k": 2, "mode": "likelihood"}, seed=1),
        a_plan(workspace, "se-negative", plan={"lr": 3e-3}),
        a_plan(workspace, "pasl-negative", plan={"weight_decay": 0.0}, seed=1),
    ]


def assert_alike(one: Record, other: Record, tolerance: float = 0.05) -> None:
    """Two records of one run, up to rounding in float32."""
    assert one.spec == other.spec
    assert one.metrics.keys() == other.metrics.keys()
    for name, metrics in one.metrics.items():
        assert metrics.map_c.value == pytest.approx(other.metrics[name].map_c.value, abs=tolerance)
        assert metrics.map_o.value == pytest.approx(other.metrics[name].map_o.value, abs=tolerance)
    assert one.selection == other.selection
    assert one.data == other.data
    assert one.training["steps"] == other.training["steps"]
    assert one.training["final_loss"] == pytest.approx(other.training["final_loss"], rel=1e-4)
    assert one.priors.keys() == other.priors.keys()
    assert (one.configuration, one.title, one.files.keys()) == (other.configuration, other.title, other.files.keys())


def forbid_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*arguments: Any) -> None:
        raise AssertionError("something was trained")

    monkeypatch.setattr(stacked._Block, "step", step)
    monkeypatch.setattr("plbench.training.step.Stepper.take", step)


class TestSweep:
    @pytest.mark.parametrize("selection", ["last", "validation", "validation-no-retrain"])
    def test_each_record_is_what_it_would_be_alone(self, make_workspace: MakeWorkspace, selection: str) -> None:
        workspace, other = make_workspace(), make_workspace(name="alone")
        plans = [a_plan(workspace, p.spec.method.name, selection=selection) for p in some_plans(workspace)[:1]]
        plans += some_plans(workspace) if selection == "last" else [a_plan(workspace, selection=selection, seed=1)]
        records = schedule.run_all(plans, workspace)
        for plan, record in zip(plans, records, strict=True):
            assert isinstance(record, Record)
            assert_alike(record, runner.run(plan, other))
            folder = workspace.store.run_folder(plan.spec.key)
            assert read_record(folder) == record
            assert {name: reference(folder / name) for name in record.files} == record.files
            saved = checkpoint.load(folder / CHECKPOINT, plan.spec.sha256())
            size = (folder / CHECKPOINT).stat().st_size
            weights = sum(v.numel() * v.element_size() for kind in ("model", "ema") for v in saved[kind].values())
            assert size < 2 * weights + 20_000  # of this head alone, not of all that were stacked

    def test_stages_come_first_and_once(self, make_workspace: MakeWorkspace, monkeypatch: pytest.MonkeyPatch) -> None:
        workspace = make_workspace()
        order: list[str] = []
        conclude = runner.conclude
        monkeypatch.setattr(runner, "conclude", lambda a, *t, **n: (order.append(a.spec.key), conclude(a, *t, **n))[1])
        plans = some_plans(workspace)
        schedule.run_all(plans, workspace)
        (prior,) = [stage.spec.key for _, stage in plans[1].stages.values()]
        assert prior == plans[0].spec.key  # the CE-Ignore row is the prior's run
        assert order.index(prior) < order.index(plans[1].spec.key)
        assert sorted(order) == workspace.store.keys() == sorted(plan.spec.key for plan in plans)
        forbid_training(monkeypatch)
        again = schedule.run_all(plans, workspace)
        assert [record.key for record in again if isinstance(record, Record)] == [p.spec.key for p in plans]

    def test_force_repeats_the_runs_but_not_their_stages(
        self, make_workspace: MakeWorkspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        workspace = make_workspace()
        plan = a_plan(workspace, "selective", method_params={"top_k": 2})
        (first,) = schedule.run_all([plan], workspace)
        (stage,) = [p.spec.key for _, p in plan.stages.values()]
        before = (workspace.store.run_folder(stage) / RECORD).stat().st_mtime_ns
        second = runner.run(plan, workspace, force=True)
        assert isinstance(first, Record)
        assert_alike(first, second)
        assert (workspace.store.run_folder(stage) / RECORD).stat().st_mtime_ns == before

    def test_one_that_fails_hides_no_other(self, make_workspace: MakeWorkspace) -> None:
        workspace = make_workspace(Sometimes)
        plans = [
            a_plan(workspace, "sometimes", method_params={"breaks": float(n == 1), "factor": 1 + n / 4})
            for n in range(3)
        ]
        first, broken, last = schedule.run_all(plans, workspace)
        assert isinstance(first, Record) and isinstance(last, Record)
        assert isinstance(broken, TrainingError)
        assert "no longer finite at step 3 (epoch 2)" in str(broken)
        record = read_record(workspace.store.run_folder(plans[1].spec.key))
        assert (record.status, record.error) == ("failed", str(broken))
        alone = make_workspace(Sometimes, name="alone")
        assert_alike(first, runner.run(plans[0], alone))
        assert_alike(last, runner.run(plans[2], alone))

    def test_what_depends_on_a_failure_fails_with_it(
        self, make_workspace: MakeWorkspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        workspace = make_workspace()
        broken = TrainingError("the loss is nan")
        run = runner.run

        def breaks(plan: ResolvedRun, *rest: Any, **options: Any) -> Record:
            if plan.spec.method.name == "ce-ignore":
                raise broken
            return run(plan, *rest, **options)

        monkeypatch.setattr(runner, "run", breaks)
        other, dependent = schedule.run_all([a_plan(workspace), some_plans(workspace)[1]], workspace)
        assert isinstance(other, Record)
        assert isinstance(dependent, TrainingError)
        assert "depends on failed: the loss is nan" in str(dependent)

    def test_an_interrupted_stack_goes_on_from_its_checkpoints(
        self, make_workspace: MakeWorkspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        workspace, other = replace(make_workspace(), save_every=0.0), make_workspace(name="undisturbed")
        plans = [a_plan(workspace, name) for name in ("ce-negative", "se-negative", "asl-negative")]
        whole = schedule.run_all(plans, other)
        ends = itertools.count()
        save = ActiveRun.epoch_end

        def interrupted(self: ActiveRun, state: Any) -> None:
            save(self, state)
            if next(ends) == 4:  # in the middle of the second epoch's ends: one head has saved it, two have not
                raise KeyboardInterrupt

        monkeypatch.setattr(ActiveRun, "epoch_end", interrupted)
        with pytest.raises(KeyboardInterrupt):
            schedule.run_all(plans, workspace)
        assert workspace.store.keys() == []
        folders = [workspace.store.run_folder(plan.spec.key) for plan in plans]
        assert all(checkpoint.Checkpoints(folder, p.spec).exist() for folder, p in zip(folders, plans, strict=True))
        monkeypatch.setattr(ActiveRun, "epoch_end", save)
        started: list[int] = []
        fit = together.fit_together
        monkeypatch.setattr(
            together, "fit_together", lambda heads, *a, **k: (started.append(heads[0].state.epoch), fit(heads, *a, **k))
        )
        said: list[str] = []
        monkeypatch.setattr(workspace.reporter, "line", said.append)
        for record, undisturbed in zip(schedule.run_all(plans, workspace), whole, strict=True):
            assert isinstance(record, Record) and isinstance(undisturbed, Record)
            assert_alike(record, undisturbed, tolerance=1e-4)
        assert sorted(started) == [1, 2]
        going_on = [sentence for sentence in said if sentence.startswith("Continuing after")]
        assert len(going_on) == 2  # each sentence once, though two heads go on from one step

    def test_an_interrupted_stack_without_checkpoints_leaves_nothing(
        self, make_workspace: MakeWorkspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        workspace = make_workspace()

        def stop(*arguments: Any, **options: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(together, "fit_together", stop)
        plans = [a_plan(workspace), a_plan(workspace, "se-negative")]
        with pytest.raises(KeyboardInterrupt):
            schedule.run_all(plans, workspace)
        assert not any(workspace.store.run_folder(plan.spec.key).exists() for plan in plans)

    def test_two_sweeps_of_the_same_runs_make_each_once(
        self, make_workspace: MakeWorkspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        workspace = make_workspace()
        plans = [a_plan(workspace), a_plan(workspace, "se-negative")]
        concluded: list[str] = []
        conclude = runner.conclude
        monkeypatch.setattr(
            runner, "conclude", lambda a, *t, **n: (concluded.append(a.spec.key), conclude(a, *t, **n))[1]
        )
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(lambda order: schedule.run_all(order, workspace), [plans, plans[::-1]]))
        assert sorted(concluded) == sorted(plan.spec.key for plan in plans)
        assert both[0] == both[1][::-1]

    def test_memory_limits_how_many_train_at_once(
        self, make_workspace: MakeWorkspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        workspace = make_workspace()
        plans = [a_plan(workspace, plan={"lr": lr / 1000}) for lr in range(1, 6)]
        (first, *_), *_ = together.in_memory(plans[:1], workspace)
        size = stacked.bytes_per_head(first.state.model, first.spec.plan.batch_size)
        monkeypatch.setattr(together, "STACK_BYTES", 2 * size)
        sizes: list[int] = []
        fit = together.fit_together
        monkeypatch.setattr(
            together, "fit_together", lambda heads, *a, **k: (sizes.append(len(heads)), fit(heads, *a, **k))
        )
        schedule.run_all(plans, workspace)
        assert sizes == [2, 2, 1]

    def test_features_are_in_memory_once(self, make_workspace: MakeWorkspace) -> None:
        workspace = make_workspace()
        plans = [a_plan(workspace, "se-negative"), a_plan(workspace, "ce-negative")]
        (jobs,) = together.in_memory(plans, workspace)
        assert jobs[0].train_inputs.features is jobs[1].train_inputs.features
        assert jobs[0].scored_inputs is jobs[1].scored_inputs


class TestGroups:
    def test_what_agrees_in_all_but_method_seed_rate_and_decay(self, make_workspace: MakeWorkspace) -> None:
        workspace = make_workspace()
        update = {"weights": "file", "weights_sha256": "0" * 64}
        plans = some_plans(workspace)
        for plan in plans:  # of these, features do not follow from the seed
            plan.spec.__dict__["model"] = plan.spec.model.model_copy(update=update)
        assert [len(group) for group in groups(plans)] == [5]

    @pytest.mark.parametrize(
        "request_options",
        [
            {"seed": 1},
            {"plan": {"epochs": 5}},
            {"model": {"head": "mlp"}},
            {"simulate": "rpa=0.5"},
            {"plan": {"batch_size": 8}},
        ],
    )
    def test_others_are_apart(self, make_workspace: MakeWorkspace, request_options: dict[str, Any]) -> None:
        """Also other seeds, where the backbone's weights are random, so that the features follow from the seed."""
        workspace = make_workspace()
        assert len(groups([a_plan(workspace), a_plan(workspace, **request_options)])) == 2

    def test_what_cannot_be_stacked_is_alone(self, make_workspace: MakeWorkspace) -> None:
        class Alone(Sometimes):
            name, stackable = "alone", False

        workspace = make_workspace(Alone, Sometimes)
        assert can_stack(a_plan(workspace, "sometimes"))
        assert not can_stack(a_plan(workspace, "alone"))
        assert not can_stack(a_plan(workspace, regime="finetune"))
        assert not can_stack(a_plan(workspace, plan={"accumulate": 2}))
        assert not can_stack(a_plan(workspace, precision="float16"))
        alone = [a_plan(workspace, "alone"), a_plan(workspace, "alone", plan={"lr": 2e-3})]
        assert len(groups(alone)) == 2


class TestTrials:
    def test_together_as_alone(self, make_workspace: MakeWorkspace) -> None:
        """The value of a trial is that of the run which it would be; nothing is left of it but its stages."""
        workspace = make_workspace()
        plans = [
            with_values(
                a_plan(workspace, "selective", method_params={"top_k": k}, plan={"lr": lr}),
                {},
                ON_FIT,
                workspace.registry,
            )
            for k, lr in ((0, 1e-2), (2, 1e-3), (5, 3e-3))
        ]
        results = trials.score_together(plans, workspace)
        made = set(workspace.store.keys())
        assert made == {stage.spec.key for plan in plans for _, stage in plan.stages.values()}
        seen: list[tuple[int, float]] = []
        for plan, result in zip(plans, results, strict=True):
            alone = trials.score_alone(plan, workspace, lambda epoch, value: seen.append((epoch, value)))
            assert result.error is None and result.seconds > 0
            assert result.value == pytest.approx(alone.value, abs=0.05)
        assert [epoch for epoch, _ in seen] == [1, 2, 3, 4] * 3
        assert seen[-1][1] == pytest.approx(results[-1].value, abs=0.05)

    def test_one_that_fails_has_its_error(self, make_workspace: MakeWorkspace) -> None:
        workspace = make_workspace(Sometimes)
        plans = [
            with_values(
                a_plan(workspace, "sometimes", method_params={"breaks": breaks}),
                {},
                ON_FIT,
                workspace.registry,
            )
            for breaks in (1.0, 0.0)
        ]
        broken, well = trials.score_together(plans, workspace)
        assert broken.value is None and "no longer finite" in str(broken.error)
        assert well.value is not None and well.error is None
        alone = trials.score_alone(plans[0], workspace, lambda epoch, value: None)
        assert alone.value is None and "nan" in str(alone.error)


def test_a_declared_variant_has_default_values(make_workspace: MakeWorkspace) -> None:
    workspace = make_workspace()
    wanted = {"likelihood": "default", "prior": "default", "both": "default", "soft-prior": "custom"}
    plans = [a_plan(workspace, "selective", method_params={"mode": mode, "top_k": 5}) for mode in wanted]
    plans.append(a_plan(workspace, "selective", method_params={"mode": "likelihood", "top_k": 4}))
    records = schedule.run_all(plans, workspace)
    assert [r.configuration for r in records if isinstance(r, Record)] == [*wanted.values(), "custom"]
