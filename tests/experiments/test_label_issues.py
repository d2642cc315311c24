"""Label issues: folds that no model has seen, wrong labels that are found, and unknown ones that are listed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from plbench.cli import issues
from plbench.data.dataset import LabelledSplit
from plbench.data.images import ImageFiles
from plbench.data.labels import PartialLabels
from plbench.errors import DataError, PlbenchError
from plbench.experiments import label_issues
from plbench.experiments.label_issues import find_issues, plan_folds
from plbench.metrics.calibration import Calibration, entropy_bits
from plbench.metrics.cells import Cells
from plbench.runs.plan.resolve import Request, plan_from_spec
from plbench.runs.train_scores import models_of, scores_by_run
from plbench.runs.workspace import Workspace

pytestmark = pytest.mark.usefixtures("quick_records")
ASKED: dict[str, Any] = {"plan": {"epochs": 10, "lr": 0.03}}


def test_every_image_is_held_out_once_and_the_parts_are_for_good(make_workspace: Callable[..., Workspace]) -> None:
    folds = plan_folds(Request("tiny", "", simulate="fpc=8"), make_workspace(), num_folds=3, num_seeds=2)
    assert [len(plans) for plans in folds] == [2, 2, 2]
    data = folds[0][0].protocol_data
    held_out = [data.held_out(plans[0].spec.train_part).rows for plans in folds]
    assert sorted(np.concatenate(held_out)) == list(range(48))
    assert [rows.tolist()[:3] for rows in held_out] == [[4, 5, 8], [3, 6, 16], [0, 1, 2]], "by a hash of the image id"
    for plans, rows in zip(folds, held_out, strict=True):
        assert {plan.spec.train_part for plan in plans} == {plans[0].spec.train_part}
        assert not set(data.train(plans[0].spec.train_part).rows) & set(rows)
        labels = [plan.protocol_data.held_out(plan.spec.train_part).labels.fingerprint() for plan in plans]
        assert len({*labels}) == 1 and len({plan.spec.key for plan in plans}) == 2, "all seeds have the same labels"
        assert all(plan.spec.only_selects for plan in plans)
    assert data.open_splits == ("train",)


def test_a_run_of_a_fold_never_opens_test_and_is_scored_on_its_fold(make_workspace: Callable[..., Workspace]) -> None:
    workspace = make_workspace()
    ((plan, *_), *_) = folds = plan_folds(Request("tiny", "", **ASKED), workspace, num_folds=2, num_seeds=1)
    find_issues(folds, workspace)
    assert plan.protocol_data.open_splits == ("train",)
    record = plan.finished(workspace.store)
    assert record is not None and record.data is not None and set(record.metrics) == {"validation", "validation_raw"}
    part = plan.protocol_data.held_out(plan.spec.train_part)
    assert record.data.num_train == 48 - len(part.rows) and record.data.num_validation == len(part.rows)
    cells = Cells.load(workspace.store.run_folder(record.key) / "cells.npz")
    models = models_of([workspace.store.run_folder(record.key)], workspace)
    ((rows, scores),) = scores_by_run(models, part, plan.protocol_data, workspace)
    assert np.array_equal(rows, np.arange(len(part.rows)))
    assert np.array_equal(scores[0, cells.rows, cells.class_index], cells.scores), "from cached features, to the bit"
    assert plan_from_spec(record.spec, workspace).spec == record.spec


NUM_TRAIN = 120
TURNED = 10  # of 360 labels


@pytest.fixture
def flipped(tiny_dataset: Any) -> tuple[type, np.ndarray]:
    """Three classes, each a colour that is easily seen, with some train labels turned around, and which those are."""
    rng = np.random.default_rng(3)
    truth = np.where(rng.random((NUM_TRAIN, 3)) < [0.5, 0.4, 0.3], 1, -1).astype(np.int8)
    noise = rng.integers(0, 60, (NUM_TRAIN, 16, 16, 3), np.uint8)
    wrong = np.zeros(truth.shape, bool)
    wrong.flat[rng.choice(truth.size, TURNED, replace=False)] = True

    class Flipped(tiny_dataset):
        name = "flipped"

        def prepare(self, report: Any) -> None:
            super().prepare(report)
            for row in range(NUM_TRAIN):
                pixels = noise[row] + np.uint8(150) * (truth[row] > 0).astype(np.uint8)
                Image.fromarray(pixels).save(self.root / "train" / f"{row}.png")

        def split(self, name: str) -> LabelledSplit:
            if name != "train":
                return super().split(name)
            ids = tuple(f"train-{row}" for row in range(NUM_TRAIN))
            paths = tuple(f"train/{row}.png" for row in range(NUM_TRAIN))
            labels = PartialLabels.from_dense(np.where(wrong, -truth, truth), "abc")
            return LabelledSplit(ImageFiles(self.root, paths, ids), labels)

        def groups(self) -> dict[str, tuple[str, ...]]:
            return {}

    return Flipped, wrong


def test_turned_labels_are_found_many_times_more_often_than_by_chance(
    flipped: tuple[type, np.ndarray], make_workspace: Callable[..., Workspace], tmp_path: Path
) -> None:
    dataset, wrong = flipped
    workspace = make_workspace(dataset)
    folds = plan_folds(Request("flipped", "", **ASKED), workspace, num_folds=3, num_seeds=2)
    found = find_issues(folds, workspace)
    cells = [(int(name.split("-")[1]), "abc".index(c)) for name, c in found.issues[["image", "class_name"]].values]
    precision = np.mean([wrong[cell] for cell in cells[:TURNED]])
    assert precision > 15 * wrong.mean()
    labels = folds[0][0].protocol_data.whole_train.labels.rows(np.arange(NUM_TRAIN))
    assert [labels[cell] > 0 for cell in cells] == list(found.issues["label"] == "present")
    p_wrong = np.where(found.issues["label"] == "present", 1 - found.issues["p_present"], found.issues["p_present"])
    assert (p_wrong > 0.5).all() and (np.diff(p_wrong) <= 0).all()
    assert found.issues["against"].between(1, 2).all() and len(found.to_annotate) == found.num_unknown == 0
    found.contact_sheet(tmp_path / "sheet.png", 4)
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    keys = set(workspace.store.keys())
    again = find_issues(folds, workspace)
    assert set(workspace.store.keys()) == keys == {*found.runs} and again.issues.equals(found.issues)


def test_unknown_labels_stay_unknown_and_the_least_certain_come_first(make_workspace: Callable[..., Workspace]) -> None:
    workspace = make_workspace()
    folds = plan_folds(Request("tiny", "", simulate="rpa=0.4", **ASKED), workspace, num_folds=2, num_seeds=2)
    found = find_issues(folds, workspace, num_to_annotate=10_000)
    data = folds[0][0].protocol_data
    known = data.train().labels.rows(np.arange(48)) != 0
    place = [
        (int(name.split("-")[1]), "abcdef".index(c)) for name, c in found.to_annotate[["image", "class_name"]].values
    ]
    assert len(place) == len({*place}) == found.num_unknown == (~known).sum() and not any(known[cell] for cell in place)
    listed = [(int(name.split("-")[1]), "abcdef".index(c)) for name, c in found.issues[["image", "class_name"]].values]
    assert all(known[cell] for cell in listed)
    bits = found.to_annotate["bits"].to_numpy()
    assert (np.diff(bits) <= 0).all() and bits == pytest.approx(entropy_bits(found.to_annotate["p_present"].to_numpy()))
    few = find_issues(folds, workspace, num_to_annotate=7).to_annotate
    assert few["bits"].tolist() == bits[:7].tolist()
    # one cell by hand, from the models themselves
    scores = np.zeros((2, 48, 6), np.float32)
    for plans in folds:
        part = data.held_out(plans[0].spec.train_part)
        models = models_of([workspace.store.run_folder(plan.spec.key) for plan in plans], workspace)
        for rows, batch in scores_by_run(models, part, data, workspace):
            scores[:, part.rows[rows]] = batch
    rows, columns, values = data.train().labels.cells()
    fitted = Calibration.fit(scores[:, rows, columns], columns, values > 0, 6)
    by_model = fitted.probabilities(scores)[:, place[0][0], place[0][1]]
    assert found.to_annotate["p_present"][0] == pytest.approx(by_model.mean())
    assert found.to_annotate["spread"][0] == pytest.approx(by_model.std())


def test_the_command_has_the_defaults_of_the_function() -> None:
    for name in ("FOLDS", "SEEDS", "TO_ANNOTATE", "ON_SHEET"):  # twice, since pandas is slow to import
        assert getattr(issues, name) == getattr(label_issues, name)


def test_what_cannot_be_checked_is_one_sentence(make_workspace: Callable[..., Workspace]) -> None:
    workspace = make_workspace()
    with pytest.raises(PlbenchError, match="`folds=1`"):
        plan_folds(Request("tiny", ""), workspace, num_folds=1)
    with pytest.raises(PlbenchError, match="`seeds=0`"):
        plan_folds(Request("tiny", ""), workspace, num_seeds=0)
    with pytest.raises(DataError, match=r"leave fold \d+ of 500, or the images outside it, empty"):
        plan_folds(Request("tiny", ""), workspace, num_folds=500)
    with pytest.raises(DataError, match=r"no class in the fold 1 of 2.*both a known positive and a known negative"):
        plan_folds(Request("tiny", "ce-negative", simulate="single-positive"), workspace, num_folds=2)
