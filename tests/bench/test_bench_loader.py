"""How fast packed images are read and loaded, beside a folder of files and timm's own loader over it.

2,000 images unless PLBENCH_BENCH_IMAGES says another number: docs/data-shards.md was measured with 50,000.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from plbench.api import ImageFiles, Plan
from plbench.data.shards.packing import pack
from plbench.data.shards.shards import ShardedImages
from plbench.loading.batches import ImageLoader
from plbench.loading.order import EpochOrder, reading_ahead
from plbench.loading.transforms import EvalTransform, TrainTransform, Transform

NUM_IMAGES = int(os.environ.get("PLBENCH_BENCH_IMAGES", "2000"))
SHORT_SIDE, IMAGE_SIZE, BATCH_SIZE, WORKERS = 256, 224, 128, 2
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RANDAUGMENT = "rand-m9-mstd0.5"
BASE = EvalTransform(IMAGE_SIZE, MEAN, STD)
AUGMENTING = TrainTransform(BASE, Plan(epochs=1, batch_size=BATCH_SIZE, lr=1.0, randaugment=RANDAUGMENT, cutout=0.5))
PHOTOS = Path(__file__).parents[2].parent / "shared" / "data" / "coco-mini"


def pictures() -> list[Image.Image]:
    """Photographs where there are some, otherwise smooth noise."""
    paths = sorted(PHOTOS.rglob("*.jpg"))[:200]
    if paths:
        return [Image.open(path).convert("RGB") for path in paths]
    rng = np.random.default_rng(0)
    coarse = [Image.fromarray(rng.integers(0, 255, (60, 80, 3), np.uint8)) for _ in range(20)]
    return [picture.resize((400, 300), Image.Resampling.BICUBIC) for picture in coarse]


def crops(number: int) -> Iterator[Image.Image]:
    """Distinct pictures of short side 256."""
    rng, sources = np.random.default_rng(0), pictures()
    for row in range(number):
        picture = sources[row % len(sources)]
        share = rng.uniform(0.75, 1)
        size = np.array(picture.size) * share
        left, top = (np.array(picture.size) - size) * rng.random(2)
        width, height = (max(SHORT_SIDE, round(side * SHORT_SIDE / min(size))) for side in size)
        box = (left, top, left + size[0], top + size[1])
        yield picture.resize((width, height), Image.Resampling.BILINEAR, box=box)


@pytest.fixture(scope="module")
def sources() -> Iterator[dict[str, ImageFiles | ShardedImages]]:
    """The same images as files, in a folder for each of 20 classes, and packed."""
    with tempfile.TemporaryDirectory() as place:
        folder, paths = Path(place) / "folder", []
        for row, picture in enumerate(crops(NUM_IMAGES)):
            path = folder / f"class-{row % 20}" / f"{row}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path, quality=80)
            paths.append(str(path.relative_to(folder)))
        files = ImageFiles(folder, tuple(paths), tuple(paths))
        pack(files, Path(place) / "shards", short_side=SHORT_SIDE, workers=WORKERS)
        yield {"folder": files, "shards": ShardedImages(Path(place) / "shards")}


def forget(*roots: Path) -> None:
    """Has the system drop the files' bytes from its cache. What it knows of their names stays, a help to folders."""
    os.sync()
    for path in (path for root in roots for path in root.rglob("*") if path.is_file()):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def compare(calls: dict[str, Callable[[], int]], *cold: Path, repeats: int = 2) -> dict[str, tuple[float, float]]:
    """Images per second, and per second of processor time, of functions that return how many images they read.

    The best of a few calls of each, by turns, because other programs disturb the first number and hardly the second.
    """
    best = dict.fromkeys(calls, (0.0, 0.0))
    for _ in range(repeats):
        for name, call in calls.items():
            forget(*cold)
            gc.collect()  # workers of the call before are waited for, and their processor time is known
            processor, begin = sum(os.times()[:4]), perf_counter()
            number = call()
            seconds = perf_counter() - begin
            gc.collect()
            processor = sum(os.times()[:4]) - processor
            best[name] = max(best[name][0], number / seconds), max(best[name][1], number / processor)
    return best


@pytest.mark.bench
@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system cannot be asked to drop its cache")
def test_bytes_in_shuffled_order_from_a_cold_cache(
    sources: dict[str, ImageFiles | ShardedImages], capsys: pytest.CaptureFixture[str]
) -> None:
    files, shards = sources["folder"], sources["shards"]
    assert isinstance(files, ImageFiles) and isinstance(shards, ShardedImages)

    def read_all(source: ImageFiles | ShardedImages, block_rows: int) -> int:
        order = EpochOrder(NUM_IMAGES, BATCH_SIZE, seed=0, epoch=0, block_rows=block_rows)
        batches = reading_ahead(order, source.expect) if isinstance(source, ShardedImages) else order
        return sum(len(source.read(row)) > 0 for batch in batches for row in batch)

    calls = {
        "files": lambda: read_all(files, 1),
        "blocks": lambda: read_all(shards, shards.block_rows),
        "rows": lambda: read_all(shards, 1),
    }
    speeds = {name: speed for name, (speed, _) in compare(calls, files.root, shards.folder).items()}
    blocks, rows = (speeds[name] / speeds["files"] for name in ("blocks", "rows"))
    with capsys.disabled():
        print(
            f"\ncold bytes of {NUM_IMAGES:,} images: {speeds['files']:,.0f}/s from files; shards are {blocks:.1f} times"
        )
        print(f"as fast in shuffled blocks of {shards.block_rows} rows, {rows:.1f} times in a uniform permutation")


