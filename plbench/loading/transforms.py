"""From a picture to the numbers that a model sees: squashing or cropping, augmentation, scaling, cutout.

Each transform can be called on one image, and can also be taken in two parts: `pixels` and `box` in a worker process,
where a batch is bytes, and `scaled` and `erased` on the device, where it becomes float32. Both ways give the same bits.
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


@dataclass(frozen=True)
class EvalTransform:
    """Squash to a square, scale to [0, 1], normalise: the transform of everything that is not training."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, image: Image.Image) -> Tensor:
        """Turn an image into float32 [3, size, size]."""
        return self.scaled(self.pixels(image)).contiguous()

    def resize(self, image: Image.Image) -> Image.Image:
        """Return the whole image, squashed to size x size (as CSL trains; the aspect ratio is not kept)."""
        if image.size == (self.size, self.size):
            return image
        return image.resize((self.size, self.size), Image.Resampling.BILINEAR)

    def pixels(self, image: Image.Image) -> Tensor:
        """Turn an image into uint8 [size, size, 3]."""
        return as_bytes(self.resize(image))

    def scaled(self, pixels: Tensor) -> Tensor:
        """Scale pixels uint8 [..., H, W, 3], on any device, to float32 [..., 3, H, W], channels last in memory.

        A pixel gives the same bits on every device: three operations that IEEE 754 rounds correctly, one after another.
        """
        width = pixels.shape[-2]
        full, mean, std = _constants(self.mean, self.std, width, pixels.device)
        lines = pixels.flatten(-2).to(torch.float32).div_(full).sub_(mean).div_(std)
        images: Tensor = lines.unflatten(-1, (width, 3)).movedim(-1, -3)
        return images


class TrainTransform:
    """Resize or random resized crop, horizontal flip (both torchvision's), RandAugment (timm's), normalise, cutout.

    Cutout is timm's random erasing at a fixed size: a square of `cutout` times the image's side, filled with zeros
    after normalisation. It differs from Cutout as CSL uses it in that the square always lies wholly inside the image
    and has no random colour.

    Attributes:
        augments: whether anything is done to the picture before it is scaled.
        min_side: pixels that the sides of a picture must have, so that no crop is enlarged for want of decoding it
            whole; a crop of other sides than a square's may still be.
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
            # timm's default device is a GPU, and workers have none
            RandomErasing(probability=1.0, min_area=area, max_area=area, min_aspect=1.0, mode="const", device="cpu")
            if area
            else None
        )

    def __call__(self, image: Image.Image) -> Tensor:
        """Turn an image into float32 [3, size, size]. Draws from the global generators, which the loader seeds."""
        pixels = self.base.scaled(self.pixels(image)).contiguous()
        return pixels if self.erase is None else self.erase(pixels)

    def pixels(self, image: Image.Image) -> Tensor:
        """Turn an image into uint8 [size, size, 3], augmented, before anything is cut out. Draws as `__call__` does."""
        image = self.base.resize(image) if self.crop is None else self.crop(image)
        for part in (self.flip, self.augment):
            image = image if part is None else part(image)
        return as_bytes(image)

    def box(self) -> Tensor:
        """Return what is cut out of the image that `pixels` just gave: top, left, bottom, right, int64 [4].

        timm erases a stand-in of ones, and where the zeros are is the box: whatever its version draws, this follows.
        """
        assert self.erase is not None
        gone = self.erase(torch.ones(1, self.base.size, self.base.size, dtype=torch.uint8))[0].numpy() == 0
        rows, columns = gone.any(axis=1).nonzero()[0], gone.any(axis=0).nonzero()[0]
        if not len(rows):
            # timm gives up after some attempts to place a box: an empty one, then
            return torch.zeros(4, dtype=torch.int64)
        return torch.tensor([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])


def eval_transform(model: ModelSpec) -> EvalTransform:
    """Return the evaluation transform that a model's spec implies."""
    return EvalTransform(model.image_size, model.mean, model.std)


def as_bytes(image: Image.Image) -> Tensor:
    """Return an image in RGB as uint8 [H, W, 3]."""
    # a copy: Pillow's own memory may not be written to, of which torch warns
    return torch.from_numpy(np.array(image))


def erase(images: Tensor, boxes: Tensor) -> None:
    """Fill a box of each image with zeros, in place.

    Args:
        images: [B, C, H, W].
        boxes: int64 [B, 4] on the same device: top, left, bottom, right, the last two beyond the box.
    """
    if images.device.type == "cpu":
        for image, (top, left, bottom, right) in zip(images, boxes.tolist(), strict=True):
            image[:, top:bottom, left:right] = 0
    else:  # a loop would wait for the boxes and launch B kernels; on a CPU it takes a tenth of the time
        images.masked_fill_(inside(boxes, *images.shape[-2:])[:, None], 0)


def inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return which pixels lie in the box of their image: bool [B, height, width]."""
    top, left, bottom, right = boxes[:, :, None].unbind(1)
    rows, columns = torch.arange(height, device=boxes.device), torch.arange(width, device=boxes.device)
    return ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None]


@lru_cache
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return 255, and the mean and the deviation along a line of pixels, [width * 3]: long loops, where 3 were short.

    They are copied to a device once, since that waits for it. 255 is a tensor, too: to divide by a plain number, a GPU
    multiplies with its reciprocal, and gets other bits.
    """
    # kept for training as well, whose autograd refuses tensors made in inference mode
    with torch.inference_mode(mode=False):
        full = torch.tensor(255.0, device=device)
        return full, torch.tensor(mean, device=device).repeat(width), torch.tensor(std, device=device).repeat(width)
