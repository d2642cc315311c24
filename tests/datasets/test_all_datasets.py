"""What every dataset promises, and how the drawn one is made: a new dataset is tested by being installed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plbench.datasets.scenes import Scenes
from plbench.datasets.scenes import dataset as scenes
from plbench.datasets.scenes.drawing import CLASSES, IMAGE_SIZE, SPLIT_SIZES, draw
from plbench.errors import DataError
from plbench.runs.registry import Registry
from plbench.testing.datasets import Options, check_dataset

REGISTRY = Registry.discover()
DATASETS = REGISTRY.names("dataset")
FEW = {"train": 6, "test": 4}


def quiet(done: int, total: int) -> None:
    """Reports nothing."""


def test_there_are_datasets() -> None:
    assert {"coco", "coco2017", "scenes"} <= set(DATASETS)
    assert REGISTRY.broken("dataset") == {}


def options_of_table(folder: Path) -> dict[str, Any]:
    """What a person says of a table: `labels`, `images` and `negative_value`."""
    return {"labels": folder / "labels-long.csv", "images": folder / "images", "negative_value": "0"}


OPTIONS: dict[str, Options] = {"table": options_of_table}


@pytest.mark.parametrize("name", [name for name in DATASETS if REGISTRY.dataset(name).needs_files])
def test_a_dataset_does_what_it_must_on_its_fixture(name: str) -> None:
    check_dataset(name, options=OPTIONS.get(name, {}), registry=REGISTRY)


def test_every_dataset_comes_with_the_quick_recipe() -> None:
    for name in DATASETS:
        recipes = {recipe.name: recipe for recipe in REGISTRY.dataset(name).recipes}
        assert set(recipes["quick"].plans) == {"finetune", "probe"}
        assert all(recipe.model.weights_sha256 is None for recipe in recipes.values())  # known once the file is there


class TestScenes:
    @pytest.fixture
    def few(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ten scenes, drawn in this process."""

        class InProcess:
            def __init__(self, *args: Any, **kwargs: Any) -> None: ...

            def __enter__(self) -> InProcess:
                return self

            def __exit__(self, *exception: object) -> None: ...

            def map(self, work: Callable[..., Any], *columns: Any) -> Any:
                return map(work, *columns)

        monkeypatch.setattr(scenes, "SPLIT_SIZES", FEW)
        monkeypatch.setattr(scenes, "ProcessPoolExecutor", InProcess)
        monkeypatch.setattr(scenes, "_CHUNK", 3)

    @pytest.fixture
    def official(self, few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        """Makes the fingerprint of the ten scenes the one that is expected."""
        (tmp_path / "first").mkdir()
        fingerprint = scenes._draw_all(tmp_path / "first", quiet)
        monkeypatch.setattr(scenes, "FINGERPRINT", fingerprint)
        return fingerprint

    def test_it_does_what_a_dataset_must(self, official: str) -> None:
        check_dataset(Scenes, registry=REGISTRY)

    def test_what_is_drawn_is_what_is_read(self, official: str, tmp_path: Path) -> None:
        dataset = Scenes(tmp_path / "scenes")
        seen: list[tuple[int, int]] = []
        dataset.prepare(lambda done, total: seen.append((done, total)))
        assert seen[0] == (0, 10) and seen[-1] == (10, 10) and seen == sorted(seen)
        assert dataset.fingerprint() == official
        for split, size in FEW.items():
            found = dataset.split(split)
            assert len(found.images) == size and found.labels.is_complete
            assert found.labels.class_ids == tuple(c.id for c in CLASSES)
            for row in range(size):
                scene = draw(split, row)
                assert np.array_equal(np.asarray(found.images.load(row)), scene.pixels)
                assert np.array_equal(found.labels.rows([row])[0] > 0, scene.labels)
        assert set().union(*dataset.groups().values()) == {c.id for c in CLASSES}

    def test_it_is_drawn_once(self, official: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        dataset = Scenes(tmp_path / "scenes")
        dataset.prepare(quiet)
        before = {path: path.stat().st_mtime_ns for path in dataset.root.rglob("*")}
        monkeypatch.setattr(scenes, "_draw_all", lambda *args: pytest.fail("drawn again"))
        dataset.prepare(quiet)
        assert {path: path.stat().st_mtime_ns for path in dataset.root.rglob("*")} == before

    @pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError])
    def test_an_interrupted_drawing_leaves_nothing_half_made(
        self, interruption: type[BaseException], official: str, tmp_path: Path
    ) -> None:
        dataset = Scenes(tmp_path / "scenes")

        def interrupt(done: int, total: int) -> None:
            if done > 6:  # in the second split
                raise interruption

        with pytest.raises(interruption):
            dataset.prepare(interrupt)
        assert list(dataset.root.iterdir()) == []
        dataset.prepare(quiet)
        assert dataset.fingerprint() == official
        assert len(list(dataset.root.rglob("*.png"))) == 10

    def test_other_pixels_than_everywhere_else_are_refused(self, few: None, tmp_path: Path) -> None:
        dataset = Scenes(tmp_path / "scenes")
        with pytest.raises(DataError, match="pixels differ from every other machine's"):
            dataset.prepare(quiet)  # ten scenes are not the eleven thousand
        assert list(dataset.root.iterdir()) == []

    def test_a_changed_pixel_or_label_changes_the_fingerprint(
        self, official: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def altered(name: str) -> Callable[[str, int], Any]:
            def draw_altered(split: str, index: int) -> Any:
                scene = draw(split, index)
                if (split, index) == ("test", 3):
                    array = getattr(scene, name)
                    array.flat[-1] = not array.flat[-1] if name == "labels" else array.flat[-1] ^ 1
                return scene

            return draw_altered

        for name in ("pixels", "labels"):
            monkeypatch.setattr(scenes, "draw", altered(name))
            (tmp_path / name).mkdir()
            assert scenes._draw_all(tmp_path / name, quiet) != official

    def test_there_is_no_third_split(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="has splits train, test, not 'val'"):
            Scenes(tmp_path).split("val")

    @pytest.mark.slow
    def test_all_scenes_are_the_published_ones(self, tmp_path: Path) -> None:
        dataset = Scenes(tmp_path)
        dataset.prepare(quiet)
        assert dataset.fingerprint() == scenes.FINGERPRINT
        assert {split: len(dataset.split(split).images) for split in SPLIT_SIZES} == {"train": 8000, "test": 3000}
        assert dataset.split("test").images.load(2999).size == (IMAGE_SIZE, IMAGE_SIZE)
        assert len(list(tmp_path.rglob("*.png"))) == 11_000
        manifest = next(tmp_path.rglob("manifest.json"))
        assert json.loads(manifest.read_text()) == {"fingerprint": scenes.FINGERPRINT}
