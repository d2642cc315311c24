"""Image transforms: resizing or cropping, augmentation, scaling, cutout.

Each transform can be called on one image, or be applied in two parts: `pixels` and `box` in a worker process, on uint8
data, and `scaled` and `erased` on the device, in float32. Results are bit-identical.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from plbench.errors import PlbenchError
from plbench.spec import ModelSpec, Plan

Transform = Callable[[Image.Image], Any]

_MOVING = ("Rotate", "Shear", "Translate")
"""Beginnings of the names of timm's operations after which a pixel shows another place."""


@dataclass(frozen=True)
class EvalTransform:
    """The evaluation transform: resize to a square, scale to [0, 1], normalise."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, image: Image.Image) -> Tensor:
        """Turn an image into float32 [3, size, size]."""
        return self.scaled(self.pixels(image)).contiguous()

    def resize(self, image: Image.Image) -> Image.Image:
        """Return the whole image, resized to size x size (as in CSL; the aspect ratio is not kept)."""
        if image.size == (self.size, self.size):
            return image
        return image.resize((self.size, self.size), Image.Resampling.BILINEAR)

    def pixels(self, image: Image.Image) -> Tensor:
        """Turn an image into uint8 [size, size, 3]."""
        return as_bytes(self.resize(image))

    def scaled(self, pixels: Tensor) -> Tensor:
        """Scale pixels uint8 [..., H, W, 3], on any device, to float32 [..., 3, H, W], channels last in memory.

        Results are bit-identical on every device, by three sequential operations that IEEE 754 rounds correctly.
        """
        width = pixels.shape[-2]
        full, mean, std = _constants(self.mean, self.std, width, pixels.device)
        lines = pixels.flatten(-2).to(torch.float32).div_(full).sub_(mean).div_(std)
        images: Tensor = lines.unflatten(-1, (width, 3)).movedim(-1, -3)
        return images


class TrainTransform:
    """Resize or random resized crop, horizontal flip (both torchvision's), RandAugment (timm's), normalise, cutout.

    Cutout is timm's random erasing at a fixed size: a square of `cutout` times the image's side, filled with zeros
    after normalisation. It differs from CSL's Cutout in that the square is always inside the image and has no random
    colour.

    Attributes:
        augments: whether the image is changed before scaling.
        min_side: minimum decoded side in pixels, so that square crops are not upscaled because of reduced decoding.
    """

    def __init__(self, base: EvalTransform, plan: Plan) -> None:
        """Build timm's augmentations for one plan; PlbenchError if timm cannot read its RandAugment string."""
        import plbench.models.torchvision_ops  # noqa: F401  # isort: skip
        from timm.data.auto_augment import rand_augment_transform
        from timm.data.random_erasing import RandomErasing
        from torchvision.transforms import v2  # type: ignore[import-untyped]

        self.base, least = base, plan.random_resized_crop
        self.min_side = math.ceil(base.size / math.sqrt(least))
        self.crop = v2.RandomResizedCrop(base.size, scale=(least, 1.0)) if least < 1 else None
        self.flip = v2.RandomHorizontalFlip(plan.horizontal_flip) if plan.horizontal_flip else None
        fill = tuple(round(255 * channel) for channel in base.mean)
        options = {"translate_const": round(0.45 * base.size), "img_mean": fill}
        try:
            self.augment = rand_augment_transform(plan.randaugment, options) if plan.randaugment else None
        except (AssertionError, ValueError) as error:
            raise PlbenchError(
                f"randaugment = {plan.randaugment!r} is not one that timm reads, such as rand-m9-mstd0.5"
            ) from error
        self.augments = any(part is not None for part in (self.crop, self.flip, self.augment))
        area = plan.cutout**2
        self.erase = (
            # timm's default device is a GPU, which workers do not have
            RandomErasing(probability=1.0, min_area=area, max_area=area, min_aspect=1.0, mode="const", device="cpu")
            if area
            else None
        )

    def __call__(self, image: Image.Image) -> Tensor:
        """Turn an image into float32 [3, size, size]. Uses the global generators, which the loader seeds."""
        return self._located(image)[0]

    def with_location(self) -> Callable[[Image.Image], tuple[Tensor, Tensor]]:
        """Return this transform with a second result, the view's location; see `plbench.method.ImageTransform`."""
        moving = [op.name for op in self.augment.ops if op.name.startswith(_MOVING)] if self.augment else []
        if moving:
            raise PlbenchError(
                "the method must know which part of its image a training view shows, but the plan's randaugment may "
                f"move pixels ({', '.join(moving)}); give another `recipe=`, or a grid whose plan has "
                'randaugment = "rand-m9-mstd0.5-t3a", which only changes colours'
            )
        return self._located

    def _located(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        """Return the view of an image, and its location."""
        augmented, location = self._augmented(image)
        pixels = self.base.scaled(as_bytes(augmented)).contiguous()
        return pixels if self.erase is None else self.erase(pixels), torch.tensor(location)

    def pixels(self, image: Image.Image) -> Tensor:
        """Turn an image into uint8 [size, size, 3], augmented, before cutout. Uses the generators like `__call__`."""
        return as_bytes(self._augmented(image)[0])

    def _augmented(self, image: Image.Image) -> tuple[Image.Image, tuple[float, float, float, float]]:
        """Return the augmented image, and its location before RandAugment."""
        left, top, right, bottom = 0.0, 0.0, 1.0, 1.0
        if self.crop is None:
            image = self.base.resize(image)
        else:
            width, height = image.size
            cut = self.crop.make_params([image])
            left, right = cut["left"] / width, (cut["left"] + cut["width"]) / width
            top, bottom = cut["top"] / height, (cut["top"] + cut["height"]) / height
            image = self.crop.transform(image, cut)
        if self.flip is not None:
            before, image = image, self.flip(image)
            if image is not before:  # torchvision returns what it does not mirror as it is
                left, right = right, left
        return image if self.augment is None else self.augment(image), (left, top, right, bottom)

    def box(self) -> Tensor:
        """Return the cutout box of the last image from `pixels`: top, left, bottom, right, int64 [4].

        timm erases a dummy image of ones, and the box is where zeros are, independently of timm's version.
        """
        assert self.erase is not None
        gone = self.erase(torch.ones(1, self.base.size, self.base.size, dtype=torch.uint8))[0].numpy() == 0
        rows, columns = gone.any(axis=1).nonzero()[0], gone.any(axis=0).nonzero()[0]
        if not len(rows):
            # empty if timm gives up placing a box after some attempts
            return torch.zeros(4, dtype=torch.int64)
        return torch.tensor([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])


def eval_transform(model: ModelSpec) -> EvalTransform:
    """Return the evaluation transform that a model's spec implies."""
    return EvalTransform(model.image_size, model.mean, model.std)


def as_bytes(image: Image.Image) -> Tensor:
    """Return an image in RGB as uint8 [H, W, 3]."""
    # a copy: Pillow's memory is read-only, of which torch warns
    return torch.from_numpy(np.array(image))


def erase(images: Tensor, boxes: Tensor) -> None:
    """Fill a box of each image with zeros, in place.

    Args:
        images: [B, C, H, W].
        boxes: int64 [B, 4] on the same device: top, left, bottom, right, the last two exclusive.
    """
    if images.device.type == "cpu":
        for image, (top, left, bottom, right) in zip(images, boxes.tolist(), strict=True):
            image[:, top:bottom, left:right] = 0
    else:  # a loop would synchronize and launch B kernels; on a CPU it takes a tenth of the time
        images.masked_fill_(inside(boxes, *images.shape[-2:])[:, None], 0)


def inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return a mask of the pixels in their image's box: bool [B, height, width]."""
    top, left, bottom, right = boxes[:, :, None].unbind(1)
    rows, columns = torch.arange(height, device=boxes.device), torch.arange(width, device=boxes.device)
    return ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None]


@lru_cache
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return 255, and mean and standard deviation repeated along a row of pixels, [width * 3], for long inner loops.

    They are copied to a device once, since that synchronizes. 255 is a tensor, too, since a GPU divides by a plain
    number by multiplying with its reciprocal, which gives different bits.
    """
    # also kept for training, whose autograd rejects tensors made in inference mode
    with torch.inference_mode(mode=False):
        full = torch.tensor(255.0, device=device)
        return full, torch.tensor(mean, device=device).repeat(width), torch.tensor(std, device=device).repeat(width)
