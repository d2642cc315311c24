"""What every dataset promises, and how the drawn one is made: a new dataset is tested by being installed."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plbench.api import Dataset, Plan
from plbench.datasets import scenes
from plbench.datasets.scenes import Scenes
from plbench.datasets.scenes_drawing import CLASSES, IMAGE_SIZE, SPLIT_SIZES, draw
from plbench.errors import DataError
from plbench.models import PACKAGED_BACKBONE, resolve_backbone
from plbench.registry import Registry
from plbench.resolve import validate_params
from plbench.simulate import parse

REGISTRY = Registry.discover()
DATASETS = REGISTRY.names("dataset")
FEW = {"train": 6, "test": 4}


@pytest.fixture(params=DATASETS)
def kind(request: pytest.FixtureRequest) -> type[Dataset]:
    return REGISTRY.dataset(request.param)


def quiet(done: int, total: int) -> None:
    """Reports nothing."""


def test_there_are_datasets() -> None:
    assert {"coco", "coco2017", "scenes"} <= set(DATASETS)
    assert REGISTRY.broken("dataset") == {}


def test_it_says_what_it_is(kind: type[Dataset]) -> None:
    for text in (kind.name, kind.title, kind.licence, inspect.cleandoc(kind.__doc__ or "")):
        assert isinstance(text, str) and text.strip() == text and text
    assert kind.name in DATASETS and re.fullmatch(r"[a-z0-9.-]+", kind.name)
    assert not kind.needs_files or all(address.startswith("https://") for address in kind.sources)
    assert kind.sources or not kind.needs_files or kind.protocols[0].name.startswith("custom/")


def test_protocols_are_named_after_it_and_differ(kind: type[Dataset]) -> None:
    names = [protocol.name for protocol in kind.protocols]
    assert len({protocol.canonical() for protocol in kind.protocols}) == len(set(names)) == len(names) > 0
    assert len({protocol.simulation for protocol in kind.protocols}) == len(names)  # --simulate picks one
    for protocol in kind.protocols:
        assert protocol.dataset == kind.name
        simulation = parse(protocol.simulation)
        assert simulation.text == protocol.simulation  # canonical: whatever the spelling, --simulate finds it
        own = re.escape(kind.name)  # labels that come partial need no variant; a person's own data is on no board
        as_they_come = simulation.text == "none" and re.fullmatch(rf"{own}/v[1-9]\d*|custom/{own}", protocol.name)
        assert as_they_come or re.fullmatch(rf"{own}-{re.escape(simulation.slug)}/v[1-9]\d*", protocol.name)
        without_negatives = simulation.kind in ("single-positive", "positive-only")
        assert (protocol.validation_labels == "complete") == without_negatives


def test_suggested_parameters_are_valid_and_have_a_source(kind: type[Dataset]) -> None:
    for protocol in kind.protocols:
        assert bool(protocol.suggested) == bool(protocol.sources)
        assert all(protocol.sources.values())
        for name, values in protocol.suggested.items():
            params = validate_params(REGISTRY.method(name), values)
            assert {key: getattr(params, key) for key in values} == values


def test_recipes_can_be_built(kind: type[Dataset]) -> None:
    names = [recipe.name for recipe in kind.recipes]
    assert len(set(names)) == len(names) and "quick" in names
    for recipe in kind.recipes:
        assert recipe.title and recipe.sources and all(recipe.sources.values())
        assert set(recipe.plans) == {"finetune", "probe"} and recipe.regime in recipe.plans
        for plan in recipe.plans.values():
            assert Plan.model_validate(plan.model_dump()) == plan
        assert resolve_backbone(recipe.model.backbone) == recipe.model.backbone
        assert recipe.model.weights != "packaged" or recipe.model.backbone == PACKAGED_BACKBONE
        assert recipe.model.weights_sha256 is None  # known once the file is there


def test_it_says_what_is_missing_and_how_to_get_it(kind: type[Dataset], tmp_path: Path) -> None:
    dataset = kind(tmp_path / "nowhere")
    assert dataset.fetch_hint() and "\n" not in dataset.fetch_hint()
    assert bool(dataset.missing()) == kind.needs_files
    assert not (tmp_path / "nowhere").exists()  # asking makes nothing
    if kind.sources:
        assert any(address in dataset.fetch_hint() for address in kind.sources)


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
