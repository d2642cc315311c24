"""Comparisons by folds: every known label of train is scored once, by a model that did not see its image."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from test_cli import plbench
from test_lineup import Exploding, comparison_of

import plbench as from_python
from plbench.board.submit import asked_for
from plbench.comparison.compare import Setting, compare
from plbench.comparison.folds import pool_cells, side_by_side
from plbench.comparison.picture import draw_comparison
from plbench.comparison.plan import Comparison, estimate_comparison, make_runs, plan_comparison
from plbench.comparison.pruning import prunable
from plbench.comparison.verdict import verdict
from plbench.errors import DataError, PlbenchError
from plbench.metrics import bootstrap
from plbench.metrics.cells import Cells
from plbench.metrics.statistics import Sample
from plbench.randomness import derive_seed
from plbench.runs import environment, removal, summary
from plbench.runs.plan.resolve import Request
from plbench.runs.record import Record
from plbench.runs.workspace import Workspace
from plbench.training.step import Stepper

pytestmark = pytest.mark.usefixtures("quick_records")
SHORT = Request("partly", "", plan={"epochs": 1})
BARE = (3, 17)  # images of which nothing is known


@pytest.fixture
def partly(tiny_dataset: Any) -> type:
    """The tiny dataset, two thirds of whose labels are known, and none of some images."""

    class Partly(tiny_dataset):
        name = "partly"
        protocols = (
            tiny_dataset.protocols[0].model_copy(
                update={"name": "partly/v1", "dataset": "partly", "simulation": "none", "simulation_seed": 0}
            ),
        )

        def truth(self, split: str) -> np.ndarray:
            labels = super().truth(split)
            known = np.random.default_rng(5).random(labels.shape) < 0.67
            known[list(BARE)] = False
            return np.where(known, labels, 0).astype(np.int8)

    return Partly


def in_folds(workspace: Workspace, methods: str = "ce-ignore,ce-negative", num_folds: int = 2) -> Comparison:
    return replaced(comparison_of([methods], workspace, 2, SHORT), workspace, num_folds)


def replaced(comparison: Comparison, workspace: Workspace, num_folds: int) -> Comparison:
    """The same candidates, by folds."""
    candidates = [candidate for candidate, _ in comparison.rows]
    return plan_comparison(SHORT, candidates, 2, workspace, num_folds=num_folds)


def table_of(comparison: Comparison, workspace: Workspace) -> Setting:
    return side_by_side(comparison, make_runs(comparison, workspace)[0], workspace)


def out_of_fold(comparison: Comparison, workspace: Workspace, method: str, seed: int) -> np.ndarray:
    """Scores [N, C] by the id of each image, NaN where none is kept; a cell that comes twice is an error."""
    data = comparison.setting.protocol_data
    place = {image_id: row for row, image_id in enumerate(data.whole_train.images.ids)}
    found = np.full(data.whole_train.labels.matrix.shape, np.nan)
    for plan in comparison.plans:
        if (plan.method.name, plan.spec.seed) == (method, seed):
            ids = data.held_out(plan.spec.train_part).images.ids
            assert not {*ids} & {*data.train(plan.spec.train_part).images.ids}, "no model is asked what it learned"
            with np.load(workspace.store.run_folder(plan.spec.key) / "cells.npz") as cells:
                at = np.array([place[ids[row]] for row in cells["rows"]]), cells["class_index"]
                assert np.isnan(found[at]).all()
                found[at] = cells["scores"]
    return found


def worst(labels: np.ndarray) -> float:
    """Average precision of a class where all negatives come first."""
    found = np.arange(1, (labels > 0).sum() + 1)
    return float(np.mean(found / ((labels < 0).sum() + found)))


def test_pooled_figures_are_those_of_all_out_of_fold_scores(
    partly: type, make_workspace: Callable[..., Workspace]
) -> None:
    workspace = make_workspace(partly)
    comparison = in_folds(workspace, num_folds=3)
    assert [plan.spec.train_part[-6:] for plan in comparison.plans[:6]] == ["1-of-3", "2-of-3", "3-of-3"] * 2
    table = table_of(comparison, workspace)
    assert comparison.setting.protocol_data.open_splits == ("train",), "test stays closed"
    assert (table.folds, table.num_images, table.images) == (3, 46, "46 train images in 3 folds")
    labels = comparison.setting.protocol_data.whole_train.labels.rows(np.arange(48))
    kept = np.setdiff1d(np.arange(48), BARE)
    stream = derive_seed(0, "bootstrap", comparison.setting.spec.protocol.sha256(), "folds of train")
    for row in table.rows:
        by_seed, replicates = [], []
        for seed in row.seeds:
            scores = out_of_fold(comparison, workspace, row.method, seed)
            assert np.array_equal(np.isnan(scores), labels == 0), "each known label is scored once, and no other"
            aps = [
                average_precision_score(labels[known, c] > 0, scores[known, c])
                for c in range(6)
                if len({*labels[known := labels[:, c] != 0, c].tolist()}) == 2
            ]
            by_seed.append(100 * np.mean(aps))
            cells = Cells.from_scores(np.nan_to_num(scores[kept]), labels[kept])
            drawn = bootstrap.replicates(cells, summary.NUM_REPLICATES, seed=stream).map_c
            replicates.append(by_seed[-1] + np.sqrt(1 + 3 / 2) * (drawn - by_seed[-1]))
        assert row.figures["map_c"].mean == pytest.approx(np.mean(by_seed), abs=1e-5)
        lowest = 100 * np.mean([worst(column) for column in labels.T])
        expected = Sample.of_runs(by_seed, replicates, (0, 1), (lowest, 100.0)).figure()
        assert (row.figures["map_c"].low, row.figures["map_c"].high) == pytest.approx((expected.low, expected.high))
        assert len(row.keys) == 6 and len({*row.keys}) == 6 and row.seeds == (0, 1)
    shares = (labels > 0).sum(axis=0) / (labels != 0).sum(axis=0)
    assert table.chance == pytest.approx(100 * shares.mean())


def test_cells_are_pooled_as_numpy_would(partly: type, make_workspace: Callable[..., Workspace]) -> None:
    data = in_folds(make_workspace(partly)).setting.protocol_data
    labels, dense = data.partial_labels, np.random.default_rng(1).random((48, 6)).astype(np.float32)
    folds = [data.held_out(f"without-fold-{number}-of-2") for number in (1, 2)]
    pooled = pool_cells([(part, Cells.from_scores(dense[part.rows], part.labels)) for part in folds], labels)
    kept = np.setdiff1d(np.arange(48), BARE)
    whole = Cells.from_scores(dense[kept], labels.rows(kept))
    for name in ("rows", "class_index", "scores", "positives"):
        np.testing.assert_array_equal(getattr(pooled, name), getattr(whole, name))
    assert (pooled.num_images, pooled.num_classes) == (46, 6)


def test_a_second_time_nothing_is_trained_and_the_answer_is_the_same(
    partly: type, make_workspace: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make_workspace(partly)
    comparison = in_folds(workspace)
    said, estimate = estimate_comparison(comparison, workspace)
    assert "2 rows with 2 seeds each in 2 folds, 8 trainings, 0 of them done" in said and len(estimate.missing) == 8
    first = table_of(comparison, workspace)

    def no_step(*arguments: Any) -> float:
        raise AssertionError("something was trained")

    monkeypatch.setattr(Stepper, "take", no_step)
    monkeypatch.setattr("plbench.runs.schedule.run_group", no_step)
    assert "all done already" in estimate_comparison(in_folds(workspace), workspace)[0]
    assert table_of(in_folds(workspace), workspace).as_dict() == first.as_dict()


def test_what_they_leave_behind_is_on_no_board_in_no_other_table_and_needs_no_weights(
    partly: type, make_workspace: Callable[..., Workspace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make_workspace(partly)
    comparison = in_folds(workspace)
    runs, _ = make_runs(comparison, workspace)
    first = side_by_side(comparison, runs, workspace)
    asks = SimpleNamespace(protocol_sha256=comparison.setting.spec.protocol.sha256(), ceiling_sha256=None)
    monkeypatch.setattr("plbench.board.submit.open_boards", lambda root: [SimpleNamespace(board=asks)])
    assert compare(runs) == [] and asked_for(runs, tmp_path) == []
    room = prunable(workspace.store)
    assert sum(item.kind == "weights" for item in room.items) == 8
    removal.remove(workspace.store, room)
    assert not list(workspace.store.runs.glob("*/checkpoint.pt"))
    assert table_of(in_folds(workspace), workspace).as_dict() == first.as_dict()


def test_a_fold_that_fails_leaves_its_row_out(partly: type, make_workspace: Callable[..., Workspace]) -> None:
    workspace = make_workspace(partly, Exploding)
    comparison = in_folds(workspace, "ce-negative,exploding")
    runs, failed = make_runs(comparison, workspace)
    assert [entry.who for entry in failed] == ["exploding"]
    assert "seed 0 without fold 1 of 2 failed" in failed[0].why
    assert [row.method for row in side_by_side(comparison, runs, workspace).rows] == ["ce-negative"]


def test_rows_of_one_model_are_one_row(partly: type, make_workspace: Callable[..., Workspace]) -> None:
    workspace = make_workspace(partly)
    comparison = in_folds(workspace, "ce-negative")
    runs, _ = make_runs(comparison, workspace)

    def renamed(record: Record) -> Record:
        method = record.spec.method.model_copy(update={"params": {"mode": "both"}})
        return record.model_copy(update={"spec": record.spec.model_copy(update={"method": method})})

    twins = [(folder, renamed(record)) for folder, record in runs]
    (row,) = side_by_side(comparison, [*runs, *twins], workspace).rows
    assert len(row.same) == 1 and len(row.keys) == 4


@pytest.mark.parametrize(
    ("num_folds", "changes", "trials", "said"),
    [
        (1, {}, None, "`folds=1`: an image must be scored by models that were not trained on it; give at least 2"),
        (-2, {}, None, "`folds=-2`"),
        (2, {"dataset": "tiny"}, None, 'of protocol tiny-fpc8/v1 hides some of them; give `simulate="none"`'),
        (2, {"simulate": "rpa=0.5"}, None, "`folds=2` with `simulate=rpa=0.5`: folds are scored"),
        (2, {}, 4, "`folds=2` with `tune=4`: a study chooses values on all of train"),
        (2, {"selection": "validation"}, None, "`selection=validation`: the images that select the epoch"),
        (2, {"selection": "best-on-test"}, None, "leave the selection out"),
        (500, {}, None, "leave fold 1 of 500, or the images outside it, empty"),
    ],
)
def test_what_folds_do_not_go_with_is_refused(
    tiny_dataset: Any,
    make_workspace: Callable[..., Workspace],
    num_folds: int,
    changes: dict[str, Any],
    trials: int | None,
    said: str,
) -> None:
    class Whole(tiny_dataset):
        name = "partly"
        protocols = (tiny_dataset.protocols[0].model_copy(update={"dataset": "partly", "simulation": "none"}),)

    workspace = make_workspace(Whole)
    candidates = [candidate for candidate, _ in comparison_of(["ce-negative"], workspace, 1, SHORT).rows]
    with pytest.raises((PlbenchError, DataError), match=re.escape(said)):
        plan_comparison(replace(SHORT, **changes), candidates, 1, workspace, num_trials=trials, num_folds=num_folds)


def test_a_fold_that_cannot_be_scored_is_said_once_with_what_helps(
    partly: Any, make_workspace: Callable[..., Workspace]
) -> None:
    class Lone(partly):
        """Of all but one image, positives alone are known."""

        def truth(self, split: str) -> np.ndarray:
            labels = np.maximum(super().truth(split), 0)
            labels[0] = -1
            return labels

    workspace = make_workspace(Lone)
    with pytest.raises(DataError, match=r"no class in the fold . of 2 .* use fewer folds, or label more images"):
        in_folds(workspace, "ce-negative")


class TestWords:
    @pytest.fixture
    def table(self, partly: type, make_workspace: Callable[..., Workspace]) -> Setting:
        workspace = make_workspace(partly)
        return table_of(in_folds(workspace), workspace)

    def test_the_answer_says_what_is_scored_and_what_intervals_are_about(self, table: Setting, tmp_path: Path) -> None:
        said = " ".join(verdict(table))
        assert (
            "over 2 seeds on 46 train images in 2 folds. The chance that it would also be best with other images"
            in said
        )
        assert "intervals and p are therefore widened by Nadeau and Bengio's factor (2003). Scores of 2 models" in said
        assert "are pooled into one ranking" in said and "test images" not in said
        assert "`folds=5`" not in said and table.as_dict()["folds"] == 2
        draw_comparison(table, "", tmp_path / "a.svg")
        drawn = " ".join(re.findall(r"<!-- (.*?) -->", (tmp_path / "a.svg").read_text(encoding="utf-8"), re.DOTALL))
        drawn = " ".join(drawn.split())
        assert "46 train images in 2 folds and seeds" in drawn and "models that were not trained on it" in drawn

    def test_few_test_images_have_folds_offered(
        self, partly: type, make_workspace: Callable[..., Workspace], tiny_dataset: type
    ) -> None:
        workspace = make_workspace(partly)
        comparison = comparison_of(["ce-negative"], workspace, 1, SHORT)
        table = table_of(comparison, workspace)
        assert (table.foldable, table.num_images, table.folds) == (46, 24, None)
        said = verdict(table)
        assert said[-1] == (
            "`folds=5` would instead score all 46 labelled train images, each by models that were not trained on it."
        )
        simulated = comparison_of(["ce-negative"], workspace, 1, replace(SHORT, dataset="tiny"))
        hidden = table_of(simulated, workspace)
        assert hidden.foldable == 0 and "folds" not in " ".join(verdict(hidden))
        chosen = comparison_of(["ce-negative"], workspace, 1, replace(SHORT, selection="validation"))
        assert table_of(chosen, workspace).foldable == 0


METHODS = ["ce-ignore", "ce-negative"]
MODEL = {"backbone": "test_resnet", "weights": "random", "image_size": 32, "workers": 0, "epochs": 1}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The settings of a comparison on a person's own table; runs and cache are shared by this file's tests."""
    top = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PLBENCH_CACHE", str(top / "cache"))
        patched.setenv("PLBENCH_RUNS", str(top / "runs"))
        patched.setattr(summary, "NUM_REPLICATES", 20)
        patched.setattr(environment, "git_state", lambda: {"git_commit": None, "git_dirty": None})
        assert plbench("data", "make-fixture", "table", top).code == 0
        yield {"labels": top / "labels-long.csv", "images": top / "images", "negative_value": 0, **MODEL}


