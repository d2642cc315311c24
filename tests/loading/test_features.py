"""Cached features: equal to a direct computation, made once, and gone on with where an extraction was stopped."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from plbench.api import DataError, ImageFiles, ModelSpec, PlbenchError
from plbench.loading import features
from plbench.loading.features import cached_features, features_key, features_name
from plbench.loading.transforms import eval_transform
from plbench.models.backbones import Backbone
from plbench.randomness import seeded
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.run import run
from plbench.runs.store import Store
from plbench.runs.workspace import Workspace

MODEL = ModelSpec(backbone="test_resnet", weights="random", image_size=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
KEY = "0123456789abcdef" * 4


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs", tmp_path / "cache")


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 4 images and a note after every second one, so that 48 images are 12 batches."""
    monkeypatch.setattr(features, "BATCH_SIZE", 4)
    monkeypatch.setattr(features, "_SAVE_EVERY", 2)


def a_backbone() -> Backbone:
    with seeded(0):
        return Backbone(MODEL)


def compute(store: Store, images: ImageFiles, **changes: Any) -> np.ndarray:
    options: dict[str, Any] = {
        "device": torch.device("cpu"),
        "precision": "float32",
        "workers": 0,
        "report": lambda done, total: None,
    }
    make_backbone = changes.pop("make_backbone", a_backbone)
    return cached_features(store.cache, KEY, images, make_backbone, MODEL, **(options | changes))


def stop_at(rows: int, stop: Callable[[], Any]) -> Callable[[int, int], None]:
    def report(done: int, total: int) -> None:
        if done == rows:
            stop()

    return report


def interrupt() -> None:
    raise KeyboardInterrupt


def never() -> nn.Module:
    raise AssertionError("features were computed again")


def test_they_equal_a_direct_computation(store: Store, tiny_images: ImageFiles) -> None:
    found = compute(store, tiny_images)
    transform, backbone = eval_transform(MODEL), a_backbone().eval()
    with torch.inference_mode():
        direct = backbone(torch.stack([transform(tiny_images.load(row)) for row in range(48)]))
    assert found.shape == (48, backbone.num_features)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, direct.numpy(), rtol=1e-4, atol=1e-5)


def test_they_are_computed_once(store: Store, tiny_images: ImageFiles) -> None:
    first = compute(store, tiny_images)
    again = compute(store, tiny_images, make_backbone=never)
    assert np.array_equal(first, again)
    kept = {path.name for path in (store.cache / "features").iterdir() if not path.name.endswith(".lock")}
    assert kept == {Path(features_name(KEY)).name}


def test_half_precision_is_near_and_stored_wide(store: Store, tmp_path: Path, tiny_images: ImageFiles) -> None:
    two = tiny_images.subset(np.arange(2))
    exact = compute(store, two)
    half = compute(Store(tmp_path / "r", tmp_path / "c"), two, precision="bfloat16")
    assert half.dtype == np.float32
    assert not np.array_equal(half, exact)
    np.testing.assert_allclose(half, exact, atol=0.05 * np.abs(exact).max())


