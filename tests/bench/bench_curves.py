"""Time and memory over the number of images, classes, known cells and heads, as one picture: make bench-curves.

Each point is a process of its own on one thread: seconds are the processor's, the best of three calls; memory is the
peak of the first call above what its inputs take (Linux only).

    python tests/bench/bench_curves.py docs/figures/complexity.svg
    python tests/bench/bench_curves.py /tmp/small.svg --sizes 2      the two smallest sizes of each curve
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import math
import multiprocessing
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from time import process_time
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import sparse
from torch import nn

from plbench.api import ModelSpec, PartialLabels, Plan, Task
from plbench.data.simulation import _survive, fixed_per_class
from plbench.losses import partial_asymmetric_loss, selective_weight
from plbench.metrics import average_precision, evaluate
from plbench.metrics.bootstrap import replicates
from plbench.metrics.cells import Cells
from plbench.models.backbones import make_head
from plbench.randomness import seeded
from plbench.runs.registry import Registry
from plbench.training.engine import prepare_fit
from plbench.training.execution import Execution
from plbench.training.inputs import FeatureInputs
from plbench.training.stacked.heads import Head, fit_together

Work = Callable[[], Any]

IMAGES = (2_500, 10_000, 40_000, 160_000)
CLASSES = (75, 300, 1_200, 4_800, 19_200)
CELLS = (250_000, 1_000_000, 4_000_000, 16_000_000)
HEADS = (1, 4, 16, 64)


@dataclass(frozen=True)
class Curve:
    """What is measured: `make(size)` returns the work, its inputs made."""

    what: str
    over: str
    sizes: tuple[int, ...]
    make: Callable[[int], Work]


@dataclass(frozen=True)
class Point:
    """Processor seconds of a call, and bytes that it takes at its peak beside its inputs; NaN where not known."""

    size: int
    seconds: float
    num_bytes: float


def names(number: int) -> list[str]:
    return [str(place) for place in range(number)]


def dense_labels(num_images: int) -> np.ndarray:
    return np.where(np.random.default_rng(1).random((num_images, 80)) < 0.04, 1, -1).astype(np.int8)


def fpc(num_images: int) -> Work:
    labels = PartialLabels.from_dense(dense_labels(num_images), names(80))
    return lambda: fixed_per_class(labels, 300, seed=0)


def complete_map(num_images: int) -> Work:
    labels = dense_labels(num_images)
    scores = np.random.default_rng(2).random(labels.shape, np.float32)
    return lambda: evaluate(scores, labels)


def bootstrap(num_images: int) -> Work:
    labels = dense_labels(num_images)
    cells = Cells.from_scores(np.random.default_rng(2).random(labels.shape, np.float32), labels)
    return lambda: replicates(cells, 20, seed=0)


def logits_and_labels(num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    chance = torch.rand((64, num_classes), generator=generator)
    labels = torch.where(chance < 0.02, 1, torch.where(chance < 0.06, -1, 0)).to(torch.int8)
    return 2 * torch.randn(labels.shape, generator=generator) - 2, labels


def selective_loss(num_classes: int) -> Work:
    logits, labels = logits_and_labels(num_classes)
    top_k = num_classes // 50

    def work() -> None:
        leaf = logits.clone().requires_grad_()
        weight = selective_weight(leaf, labels, top_k=top_k)
        loss = partial_asymmetric_loss(leaf, labels, gamma_pos=0.0, gamma_neg=3.0, gamma_unann=4.0, unann_weight=weight)
        loss.sum().backward()

    return work


def top_k(num_classes: int) -> Work:
    logits, labels = logits_and_labels(num_classes)
    return lambda: selective_weight(logits, labels, top_k=num_classes // 50)


def rpa(num_cells: int) -> Work:
    per_image = 8
    indptr = np.arange(0, num_cells + 1, per_image)
    indices = (np.arange(num_cells) % per_image) * 1000 + np.repeat(np.arange(num_cells // per_image) % 1000, per_image)
    values = np.where(np.arange(num_cells) % 3 == 0, 1, -1).astype(np.int8)
    matrix = sparse.csr_array(
        (values, indices.astype(np.int32), indptr.astype(np.int32)), shape=(len(indptr) - 1, 9600)
    )
    labels = PartialLabels(matrix, tuple(names(9600)), tuple(names(9600)))
    return lambda: labels.keep(_survive(labels.num_known, 0.5, 0))


def ap_of_cells(num_cells: int) -> Work:
    rng = np.random.default_rng(5)
    classes, scores = rng.integers(0, 9600, num_cells), rng.random(num_cells, np.float32)
    positives = rng.random(num_cells) < 0.4
    return lambda: average_precision(classes, scores, positives, 9600)


def epoch_of_heads(num_heads: int) -> Work:
    num_rows, num_features, num_classes = 4_096, 512, 80
    features = np.random.default_rng(0).standard_normal((num_rows, num_features), dtype=np.float32)
    labels = PartialLabels.from_dense(dense_labels(num_rows), names(num_classes))
    inputs = FeatureInputs(features, np.arange(num_rows), labels)
    model = ModelSpec(backbone="x", weights="random", image_size=224, head="linear")
    method, execution = Registry.discover().method("selective"), Execution(torch.device("cpu"), "float32")
    plans = [Plan(epochs=1, batch_size=128, lr=1e-3 * (1 + number)) for number in range(num_heads)]
    steps = -(-num_rows // 128)
    own = tuple(names(num_classes)), tuple(names(num_classes)), *labels.counts()
    task = Task(num_classes, *own, num_rows, 1, steps, "probe", torch.Generator())

    def work() -> None:
        heads = []
        for number, plan in enumerate(plans):
            with seeded(0):
                network = nn.Sequential(nn.Identity(), make_head(model, num_features, num_classes))
            own_method = method(method.Params(mode="likelihood", top_k=number % 20), task)
            state = prepare_fit(network, own_method, plan, steps, execution)
            heads.append(Head(state, plan, 0))
        fit_together(heads, inputs, execution)

    return work


CURVES = (
    Curve("FPC-300, N x 80", "images", IMAGES, fpc),
    Curve("mAP, N x 80 complete", "images", IMAGES, complete_map),
    Curve("20 bootstrap replicates, N x 80", "images", IMAGES, bootstrap),
    Curve("selective loss and gradient, 64 x C", "classes", CLASSES, selective_loss),
    Curve("top K = C / 50 of 64 x C", "classes", CLASSES, top_k),
    Curve("RPA-0.5, 9,600 classes", "known cells", CELLS, rpa),
    Curve("AP, 9,600 classes", "known cells", CELLS, ap_of_cells),
    Curve("an epoch of heads, 4,096 x 512", "heads", HEADS, epoch_of_heads),
)


def memory(field: str) -> float:
    """Return a field of this process's memory in bytes; NaN where the system does not say."""
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    except OSError:
        found = None
    return 1024 * float(found[1]) if found else math.nan


