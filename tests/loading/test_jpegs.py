"""Decoding JPEG files on the device: what goes there, what Pillow does all the same, and how failures read.

No GPU is needed: Pillow stands in for the device's decoder, at full size and as strict.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from plbench.api import DataError, ImageFiles, Plan, PlbenchError
from plbench.data.images import ImageSource
from plbench.data.shards.packing import pack
from plbench.data.shards.shards import ShardedImages
from plbench.loading.batches import ImageLoader
from plbench.loading.jpegs import JpegDecoder, is_plain_jpeg, jpeg_decoder
from plbench.loading.transforms import EvalTransform, TrainTransform

SIZE, CPU = 24, torch.device("cpu")
BASE = EvalTransform(SIZE, (0.5, 0.4, 0.3), (0.2, 0.25, 0.5))
ORDER = [[3, 0, 7], [1, 2, 4], [5, 6]]


class SyntheticView:
    """Pillow in place of a GPU's decoder. Counts files; a broken one fails its whole batch, as with torchvision."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, files: list[Tensor]) -> list[Tensor]:
        self.batches.append(len(files))
        try:
            images = [Image.open(io.BytesIO(file.numpy().tobytes())).convert("RGB") for file in files]
        except OSError as error:
            raise RuntimeError(f"Error while decoding JPEG images: {error}") from error
        return [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]


