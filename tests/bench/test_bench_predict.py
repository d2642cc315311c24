"""Scoring new photographs by a finished run, beside timm's own inference loop with the same network."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
import torch
from torch import nn

import plbench

import plbench.models.torchvision_ops  # isort: skip

NUM_IMAGES = int(os.environ.get("PLBENCH_BENCH_IMAGES", "1000"))
WORKERS = 2
PHOTOS = Path(__file__).parents[2].parent / "shared" / "data" / "coco-20k" / "images"


def timm_loop(folder: Path, size: int, network: nn.Module, mean: Any, std: Any) -> int:
    """Score all images below a folder as timm's inference.py does: its reader, loader and prefetcher."""
    from timm.data import create_dataset, create_loader

    loader = create_loader(
        create_dataset("", str(folder)),
        input_size=(3, size, size),
        batch_size=64,
        use_prefetcher=True,
        interpolation="bilinear",
        mean=mean,
        std=std,
        num_workers=WORKERS,
        crop_pct=1.0,
        crop_mode="squash",
        device=torch.device("cpu"),
    )
    with torch.inference_mode():
        return sum(len(network(pixels).sigmoid().numpy()) for pixels, _ in loader)


@pytest.mark.bench
@pytest.mark.skipif(not PHOTOS.exists(), reason="there are no photographs here")
def test_predict_beside_timm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import timm

    folder = tmp_path / "photographs" / "all"  # timm's reader wants a folder for each class
    folder.mkdir(parents=True)
    for path in sorted(PHOTOS.glob("*.jpg"))[:NUM_IMAGES]:
        (folder / path.name).symlink_to(path)
    some = sorted(folder.iterdir())[:100]
    table = "image,even,third\n" + "".join(f"{p.name},{i % 2},{int(i % 3 == 0)}\n" for i, p in enumerate(some))
    (tmp_path / "labels.csv").write_text(table)
    own: dict[str, Any] = {"labels": str(tmp_path / "labels.csv"), "images": str(folder), "negative_value": 0}
    result = plbench.run("ce-ignore", "table", epochs=1, workers=WORKERS, runs=tmp_path / "runs", **own)
    spec = result.record.spec.model
    network = timm.create_model(spec.backbone, num_classes=len(result.per_class)).eval()
    network = network.to(memory_format=torch.channels_last)
    calls: dict[str, Callable[[], int]] = {
        "plbench": lambda: len(result.predict(folder)),
        "timm": lambda: timm_loop(folder.parent, spec.image_size, network, spec.mean, spec.std),
    }
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(2):
        for name, call in calls.items():
            begin = perf_counter()
            assert call() == len(list(folder.iterdir()))
            best[name] = min(best[name], perf_counter() - begin)
    with capsys.disabled():
        print(f"\npredict on {NUM_IMAGES:,} photographs: {NUM_IMAGES / best['plbench']:,.0f} images/s, ", end="")
        print(f"{best['timm'] / best['plbench']:.2f} times as fast as timm's loop")