def point(curve: Curve, size: int) -> Point:
    """Measure in this process, which should do nothing else."""
    torch.set_num_threads(1)
    curve.make(curve.sizes[0])()  # what is imported or made on first use is not the work's
    work = curve.make(size)
    with contextlib.suppress(OSError, AttributeError):  # glibc: what was freed would be taken again, unseen
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = memory("VmRSS")
    work()
    num_bytes = memory("VmHWM") - before
    seconds = math.inf
    for _ in range(3):
        start = process_time()
        work()
        seconds = min(seconds, process_time() - start)
    return Point(size, seconds, num_bytes if math.isnan(num_bytes) else max(num_bytes, 4096.0))


def measured(curve: Curve, sizes: Sequence[int]) -> Iterator[Point]:
    """Measure each size in a process of its own."""

    def child(end: Connection, size: int) -> None:
        end.send(point(curve, size))

    context = multiprocessing.get_context("fork")
    for size in sizes:
        ours, theirs = context.Pipe()
        process = context.Process(target=child, args=(theirs, size))
        process.start()
        theirs.close()
        try:
            yield ours.recv()
        finally:
            process.join()


def slope(points: Sequence[Point], name: str) -> float:
    """Return the exponent between the last two sizes: 1 is linear."""
    (a, b), values = points[-2:], [getattr(one, name) for one in points[-2:]]
    return math.log(values[1] / values[0]) / math.log(b.size / a.size)


def draw(found: dict[Curve, list[Point]], path: Path) -> None:
    """Draw time above memory, a column for each quantity; the legend has the exponents."""
    overs = list(dict.fromkeys(curve.over for curve in found))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "plbench", "font.size": 8}):
        figure = Figure(figsize=(3.1 * len(overs), 5.6), layout="constrained")
        grid = figure.subplots(2, len(overs), squeeze=False, sharex="col")
        for row, (name, title, unit) in enumerate((("seconds", "seconds", 1.0), ("num_bytes", "MB at the peak", 1e6))):
            for axes, over in zip(grid[row], overs, strict=True):
                for curve, points in found.items():
                    if curve.over == over:
                        label = f"{curve.what}: {slope(points, name):.2f}" if len(points) > 1 else curve.what
                        values = [getattr(one, name) / unit for one in points]
                        axes.loglog([one.size for one in points], values, "o-", markersize=3, linewidth=1, label=label)
                axes.grid(color="#e0e0e0", linewidth=0.5)
                axes.minorticks_off()
                axes.legend(fontsize=6.5, loc="upper left", frameon=False)
                axes.set_ylim(top=axes.get_ylim()[1] * 8)  # room for the legend
                if row:
                    axes.set_xlabel(over)
            grid[row][0].set_ylabel(title)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    """Measure, print a table, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="picture to write: .svg, .png or .pdf")
    parser.add_argument("--sizes", type=int, default=9, help="how many sizes of each curve, from the smallest")
    given = parser.parse_args()
    found: dict[Curve, list[Point]] = {}
    print("| what | size | seconds | MB |\n|---|---|---|---|")
    for curve in CURVES:
        for one in measured(curve, curve.sizes[: given.sizes]):
            found.setdefault(curve, []).append(one)
            print(
                f"| {curve.what} | {one.size:,} {curve.over} | {one.seconds:.4f} | {one.num_bytes / 1e6:.1f} |",
                flush=True,
            )
    draw(found, given.path)


if __name__ == "__main__":
    main()
