"""A run's model on images: the scores of its record to the bit, going on, broken images, and labels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from plbench.data.images import ImageFiles, files_at
from plbench.errors import DataError, PlbenchError
from plbench.loading import features
from plbench.loading.resumable_array import GrowingMatrix
from plbench.metrics.cells import Cells
from plbench.runs import predict, scores_file, trained
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.predict import Predictions, predictions
from plbench.runs.record import read_record, write_record
from plbench.runs.run import run
from plbench.runs.task_file import TASK
from plbench.runs.trained import load_model
from plbench.runs.workspace import Workspace
from plbench.training import evaluation

pytestmark = pytest.mark.usefixtures("quick_records")


def made(workspace: Workspace, method: str = "selective", **asked: Any) -> Path:
    record = run(plan_run(Request("tiny", method, **asked), workspace), workspace)
    return workspace.store.run_folder(record.key)


def test_images(workspace: Workspace) -> ImageFiles:
    """In the order of the dataset."""
    root = workspace.store.cache / "data" / "tiny"
    return files_at([root / "test" / f"{row}.png" for row in range(24)])


test_images.__test__ = False  # type: ignore[attr-defined]


def predicted(folder: Path, images: ImageFiles, workspace: Workspace, **options: Any) -> Predictions:
    with predictions(load_model(folder, workspace), images, workspace, **options) as found:
        return replace(found, scores=np.array(found.scores))


@pytest.mark.parametrize(
    ("method", "asked"),
    [
        ("selective", {}),
        ("cnn-rnn", {}),
        ("cft", {}),
        ("ce-negative", {"regime": "finetune"}),
        ("ce-negative", {"regime": "finetune", "selection": "best-on-test"}),
        ("ce-negative", {"model": {"head": "csra"}}),
        ("ce-negative", {"selection": "validation-no-retrain"}),
        ("ce-ignore", {"model": {"backbone": "tf_efficientnet_lite0"}, "precision": "bfloat16"}),
    ],
)
def test_scores_are_those_that_the_record_was_computed_from(
    method: str, asked: dict[str, Any], make_workspace: Callable[..., Workspace]
) -> None:
    workspace = make_workspace()
    folder = made(workspace, method, **asked)
    cells = Cells.load(folder / "cells.npz")
    images = test_images(workspace)
    for has_task in (True, False):  # runs of older versions need the dataset
        if not has_task:
            record = read_record(folder)
            files = {name: file for name, file in record.files.items() if name != TASK}
            write_record(folder, record.model_copy(update={"files": files}))
        scores = predicted(folder, images, workspace).scores
        assert scores.shape == (24, 6) and scores.dtype == np.float32
        assert np.array_equal(scores[cells.rows, cells.class_index], cells.scores)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """24 images are five batches, the last one smaller."""
    for module in (evaluation, predict):
        monkeypatch.setattr(module, "EVAL_BATCH_SIZE", 5)
    for module in (features, trained):
        monkeypatch.setattr(module, "BATCH_SIZE", 5)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize(("regime", "damaged"), [("probe", False), ("probe", True), ("finetune", False)])
def test_an_interrupted_prediction_goes_on(
    regime: str, damaged: bool, make_workspace: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make_workspace()
    folder = made(workspace, "ce-negative", regime=regime)
    cells, images = Cells.load(folder / "cells.npz"), test_images(workspace)
    written: list[int] = []
    write = GrowingMatrix.write

    def interrupted(self: GrowingMatrix, batch: int, values: np.ndarray) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(batch)
        write(self, batch, values)

    monkeypatch.setattr(GrowingMatrix, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predicted(folder, images, workspace)
    written.append(-1)  # not interrupted again
    if damaged:  # the first score
        (partial,) = (workspace.store.cache / "predictions").glob("*.partial")
        content = bytearray(partial.read_bytes())
        content[content.index(b"\n") + 1] ^= 1
        partial.write_bytes(content)
    scores = predicted(folder, images, workspace).scores
    assert written == [0, 1, -1, *[0] * damaged, 2, 3, 4]
    assert np.array_equal(scores[cells.rows, cells.class_index], cells.scores)
    assert not [path for path in (workspace.store.cache / "predictions").iterdir() if path.suffix != ".lock"]


@pytest.mark.usefixtures("small_batches")
def test_unreadable_images_are_refused_or_skipped(make_workspace: Callable[..., Workspace], tmp_path: Path) -> None:
    workspace = make_workspace()
    folder = made(workspace, "ce-negative")
    photos = tmp_path / "photos"
    shutil.copytree(workspace.store.cache / "data" / "tiny" / "test", photos / "deep")
    whole = predicted(folder, files_at([photos]), workspace)
    assert whole.images == tuple(sorted(f"deep/{row}.png" for row in range(24)))
    (photos / "deep" / "11.png").write_bytes(b"no image")
    (photos / "deep" / "9.png").write_bytes((photos / "deep" / "9.png").read_bytes()[:60])
    (photos / "deep" / ".hidden.png").write_bytes(b"left out")
    images = files_at([photos])
    with pytest.raises(DataError, match=r"11\.png cannot be read.*`skip_unreadable=True`"):
        predicted(folder, images, workspace)
    found = predicted(folder, images, workspace, skip_unreadable=True)
    assert list(found.unreadable) == ["deep/11.png", "deep/9.png"] and "Pillow" in found.unreadable["deep/11.png"]
    kept = [name not in found.unreadable for name in whole.images]
    assert found.images == tuple(np.array(whole.images)[kept])
    assert np.array_equal(found.scores, whole.scores[kept])
    with pytest.raises(DataError, match="there is no image in"):
        files_at([folder])


def test_labels_by_threshold_and_rank() -> None:
    scores = np.array([[0.2, 0.9, 0.5], [0.1, 0.3, 0.4]], np.float32)
    found = Predictions(("a", "b"), ("x", "y", "z"), scores, {})
    assert found.labels(0.5).tolist() == [[False, True, True], [False, False, False]]
    assert found.labels(scores[0]).tolist() == [[True, True, True], [False, False, False]]
    assert found.labels(top_k=1).tolist() == [[False, True, False], [False, False, True]]
    assert found.labels(0.35, 2).tolist() == [[False, True, True], [False, False, True]]


def test_a_model_that_is_not_the_runs_own_or_has_none_is_refused(make_workspace: Callable[..., Workspace]) -> None:
    workspace = make_workspace()
    folder = made(workspace, "ce-ignore", model={"backbone": "tf_efficientnet_lite0"}, plan={"epochs": 1})
    other = workspace.store.cache / "other.pt"
    other.write_bytes(b"weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trained, "weights_path", lambda model, file: other)
        with pytest.raises(PlbenchError, match="does not hold the weights of tf_efficientnet_lite0"):
            load_model(folder, workspace)
    kind = workspace.registry.method("ce-ignore")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "learns", False)
        with pytest.raises(PlbenchError, match="'ce-ignore' scores by embeddings of its dataset's images"):
            load_model(folder, workspace)
    (folder / "checkpoint.pt").write_bytes(b"changed")
    with pytest.raises(PlbenchError, match="was changed since"):
        load_model(folder, workspace)


def test_a_method_that_changed_since_is_noted(
    make_workspace: Callable[..., Workspace], listening: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = replace(make_workspace(), reporter=listening)
    folder = made(workspace, "ce-negative", plan={"epochs": 1})
    load_model(folder, workspace)
    assert not any("has changed since" in line for line in listening.lines)
    monkeypatch.setattr(trained, "source_sha256", lambda kind: "0" * 64)
    load_model(folder, workspace)
    assert any("method ce-negative has changed since run" in line for line in listening.lines)


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".jsonl"])
def test_files_hold_the_very_scores(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores_file, "_ROWS", 2)
    scores = np.random.default_rng(0).random((5, 3), np.float32)
    images, classes = tuple(f'{n}, "é".png' for n in range(5)), ("a", "b, c", "ü")
    found, path = Predictions(images, classes, scores, {}), tmp_path / f"scores{ending}"
    scores_file.write_predictions(path, found, labels := found.labels(0.5))
    names = [[classes[c] for c in np.flatnonzero(row)] for row in labels]
    if ending == ".jsonl":
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert [line["image"] for line in lines] == list(images) and [line["labels"] for line in lines] == names
        assert np.array_equal(np.array([[*line["scores"].values()] for line in lines], np.float32), scores)
        return
    table = pd.read_csv(path, keep_default_na=False) if ending == ".csv" else pd.read_parquet(path)
    assert list(table.columns) == ["image", "labels", *classes] and list(table["image"]) == list(images)
    assert [text.split(";") if text else [] for text in table["labels"]] == names if ending == ".csv" else True
    assert [list(own) for own in table["labels"]] == names if ending == ".parquet" else True
    assert np.array_equal(table[[*classes]].to_numpy(np.float32), scores)
    with pytest.raises(PlbenchError, match="must end in one of"):
        scores_file.check_name(tmp_path / "scores.txt")
