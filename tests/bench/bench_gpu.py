"""All that only a GPU can show, as one table to paste: make bench-gpu.

Without a GPU it says so and ends. Each row is measured by itself, so that one that fails does not hide the others.

    python tests/bench/bench_gpu.py --coco-20k DIR      also features and the paper's comparison on that dataset
    python tests/bench/bench_gpu.py --rehearse          all rows at tiny sizes on a CPU: that they work, and no figure
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import plbench.models.torchvision_ops  # noqa: F401  # isort: skip
from timm.utils.model_ema import ModelEmaV3

from plbench.api import Batch, ImageFiles, Method, ModelSpec, PartialLabels, Plan, Task
from plbench.data.shards.packing import pack
from plbench.data.shards.shards import ShardedImages
from plbench.loading.features import cached_features
from plbench.loading.jpegs import jpeg_decoder
from plbench.loading.transforms import TrainTransform, eval_transform
from plbench.losses import partial_asymmetric_loss, selective_weight
from plbench.models.backbones import build_backbone, make_head
from plbench.runs.registry import Registry
from plbench.spec import Precision
from plbench.training.distributed import ALONE, World
from plbench.training.engine import fit, prepare_fit
from plbench.training.execution import Execution
from plbench.training.inputs import ImageInputs, Inputs

REPEATS = 3


@dataclass(frozen=True)
class Sizes:
    """What is measured where."""

    device: torch.device
    backbone: str = "tresnet_m"
    sides: tuple[int, ...] = (224, 448)
    batch: int = 128
    steps: int = 20
    photos: int = 4_096
    classes: int = 80
    loss: tuple[int, int, int] = (1024, 9600, 200)
    feature_backbone: str = "tf_efficientnet_lite0"
    feature_side: int = 160
    copied: int = 1 << 30
    workers: int = min(16, os.cpu_count() or 1)


def rehearsal() -> Sizes:
    tiny: dict[str, Any] = {
        "backbone": "test_resnet",
        "sides": (32,),
        "batch": 4,
        "steps": 2,
        "photos": 12,
        "workers": 0,
    }
    tiny |= {"loss": (4, 50, 5), "feature_backbone": "test_resnet", "feature_side": 32, "copied": 1 << 20}
    return Sizes(torch.device("cpu"), **tiny)


def synchronised(sizes: Sizes) -> None:
    if sizes.device.type == "cuda":
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], Any], sizes: Sizes) -> float:
    """Return the middle of some calls, after one that makes and compiles what is needed."""
    work()
    taken = []
    for _ in range(REPEATS):
        synchronised(sizes)
        start = time.perf_counter()
        work()
        synchronised(sizes)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def some_labels(num_images: int, num_classes: int) -> PartialLabels:
    chance = np.random.default_rng(0).random((num_images, num_classes))
    values = np.where(chance < 0.05, 1, np.where(chance < 0.1, -1, 0)).astype(np.int8)
    return PartialLabels.from_dense(values, [str(number) for number in range(num_classes)])


def a_method(labels: PartialLabels, steps: int, name: str = "ce-negative") -> Method:
    kind, ids = Registry.discover().method(name), labels.class_names
    task = Task(len(ids), ids, ids, *labels.counts(), labels.num_images, 1, steps, "finetune", torch.Generator())
    return kind(kind.Params(), task)


def a_model(spec: ModelSpec, num_classes: int) -> nn.Module:
    backbone = build_backbone(spec, None, seed=0)
    return nn.Sequential(backbone, make_head(spec, backbone.num_features, num_classes))


@dataclass(frozen=True)
class Synthetic:
    """One batch of noise that lies on the device already, as often as an epoch has steps."""

    labels: PartialLabels
    pixels: Tensor
    steps: int

    def __len__(self) -> int:
        return len(self.pixels) * self.steps

    def shuffled(self, batch_size: int, epoch: int, first_batch: int = 0, world: World = ALONE) -> Iterator[Batch]:
        rows = torch.arange(batch_size)
        known = torch.from_numpy(self.labels.rows(rows.numpy()))
        for _ in range(first_batch, self.steps):
            yield Batch(self.pixels, known, rows)

    def ordered(self, batch_size: int, world: World = ALONE) -> Iterator[tuple[Tensor, Tensor]]:
        raise NotImplementedError("nothing is evaluated here")


def step_seconds(sizes: Sizes, side: int, precision: Precision, *, compiles: bool) -> tuple[float, float]:
    """Return seconds of a step of plbench and of a bare loop over the same model, batch, optimiser and average."""
    spec = ModelSpec(backbone=sizes.backbone, weights="random", image_size=side)
    labels = some_labels(sizes.batch, sizes.classes)
    pixels = torch.randn(sizes.batch, 3, side, side, device=sizes.device).to(memory_format=torch.channels_last)
    plan = Plan(epochs=1, batch_size=sizes.batch, lr=1e-4, ema_horizon=0.5)
    inputs = Synthetic(labels, pixels, sizes.steps)
    execution = Execution(sizes.device, precision, compiles=compiles)
    state = prepare_fit(a_model(spec, sizes.classes), a_method(labels, sizes.steps), plan, sizes.steps, execution)

    def ours() -> None:
        state.epoch = state.step = 0
        state.schedule.last_epoch = -1
        fit(state, inputs, plan, execution, seed=0)
        assert state.step == sizes.steps

    model = a_model(spec, sizes.classes).to(sizes.device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    average = ModelEmaV3(model, decay=0.9, use_warmup=True)
    scaler = torch.amp.GradScaler(sizes.device.type, enabled=precision == "float16")
    targets = torch.from_numpy(labels.rows(np.arange(sizes.batch)) > 0).float().to(sizes.device)
    network = torch.compile(model) if compiles else model

    def bare() -> None:
        for step in range(1, sizes.steps + 1):
            optimizer.zero_grad(set_to_none=True)
            with execution.autocast():
                logits = network(pixels)
            loss = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="sum") / sizes.batch
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            average.update(model, step=step)

    return seconds_of(ours, sizes) / sizes.steps, seconds_of(bare, sizes) / sizes.steps


def photographs(folder: Path, number: int) -> ShardedImages:
    """Pack noise of photographs' sizes as JPEG shards of 256 px."""
    rng, paths = np.random.default_rng(0), []
    coarse = [Image.fromarray(rng.integers(0, 255, (60, 80, 3), np.uint8)) for _ in range(20)]
    for row in range(number):
        path = folder / "folder" / f"{row}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse[row % 20].resize((400 - row % 50, 300), Image.Resampling.BICUBIC).save(path, quality=80)
        paths.append(path.name)
    pack(ImageFiles(folder / "folder", tuple(paths), tuple(paths)), folder / "shards", short_side=256, workers=0)
    return ShardedImages(folder / "shards")


