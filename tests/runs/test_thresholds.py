"""Thresholds of a run: where they come from, what the record says of them, and that figures follow from its files."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plbench.api import BenchmarkProtocol
from plbench.metrics import choose_thresholds, f1_scores, top_f1_scores
from plbench.metrics.cells import Cells
from plbench.runs import run as runner
from plbench.runs import schedule
from plbench.runs.active import ActiveRun
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.record import Record
from plbench.runs.trained import load_model
from plbench.runs.workspace import Workspace

pytestmark = pytest.mark.usefixtures("quick_records")


def a_plan(workspace: Workspace, dataset: str = "tiny", **request: Any) -> ResolvedRun:
    return plan_run(Request(dataset, "ce-negative", **request), workspace)


def read(plan: ResolvedRun, workspace: Workspace) -> tuple[Cells, np.ndarray]:
    """Cells of a run, and the thresholds of its table."""
    folder = workspace.store.run_folder(plan.spec.key)
    with (folder / "per_class.csv").open(encoding="utf-8", newline="") as file:
        thresholds = [float(row["threshold"]) for row in csv.DictReader(file)]
    return Cells.load(folder / "cells.npz"), np.array(thresholds)


def check_follows(record: Record, part: str, plan: ResolvedRun, workspace: Workspace) -> np.ndarray:
    """The record's F1 figures are those of its cells at the table's thresholds; gives these."""
    cells, thresholds = read(plan, workspace)
    metrics = record.metrics[part]
    assert metrics.f1 is not None and metrics.f1_top3 is not None
    assert metrics.f1.model_dump() == pytest.approx(vars(f1_scores(cells, thresholds)), abs=1e-6)
    assert metrics.f1_top3.model_dump() == pytest.approx(vars(top_f1_scores(cells)), abs=1e-6)
    return thresholds


@pytest.mark.parametrize("regime", ["probe", "finetune"])
def test_a_run_on_all_of_train_chooses_on_what_it_trained_on_and_says_so(
    make_workspace: Callable[..., Workspace], regime: str
) -> None:
    workspace = make_workspace()
    plan = a_plan(workspace, regime=regime)
    record = runner.run(plan, workspace)
    report = record.test.thresholds
    assert report is not None
    assert (report.part, report.labels, report.held_out) == ("validation", "partial", False)
    assert report.num_images == len(plan.protocol_data.validation().rows)
    thresholds = check_follows(record, "test", plan, workspace)
    active = ActiveRun(plan, workspace, {})  # the model, scored once more
    active.prepare()
    active.state.load_weights(
        runner.checkpoint.load(workspace.store.run_folder(plan.spec.key) / "checkpoint.pt", record.spec_sha256)
    )
    cells = active.validation_cells("ema")
    assert cells is not None and cells.num_images == report.num_images
    np.testing.assert_allclose(choose_thresholds(cells)[0], thresholds, rtol=1e-6)
    assert record.metrics["test_raw"].f1 is None and record.metrics["test_raw"].f1_top3 is not None


def test_under_validation_selection_they_come_from_the_held_out_run(make_workspace: Callable[..., Workspace]) -> None:
    workspace = make_workspace()
    plan = a_plan(workspace, selection="validation", simulate="rpa=0.2")
    record = runner.run(plan, workspace)
    assert record.test.thresholds is not None and record.test.thresholds.held_out
    choosing = plan.chooser
    assert choosing is not None
    held_out, _ = read(choosing, workspace)
    np.testing.assert_array_equal(check_follows(record, "test", plan, workspace), choose_thresholds(held_out)[0])
    chose = choosing.finished(workspace.store)
    assert chose is not None and chose.metrics["validation"].thresholds is not None
    assert chose.metrics["validation"].thresholds.held_out
    check_follows(chose, "validation", choosing, workspace)


def test_complete_validation_labels_are_called_so(make_workspace: Callable[..., Workspace]) -> None:
    workspace = make_workspace()
    record = runner.run(a_plan(workspace, simulate="single-positive"), workspace)
    assert record.test.thresholds is not None
    assert (record.test.thresholds.labels, record.test.thresholds.num_pooled) == ("complete", 0)


def test_a_stack_chooses_as_each_head_would_alone(make_workspace: Callable[..., Workspace]) -> None:
    together, alone = make_workspace(name="together"), make_workspace(name="alone")
    plans = [a_plan(together, seed=seed) for seed in (0, 1)]
    stacked = schedule.run_all(plans, together)
    for plan, record in zip(plans, stacked, strict=True):
        assert isinstance(record, Record) and record.test.thresholds is not None
        single = runner.run(a_plan(alone, seed=plan.spec.seed), alone)
        np.testing.assert_allclose(read(plan, together)[1], read(plan, alone)[1], rtol=1e-4)
        assert record.test.auroc == pytest.approx(single.test.auroc, abs=1e-3)


@pytest.mark.parametrize("share", [0.0, 1e-9])
def test_without_a_validation_part_a_run_goes_on_and_says_what_is_missing(
    make_workspace: Callable[..., Workspace], tiny_dataset: Any, share: float
) -> None:
    class Unsplit(tiny_dataset):  # type: ignore[misc]
        name = "unsplit"
        protocols = (
            BenchmarkProtocol(name="unsplit/v1", dataset="unsplit", simulation="rpa=0.5", validation_share=share),
        )

    workspace = make_workspace(Unsplit)
    plan = a_plan(workspace, "unsplit")
    record = runner.run(plan, workspace)
    assert (record.test.f1, record.test.thresholds) == (None, None)
    assert record.test.f1_top3 is not None and record.test.auroc is not None
    assert any("no thresholds were chosen" in warning for warning in record.warnings)
    with (workspace.store.run_folder(plan.spec.key) / "per_class.csv").open(encoding="utf-8", newline="") as file:
        assert {row["threshold"] for row in csv.DictReader(file)} == {""}


def test_cells_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """They do not say which classes were an image's highest-scored."""
    path = tmp_path / "cells.npz"
    Cells.from_scores(np.eye(3), np.ones((3, 3))).save(path)
    assert "in_top" not in np.load(path).files
    assert Cells.load(path).in_top is None


@pytest.mark.parametrize(
    ("selection", "held_out"), [("last", False), ("validation", True), ("validation-no-retrain", True)]
)
def test_thresholds_for_a_precision_come_from_the_validation_part(
    make_workspace: Callable[..., Workspace], selection: str, held_out: bool
) -> None:
    """Each class's lowest one that is so precise on the cells of the model that the record says."""
    workspace = make_workspace()
    plan = a_plan(workspace, selection=selection)
    runner.run(plan, workspace)
    model = load_model(workspace.store.run_folder(plan.spec.key), workspace)
    limits, is_held_out = model.thresholds_for_precision(0.6, workspace)
    assert is_held_out == held_out
    if plan.chooser is not None:
        cells, _ = read(plan.chooser, workspace)
    else:
        part = plan.protocol_data.validation()
        scores = torch.cat(list(model.scores(part.images, workspace))).numpy()
        cells = Cells.from_scores(scores, part.labels)
    np.testing.assert_allclose(choose_thresholds(cells)[0], read(plan, workspace)[1], rtol=1e-6)  # the run's own
    for column, limit in enumerate(limits):
        scores, truth = (values[cells.class_index == column] for values in (cells.scores, cells.positives))
        precise = [score for score in scores if truth[scores >= score].mean() >= 0.6]
        assert limit == min(precise, default=np.inf)
    assert np.isfinite(limits).any()
