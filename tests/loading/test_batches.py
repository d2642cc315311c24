"""Loaders from pass to pass: the batches of a loader made for one, from workers that stay, and none left behind."""

import multiprocessing
import os
import time
from itertools import islice
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from plbench.api import DataError, ImageFiles, Plan
from plbench.loading.batches import ImageLoader
from plbench.loading.order import EpochOrder
from plbench.loading.routes import UnscaledPixels
from plbench.loading.transforms import EvalTransform, TrainTransform

SIZE = 24
BASE = EvalTransform(SIZE, (0.5, 0.4, 0.3), (0.2, 0.25, 0.5))
AUGMENTING = TrainTransform(BASE, Plan(epochs=1, batch_size=16, lr=1.0, randaugment="rand-m9-mstd0.5", cutout=0.5))

both = pytest.mark.parametrize("workers", [0, 2])


def order(epoch: int, first_batch: int = 0) -> EpochOrder:
    return EpochOrder(48, 10, seed=3, epoch=epoch, first_batch=first_batch)


def loader(images: ImageFiles, workers: int, transform: Any = AUGMENTING) -> ImageLoader:
    return ImageLoader(images, transform, min_side=SIZE, workers=workers, augment_seed=3)


def process_of(image: Image.Image) -> Tensor:
    return torch.tensor([os.getpid()])


def as_bytes(batches: Any) -> list[tuple[list[int], bytes]]:
    return [(rows.tolist(), views[0].numpy().tobytes()) for views, rows in batches]


OTHERS: set[int | None] = set()
"""Processes that other tests of this worker have started and keep."""


@pytest.fixture(autouse=True)
def note_others() -> None:
    OTHERS.clear()
    OTHERS.update(process.pid for process in multiprocessing.active_children())


def own_workers() -> set[int | None]:
    return {process.pid for process in multiprocessing.active_children()} - OTHERS


def none_left() -> bool:
    """Whether all workers end; one that was told to may take its time on a busy machine."""
    deadline = time.monotonic() + 20
    while own_workers() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not own_workers()


class TestPasses:
    @both
    def test_each_is_what_a_loader_of_its_own_would_give(self, tiny_images: ImageFiles, workers: int) -> None:
        kept = loader(tiny_images, workers)
        for epoch, first_batch in ((0, 0), (1, 0), (2, 3), (2, 0), (0, 0)):  # also on from the middle of an epoch
            alone = loader(tiny_images, 0).batches(order(epoch, first_batch), epoch)
            assert as_bytes(kept.batches(order(epoch, first_batch), epoch)) == as_bytes(alone)

    def test_they_share_their_workers(self, tiny_images: ImageFiles) -> None:
        kept = loader(tiny_images, 2, process_of)
        seen = [
            {int(each) for views, _ in kept.batches(order(epoch), epoch) for each in views[0]} for epoch in range(3)
        ]
        assert seen[0] == seen[1] == seen[2]
        assert len(seen[0]) == 2 and os.getpid() not in seen[0]
        del kept
        assert none_left()

    @both
    def test_one_within_another_disturbs_neither(self, tiny_images: ImageFiles, workers: int) -> None:
        kept = loader(tiny_images, workers)
        outer = kept.batches(order(0), 0)
        first = as_bytes(islice(outer, 2))
        inner = as_bytes(kept.batches(order(1), 1))
        alone = loader(tiny_images, 0)
        assert first + as_bytes(outer) == as_bytes(alone.batches(order(0), 0))
        assert inner == as_bytes(alone.batches(order(1), 1))

    @both
    def test_one_left_early_leaves_no_worker_and_does_not_spoil_the_next(
        self, tiny_images: ImageFiles, workers: int
    ) -> None:
        kept = loader(tiny_images, workers)
        as_bytes(kept.batches(order(0), 0))
        batches = kept.batches(order(1), 1)
        next(batches)
        batches.close()
        assert none_left()
        assert as_bytes(kept.batches(order(2), 2)) == as_bytes(loader(tiny_images, 0).batches(order(2), 2))

    @both
    def test_after_an_error_no_worker_is_left_and_the_next_one_is_whole(
        self, tiny_images: ImageFiles, workers: int
    ) -> None:
        path, kept = tiny_images.root / tiny_images.paths[20], loader(tiny_images, workers)
        content = path.read_bytes()
        path.write_bytes(b"")
        with pytest.raises(DataError, match=r"20\.png cannot be read") as caught:
            as_bytes(kept.batches(order(0), 0))
        assert none_left(), f"a worker outlives {caught.value}"
        path.write_bytes(content)
        assert as_bytes(kept.batches(order(1), 1)) == as_bytes(loader(tiny_images, 0).batches(order(1), 1))

    def test_of_no_batches_is_over_at_once(self, tiny_images: ImageFiles) -> None:
        assert list(loader(tiny_images, 2).batches([])) == []


def test_a_single_pass_leaves_no_worker(tiny_images: ImageFiles) -> None:
    batches = ImageLoader(tiny_images, BASE, min_side=SIZE, workers=2).batches([range(24), range(24, 48)])
    assert len(list(batches)) == 2
    del batches
    assert none_left()


def test_bytes_travel_in_the_layout_that_models_compute_in(tiny_images: ImageFiles) -> None:
    route = UnscaledPixels(tiny_images, BASE, SIZE)
    batch = route.collate([route.item(row) for row in range(4)])
    assert batch.pixels.dtype == torch.uint8 and batch.pixels.shape == (4, SIZE, SIZE, 3) and batch.boxes is None
    (images,) = route.finish(route.move(batch, torch.arange(4), torch.device("cpu")))
    assert images.dtype == torch.float32 and images.shape == (4, 3, SIZE, SIZE)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_a_subclass_of_a_known_transform_is_called(tiny_images: ImageFiles) -> None:
    class Negative(EvalTransform):
        def __call__(self, image: Image.Image) -> Tensor:
            return -super().__call__(image)

    ((views, _),) = ImageLoader(tiny_images, Negative(*vars(BASE).values()), min_side=SIZE, workers=0).batches([[3]])
    assert torch.equal(views[0][0], -BASE(tiny_images.load(3)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@both
def test_a_gpu_gets_the_bits_of_the_cpu(tiny_images: ImageFiles, workers: int) -> None:
    options: dict[str, Any] = {"min_side": SIZE, "workers": workers, "augment_seed": 3}
    there = ImageLoader(tiny_images, AUGMENTING, device=torch.device("cuda"), **options).batches(order(0))
    here = ImageLoader(tiny_images, AUGMENTING, **options).batches(order(0))
    for (gpu, rows), (cpu, same_rows) in zip(there, here, strict=True):
        assert gpu[0].device.type == "cuda" and rows.tolist() == same_rows.tolist()
        assert torch.equal(gpu[0].cpu(), cpu[0])