@pytest.mark.usefixtures("small_steps")
class TestInterruption:
    @pytest.mark.parametrize("rows", [4, 8, 20, 44, 48])
    def test_it_goes_on_and_ends_with_the_same_bytes(
        self, store: Store, tmp_path: Path, tiny_images: ImageFiles, rows: int
    ) -> None:
        whole = compute(Store(tmp_path / "r", tmp_path / "c"), tiny_images)
        with pytest.raises(KeyboardInterrupt):
            compute(store, tiny_images, report=stop_at(rows, interrupt))
        starts: list[int] = []
        gone_on = compute(store, tiny_images, report=lambda done, total: starts.append(done))
        assert starts[0] == (rows - 4) // 8 * 8  # the last note before the stop
        assert gone_on.tobytes() == whole.tobytes()
        left = {path.suffix for path in (store.cache / "features").iterdir()}
        assert left <= {".npy", ".lock"}

    def test_a_killed_process_loses_only_what_it_had_not_noted(
        self, store: Store, tmp_path: Path, tiny_images: ImageFiles
    ) -> None:
        def work() -> None:
            compute(store, tiny_images, report=stop_at(28, lambda: os.kill(os.getpid(), signal.SIGKILL)))

        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        starts: list[int] = []
        gone_on = compute(store, tiny_images, report=lambda done, total: starts.append(done))
        assert starts[0] == 24
        assert gone_on.tobytes() == compute(Store(tmp_path / "r", tmp_path / "c"), tiny_images).tobytes()

    @pytest.mark.parametrize("spoil", ["cut", "longer", "another header", "other batches", "empty"])
    def test_a_file_that_did_not_begin_as_this_one_is_not_gone_on_with(
        self, store: Store, tiny_images: ImageFiles, monkeypatch: pytest.MonkeyPatch, spoil: str
    ) -> None:
        with pytest.raises(KeyboardInterrupt):
            compute(store, tiny_images, report=stop_at(20, interrupt))
        path = (store.cache / features_name(KEY)).with_suffix(".partial")
        content = path.read_bytes()
        spoilt = {"cut": content[:-1], "longer": content + b"1", "another header": b"P" + content[1:], "empty": b""}
        path.write_bytes(spoilt.get(spoil, content))
        if spoil == "other batches":
            monkeypatch.setattr(features, "BATCH_SIZE", 8)
        starts: list[int] = []
        compute(store, tiny_images, report=lambda done, total: starts.append(done))
        assert starts[0] == 0

    def test_features_of_another_shape_are_not_gone_on_with(self, store: Store, tiny_images: ImageFiles) -> None:
        with pytest.raises(KeyboardInterrupt):
            compute(store, tiny_images, report=stop_at(20, interrupt))
        fewer = tiny_images.subset(np.arange(24))
        assert compute(store, fewer).shape[0] == 24


