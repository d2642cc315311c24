import hashlib
from collections import Counter

import numpy as np
import pytest

from plbench.datasets.scenes import drawing
from plbench.datasets.scenes.drawing import CLASSES, COLOURS, IMAGE_SIZE, SPLIT_SIZES, Scene, draw

POSITION = {scene_class.id: position for position, scene_class in enumerate(CLASSES)}
GOLDEN = {
    "train": "130cb6a90cbfd0d52d5b7420a6d88f67fabcfb90070fdbcfc1313797c0b6705b",
    "test": "31b17a6c0493ae77b6f056784178bd13c2d5abadf79e88ca3deda43518af5c6f",
}


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw("train", index) for index in range(600)]


@pytest.fixture(scope="module")
def labels(scenes: list[Scene]) -> np.ndarray:
    return np.stack([scene.labels for scene in scenes])


def columns(kind: str) -> list[int]:
    return [position for position, scene_class in enumerate(CLASSES) if scene_class.kind == kind]


@pytest.mark.parametrize("split", SPLIT_SIZES)
def test_pixels_and_labels_are_the_published_ones(split: str) -> None:
    # A new hash here is a new dataset: raise DRAWING_VERSION with it.
    digest = hashlib.sha256()
    for index in (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, SPLIT_SIZES[split] - 1):
        scene = draw(split, index)
        digest.update(scene.pixels.tobytes() + scene.labels.tobytes())
    assert digest.hexdigest() == GOLDEN[split]


def test_a_scene_does_not_depend_on_what_was_drawn_before() -> None:
    drawing._stencil.cache_clear()
    alone = draw("train", 7)
    for index in range(30):
        draw("test", index)
    again = draw("train", 7)
    assert np.array_equal(alone.pixels, again.pixels)
    assert np.array_equal(alone.labels, again.labels)
    assert not np.array_equal(alone.pixels, draw("test", 7).pixels)


def test_arrays_have_the_promised_form() -> None:
    scene = draw("test", 0)
    assert scene.pixels.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    assert scene.pixels.dtype == np.uint8 and scene.pixels.flags.c_contiguous
    assert scene.labels.shape == (len(CLASSES),)
    assert scene.labels.dtype == np.bool_


def test_class_ids_are_unique_slugs() -> None:
    assert len(POSITION) == len(CLASSES)
    assert Counter(scene_class.kind for scene_class in CLASSES) == {"object": 40, "colour": 10, "attribute": 6}
    assert all(scene_class.id == f"{scene_class.kind}/{scene_class.name.replace(' ', '-')}" for scene_class in CLASSES)
    assert {"object/striped-star", "colour/red", "attribute/night"} <= POSITION.keys()


@pytest.mark.parametrize(("split", "index"), [("val", 0), ("train", -1), ("train", 8000), ("test", 3000)])
def test_what_is_not_in_the_dataset_is_refused(split: str, index: int) -> None:
    with pytest.raises(ValueError, match="scenes"):
        draw(split, index)


def test_attributes_are_in_a_third_to_a_half_of_all_scenes(labels: np.ndarray) -> None:
    frequencies = labels[:, columns("attribute")].mean(axis=0)
    assert frequencies.min() > 0.28 and frequencies.max() < 0.52


def test_colours_are_neither_rare_nor_everywhere(labels: np.ndarray) -> None:
    frequencies = labels[:, columns("colour")].mean(axis=0)
    assert frequencies.min() > 0.06 and frequencies.max() < 0.42


def test_objects_have_a_long_tail(labels: np.ndarray) -> None:
    frequencies = np.sort(labels[:, columns("object")].mean(axis=0))
    assert 0.10 < frequencies[-1] < 0.24
    assert frequencies[:10].mean() < 0.02


def test_every_scene_has_one_to_five_classes_of_object_and_of_colour(labels: np.ndarray) -> None:
    for kind in ("object", "colour"):
        num_positives = labels[:, columns(kind)].sum(axis=1)
        assert num_positives.min() >= 1 and num_positives.max() <= 5


@pytest.mark.parametrize("colour", COLOURS)
def test_a_colour_is_positive_where_it_is_seen(colour: str, scenes: list[Scene]) -> None:
    clear = [scene for scene in scenes if not scene.labels[POSITION["attribute/fog"]]]
    num_pixels: dict[bool, list[int]] = {True: [], False: []}
    for scene in clear:
        # Objects vary by 10 in each channel and the grain by 3; a rim of orange and ink can look brown.
        close = (np.abs(scene.pixels.astype(int) - COLOURS[colour]) <= 13).all(axis=2)
        num_pixels[bool(scene.labels[POSITION[f"colour/{colour}"]])].append(int(close.sum()))
    assert min(num_pixels[True]) > 40
    if colour != "white":  # frames and rain may be as light
        assert max(num_pixels[False]) < 40
