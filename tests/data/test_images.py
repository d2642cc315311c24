"""Decoding, augmentation and loading: the same pixels whatever the workers, and every broken file by its name."""

import multiprocessing
import random
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from plbench.api import DataError, ImageFiles, PartialLabels, Plan, PlbenchError
from plbench.data.images import find_unreadable, image_set_id, ordered_batches
from plbench.loading.batches import ImageLoader
from plbench.loading.transforms import EvalTransform, TrainTransform
from plbench.training.inputs import ImageInputs

SIZE = 24
BASE = EvalTransform(SIZE, (0.5, 0.4, 0.3), (0.2, 0.25, 0.5))
AUGMENTING = Plan(epochs=1, batch_size=16, lr=1.0, randaugment="rand-m9-mstd0.5", cutout=0.5)
PLAIN = Plan(epochs=1, batch_size=16, lr=1.0)


def inputs(images: ImageFiles, *, workers: int = 0, seed: int = 0, transform: Any = None) -> ImageInputs:
    labels = PartialLabels.from_dense(np.ones((len(images), 2), np.int8), ["a", "b"])
    return ImageInputs(images, labels, BASE, workers, transform or TrainTransform(BASE, AUGMENTING), seed)


def by_row(fed: ImageInputs, *, epoch: int = 0, batch_size: int = 16) -> Tensor:
    """Training pixels of one epoch in the order of rows, after checking that each row came once."""
    batches = list(fed.shuffled(batch_size, epoch))
    rows = torch.cat([batch.index for batch in batches])
    assert sorted(rows.tolist()) == list(range(len(fed)))
    return torch.cat([batch.inputs for batch in batches])[rows.argsort()]


class TestAugmentation:
    def test_it_does_not_depend_on_workers_or_batches(self, tiny_images: ImageFiles) -> None:
        alone = by_row(inputs(tiny_images))
        assert torch.equal(alone, by_row(inputs(tiny_images, workers=2)))
        assert torch.equal(alone, by_row(inputs(tiny_images), batch_size=7))

    def test_it_differs_by_seed_epoch_and_row(self, tiny_images: ImageFiles) -> None:
        one_image = ImageFiles(tiny_images.root, tiny_images.paths[:1] * 8, tuple("abcdefgh"))
        pixels = [by_row(inputs(one_image)), by_row(inputs(one_image), epoch=1), by_row(inputs(one_image, seed=1))]
        assert len({view.numpy().tobytes() for view in torch.cat(pixels)}) > 20

    def test_without_any_it_is_the_evaluation_transform(self, tiny_images: ImageFiles) -> None:
        trained = by_row(inputs(tiny_images, transform=TrainTransform(BASE, PLAIN)))
        evaluated = torch.cat([pixels for _, pixels in inputs(tiny_images).ordered(7)])
        assert torch.equal(trained, evaluated)

    def test_cutout_is_a_square_of_half_the_side(self) -> None:
        transform = TrainTransform(BASE, PLAIN.model_copy(update={"cutout": 0.5}))
        erased = transform(Image.new("RGB", (40, 30), "white")) == 0
        assert erased.sum(dim=(1, 2)).tolist() == [(SIZE // 2) ** 2] * 3
        rows, columns = erased[0].any(dim=1), erased[0].any(dim=0)
        assert int(rows.sum()) == int(columns.sum()) == SIZE // 2

    def test_a_string_that_timm_cannot_read_is_refused(self) -> None:
        with pytest.raises(PlbenchError, match="randaugment = 'strong' is not one that timm reads"):
            TrainTransform(BASE, PLAIN.model_copy(update={"randaugment": "strong"}))

    def test_a_transform_may_give_several_views(self, tiny_images: ImageFiles) -> None:
        def two_views(image: Image.Image) -> tuple[Tensor, Tensor]:
            return BASE(image), 2 * BASE(image)

        for workers in (0, 2):
            batch = next(inputs(tiny_images, transform=two_views, workers=workers).shuffled(16, 0))
            assert len(batch.views) == 2
            assert torch.equal(batch.views[0], batch.inputs)
            assert torch.equal(batch.views[1], 2 * batch.inputs)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_the_callers_random_state_is_left_alone(self, tiny_images: ImageFiles, workers: int) -> None:
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
        by_row(inputs(tiny_images, workers=workers))
        list(inputs(tiny_images, workers=workers).ordered(16))
        after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
        assert before == after


class TestEvaluation:
    def test_rows_come_once_and_in_order_with_any_workers(self, tiny_images: ImageFiles) -> None:
        direct = torch.stack([BASE(tiny_images.load(row)) for row in range(len(tiny_images))])
        for workers in (0, 2):
            batches = list(inputs(tiny_images, workers=workers).ordered(7))
            assert torch.cat([rows for rows, _ in batches]).tolist() == list(range(48))
            assert torch.equal(torch.cat([pixels for _, pixels in batches]), direct)

    def test_pixels_are_scaled_and_normalised(self) -> None:
        pixels = BASE(Image.new("RGB", (40, 30), (255, 0, 51)))
        assert pixels.shape == (3, SIZE, SIZE)
        assert pixels.dtype == torch.float32
        for channel, expected in enumerate([(1 - 0.5) / 0.2, (0 - 0.4) / 0.25, (0.2 - 0.3) / 0.5]):
            torch.testing.assert_close(pixels[channel], torch.full((SIZE, SIZE), expected))

    def test_the_whole_image_is_squashed(self) -> None:
        wide = np.zeros((10, 200, 3), np.uint8)
        wide[:, 100:] = 255
        pixels = EvalTransform(SIZE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))(Image.fromarray(wide))
        assert (pixels[:, :, : SIZE // 2 - 1] == 0).all()
        assert (pixels[:, :, SIZE // 2 + 1 :] == 1).all()

    def test_an_image_of_the_right_size_is_not_resampled(self) -> None:
        noise = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), np.uint8)
        pixels = EvalTransform(SIZE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))(Image.fromarray(noise))
        assert np.array_equal((pixels.permute(1, 2, 0) * 255).round().numpy(), noise)


class TestDecoding:
    def test_a_jpeg_is_decoded_small_but_not_too_small(self, tmp_path: Path) -> None:
        ramp = np.broadcast_to(np.arange(512, dtype=np.uint16)[None, :, None] // 2, (256, 512, 3)).astype(np.uint8)
        Image.fromarray(ramp).save(tmp_path / "ramp.jpg", quality=95)
        images = ImageFiles(tmp_path, ("ramp.jpg",), ("ramp",))
        assert images.load(0).size == (512, 256)
        sizes = {side: images.load(0, min_side=side).size for side in (1, 30, 60, 120, 200, 300)}
        assert sizes == {
            1: (64, 32),
            30: (64, 32),
            60: (128, 64),
            120: (256, 128),
            200: (512, 256),
            300: (512, 256),
        }
        gap = np.asarray(BASE.resize(images.load(0, SIZE)), int) - np.asarray(BASE.resize(images.load(0)), int)
        assert np.abs(gap).max() <= 4

    @pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "I;16"])
    def test_every_kind_of_picture_comes_as_rgb(self, tmp_path: Path, mode: str) -> None:
        name = "picture.tif" if mode == "CMYK" else "picture.png"
        Image.new(mode, (20, 10), 1).save(tmp_path / name)
        image = ImageFiles(tmp_path, (name,), ("x",)).load(0, min_side=SIZE)
        assert (image.mode, image.size) == ("RGB", (20, 10))

    def test_subsets_keep_the_order_asked_for(self, tiny_images: ImageFiles) -> None:
        part = tiny_images.subset(np.array([5, 2]))
        assert part.ids == ("train-5", "train-2")
        assert len(part) == 2
        assert np.array_equal(np.asarray(part.load(1)), np.asarray(tiny_images.load(2)))
        assert image_set_id(part) != image_set_id(tiny_images.subset(np.array([2, 5])))


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


BROKEN: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:300]),
    "truncated in its header": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "empty": lambda path: path.write_bytes(b""),
    "no image": lambda path: path.write_text("<html>404</html>"),
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a decompression bomb": lambda path: path.write_bytes(png_of(100_000, 100_000)),
}


