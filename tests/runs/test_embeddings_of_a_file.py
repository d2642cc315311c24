"""Methods that need embeddings run with a file of them, whose content is part of their identity and of no other's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from plbench.board.rows import _Row
from plbench.cli.request import next_steps, options_of
from plbench.comparison.candidates import choose_candidates
from plbench.comparison.plan import Comparison, make_runs, plan_comparison
from plbench.errors import DataError, PlbenchError
from plbench.runs import run as runner
from plbench.runs.estimate.estimate import describe, estimate_runs
from plbench.runs.plan.resolve import Request, plan_from_spec, plan_run
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.record import read_record
from plbench.runs.workspace import Workspace
from plbench.tuning.study import search_space, study_spec, with_values
from plbench.tuning.trials import score_together

pytestmark = pytest.mark.usefixtures("quick_records")

MakeWorkspace = Callable[..., Workspace]
METHODS = ("vlpl", "gpr", "zero-shot")
CLASSES, SPLITS = tuple("abcdef"), {"train": 48, "test": 24}  # of the tiny dataset


def write(path: Path, seed: int = 0, **changes: Any) -> str:
    """A file that sees what is there, with noise."""
    rng = np.random.default_rng(seed)
    classes = np.eye(len(CLASSES), 8)
    ids, images = [], []
    for split, number in SPLITS.items():
        truth = np.random.default_rng(len(split)).random((number, 6)) < np.linspace(0.6, 0.2, 6)  # its complete labels
        images.append(truth @ classes + 0.3 * rng.standard_normal((number, 8)))
        ids += [f"{split}/{split}-{row}" for row in range(number)]
    order = rng.permutation(len(ids))
    arrays: dict[str, Any] = {
        "class_ids": np.array(CLASSES)[::-1],
        "class_embeddings": classes[::-1],
        "image_ids": np.array(ids)[order],
        "image_embeddings": np.concatenate(images)[order],
        "logit_scale": np.float32(20),
        "model": np.array("made up"),
    }
    np.savez(path, **{**arrays, **changes})
    return str(path)


@pytest.fixture
def file(tmp_path: Path) -> str:
    return write(tmp_path / "e.npz")


def a_plan(workspace: Workspace, method: str, embeddings: str | None, **request: Any) -> ResolvedRun:
    request = {"plan": {"epochs": 1}, **request}
    return plan_run(Request("tiny", method, embeddings=embeddings, **request), workspace)


@pytest.mark.parametrize("regime", ["probe", "finetune"])
@pytest.mark.parametrize("method", METHODS)
def test_it_trains_and_is_scored_in_both_regimes(
    make_workspace: MakeWorkspace, file: str, method: str, regime: Any
) -> None:
    workspace = make_workspace()
    plan = a_plan(workspace, method, file, regime=regime)
    assert describe(plan, workspace)  # which measures a few steps
    record = runner.run(plan, workspace)
    assert record.status == "done" and record == read_record(workspace.store.run_folder(record.key))
    assert any(note.startswith("embeddings of images and class names: made up, file") for note in record.notes)
    assert record.hidden_truth is not None and record.priors == {}
    assert (record.training["steps"] == 0) == (method == "zero-shot")


def test_zero_shot_scores_are_those_of_the_test_images(make_workspace: MakeWorkspace, file: str) -> None:
    workspace = make_workspace()
    plan = a_plan(workspace, "zero-shot", file)
    record = runner.run(plan, workspace)
    with np.load(file) as arrays:
        rows = {name: row for row, name in enumerate(arrays["image_ids"].tolist())}
        x = arrays["image_embeddings"][[rows[f"test/test-{row}"] for row in range(SPLITS["test"])]]
        cosines = x[:, : len(CLASSES)] / np.linalg.norm(x, axis=1, keepdims=True)
    weights = np.exp(20 * cosines)
    with np.load(workspace.store.run_folder(record.key) / "cells.npz") as cells:
        found = {name: cells[name] for name in cells.files}
    scores = next(value for value in found.values() if value.dtype.kind == "f" and value.size == weights.size)
    expected = (weights / weights.sum(axis=1, keepdims=True)).ravel()
    np.testing.assert_allclose(np.sort(scores), np.sort(expected), rtol=1e-4)
    assert record.cost is not None and record.cost.standard is not None
    assert record.cost.standard.image_passes == record.cost.standard.head == 0
    row = SimpleNamespace(records=(record,))
    assert "uses embeddings of another model" in _Row.why_unranked.fget(row)  # no board ranks it
    estimate = estimate_runs([plan_run(Request("tiny", "zero-shot", embeddings=file, seed=3), workspace)], workspace)
    assert (estimate.words, estimate.steps_left, len(estimate.items)) == ("only scoring", 0, 1)


def test_the_files_content_is_in_the_key_of_those_that_need_it_alone(
    make_workspace: MakeWorkspace, tmp_path: Path, file: str
) -> None:
    workspace, other = make_workspace(), write(tmp_path / "other.npz", seed=1)
    one, same = (a_plan(workspace, "vlpl", path).spec for path in (file, file))
    assert one.embeddings is not None and one.key == same.key != a_plan(workspace, "vlpl", other).spec.key
    Path(file).rename(tmp_path / "renamed.npz")
    assert a_plan(workspace, "vlpl", str(tmp_path / "renamed.npz")).spec.key == one.key
    assert a_plan(workspace, "vlpl", one.embeddings).spec.key == one.key  # by its name in the cache
    candidates, _ = choose_candidates(["vlpl", "ce-negative", "selective"], workspace.registry)
    request = Request("tiny", "", plan={"epochs": 1}, embeddings=other)
    rows = {
        candidate.method: plans[0].spec for candidate, plans in plan_comparison(request, candidates, 1, workspace).rows
    }
    for method in ("ce-negative", "selective"):
        assert rows[method].embeddings is None
        assert rows[method].key == a_plan(workspace, method, None).spec.key


def test_a_run_that_was_written_down_is_the_same_as_long_as_the_file_is_kept(
    make_workspace: MakeWorkspace, file: str
) -> None:
    workspace = make_workspace()
    spec = a_plan(workspace, "gpr", file).spec
    Path(file).unlink()
    assert plan_from_spec(spec, workspace).spec.key == spec.key
    (workspace.store.cache / "embeddings" / f"{spec.embeddings}.npz").unlink()
    with pytest.raises(DataError, match="is not here; give it again with `embeddings=FILE`"):
        plan_from_spec(spec, workspace)


def test_commands_that_follow_name_the_file_where_it_is_needed(make_workspace: MakeWorkspace, file: str) -> None:
    workspace = make_workspace()
    plan = a_plan(workspace, "vlpl", file)
    words = options_of(plan, workspace)
    assert words[words.index("--embeddings") + 1] == plan.spec.embeddings
    assert not any("--embeddings" in step for step in next_steps(plan, workspace, was_done=False))


@pytest.mark.parametrize("method", METHODS)
def test_without_a_file_the_plan_says_what_is_needed_and_how_to_make_it(
    make_workspace: MakeWorkspace, method: str
) -> None:
    sentence = (
        f"method '{method}' needs a vision-language model's embeddings of images and class names; give the file with "
        "`embeddings=FILE`, which plbench data embeddings tiny makes"
    )
    with pytest.raises(PlbenchError) as caught:
        a_plan(make_workspace(), method, None)
    assert str(caught.value) == sentence


def test_what_the_file_lacks_is_said_before_anything_is_trained(make_workspace: MakeWorkspace, tmp_path: Path) -> None:
    workspace = make_workspace()
    few = write(tmp_path / "few.npz", class_ids=np.array(list("abcdeX")))
    with pytest.raises(DataError, match="has none of 1 of the 6 classes of 'tiny', such as 'f'"):
        a_plan(workspace, "vlpl", few)
    ids = np.array([f"image-{row}" for row in range(sum(SPLITS.values()))])
    with pytest.raises(
        DataError, match=r"none of 48 of the 48 train images of 'tiny', such as 'train/train-0' \(it has"
    ):
        a_plan(workspace, "vlpl", write(tmp_path / "other.npz", image_ids=ids))


def test_a_file_that_nobody_needs_is_refused(make_workspace: MakeWorkspace, file: str) -> None:
    workspace = make_workspace()
    with pytest.raises(PlbenchError, match=r"is not used by ce-negative; leave it out"):
        a_plan(workspace, "ce-negative", file)
    candidates, _ = choose_candidates(["ce-negative", "hill"], workspace.registry)
    with pytest.raises(PlbenchError, match=r"is not used by ce-negative, hill; leave it out"):
        plan_comparison(Request("tiny", "", embeddings=file), candidates, 1, workspace)


def a_comparison(workspace: Workspace, embeddings: str | None, texts: list[str], seeds: int = 1) -> Comparison:
    candidates, broken = choose_candidates(texts, workspace.registry)
    request = Request("tiny", "", plan={"epochs": 1}, embeddings=embeddings)
    return plan_comparison(request, candidates, seeds, workspace, skipped=broken)


def test_all_methods_are_those_that_have_what_they_need(make_workspace: MakeWorkspace, file: str) -> None:
    workspace = make_workspace()
    without, with_file = (a_comparison(workspace, given, ["all"]) for given in (None, file))
    left_out = {entry.who: entry.why for entry in without.skipped}
    assert set(METHODS) <= left_out.keys()
    assert all("give the file with `embeddings=FILE`" in left_out[name] for name in METHODS)
    assert not set(METHODS) & {entry.who for entry in with_file.skipped}
    assert {c.method for c, _ in with_file.rows} - {c.method for c, _ in without.rows} == set(METHODS)


def test_they_train_in_one_pass_with_others_to_what_they_come_to_alone(
    make_workspace: MakeWorkspace, file: str
) -> None:
    together, alone = make_workspace(), make_workspace(name="alone")
    texts, model = (
        ["ce-negative", "vlpl", "gpr", "zero-shot"],
        {"backbone": "tf_efficientnet_lite0", "weights": "packaged"},
    )
    candidates, _ = choose_candidates(texts, together.registry)
    request = Request("tiny", "", plan={"epochs": 1}, embeddings=file, model=model)
    records = [record for _, record in make_runs(plan_comparison(request, candidates, 2, together), together)[0]]
    shared = {record.spec.method.name: record.cost.shared_with for record in records if record.cost is not None}
    assert len(records) == 8 and shared == {"ce-negative": 5, "vlpl": 5, "gpr": 5, "zero-shot": 0}
    for name in ("vlpl", "gpr"):
        plan = plan_run(replace(request, method=name, seed=1), alone)
        own = runner.run(plan, alone)
        other = next(record for record in records if record.key == own.key)
        assert other.test.map_c.value == pytest.approx(own.test.map_c.value, abs=0.01)


def test_studies_and_their_trials_are_of_the_file(make_workspace: MakeWorkspace, tmp_path: Path, file: str) -> None:
    workspace, keys = make_workspace(), []
    for path in (file, write(tmp_path / "other.npz", seed=1)):
        plan = a_plan(workspace, "vlpl", path, scores_test=False)
        keys.append(study_spec(plan, 0, frozenset(), {}, workspace.registry, sampler="s", pruner="p").key)
        values = {"threshold": 0.2, "lr": 0.02}
        trial = with_values(plan, values, {"train_part": "fit", "seed": 7}, workspace.registry)
        assert trial.spec.embeddings == plan.spec.embeddings
        (result,) = score_together([trial], workspace)
        assert result.value is not None
    assert keys[0] != keys[1]
    untrained = a_plan(workspace, "zero-shot", file, scores_test=False)
    assert list(search_space(untrained, frozenset(), {})) == ["temperature"]  # no rate and no decay
    with pytest.raises(PlbenchError, match="no parameter is left for tuning to search"):
        search_space(untrained, frozenset({"temperature"}), {})
