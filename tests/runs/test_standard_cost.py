"""Standard cost: counts of a run with all that it needs, the same alone, in a stack, and after an interruption."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from plbench.cli import main
from plbench.runs import run as runner
from plbench.runs import schedule
from plbench.runs.environment import cpu_name, describe
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.record import Cost, Record, StandardCost
from plbench.runs.workspace import Workspace
from plbench.training.evaluation import View
from plbench.training.interruption import Stopped

pytestmark = pytest.mark.usefixtures("quick_records")

MakeWorkspace = Callable[..., Workspace]


def a_plan(workspace: Workspace, method: str = "ce-negative", **request: Any) -> ResolvedRun:
    return plan_run(Request("tiny", method, **{"plan": {"epochs": 2}, **request}), workspace)


def cost_of(record: Record) -> Cost:
    assert record.cost is not None
    return record.cost


def standard(record: Record) -> StandardCost:
    found = cost_of(record).standard
    assert found is not None
    return found


def sizes(plan: ResolvedRun) -> tuple[int, int, int]:
    """Images of train, of train without its validation part, and of test."""
    protocol_data = plan.protocol_data
    return len(protocol_data.whole_train.rows), len(protocol_data.train("fit").rows), len(protocol_data.test().rows)


def test_a_head_takes_each_image_once_and_its_features_an_epoch(make_workspace: MakeWorkspace) -> None:
    workspace = make_workspace()
    plan = a_plan(workspace)
    train, _, test = sizes(plan)
    found = standard(runner.run(plan, workspace))
    assert found == StandardCost(trainings=1, extracted={"test": test, "train": train}, head=2 * train)
    assert found.image_passes == train + test


@pytest.mark.parametrize(("method", "trainings"), [("ce-ignore", 1), ("selective", 2)])
def test_stages_and_the_choosing_run_count_and_features_once(
    make_workspace: MakeWorkspace, method: str, trainings: int
) -> None:
    workspace = make_workspace()
    plan = a_plan(workspace, method)
    train, fit, test = sizes(plan)
    plain = standard(runner.run(plan, workspace))
    assert (plain.trainings, plain.head) == (trainings, trainings * 2 * train)
    chosen = runner.run(a_plan(workspace, method, selection="validation"), workspace)
    assert chosen.selection is not None
    found, epoch = standard(chosen), chosen.selection.epoch
    assert found.trainings == 2 * trainings  # the choosing run has stages of its own, on its own part
    assert found.head == (epoch + 2 * (trainings - 1)) * train + trainings * 2 * fit
    assert found.extracted == plain.extracted == {"test": test, "train": train}


def test_shared_stages_count_in_full_for_each_row(make_workspace: MakeWorkspace) -> None:
    workspace, elsewhere = make_workspace(), make_workspace(name="elsewhere")
    plans = [a_plan(workspace, "selective", method_params={"top_k": k}) for k in (1, 2, 3)]
    records = [record for record in schedule.run_all(plans, workspace) if isinstance(record, Record)]
    alone = runner.run(plans[1], elsewhere)
    assert [standard(record) for record in records] == 3 * [standard(alone)]
    assert [(cost_of(r).measured_alone, cost_of(r).shared_with) for r in records] == 3 * [(False, 2)]
    assert cost_of(alone).measured_alone and cost_of(alone).shared_with == 0


class TestWholeNetwork:
    def test_forward_and_back_are_three_passes(self, make_workspace: MakeWorkspace) -> None:
        workspace = make_workspace()
        plan = a_plan(workspace, regime="finetune")
        train, _, test = sizes(plan)
        found = standard(runner.run(plan, workspace))
        assert found == StandardCost(trainings=1, forward=test, trained=2 * train, head=2 * train)
        assert found.image_passes == test + 6 * train

    def test_selection_and_stages_look_at_images_too(self, make_workspace: MakeWorkspace) -> None:
        workspace = make_workspace()
        plan = a_plan(workspace, "selective", regime="finetune")
        train, _, test = sizes(plan)
        found = standard(runner.run(plan, workspace))
        assert (found.trainings, found.forward, found.trained) == (2, 2 * test + train, 4 * train)
        choosing = standard(runner.run(a_plan(workspace, regime="finetune", selection="best-on-test"), workspace))
        assert choosing.forward in {3 * test, 5 * test}  # an epoch's weights, averaged ones beside them, then the best

    def test_what_a_method_looks_at_between_epochs_counts(
        self, make_workspace: MakeWorkspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looked, predict = [], View.predict

        def watched(view: View, *arguments: Any, passes: int = 1, **options: Any) -> Any:
            looked.append(passes)
            return predict(view, *arguments, passes=passes, **options)

        monkeypatch.setattr(View, "predict", watched)
        workspace = make_workspace()
        plan = a_plan(workspace, "em-apl", regime="finetune", plan={"epochs": 3})
        train, _, test = sizes(plan)
        found = standard(runner.run(plan, workspace))
        assert sum(looked) > 0 and found.forward == test + sum(looked) * train

    @pytest.mark.parametrize("regime", ["probe", "finetune"])
    def test_an_interruption_changes_nothing(
        self, make_workspace: MakeWorkspace, monkeypatch: pytest.MonkeyPatch, regime: Any
    ) -> None:
        whole, broken = make_workspace(), make_workspace(name="broken")
        expected = standard(runner.run(a_plan(whole, regime=regime), whole))
        stop = [True]

        def watch(epoch: int, value: float) -> None:
            if stop:
                os.kill(os.getpid(), signal.SIGTERM)

        plan = a_plan(broken, regime=regime)
        with contextlib.suppress(Stopped):
            runner.run(plan, broken, watch=watch)
        stop.clear()
        assert plan.finished(broken.store) is None
        assert standard(runner.run(plan, broken)) == expected


def test_a_run_whose_stage_does_not_tell_has_none(make_workspace: MakeWorkspace) -> None:
    workspace = make_workspace()
    plan = a_plan(workspace, "selective")
    ((_, stage),) = plan.stages.values()
    record = runner.run(stage, workspace)
    cost = cost_of(record).model_copy(update={"standard": None})
    runner.write_record(workspace.store.run_folder(record.key), record.model_copy(update={"cost": cost}))
    assert cost_of(runner.run(plan, workspace)).standard is None


def test_costs_without_these_fields_are_read(make_workspace: MakeWorkspace) -> None:
    old = Cost.model_validate({"seconds": {"total": 1.0}, "images_per_second": 1.0, "peak_memory_mb": 1.0})
    assert (old.measured_alone, old.shared_with, old.standard) == (None, 0, None)


def test_the_processor_is_named(make_workspace: MakeWorkspace) -> None:
    assert cpu_name().strip() and describe(make_workspace().device)["cpu"] == cpu_name()


def test_runs_show_says_it(
    make_workspace: MakeWorkspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = make_workspace()
    plans = [a_plan(workspace, method) for method in ("ce-negative", "ce-ignore")]
    record, _ = schedule.run_all(plans, workspace)
    assert isinstance(record, Record)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr("sys.argv", ["plbench", "runs", "show", record.key, "--runs", str(workspace.store.runs)])
    with contextlib.suppress(SystemExit):
        main()
    said = " ".join(capsys.readouterr().out.split())
    assert "not measured alone: 1 other head trained in the same pass" in said
    cost = standard(record)
    assert (
        f"1 training, {cost.image_passes:,} images passed" in said
        and f"{cost.head:,} images that a head was trained on" in said
    )