class TestBrokenFiles:
    @pytest.mark.parametrize("kind", BROKEN)
    def test_loading_one_names_it(self, tiny_images: ImageFiles, kind: str) -> None:
        path = tiny_images.root / tiny_images.paths[9]
        BROKEN[kind](path)
        with pytest.raises(DataError, match=f"^image {path} cannot be read: "):
            tiny_images.load(9, min_side=SIZE)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_loaders_pass_the_sentence_on_as_it_is(self, tiny_images: ImageFiles, workers: int) -> None:
        BROKEN["truncated"](tiny_images.root / tiny_images.paths[9])
        before = set(multiprocessing.active_children())  # the kit's pair serves all tests of a process
        with pytest.raises(DataError) as caught:
            list(ImageLoader(tiny_images, BASE, min_side=SIZE, workers=workers).batches(ordered_batches(48, 16)))
        assert set(multiprocessing.active_children()) <= before, "no worker outlives the error, whoever keeps that"
        with pytest.raises(DataError) as expected:
            tiny_images.load(9)
        assert str(caught.value) == str(expected.value)

    def test_all_of_them_are_found_at_once(self, tiny_images: ImageFiles) -> None:
        for row, spoil in enumerate(BROKEN.values()):
            spoil(tiny_images.root / tiny_images.paths[2 * row])
        steps: list[tuple[int, int]] = []
        found = find_unreadable(tiny_images, lambda done, total: steps.append((done, total)))
        assert sorted(found) == [2 * row for row in range(len(BROKEN))]
        assert all(tiny_images.name(row) in reason for row, reason in found.items())
        assert "does not exist" in found[2 * list(BROKEN).index("missing")]
        assert tiny_images.absent() == [2 * list(BROKEN).index("missing")]
        assert steps[-1] == (47, 47)

    def test_a_folder_that_is_not_there_makes_all_absent(self, tmp_path: Path) -> None:
        images = ImageFiles(tmp_path, ("gone/a.png", "gone/b.png"), ("a", "b"))
        assert images.absent() == [0, 1]
        assert set(find_unreadable(images)) == {0, 1}

    def test_whole_files_are_not_suspected(self, tiny_images: ImageFiles) -> None:
        assert find_unreadable(tiny_images) == {}


def test_an_image_of_30000_by_30000_pixels_is_one_sentence_in_little_memory(tmp_path: Path) -> None:
    (tmp_path / "huge.png").write_bytes(png_of(30_000, 30_000))
    images = ImageFiles(tmp_path, ("huge.png",), ("huge",))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"huge\.png cannot be read: .*900000000 pixels") as error:
        images.load(0, min_side=224)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(error.value) and peak < 10 << 20
