"""Transforms taken in two parts, in a worker and on the device, give the bits of one call on one image."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from plbench.api import Plan
from plbench.loading.transforms import EvalTransform, TrainTransform, erase, inside
from plbench.randomness import seeded

SIZE = 40
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BASE = EvalTransform(SIZE, MEAN, STD)

devices = pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
        ),
    ],
)


def plan(randaugment: str | None, cutout: float) -> Plan:
    return Plan(epochs=1, batch_size=16, lr=1.0, randaugment=randaugment, cutout=cutout)


def all_bytes() -> Image.Image:
    """Every value of a byte in every channel."""
    values = np.random.default_rng(0).permuted(np.tile(np.arange(256, dtype=np.uint8), (3, 7)), axis=1)
    return Image.fromarray(np.resize(values.T, (SIZE, SIZE, 3)))


def first_release(image: Image.Image) -> Tensor:
    """What runs were made with before pixels were scaled on the device, operation for operation."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).to(torch.float32).contiguous().div_(255)
    return pixels.sub_(torch.tensor(MEAN).view(3, 1, 1)).div_(torch.tensor(STD).view(3, 1, 1))


@devices
@pytest.mark.parametrize("number", [1, 5])
def test_a_scaled_batch_has_the_bits_that_runs_were_always_made_with(device: str, number: int) -> None:
    image = all_bytes()
    rotated = [image.rotate(90 * turn) for turn in range(number)]
    batch = BASE.scaled(torch.stack([BASE.pixels(each) for each in rotated]).to(device))
    assert batch.is_contiguous(memory_format=torch.channels_last)
    expected = torch.stack([first_release(each) for each in rotated])
    assert torch.equal(batch.cpu(), expected)
    assert torch.equal(torch.stack([BASE(each) for each in rotated]), expected)


def with_timm(image: Image.Image, of: Plan) -> Tensor:
    """The training transform as it was: augmented, scaled, and erased by timm itself."""
    transform = TrainTransform(BASE, of)
    image = BASE.resize(image)
    pixels = first_release(image if transform.augment is None else transform.augment(image))
    return pixels if transform.erase is None else transform.erase(pixels)


@devices
@pytest.mark.parametrize("randaugment", [None, "rand-m9-mstd0.5"])
@pytest.mark.parametrize("cutout", [0.0, 0.25, 0.5, 0.99])
def test_augmentation_and_cutout_have_the_bits_that_runs_were_always_made_with(
    device: str, randaugment: str | None, cutout: float
) -> None:
    of = plan(randaugment, cutout)
    transform, image = TrainTransform(BASE, of), all_bytes()
    pixels, boxes, expected = [], [], []
    for seed in range(12):
        with seeded(seed):
            expected.append((with_timm(image, of), random.random()))
        with seeded(seed):
            pixels.append(transform.pixels(image))
            if transform.erase is not None:
                boxes.append(transform.box())
            assert random.random() == expected[-1][1], "it draws as often as timm"
        with seeded(seed):
            assert torch.equal(transform(image), expected[-1][0])
    batch = BASE.scaled(torch.stack(pixels).to(device))
    if boxes:
        erase(batch, torch.stack(boxes).to(device))
    assert batch.cpu().numpy().tobytes() == torch.stack([each for each, _ in expected]).numpy().tobytes()


class TestCropAndFlip:
    """What a picture of columns of one grey value each, from 0 to 255, tells of where it was cut and mirrored."""

    RAMP = Image.fromarray(np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None], (256, 256, 3)).copy())

    def columns(self, **values: float) -> np.ndarray:
        """Grey value of the first and last column of 200 training images."""
        of = Plan.model_validate({"epochs": 1, "batch_size": 16, "lr": 1.0, **values})
        transform, found = TrainTransform(BASE, of), []
        for seed in range(200):
            with seeded(seed):
                pixels = transform.pixels(self.RAMP)
            assert pixels.shape == (SIZE, SIZE, 3)
            found.append(pixels[SIZE // 2, [0, -1], 0].numpy().astype(int))
        return np.array(found)

    @pytest.mark.parametrize("chance", [0.5, 0.1])
    def test_as_many_as_asked_for_are_mirrored(self, chance: float) -> None:
        columns = self.columns(horizontal_flip=chance)
        assert len(np.unique(columns, axis=0)) == 2
        mirrored = (columns[:, 0] > columns[:, 1]).mean()
        assert abs(mirrored - chance) < 4 * (chance * (1 - chance) / 200) ** 0.5

    def test_a_crop_keeps_at_least_its_share(self) -> None:
        columns = self.columns(random_resized_crop=0.25)
        widths = (columns[:, 1] - columns[:, 0]) / 256
        # half the side at 3:4 is the narrowest; the first and the last column are half a pixel inside
        assert 0.5 * (3 / 4) ** 0.5 - 0.03 < widths.min() < 0.5 < 0.85 < widths.max() < 1
        assert columns[:, 0].min() < 10 and columns[:, 1].max() > 245
        assert (np.diff(columns, axis=1) > 0).all()  # none is mirrored

    def test_without_them_the_whole_picture_is_squashed(self) -> None:
        assert len(np.unique(self.columns(), axis=0)) == 1
        transform = TrainTransform(BASE, plan(None, 0.0))
        assert not transform.augments and transform.min_side == SIZE

    def test_pictures_are_decoded_large_enough_to_be_cropped(self) -> None:
        of = Plan(epochs=1, batch_size=1, lr=1.0, random_resized_crop=0.25)
        assert TrainTransform(BASE, of).min_side == 2 * SIZE


def test_a_mask_covers_what_is_erased() -> None:
    boxes = torch.tensor([[0, 0, 8, 8], [3, 2, 4, 9], [0, 0, 0, 0], [1, 1, 8, 2]])
    images = torch.rand(4, 3, 8, 10).add_(1).to(memory_format=torch.channels_last)
    erase(images, boxes)
    assert torch.equal(images == 0, inside(boxes, 8, 10)[:, None].expand(-1, 3, -1, -1))
    assert (images == 0).sum(dim=(1, 2, 3)).tolist() == [3 * 64, 3 * 7, 0, 3 * 7]