def timm_over(files: ImageFiles, *, prefetcher: bool, **options: Any) -> int:
    """One epoch of timm's loader over a folder, in shuffled order; number of images."""
    import plbench.models.torchvision_ops  # noqa: F401  # isort: skip
    from timm.data import create_dataset, create_loader

    dataset = create_dataset("", str(files.root))
    order = torch.randperm(NUM_IMAGES, generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = torch.utils.data.Subset(dataset, order)
    loader = create_loader(
        shuffled,
        input_size=(3, IMAGE_SIZE, IMAGE_SIZE),
        batch_size=BATCH_SIZE,
        use_prefetcher=prefetcher,
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
        num_workers=WORKERS,
        device=torch.device("cpu"),
        **options,
    )
    dataset.transform = shuffled.transform  # which timm set on what it was given
    return sum(len(pixels) for pixels, _ in loader)


def ours_over(images: ImageFiles | ShardedImages, transform: Transform, seed: int | None = None) -> int:
    """One epoch of our loader; number of images."""
    order = EpochOrder(NUM_IMAGES, BATCH_SIZE, seed=0, epoch=0, block_rows=images.block_rows)
    stream = ImageLoader(images, transform, min_side=IMAGE_SIZE, workers=WORKERS, augment_seed=seed).batches(order)
    return sum(len(rows) for _, rows in stream)


def show(title: str, speeds: dict[str, tuple[float, float]], capsys: pytest.CaptureFixture[str]) -> None:
    """Prints how the first of them compares with the others."""
    first, *others = speeds
    with capsys.disabled():
        for name in others:
            wall, processor = (a / b for a, b in zip(speeds[first], speeds[name], strict=True))
            print(f"\n{title}: {first} is {wall:.2f} times as fast as {name}", end="")
            print(f", {processor:.2f} times by processor time ({speeds[first][0]:,.0f} images/s)", end="")


@pytest.mark.bench
def test_the_whole_loader_beside_timm(
    sources: dict[str, ImageFiles | ShardedImages], capsys: pytest.CaptureFixture[str]
) -> None:
    files, shards = sources["folder"], sources["shards"]
    assert isinstance(files, ImageFiles) and isinstance(shards, ShardedImages)
    squash: dict[str, Any] = {"crop_pct": 1.0, "crop_mode": "squash"}
    calls = {
        "the loader over shards": lambda: ours_over(shards, BASE),
        "itself over files": lambda: ours_over(files, BASE),
        "timm": lambda: timm_over(files, prefetcher=False, **squash),
        "timm with prefetcher": lambda: timm_over(files, prefetcher=True, **squash),
    }
    for state, cold in (("warm", ()), ("cold", (files.root, shards.folder))):
        if not cold or hasattr(os, "posix_fadvise"):
            show(f"{state} cache, {WORKERS} workers", compare(calls, *cold), capsys)


@pytest.mark.bench
def test_training_batches_beside_timm(
    sources: dict[str, ImageFiles | ShardedImages], capsys: pytest.CaptureFixture[str]
) -> None:
    files, shards = sources["folder"], sources["shards"]
    assert isinstance(files, ImageFiles)
    augmenting: dict[str, Any] = {
        "is_training": True,
        "scale": (1.0, 1.0),  # all of the image, as far as its shape allows
        "hflip": 0.0,
        "auto_augment": RANDAUGMENT,
        "re_prob": 1.0,
    }
    calls = {
        "the loader": lambda: ours_over(shards, AUGMENTING, seed=0),
        "timm": lambda: timm_over(files, prefetcher=False, **augmenting),
        "timm with prefetcher": lambda: timm_over(files, prefetcher=True, **augmenting),
    }
    show(f"{RANDAUGMENT} and cutout, {WORKERS} workers", compare(calls), capsys)


@pytest.mark.bench
def test_bytes_beside_floats(
    sources: dict[str, ImageFiles | ShardedImages], capsys: pytest.CaptureFixture[str]
) -> None:
    shards = sources["shards"]
    calls = {
        "scaling where batches are used": lambda: ours_over(shards, BASE),
        "scaling in workers": lambda: ours_over(shards, lambda image: BASE(image)),
    }
    show("on a CPU", compare(calls), capsys)


@pytest.mark.bench
@pytest.mark.parametrize("number", [64, 512])
def test_epochs_of_a_small_dataset(
    sources: dict[str, ImageFiles | ShardedImages], capsys: pytest.CaptureFixture[str], number: int
) -> None:
    few = sources["shards"].subset(np.arange(number))

    def epochs(*, keep: bool) -> int:
        loader, done = None, 0
        for epoch in range(5):
            if loader is None or not keep:
                loader = ImageLoader(few, AUGMENTING, min_side=IMAGE_SIZE, workers=WORKERS, augment_seed=0)
            order = EpochOrder(number, 32, seed=0, epoch=epoch, block_rows=few.block_rows)
            done += sum(len(rows) for _, rows in loader.batches(order, epoch))
        return done

    calls = {"keeping workers": lambda: epochs(keep=True), "starting them anew": lambda: epochs(keep=False)}
    show(f"5 epochs of {number} images", compare(calls), capsys)
