"""JPEG decoding on the GPU: workers only read bytes, and the device decodes and resizes batches.

Pixels differ slightly from Pillow's, which decodes large files at reduced size, so this is opt-in by `decode="gpu"`.
Everything but plain JPEGs (other formats, CMYK, EXIF orientation, truncated files) is still decoded by Pillow in the
workers, and so are files that the device's decoder rejects: messages on broken files are the same in both cases.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import default_collate

from plbench.data.pixels import DECODING_ERRORS, is_plain, opened
from plbench.errors import PlbenchError
from plbench.loading.routes import Unscaled, UnscaledPixels, stacked_boxes
from plbench.loading.transforms import TrainTransform

Decode = Callable[[list[Tensor]], list[Tensor]]
"""Files, each uint8 [n] on the CPU, to images, each uint8 [3, h, w] on the device. RuntimeError if one is broken."""

_END_OF_IMAGE = b"\xff\xd9"


@dataclass
class JpegDecoder:
    """Decodes and resizes batches of JPEG files on a device."""

    decode: Decode
    device: torch.device
    _being_read: Any = field(default=None, init=False)

    def squashed(self, files: list[Tensor], size: int) -> Tensor:
        """Return images of a batch, uint8 [B, size, size, 3] on the device.

        On a GPU, call it in a separate stream: it waits for earlier work in the stream.

        Raises:
            RuntimeError: if one of the files is broken.
        """
        if self.device.type == "cuda":
            # torchvision decodes in a stream that does not wait for this one, into memory that this one may have freed
            # but is still reading (github.com/pytorch/vision/pull/9606)
            torch.cuda.current_stream(self.device).synchronize()
        images = self.decode(files)
        self._being_read = files  # until the next call, which waits for this one's work

        def squash(image: Tensor) -> Tensor:
            if tuple(image.shape[1:]) == (size, size):
                return image.float()
            return functional.interpolate(image[None].float(), (size, size), mode="bilinear", antialias=True)[0]

        squashed = torch.stack([squash(image) for image in images])
        return squashed.round_().clamp_(0, 255).to(torch.uint8).movedim(1, -1).contiguous()


def jpeg_decoder(name: str, device: torch.device) -> JpegDecoder | None:
    """Return the JPEG decoder for `decode=` "pil" or "gpu"; None for Pillow in the workers.

    Raises:
        PlbenchError: if decoding on a GPU is requested but not available.
    """
    if name == "pil":
        return None
    instead = 'use `decode="pil"`, which decodes in the `workers=` processes'
    if device.type != "cuda":
        raise PlbenchError(f'`decode="gpu"` needs a CUDA device, and this run computes on {device.type!r}; {instead}')
    try:
        decoder = JpegDecoder(torchvision_decode(device), device)
        # a torchvision incompatible with this torch may only fail when decoding
        file = io.BytesIO()
        Image.new("RGB", (16, 16)).save(file, "JPEG")
        decoder.squashed([torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)], 8)
    except (ImportError, AttributeError, RuntimeError) as error:
        raise PlbenchError(
            f'`decode="gpu"` needs a torchvision with nvJPEG that was built for torch {torch.__version__}, and the one '
            f"here does not decode ({str(error).splitlines()[0]}); install the pair of one CUDA build, or {instead}"
        ) from error
    return decoder


def torchvision_decode(device: torch.device) -> Decode:
    """Return torchvision's decoder, on a device.

    Raises:
        ImportError, AttributeError, RuntimeError: here or when called, if it is incompatible with this torch.
    """
    import plbench.models.torchvision_ops  # noqa: F401  # isort: skip
    from torchvision.io import ImageReadMode, decode_jpeg  # type: ignore[import-untyped]

    return lambda files: list(decode_jpeg(files, mode=ImageReadMode.RGB, device=device))


class Encoded(NamedTuple):
    """A batch of files, most of them JPEG.

    Attributes:
        files: uint8, concatenated files. sizes: int64 [B] in bytes, 0 for images decoded by a worker.
        pixels: uint8 [n, size, size, 3] of those, in order. boxes: int64 [B, 4] or None, as in `Unscaled`.
    """

    files: Tensor
    sizes: Tensor
    pixels: Tensor
    boxes: Tensor | None


class _Item(NamedTuple):
    file: Tensor | None
    pixels: Tensor | None
    boxes: Tensor | None


@dataclass(frozen=True)
class JpegFiles(UnscaledPixels):
    """Workers read files; the device decodes, resizes, scales, normalises and applies cutout."""

    decoder: JpegDecoder

    def __post_init__(self) -> None:
        """Reject transforms with augmentation, which needs Pillow images."""
        if isinstance(self.transform, TrainTransform) and self.transform.augments:
            raise PlbenchError(
                'the plan crops, flips or augments images decoded by Pillow; use `decode="pil"`, or a plan without '
                "random_resized_crop, horizontal_flip and randaugment (scoring and the probe regime need none)"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Exclude the decoder, which belongs to this process's device, from workers."""
        return {**self.__dict__, "decoder": None}

    def item(self, row: int) -> _Item:
        """Return the file of one image if the device can decode it, otherwise its pixels."""
        content = self.source.read(row)
        plain = is_plain_jpeg(content)
        # bytearray, since torch warns of read-only memory
        file = torch.frombuffer(bytearray(content), dtype=torch.uint8) if plain else None
        return _Item(file, None if plain else self.pixels(row), self.box())

    def collate(self, items: Sequence[_Item]) -> Encoded:
        """Return the files in one tensor, since each tensor needs a file descriptor."""
        files = [item.file for item in items if item.file is not None]
        pixels = [item.pixels for item in items if item.pixels is not None]
        size = self.base.size
        return Encoded(
            torch.cat(files) if files else torch.empty(0, dtype=torch.uint8),
            torch.tensor([0 if item.file is None else len(item.file) for item in items]),
            default_collate(pixels) if pixels else torch.empty(0, size, size, 3, dtype=torch.uint8),
            stacked_boxes(items),
        )

    def move(self, batch: Encoded, rows: Tensor, device: torch.device) -> Unscaled:
        """Decode on the device; DataError if an image cannot be read, with its name."""
        encoded, size = batch.sizes > 0, self.base.size
        if not encoded.any():
            return super().move(batch, rows, device)
        files = list(batch.files.split(batch.sizes[encoded].tolist()))
        try:
            decoded = self.decoder.squashed(files, size)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # a file is not supported by this decoder: let Pillow decode it or report the error
            decoded = torch.stack([self.pixels(row) for row in rows[encoded].tolist()])
        if encoded.all():
            return super().move(Unscaled(decoded, batch.boxes), rows, device)
        pixels = torch.empty(len(rows), size, size, 3, dtype=torch.uint8, device=device)
        pixels[encoded.nonzero()[:, 0].tolist()] = decoded.to(device)
        pixels[(~encoded).nonzero()[:, 0].tolist()] = batch.pixels.to(device, non_blocking=True)
        return super().move(Unscaled(pixels, batch.boxes), rows, device)


def is_plain_jpeg(content: bytes) -> bool:
    """Return whether a file is a plain JPEG: complete, without rotation, RGB or grey."""
    if not content.startswith(b"\xff\xd8"):
        return False
    try:
        image = opened(io.BytesIO(content))  # reads the header
    except DECODING_ERRORS:
        return False
    stores_rgb = image.info.get("adobe_transform") == 0 and image.mode == "RGB"
    whole = content.rstrip(b"\0").endswith(_END_OF_IMAGE)
    return image.format == "JPEG" and is_plain(image) and whole and not stores_rgb