def waiting(sizes: Sizes, images: ShardedImages, side: int, decode: str, precision: Precision) -> tuple[float, float]:
    """Return images/s of a training from shards, and the share of time that the device waits for its data."""
    spec = ModelSpec(backbone=sizes.backbone, weights="random", image_size=side)
    labels = some_labels(len(images), sizes.classes)
    plan = Plan(epochs=1, batch_size=sizes.batch, lr=1e-4, ema_horizon=0.5)
    steps, base = -(-len(images) // sizes.batch), eval_transform(spec)
    decoder = jpeg_decoder(decode, sizes.device)
    own = TrainTransform(base, plan)
    inputs: Inputs = ImageInputs(
        images, labels, base, sizes.workers, own, 0, sizes.device, decoder, own.min_side
    )  # fmt: skip
    execution = Execution(sizes.device, precision)
    state = prepare_fit(a_model(spec, sizes.classes), a_method(labels, steps), plan, steps, execution)
    fit(state, inputs, plan, execution, seed=0)  # starts the workers, chooses the kernels
    before = state.clock.seconds()
    state.epoch = state.step = 0
    state.schedule.last_epoch = -1
    start = time.perf_counter()
    fit(state, inputs, plan, execution, seed=0)
    synchronised(sizes)
    seconds = time.perf_counter() - start
    phases = {name: value - before[name] for name, value in state.clock.seconds().items()}
    return len(images) / seconds, phases["data"] / sum(phases.values())


def loss_seconds(sizes: Sizes, dtype: torch.dtype, *, compiles: bool) -> tuple[float, float]:
    """Return seconds of the selective loss with its gradient, and of moving what must be moved at the least.

    That is logits, labels and gradient once each, at the speed of a copy measured here.
    """
    rows, classes, top_k = sizes.loss
    logits = torch.randn(rows, classes, device=sizes.device).to(dtype)
    chance = torch.rand(rows, classes, device=sizes.device)
    labels = torch.where(chance < 0.02, 1, torch.where(chance < 0.06, -1, 0)).to(torch.int8)

    def loss(leaf: Tensor) -> Tensor:
        weight = selective_weight(leaf.float(), labels, top_k=top_k)
        gammas = {"gamma_pos": 0.0, "gamma_neg": 3.0, "gamma_unann": 4.0}
        return partial_asymmetric_loss(leaf.float(), labels, **gammas, unann_weight=weight).sum()

    called = torch.compile(loss) if compiles else loss
    block = torch.empty(sizes.copied, dtype=torch.uint8, device=sizes.device)
    per_byte = seconds_of(block.clone, sizes) / (2 * block.nbytes)
    num_bytes = 2 * logits.nbytes + labels.nbytes
    return seconds_of(lambda: called(logits.clone().requires_grad_()).backward(), sizes), per_byte * num_bytes


def features_per_second(sizes: Sizes, images: ShardedImages, folder: Path) -> float:
    spec = ModelSpec(backbone=sizes.feature_backbone, weights="random", image_size=sizes.feature_side)
    precision: Precision = "bfloat16" if sizes.device.type == "cuda" else "float32"
    own: dict[str, Any] = {"device": sizes.device, "precision": precision, "workers": sizes.workers}
    start = time.perf_counter()
    cached_features(
        folder, "0" * 64, images, lambda: build_backbone(spec, None, 0), spec, report=lambda *_: None, **own
    )
    return len(images) / (time.perf_counter() - start)


def one_rank(sizes: Sizes) -> str:
    """Reduce over one NCCL rank, and take a step of synchronised batch normalisation."""
    from torch import distributed

    backend = "nccl" if sizes.device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
    try:
        values = torch.ones(1 << 20, device=sizes.device)
        took = seconds_of(lambda: distributed.all_reduce(values), sizes)
        said = f"all_reduce of 4 MB {1e6 * took:.0f} us"
        if sizes.device.type == "cuda":
            norm = nn.SyncBatchNorm(8).to(sizes.device)
            norm(torch.randn(4, 8, 5, 5, device=sizes.device)).sum().backward()
            said += ", SyncBatchNorm forward and back"
        return said
    finally:
        distributed.destroy_process_group()


def difference_of_devices(folder: Path, sizes: Sizes) -> str:
    """Return mAP(C) of three seeds on the CPU and on the GPU, and how far their means are apart."""
    import plbench

    own: dict[str, Any] = {"simulate": "fpc=300", "recipe": "quick", "precision": "float32", "runs": folder / "runs"}
    if sizes.device.type == "cpu":
        return "needs a GPU"
    found = {}
    for device in ("cpu", "cuda"):
        runs = [plbench.run("ce-negative", "scenes", seed=seed, device=device, force=True, **own) for seed in range(3)]
        found[device] = [run.record.test.map_c.value or 0.0 for run in runs]
    means = [statistics.fmean(values) for values in found.values()]
    spread = statistics.stdev(found["cpu"])
    return f"{means[0]:.3f} and {means[1]:.3f}; standard deviation of seeds {spread:.3f}"


def coco(root: Path, folder: Path, *words: str) -> str:
    """Return seconds of a comparison with nothing cached."""
    command = [sys.executable, "-m", "plbench", "compare", "-d", "coco-20k", "--data-root", str(root), *words]
    command += ["--runs", str(folder / "runs"), "--quiet"]
    start = time.perf_counter()
    subprocess.run(command, check=True, env={**os.environ, "PLBENCH_CACHE": str(folder / "cache")}, capture_output=True)
    return f"{time.perf_counter() - start:.0f} s"


def rows(sizes: Sizes, coco_root: Path | None, folder: Path) -> Iterator[tuple[str, Callable[[], str], str]]:
    """Yield what is measured, the measuring of it, and the goal."""
    on_gpu = sizes.device.type == "cuda"
    precisions: tuple[Precision, ...] = ("float32", "bfloat16", "float16") if on_gpu else ("float32", "bfloat16")
    compilings = (False, True) if on_gpu else (False,)  # for a CPU it takes a compiler, and minutes

    def step(side: int, precision: Precision, compiles: bool) -> str:
        ours, bare = step_seconds(sizes, side, precision, compiles=compiles)
        return f"{sizes.batch / ours:,.0f} images/s, {bare / ours:.3f} times as fast as the bare loop"

    for side in sizes.sides:
        for precision in precisions:
            for compiles in compilings:
                how = f"{precision}{', --compile' if compiles else ''}"
                what = f"step, {sizes.backbone}, {side} px, batch {sizes.batch}, {how}"
                yield what, lambda s=side, p=precision, c=compiles: step(s, p, c), "≥ 0.98"
    shards = photographs(folder / "photographs", sizes.photos)

    def from_shards(side: int, decode: str) -> str:
        speed, share = waiting(sizes, shards, side, decode, "bfloat16")
        return f"{speed:,.0f} images/s, waits {share:.1%} of the time"

    for side in sizes.sides:
        for decode in ("pil", "gpu") if on_gpu else ("pil",):
            what = f"training from JPEG shards, {side} px, bfloat16, {sizes.workers} workers, decode {decode}"
            yield what, lambda s=side, d=decode: from_shards(s, d), "< 5 %"

    def loss(dtype: torch.dtype, compiles: bool) -> str:
        own, floor = loss_seconds(sizes, dtype, compiles=compiles)
        return f"{1e6 * own:.0f} us, {own / floor:.1f} x the floor of {1e6 * floor:.0f} us"

    for dtype in (torch.float32, torch.bfloat16):
        for compiles in compilings:
            name = str(dtype).removeprefix("torch.")
            what = (
                f"selective loss and gradient, {sizes.loss[0]:,} x {sizes.loss[1]:,}, {name}{', compiled' * compiles}"
            )
            yield what, lambda t=dtype, c=compiles: loss(t, c), "≤ 2 x"
    what = f"features, {sizes.feature_backbone}, {sizes.feature_side} px"
    yield what, lambda: f"{features_per_second(sizes, shards, folder / 'features'):,.0f} images/s", "–"
    yield "one rank", lambda: one_rank(sizes), "works"
    yield "mAP(C) of CE-Negative on scenes, CPU and GPU", lambda: difference_of_devices(folder, sizes), "within seeds"
    if coco_root is not None:
        once = ("--methods", "ce-negative", "--seeds", "1")
        yield "coco-20k: features and one head", lambda: coco(coco_root, folder / "coco", *once), "–"
        paper = ("--methods", "paper", "--seeds", "5")
        yield (
            "coco-20k: the paper's rows x 5 seeds, features warm",
            lambda: coco(coco_root, folder / "coco", *paper),
            "–",
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coco-20k", type=Path, help="folder of the dataset coco-20k")
    parser.add_argument("--rehearse", action="store_true", help="run all rows at tiny sizes on a CPU")
    given = parser.parse_args()
    if not (given.rehearse or torch.cuda.is_available()):
        print("bench-gpu: torch finds no CUDA device here; nothing was measured")
        return
    sizes = rehearsal() if given.rehearse else Sizes(torch.device("cuda"))
    name = "rehearsal on a CPU: no figures" if given.rehearse else torch.cuda.get_device_name()
    print(f"{name}; torch {torch.__version__}, CUDA {torch.version.cuda}, Python {platform.python_version()}\n")
    print("| what | found | goal |\n|---|---|---|")
    failed = 0
    with tempfile.TemporaryDirectory() as place:
        for what, measure, goal in rows(sizes, given.coco_20k, Path(place)):
            try:
                found = measure()
            except Exception as error:  # the next row may well work
                failed += 1
                found = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:120]}"
            print(f"| {what} | {found} | {goal} |", flush=True)
    sys.exit(1 if failed and given.rehearse else 0)


if __name__ == "__main__":
    main()
