"""Runs that are deleted, and what stays because another run needs it."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest
import tomli_w
from test_cli import plbench
from test_record import a_record

from plbench.comparison.pruning import Weights, prunable
from plbench.errors import PlbenchError, StoreError
from plbench.files import write_text
from plbench.runs.record import Cost, Estimate, SplitMetrics, read_record, write_record
from plbench.runs.removal import Room, leftovers, removable_runs, remove
from plbench.runs.store import CHECKPOINT, Store

WEIGHTS = 1000  # bytes of a run's
NONE = {"micro_ap": None, "ranking_loss": None, "precision_at_k": None}
COUNTS = dict.fromkeys(("num_images", "num_classes", "num_classes_scored", "num_cells", "num_positives"), 4)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs", tmp_path / "cache")


def finished(store: Store, figure: float = 50.0, method: str = "m", split: str = "test", **changes: object) -> str:
    """Writes the folder of a run that is done, and returns its key."""
    spec = a_record().spec
    spec = spec.model_copy(update={"method": spec.method.model_copy(update={"name": method}), **changes})
    value = Estimate(value=figure)
    metrics = SplitMetrics(map_c=value, map_o=value, **NONE, **COUNTS)
    cost = Cost(seconds={"total": 1.0}, images_per_second=1.0, peak_memory_mb=1.0)
    record = a_record(spec=spec, key=spec.key, spec_sha256=spec.sha256(), metrics={split: metrics}, cost=cost)
    folder = store.run_folder(spec.key)
    write_text(folder / "spec.toml", tomli_w.dumps(spec.model_dump(mode="json", exclude_none=True)))
    (folder / CHECKPOINT).write_bytes(b"w" * WEIGHTS)
    write_record(folder, record)
    return spec.key


def with_weights(store: Store) -> set[str]:
    return set(store.keys(CHECKPOINT))


def prune(store: Store, weights: Weights = "best") -> Room:
    room = prunable(store, weights=weights)
    remove(store, room)
    return room


class TestRemove:
    def test_a_run_goes_with_all_of_its_files(self, store: Store) -> None:
        kept, gone = finished(store), finished(store, seed=1)
        room = removable_runs(store, [store.run_folder(gone)])
        assert room.num_bytes == sum(path.stat().st_size for path in store.run_folder(gone).iterdir())
        remove(store, room)
        assert [path.name for path in store.runs.iterdir()] == [kept]

    def test_what_another_run_needs_stays_with_it(self, store: Store) -> None:
        stage = finished(store, method="ce-ignore")
        other = finished(store, stages={"prior": stage})
        with pytest.raises(StoreError, match=f"run {other} needs run {stage}, its stage 'prior';"):
            removable_runs(store, [store.run_folder(stage)])
        (store.run_folder(other) / "record.json").unlink()  # it was interrupted, and goes on
        with pytest.raises(StoreError, match="needs run"):
            removable_runs(store, [store.run_folder(stage)])
        remove(store, removable_runs(store, map(store.run_folder, (stage, other))))
        assert list(store.runs.iterdir()) == []

    def test_so_does_the_run_that_chose_an_epoch(self, store: Store) -> None:
        shared = {"selection": "validation", "seed": 3}
        chooser = finished(store, split="validation", train_part="fit", **shared)
        finished(store, split="validation", train_part="fit", **{**shared, "seed": 4})
        main = finished(store, **shared)
        with pytest.raises(StoreError, match=f"run {main} needs run {chooser}, which chose its epoch;"):
            removable_runs(store, [store.run_folder(chooser)])

    def test_a_run_under_way_is_refused(self, store: Store) -> None:
        key = finished(store)
        with store.lock(key, print):
            with pytest.raises(StoreError, match=f"run {key} is in progress"):
                removable_runs(store, [store.run_folder(key)])
            with pytest.raises(StoreError, match=f"run {key} in .* is in progress"):
                prunable(store)

    def test_a_folder_elsewhere_is_refused(self, store: Store, tmp_path: Path) -> None:
        finished(Store(tmp_path / "others", store.cache))
        with pytest.raises(StoreError, match="is not in"):
            removable_runs(store, (tmp_path / "others").iterdir())

    def test_a_damaged_run_can_be_removed(self, store: Store) -> None:
        key, other = finished(store), finished(store, seed=1)
        (store.run_folder(key) / "spec.toml").write_text("=")
        (store.run_folder(key) / "record.json").write_text("{")
        with pytest.raises(PlbenchError, match="cannot be read as a record"):
            prunable(store)
        remove(store, removable_runs(store, [store.run_folder(key)]))
        assert store.keys() == [other]

    def test_one_that_is_killed_leaves_no_half_of_a_run(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        key, other = finished(store), finished(store, seed=1)

        def killed(path: Path, **options: object) -> None:
            os.unlink(path / CHECKPOINT)
            os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr(shutil, "rmtree", killed)
        process = multiprocessing.get_context("fork").Process(target=store.remove, args=(key,))
        process.start()
        process.join()
        monkeypatch.undo()
        assert process.exitcode == -signal.SIGKILL
        assert store.keys() == [other] and [item.kind for item in leftovers(store)] == ["unfinished"]
        prune(store)
        assert [path.name for path in store.runs.iterdir()] == [other]


class TestPrune:
    def test_weights_of_the_best_row_stay(self, store: Store) -> None:
        best = {finished(store, 60.0, seed=seed) for seed in (0, 1)}
        finished(store, 70.0, "one-seed-is-lucky", seed=0)
        finished(store, 10.0, "one-seed-is-lucky", seed=1)
        trial = finished(store, 90.0, split="validation", train_part="fit", selection="validation")
        another = finished(store, 5.0, regime="finetune")  # the best, and only, row of its setting
        keys = store.keys()
        room = prune(store)
        assert with_weights(store) == best | {another} and trial not in with_weights(store)
        prune(store, "first")
        assert with_weights(store) == {another, min(best, key=lambda key: read_record(store.run_folder(key)).spec.seed)}
        assert store.keys() == keys and room.num_bytes == 3 * WEIGHTS
        assert prunable(store).items == ()

    @pytest.mark.parametrize(("weights", "number"), [("none", 0), ("all", 2), ("best", 1)])
    def test_whose_stay_can_be_said(self, store: Store, weights: Weights, number: int) -> None:
        finished(store, 60.0), finished(store, 50.0, "other")
        prune(store, weights)
        assert len(with_weights(store)) == number

    def test_weights_of_a_stage_stay_until_what_is_taken_of_them_is_stored(self, store: Store) -> None:
        stage = finished(store, 10.0, "ce-ignore")
        finished(store, 60.0, stages={"prior": stage})
        prune(store, "none")
        assert with_weights(store) == {stage}
        write_text(store.run_folder(stage) / "artifacts" / f"prior-{'0' * 16}.npy", "")
        prune(store, "none")
        assert with_weights(store) == set()

    def test_leftovers_go_and_interrupted_trainings_stay(self, store: Store) -> None:
        key, begun = finished(store), finished(store, seed=1)
        (store.run_folder(begun) / "record.json").unlink()
        for owner in (key, begun):
            write_text(store.run_folder(owner) / "checkpoints" / "step-00000001.pt", "12345")
            (store.run_folder(owner) / ".cells.npz.ab12.tmp").write_text("1")
            (store.run_folder(owner) / "record.json.damaged").write_text("12")
        kinds = sorted(item.kind for item in prune(store, "all").items)
        assert kinds == ["checkpoints", "damaged", "damaged", "unfinished", "unfinished"]
        assert (store.run_folder(begun) / "checkpoints" / "step-00000001.pt").is_file()
        assert sorted(path.name for path in store.run_folder(key).iterdir()) == [CHECKPOINT, "record.json", "spec.toml"]

    def test_features_go_where_that_is_said(self, store: Store) -> None:
        write_text(store.cache / "features" / "a.npy", "123")
        assert prunable(store).items == ()
        assert [(item.kind, item.num_bytes) for item in prunable(store, features=True).items] == [("features", 3)]


class TestCommands:
    def test_what_would_go_is_said_and_asked(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PLBENCH_CACHE", str(store.cache))
        key = finished(store)
        finished(store, 60.0, "better")
        said = plbench("runs", "prune", "--dry-run", "--runs", store.runs)
        assert said.code == 0 and "Would free 1.0 kB" in said.out and len(with_weights(store)) == 2
        said = plbench("runs", "prune", "--yes", "--json", "--runs", store.runs)
        assert json.loads(said.out)["bytes"] == WEIGHTS and json.loads(said.out)["deleted"]
        assert key not in with_weights(store)
        assert "There is nothing to delete" in plbench("runs", "prune", "--runs", store.runs).out
        assert plbench("runs", "remove", key[:8], "-y", "--runs", store.runs).code == 0
        assert len(store.keys()) == 1
        said = plbench("runs", "remove", key[:8], "-y", "--runs", store.runs)
        assert said.code == 2 and "there is no run" in said.err
