"""Features of photographs for the cache, beside a bare loop over the same network with timm's own loader."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
import torch

from plbench.api import ImageFiles
from plbench.loading.features import cached_features
from plbench.models.backbones import build_backbone
from plbench.spec import ModelSpec

NUM_IMAGES = int(os.environ.get("PLBENCH_BENCH_IMAGES", "1000"))
WORKERS = 2
PHOTOS = Path(__file__).parents[2].parent / "shared" / "data" / "coco-20k" / "images"
MODEL = ModelSpec(backbone="tf_efficientnet_lite0", weights="random", pooling="mean+max", image_size=160)


@pytest.mark.bench
@pytest.mark.skipif(not PHOTOS.exists(), reason="there are no photographs here")
def test_features_beside_a_bare_loop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from timm.data import create_dataset, create_loader

    folder = tmp_path / "photographs" / "all"  # timm's reader wants a folder for each class
    folder.mkdir(parents=True)
    for path in sorted(PHOTOS.glob("*.jpg"))[:NUM_IMAGES]:
        (folder / path.name).symlink_to(path)
    names = tuple(sorted(path.name for path in folder.iterdir()))
    network = build_backbone(MODEL, None, 0).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def ours() -> np.ndarray:
        files = ImageFiles(folder, names, names)
        nothing = {"report": lambda done, of: None, "device": torch.device("cpu"), "precision": "float32"}
        cache = tmp_path / f"cache-{perf_counter()}"
        return cached_features(cache, "key", files, lambda: network, MODEL, workers=WORKERS, **nothing)  # type: ignore[arg-type]

    def bare(batch_size: int) -> np.ndarray:
        loader = create_loader(
            create_dataset("", str(folder.parent)),
            input_size=(3, 160, 160),
            batch_size=batch_size,
            use_prefetcher=True,
            interpolation="bilinear",
            mean=MODEL.mean,
            std=MODEL.std,
            num_workers=WORKERS,
            crop_pct=1.0,
            crop_mode="squash",
            device=torch.device("cpu"),
        )
        with torch.inference_mode():
            found = [network(pixels.to(memory_format=torch.channels_last)).numpy() for pixels, _ in loader]
        return np.concatenate(found)

    calls: dict[str, Callable[[], np.ndarray]] = {
        "plbench": ours,
        "bare loop, batches of 32": lambda: bare(32),
        "bare loop, batches of 128": lambda: bare(128),
    }
    best, found = dict.fromkeys(calls, float("inf")), {}
    for _ in range(2):
        for name, call in calls.items():
            begin = perf_counter()
            found[name] = np.array(call())
            best[name] = min(best[name], perf_counter() - begin)
    for other in found.values():  # both round pixels to 8 bits after resizing, ours in its own way
        assert np.corrcoef(found["plbench"].ravel(), other.ravel())[0, 1] > 0.99
    with capsys.disabled():
        print(f"\nfeatures of {NUM_IMAGES:,} photographs: {NUM_IMAGES / best['plbench']:,.0f} images/s", end="")
        for name in list(calls)[1:]:
            print(f"; {best[name] / best['plbench']:.2f} times as fast as a {name}", end="")
        print()