def in_processes(work: Callable[[int], Any], ranks: range, seconds: float = 60) -> list[int | None]:
    """Runs a function in a process for each rank; exit codes, negative for what a signal ended."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(rank,)) for rank in ranks]
    for process in processes:
        process.start()
    for process in processes:
        process.join(seconds)
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


@pytest.mark.usefixtures("small_steps")
class TestSeveralProcesses:
    @pytest.mark.parametrize("num_ranks", [2, 20])
    def test_together_they_write_the_bytes_of_one(
        self, store: Store, tmp_path: Path, tiny_images: ImageFiles, num_ranks: int
    ) -> None:
        images = tiny_images.subset(np.arange(46))  # the last batch is short, and 20 processes are more than batches
        alone = compute(Store(tmp_path / "r", tmp_path / "c"), images)

        def work(rank: int) -> None:
            torch.set_num_threads(1)  # a fork of a process whose threads have run
            found = compute(store, images, rank=rank, num_ranks=num_ranks)
            assert found.tobytes() == alone.tobytes()

        assert in_processes(work, range(num_ranks)) == [0] * num_ranks
        assert compute(store, images, make_backbone=never).tobytes() == alone.tobytes()
        assert {path.suffix for path in (store.cache / "features").iterdir()} <= {".npy", ".lock"}

    @pytest.mark.parametrize("num_ranks", [1, 3])
    def test_what_killed_processes_had_noted_is_gone_on_with_by_any_number(
        self, store: Store, tmp_path: Path, tiny_images: ImageFiles, num_ranks: int
    ) -> None:
        def dying(rank: int) -> None:
            done: list[int] = []

            def report(images: int, total: int) -> None:
                done.append(images)
                if len(done) == 5 + rank:  # the first report comes before the first of a process's batches
                    os.kill(os.getpid(), signal.SIGKILL)

            torch.set_num_threads(1)
            compute(store, tiny_images, rank=rank, num_ranks=2, report=report)

        assert in_processes(dying, range(2)) == [-signal.SIGKILL] * 2
        starts = multiprocessing.get_context("fork").SimpleQueue()

        def work(rank: int) -> None:
            torch.set_num_threads(1)
            first: list[int] = []
            compute(store, tiny_images, rank=rank, num_ranks=num_ranks, report=lambda done, _: first.append(done))
            starts.put(first[0])

        assert in_processes(work, range(num_ranks)) == [0] * num_ranks
        assert starts.get() >= 4 * (2 + 4)  # images in the batches that they had noted
        whole = compute(Store(tmp_path / "r", tmp_path / "c"), tiny_images)
        assert compute(store, tiny_images, make_backbone=never).tobytes() == whole.tobytes()

    def test_a_process_whose_file_is_taken_away_says_so(self, store: Store, tiny_images: ImageFiles) -> None:
        def work(rank: int) -> None:
            torch.set_num_threads(1)
            try:
                compute(store, tiny_images, rank=rank, num_ranks=2)
            except DataError:
                os._exit(2)
            except PlbenchError as error:
                os._exit(3 if "was removed while it was being written" in str(error) else 1)

        (tiny_images.root / tiny_images.paths[4]).write_bytes(b"")  # in the second batch, which is rank 1's
        assert in_processes(work, range(2)) == [3, 2]


@pytest.mark.usefixtures("small_steps")
class TestFailure:
    def test_an_image_that_cannot_be_read_is_named(self, store: Store, tiny_images: ImageFiles) -> None:
        (tiny_images.root / tiny_images.paths[9]).write_bytes(b"")
        with pytest.raises(DataError, match=r"image .*train/9\.png cannot be read"):
            compute(store, tiny_images)

    def test_features_that_are_not_finite_are_refused(self, store: Store, tiny_images: ImageFiles) -> None:
        def broken() -> nn.Module:
            backbone = a_backbone()
            nn.init.constant_(next(backbone.parameters()), torch.nan)
            return backbone

        with pytest.raises(PlbenchError, match="test_resnet gave features that are not finite; try `precision="):
            compute(store, tiny_images, make_backbone=broken)
        assert compute(store, tiny_images).shape[0] == 48  # nothing of it is kept


def test_the_key_follows_all_that_features_depend_on(tiny_images: ImageFiles) -> None:
    def key(model: ModelSpec = MODEL, **changes: Any) -> str:
        options: dict[str, Any] = {
            "fingerprint": "f",
            "split": "train",
            "images": tiny_images,
            "precision": "float32",
            "seed": 0,
        }
        return features_key(model=model, **(options | changes))

    def other(**changes: Any) -> ModelSpec:
        return MODEL.model_copy(update=changes)

    filed = {"weights": "file", "weights_sha256": "a" * 64}
    keys = [
        key(),
        key(fingerprint="g"),
        key(split="test"),
        key(images=tiny_images.subset(np.arange(47))),
        key(precision="bfloat16"),
        key(decode="gpu"),
        key(seed=1),  # random weights follow from the run's seed
        key(other(image_size=64)),
        key(other(backbone="test_vit")),
        key(other(pooling="mean+max")),
        key(other(mean=(0.0, 0.0, 0.0))),
        key(other(std=(1.0, 1.0, 1.0))),
        key(other(**filed)),
        key(other(weights="file", weights_sha256="b" * 64)),
    ]
    assert len(set(keys)) == len(keys)
    assert key(other(head="mlp", head_width=99, head_dropout=0.5)) == key()
    assert key(other(**filed), seed=1) == key(other(**filed))  # given weights do not


def test_a_damaged_cache_file_is_made_anew(make_workspace: Callable[..., Workspace]) -> None:
    workspace = make_workspace()
    first = run(plan_run(Request("tiny", "ce-negative"), workspace), workspace)
    (path,) = [p for p in workspace.store.cache.glob("features/*.npy") if len(np.load(p, mmap_mode="r")) == 48]
    whole = path.read_bytes()
    path.write_bytes(whole[:200])
    again = run(plan_run(Request("tiny", "ce-negative"), workspace), workspace, force=True)
    assert path.read_bytes() == whole
    assert again.metrics == first.metrics