def words(own: dict[str, Any], *more: object) -> list[object]:
    options = [word for name, value in own.items() for word in (f"--{name.replace('_', '-')}", value)]
    return ["compare", "--dataset", "table", *options, "--methods", ",".join(METHODS), *more]


class TestCommand:
    def test_command_and_python_give_the_same(self, own: dict[str, Any]) -> None:
        said = plbench(*words(own, "--seeds", 2, "--folds", 2, "--json"))
        assert said.code == 0, said.err
        found = json.loads(said.out)
        assert (found["folds"], found["num_images"], len(found["rows"])) == (2, 59, 2)
        assert found["picture"].endswith("custom-table-2-folds.png") and Path(found["picture"]).is_file()
        table = from_python.compare("table", methods=METHODS, seeds=2, folds=2, **own)
        mine = json.loads(json.dumps(table.setting.as_dict()))
        assert {name: found[name] for name in mine} == mine
        assert "59 train images in 2 folds" in table.verdict and table.table["map_c"].notna().all()

    def test_the_next_commands_repeat_the_folds_and_work(self, own: dict[str, Any]) -> None:
        said = plbench(*words(own, "--seeds", 2, "--folds", 2))
        assert "59 train images in 2 folds, each scored by models that were not trained on it" in said.out
        assert "over images and seeds" in " ".join(said.out.split())
        steps = re.findall(r"^Next: plbench (.*)$", said.out, flags=re.MULTILINE)
        assert "--folds 2" in steps[0] and "--seeds 5" in steps[0] and "--tune" not in said.out
        plan = json.loads(plbench(*shlex.split(steps[0]), "--dry-run", "--json").out)
        assert plan["num_trainings"] == 20 and plan["num_missing"] == 12 and "in 2 folds" in plan["text"]

    def test_the_best_is_then_trained_on_all_of_train(self, own: dict[str, Any]) -> None:
        said = plbench(*words(own, "--seeds", 3, "--folds", 2))
        steps = re.findall(r"^Next: plbench (.*)$", said.out, flags=re.MULTILINE)
        assert steps[0].startswith("run --method ce-")
        record = json.loads(plbench(*shlex.split(steps[0]), "--json").out)
        assert record["spec"]["train_part"] == "train" and record["data"]["num_train"] == 60

    @pytest.mark.parametrize(
        ("options", "part"),
        [
            (["--folds", 1], "--folds 1: an image must be"),
            (["--folds", 2, "--tune", 3], "--folds 2 with --tune 3"),
            (["--folds", 2, "--selection", "validation"], "--folds 2 with --selection validation"),
            (["--folds", 2, "--selection", "validation", "--no-retrain"], "--selection validation-no-retrain"),
            (["--folds", 2, "--simulate", "fpc=3"], "--folds 2 with --simulate fpc=3"),
        ],
    )
    def test_what_is_refused_is_one_sentence(self, own: dict[str, Any], options: list[object], part: str) -> None:
        said = plbench(*words(own, *options))
        assert said.code == 2 and said.out == "" and part in said.err.splitlines()[-1]

    def test_copies_in_other_folds_are_refused_unless_allowed(self, own: dict[str, Any], tmp_path: Path) -> None:
        images = tmp_path / "images"
        shutil.copytree(own["images"], images)
        for number in (2, 4, 6, 8):
            shutil.copy(images / "garden" / "tr000.jpg", images / "garden" / f"tr{number:03d}.jpg")
        said = plbench(*words({**own, "images": images}, "--folds", 2, "--seeds", 1))
        assert said.code == 2 and "1 train image with copies in another of 2 folds (garden/tr000.jpg = " in said.err
        assert "give --allow-duplicates" in said.err
        said = plbench(*words({**own, "images": images}, "--folds", 2, "--seeds", 1, "--allow-duplicates", "--dry-run"))
        assert said.code == 0, said.err