def scene(row: int, width: int = 60, height: int = 45) -> Image.Image:
    coarse = np.random.default_rng(row).integers(0, 255, (5, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def mixed(tmp_path: Path) -> ImageFiles:
    """Eight images: JPEGs of several sizes, one of them grey, one of the wanted size, one CMYK, and two PNGs."""
    paths = [f"{row}.{'png' if row in (2, 6) else 'jpg'}" for row in range(8)]
    for row, path in enumerate(paths):
        image = scene(row, 60 + 5 * row)
        if row == 1:
            image = image.convert("L")
        if row == 3:
            image = image.resize((SIZE, SIZE))
        if row == 4:
            image = image.convert("CMYK")
        image.save(tmp_path / path, quality=95)
    return ImageFiles(tmp_path, tuple(paths), tuple(paths))


def load(source: ImageSource, transform: Any = BASE, **options: Any) -> dict[int, Tensor]:
    """Pixels by row, in the order in which they came."""
    order, epoch = options.pop("order", ORDER), options.pop("epoch", 0)
    found: dict[int, Tensor] = {}
    loader = ImageLoader(source, transform, **{"min_side": SIZE, "workers": 0, **options})
    for (pixels,), rows in loader.batches(order, epoch):
        found.update(zip(rows.tolist(), pixels, strict=True))
    return found


@pytest.mark.parametrize("workers", [0, 2])
class TestMixedFiles:
    def test_they_come_in_order_and_near_to_what_pillow_makes_of_them(self, mixed: ImageFiles, workers: int) -> None:
        decode = SyntheticView()
        found = load(mixed, workers=workers, decoder=JpegDecoder(decode, CPU))
        assert list(found) == [row for rows in ORDER for row in rows]
        assert decode.batches == [3, 1, 1]  # neither the PNGs nor the CMYK
        for row, pixels in found.items():
            exact = BASE.scaled(BASE.pixels(mixed.load(row)))
            in_bytes = (pixels - exact).mul(torch.tensor(BASE.std).view(3, 1, 1)).abs() * 255
            assert in_bytes.max() < (0.01 if row in (2, 3, 4, 6) else 2.5), row  # both round what they have squashed

    def test_cutout_is_where_pillows_path_has_it(self, mixed: ImageFiles, workers: int) -> None:
        transform = TrainTransform(BASE, Plan(epochs=1, batch_size=3, lr=1.0, cutout=0.5))
        options: dict[str, Any] = {"workers": workers, "augment_seed": 5, "epoch": 3}
        decoded = load(mixed, transform, decoder=JpegDecoder(SyntheticView(), CPU), **options)
        by_pillow = load(mixed, transform, **options)
        for row, pixels in by_pillow.items():
            assert torch.equal(pixels[0] == 0, decoded[row][0] == 0)  # no red is normalised to 0: its mean is 127.5
        assert len({(pixels[0] == 0).numpy().tobytes() for pixels in decoded.values()}) > 4

    @pytest.mark.parametrize("kind", ["truncated", "no image", "empty", "spoilt within"])
    def test_a_broken_file_gets_pillows_sentence(self, mixed: ImageFiles, workers: int, kind: str) -> None:
        path = mixed.root / mixed.paths[5]
        content = path.read_bytes()
        header = content[:4] + b"\xff\xd9"
        spoilt = {"truncated": content[:300], "no image": b"<html>", "empty": b"", "spoilt within": header}
        path.write_bytes(spoilt[kind])
        with pytest.raises(DataError) as expected:
            mixed.load(5)
        with pytest.raises(DataError) as caught:
            load(mixed, workers=workers, decoder=JpegDecoder(SyntheticView(), CPU))
        assert str(caught.value) == str(expected.value)
        assert str(path) in str(caught.value)

    def test_a_missing_file_is_named(self, mixed: ImageFiles, workers: int) -> None:
        (mixed.root / mixed.paths[5]).unlink()
        with pytest.raises(DataError, match=r"^image .*5\.jpg cannot be read: "):
            load(mixed, workers=workers, decoder=JpegDecoder(SyntheticView(), CPU))


def refusing(files: list[Tensor]) -> list[Tensor]:
    raise RuntimeError("Error while decoding JPEG images: unsupported")


def without_memory(files: list[Tensor]) -> list[Tensor]:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_what_the_device_refuses_pillow_decodes(mixed: ImageFiles) -> None:
    found = load(mixed, decoder=JpegDecoder(refusing, CPU))
    assert all(torch.equal(found[row], pixels) for row, pixels in load(mixed).items())


def test_a_file_that_only_decoding_shows_to_be_broken_is_named(mixed: ImageFiles) -> None:
    path = mixed.root / mixed.paths[5]
    content = path.read_bytes()
    spoilt = content.replace(b"\xff\xc4\x00\x1f\x00", b"\xff\xc4\x00\x1f\xff")  # a table that cannot be
    assert spoilt != content and is_plain_jpeg(spoilt)
    path.write_bytes(spoilt)
    with pytest.raises(DataError) as expected:
        mixed.load(5)
    with pytest.raises(DataError) as caught:
        load(mixed, decoder=JpegDecoder(SyntheticView(), CPU))
    assert str(caught.value) == str(expected.value)


def test_a_lack_of_memory_is_not_taken_for_a_broken_file(mixed: ImageFiles) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        load(mixed, decoder=JpegDecoder(without_memory, CPU))


def test_packed_images_are_decoded_too(mixed: ImageFiles, tmp_path: Path) -> None:
    pack(mixed, tmp_path / "shards", short_side=40, workers=0)
    decode = SyntheticView()
    found = load(
        ShardedImages(tmp_path / "shards"), order=[[0, 1, 2, 3], [4, 5, 6, 7]], decoder=JpegDecoder(decode, CPU)
    )
    assert decode.batches == [4, 4]
    assert len(found) == 8


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def without_transform(content: bytes) -> bytes:
    """Says of a JPEG that its channels are red, green and blue."""
    return content[:2] + b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00" + content[2:]


@pytest.mark.parametrize(
    ("make", "plain"),
    [
        (lambda image: saved(image, "JPEG"), True),
        (lambda image: saved(image, "JPEG", progressive=True), True),
        (lambda image: saved(image.convert("L"), "JPEG"), True),
        (lambda image: saved(image, "JPEG") + b"\0\0", True),
        (lambda image: saved(image, "JPEG")[:-2], False),
        (lambda image: saved(image.convert("CMYK"), "JPEG"), False),
        (lambda image: without_transform(saved(image, "JPEG")), False),
        (lambda image: saved(image, "MPO", save_all=True, append_images=[image]), False),
        (lambda image: saved(image, "PNG"), False),
        (lambda image: b"\xff\xd8\xff\xd9", False),
        (lambda image: b"", False),
    ],
)
def test_only_plain_jpegs_go_to_the_device(make: Callable[[Image.Image], bytes], plain: bool) -> None:
    assert is_plain_jpeg(make(scene(0))) is plain


class TestRefusals:
    def test_without_a_gpu_it_says_what_is_missing(self) -> None:
        assert jpeg_decoder("pil", CPU) is None
        with pytest.raises(
            PlbenchError, match=r"""^`decode="gpu"` needs a CUDA device, and this run computes on 'cpu'; use"""
        ):
            jpeg_decoder("gpu", CPU)

    def test_a_torchvision_that_does_not_decode_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("plbench.loading.jpegs.torchvision_decode", lambda device: refusing)
        monkeypatch.setattr("torch.cuda.current_stream", lambda device: torch.Stream("cpu"))
        with pytest.raises(PlbenchError, match=r"needs a torchvision with nvJPEG .* \(Error while decoding"):
            jpeg_decoder("gpu", torch.device("cuda"))

    @pytest.mark.parametrize(
        "augmentation", [{"randaugment": "rand-m9-mstd0.5"}, {"horizontal_flip": 0.5}, {"random_resized_crop": 0.25}]
    )
    def test_augmentation_needs_pillow(self, mixed: ImageFiles, augmentation: dict[str, Any]) -> None:
        transform = TrainTransform(BASE, Plan(epochs=1, batch_size=3, lr=1.0, **augmentation))
        with pytest.raises(PlbenchError, match='augments images decoded by Pillow; use `decode="pil"`'):
            ImageLoader(mixed, transform, min_side=SIZE, workers=0, decoder=JpegDecoder(SyntheticView(), CPU))

    def test_a_methods_own_transform_needs_pillow(self, mixed: ImageFiles) -> None:
        def own(image: Image.Image) -> Tensor:
            return BASE(image)

        with pytest.raises(PlbenchError, match=r"own transform \(own\) works on images decoded by Pillow"):
            ImageLoader(mixed, own, min_side=SIZE, workers=0, decoder=JpegDecoder(SyntheticView(), CPU))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_decodes_what_pillow_does(mixed: ImageFiles) -> None:
    device = torch.device("cuda")
    decoder = jpeg_decoder("gpu", device)
    assert decoder is not None
    found = load(mixed, device=device, decoder=decoder, order=ORDER * 20)
    for row, pixels in found.items():
        exact = BASE.scaled(BASE.pixels(mixed.load(row)))
        in_bytes = (pixels.cpu() - exact).mul(torch.tensor(BASE.std).view(3, 1, 1)).abs() * 255
        assert in_bytes.mean() < 2, row
