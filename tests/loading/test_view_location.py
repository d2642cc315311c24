"""Where a training view lies in its image: told truly, and without a change of pixels or draws."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from plbench.api import Plan, PlbenchError
from plbench.loading.routes import WholeTransform
from plbench.loading.transforms import EvalTransform, TrainTransform, as_bytes
from plbench.randomness import seeded

SIZE = 40
BASE = EvalTransform(SIZE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
EVERYTHING = {
    "random_resized_crop": 0.25,
    "horizontal_flip": 0.5,
    "randaugment": "rand-m9-mstd0.5-n2-t3a",
    "cutout": 0.5,
}
SEEDS = range(60)


def transform_of(**values: object) -> TrainTransform:
    return TrainTransform(BASE, Plan.model_validate({"epochs": 1, "batch_size": 4, "lr": 1.0, **values}))


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 50, 3), np.uint8))


def ramps() -> Image.Image:
    """Red rises from left to right, green from top to bottom, in an image that is no square."""
    red, green = np.meshgrid(np.arange(256), np.arange(0, 256, 2))
    return Image.fromarray(np.stack([red, green, 0 * red], axis=-1).astype(np.uint8))


@pytest.mark.parametrize("kept", [*EVERYTHING, "all", "none"])
def test_views_and_draws_are_those_without_a_location(kept: str) -> None:
    transform = transform_of(**{name: value for name, value in EVERYTHING.items() if kept in (name, "all")})
    for seed in SEEDS:
        with seeded(seed):
            view, _ = transform.with_location()(noise())
            drawn = random.random(), float(torch.rand(1)), np.random.random()  # noqa: NPY002
        with seeded(seed):
            assert torch.equal(transform(noise()), view)
            assert drawn == (random.random(), float(torch.rand(1)), np.random.random())  # noqa: NPY002


def test_crops_and_flips_are_torchvisions_own_to_the_bit() -> None:
    transform = transform_of(random_resized_crop=0.25, horizontal_flip=0.5)
    assert transform.crop is not None and transform.flip is not None
    for seed in SEEDS:
        with seeded(seed):
            expected, drawn = as_bytes(transform.flip(transform.crop(noise()))), float(torch.rand(1))
        with seeded(seed):
            assert torch.equal(transform.pixels(noise()), expected)
            assert float(torch.rand(1)) == drawn


def test_a_view_shows_what_its_location_says() -> None:
    located, mirrored, widths = transform_of(random_resized_crop=0.25, horizontal_flip=0.5).with_location(), 0, []
    for seed in SEEDS:
        with seeded(seed):
            view, location = located(ramps())
        assert location.dtype == torch.float32
        left, top, right, bottom = location.tolist()
        mirrored += left > right
        widths.append(abs(right - left))
        assert 0 <= min(left, right) < max(left, right) <= 1 and 0 <= top < bottom <= 1
        centres = (np.arange(SIZE) + 0.5) / SIZE
        red, green = 255 * (view[0].mean(dim=0) + 1) / 2, 255 * (view[1].mean(dim=1) + 1) / 2
        assert np.abs(red.numpy() - (256 * (left + (right - left) * centres) - 0.5)).max() < 1.5
        assert np.abs(green.numpy() - (256 * (top + (bottom - top) * centres) - 1.0)).max() < 1.5
    assert 0.3 * len(SEEDS) < mirrored < 0.7 * len(SEEDS)
    assert min(widths) < 0.4 and max(widths) > 0.6  # it is twice as wide as high


def test_the_whole_image_lies_between_0_and_1() -> None:
    _, location = transform_of().with_location()(noise())
    assert location.tolist() == [0, 0, 1, 1]
    _, location = transform_of(horizontal_flip=1.0).with_location()(noise())
    assert location.tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("randaugment", ["rand-m9-mstd0.5", "rand-m9-inc1", "rand-m5-t3aw", "rand-m5-tweights"])
def test_augmentation_that_moves_pixels_is_refused_in_a_sentence(randaugment: str) -> None:
    with pytest.raises(PlbenchError, match=r"may move pixels \(.*Rotate.*another `recipe=`.*t3a"):
        transform_of(randaugment=randaugment).with_location()


def test_no_colour_operation_moves_pixels() -> None:
    """What is let through, at its strongest and always: a square stays where it is."""
    pixels = np.random.default_rng(1).integers(90, 110, (SIZE, SIZE, 3), np.uint8)
    pixels[10:20, 15:30] += 100
    inside = np.zeros((SIZE, SIZE), bool)
    inside[10:20, 15:30] = True
    augment = transform_of(randaugment="rand-m10-p1-n1-t3a").augment
    assert augment is not None
    for operation in augment.ops:
        with seeded(0):
            changed = np.asarray(operation(Image.fromarray(pixels))).mean(axis=-1)
        agreement = {}
        for down in range(-4, 5):
            for right in range(-4, 5):
                shifted = np.roll(changed, (down, right), axis=(0, 1))
                agreement[down, right] = abs(np.corrcoef(shifted.ravel(), inside.ravel())[0, 1])
        assert max(agreement, key=agreement.__getitem__) == (0, 0) and agreement[0, 0] > 0.9, operation


class _Stored:
    """Images in memory."""

    def load(self, row: int, min_side: int = 0) -> Image.Image:
        return noise().rotate(90 * row)


def test_locations_are_collated_and_moved_beside_the_images() -> None:
    located = transform_of(random_resized_crop=0.25, horizontal_flip=0.5).with_location()
    route = WholeTransform(_Stored(), located, SIZE)  # type: ignore[arg-type]
    with seeded(0):
        items = [route.item(row) for row in range(3)]
    images, locations = route.move(route.collate(items), torch.arange(3), torch.device("cpu"))
    assert images.shape == (3, 3, SIZE, SIZE) and images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(locations, torch.stack([location for _, location in items]))
    assert isinstance(locations, Tensor) and locations.shape == (3, 4)
