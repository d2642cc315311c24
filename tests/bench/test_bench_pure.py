"""The pure parts beside what would be used without them: simulators, the selective loss, top-K, AP, the bootstrap.

Seconds are the processor's, on one thread, the best of several calls by turns: other programs disturb them least.
torchmetrics and mlcpl take part where they are installed; plbench does not need them.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import re
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import sparse
from sklearn.metrics import average_precision_score
from torch import Tensor

import plbench.models.torchvision_ops  # noqa: F401  # isort: skip  # torchmetrics imports torchvision
from plbench.data.labels import PartialLabels
from plbench.data.simulation import _survive, fixed_per_class, random_per_annotation
from plbench.losses import partial_asymmetric_loss, selective_weight
from plbench.metrics import average_precision, evaluate, evaluate_cells
from plbench.metrics.bootstrap import replicates, resample_weights
from plbench.metrics.cells import Cells

pytestmark = pytest.mark.bench


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def by_turns(repeats: int, **calls: Callable[[], Any]) -> dict[str, float]:
    """Return the fewest seconds of each call, the first of them the one that others are compared with."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(repeats):
        for name, call in calls.items():
            begin = process_time()
            call()
            best[name] = min(best[name], process_time() - begin)
    return best


def peak_memory(call: Callable[[], Any]) -> float:
    """Return the MB that a call takes at its peak beside what there was (Linux with glibc)."""
    call()  # what is made on first use is not its own
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = _memory("VmRSS")
    call()
    return (_memory("VmHWM") - before) / 1e3


def _memory(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found
    return int(found[1])


def where_installed(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str]) -> Callable[[str, dict[str, float]], None]:
    def print_ratios(title: str, seconds: dict[str, float]) -> None:
        (ours, own), *others = seconds.items()
        ratios = "; ".join(f"{name} {value * 1e3:.2f} ms, {value / own:.1f} x" for name, value in others)
        with capsys.disabled():
            print(f"\n{title}: {ours} {own * 1e3:.2f} ms; {ratios}")

    return print_ratios


def complete_labels(num_images: int = 82_081, num_classes: int = 80) -> npt.NDArray[np.int8]:
    """Labels of COCO 2014 train's size, about three present of an image."""
    frequency = np.random.default_rng(1).lognormal(-4, 1, num_classes).clip(0, 0.55)
    chance = np.random.default_rng(1_000_003).random((num_images, num_classes))  # not the stream of a simulation's seed
    return np.where(chance < frequency, 1, -1).astype(np.int8)


def names(number: int) -> list[str]:
    return [str(place) for place in range(number)]


def test_simulators_at_the_size_of_coco(show: Callable[..., None]) -> None:
    dense = complete_labels()
    labels = PartialLabels.from_dense(dense, names(80))

    def loop(choose: Callable[[Any], Any]) -> sparse.csr_array:
        kept = np.zeros_like(dense)
        for class_index in range(80):
            for sign in (1, -1):
                kept[choose(np.flatnonzero(dense[:, class_index] == sign)), class_index] = sign
        return sparse.csr_array(kept)

    rng = np.random.default_rng(0)
    fpc = by_turns(
        7,
        fpc=lambda: fixed_per_class(labels, 1000, seed=0),
        permuting_loop=lambda: loop(lambda images: rng.permutation(images)[:1000]),
        legacy_loop=lambda: loop(lambda images: np.random.RandomState(0).permutation(images)[:1000]),
        sampling_loop=lambda: loop(lambda images: rng.choice(images, min(1000, len(images)), replace=False)),
        its_keys_alone=lambda: np.random.PCG64(0).random_raw(dense.size),
    )
    show("FPC-1000 of 82,081 x 80", fpc)
    rpa = by_turns(
        7,
        rpa=lambda: random_per_annotation(labels, 0.5, seed=0),
        dense_mask=lambda: np.where(rng.random(dense.shape) < 0.5, dense, 0),
        dense_mask_to_csr=lambda: sparse.csr_array(np.where(rng.random(dense.shape) < 0.5, dense, 0)),
        its_keys_alone=lambda: np.random.PCG64(0).random_raw(dense.size),
    )
    show("RPA-0.5 of 82,081 x 80", rpa)


def test_dropping_annotations_at_the_size_of_openimages(capsys: pytest.CaptureFixture[str]) -> None:
    """9 M x 9,600 with 60 M known cells, a half and a quarter of it."""
    for num_images in (2_250_000, 4_500_000, 9_000_000):
        per_image = np.random.default_rng(7).poisson(60 / 9, num_images)
        indptr = np.concatenate(([0], np.cumsum(per_image))).astype(np.int32)
        indices = (np.arange(indptr[-1], dtype=np.int32) - np.repeat(indptr[:-1], per_image)) * np.int32(100)
        values = np.where(indices % 300 == 0, 1, -1).astype(np.int8)
        matrix = sparse.csr_array((values, indices, indptr), shape=(num_images, 9600))
        labels = PartialLabels(matrix, tuple(names(9600)), tuple(names(9600)))
        seconds = by_turns(2, rpa=lambda labels=labels: labels.keep(_survive(labels.num_known, 0.5, 0)))["rpa"]
        tracemalloc.start()
        labels.keep(_survive(labels.num_known, 0.5, 0))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        own = values.nbytes + indices.nbytes + indptr.nbytes
        with capsys.disabled():
            print(f"\nRPA-0.5 of {labels.num_known:,} cells: {seconds:.2f} s, peak {1 + peak / own:.2f} x the labels'")


def plain_selective(z: Tensor, y: Tensor, top_k: int, prior: Tensor) -> Tensor:
    """Eqs. 3, 5, 7 and 8 written down term by term, as a first implementation would."""
    p = torch.sigmoid(z)
    scores = torch.where(y == 0, p.detach(), -1.0)
    weight = torch.ones_like(p).scatter_(1, scores.topk(top_k, dim=1).indices, 0.0)
    weight = torch.where((y == 0), torch.where(prior > 0.5, 0.0, weight), 1.0)
    terms = (y > 0) * torch.log(p + 1e-8) + (y < 0) * p.detach() ** 3.0 * torch.log(1 - p + 1e-8)
    return -(terms + (y == 0) * weight * p.detach() ** 4.0 * torch.log(1 - p + 1e-8)).sum()


def ours_selective(z: Tensor, y: Tensor, top_k: int, prior: Tensor) -> Tensor:
    weight = selective_weight(z, y, top_k=top_k, prior=prior, prior_threshold=0.5)
    gammas = {"gamma_pos": 0.0, "gamma_neg": 3.0, "gamma_unann": 4.0}
    return partial_asymmetric_loss(z, y, **gammas, unann_weight=weight).sum()


def ours_as_mlcpl(z: Tensor, y: Tensor, top_k: int, prior: Tensor) -> Tensor:
    """The K * B most likely of the batch, and one gamma for absent and unknown labels."""
    weight = selective_weight(z, y, top_k=top_k, prior=prior, prior_threshold=0.5, scope="batch")
    gammas = {"gamma_pos": 0.0, "gamma_neg": 4.0, "gamma_unann": 4.0}
    return partial_asymmetric_loss(z, y, **gammas, unann_weight=weight).sum()


@pytest.mark.parametrize(("shape", "top_k"), [((128, 9600), 200), ((64, 80), 5), ((64, 1203), 20)])
def test_selective_loss_and_its_gradient(
    shape: tuple[int, int], top_k: int, show: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    generator = torch.Generator().manual_seed(1)
    z, chance = 2 * torch.randn(shape, generator=generator) - 2, torch.rand(shape, generator=generator)
    y = torch.where(chance < 0.02, 1, torch.where(chance < 0.06, -1, 0)).to(torch.int8)
    prior = torch.rand(shape[1], generator=generator) ** 4

    def gradient(loss: Callable[..., Tensor]) -> Tensor:
        leaf = z.clone().requires_grad_()
        loss(leaf, y, top_k, prior).backward()
        assert leaf.grad is not None
        return leaf.grad

    def three_functions() -> None:  # whose bits records hold, so that nothing can go below them
        torch.nn.functional.logsigmoid(z), torch.sigmoid(z), z.abs().pow_(torch.full_like(z, 4.0))

    torch.testing.assert_close(gradient(ours_selective), gradient(plain_selective), atol=1e-4, rtol=1e-4)
    seconds = by_turns(
        15 if shape[1] > 5000 else 200,
        ours=lambda: gradient(ours_selective),
        plain=lambda: gradient(plain_selective),
        logsigmoid_sigmoid_pow=three_functions,
    )
    show(f"Selective loss, {shape[0]} x {shape[1]:,}, K = {top_k}", seconds)
    if shape[1] > 5000:
        ours, plain = (peak_memory(lambda loss=loss: gradient(loss)) for loss in (ours_selective, plain_selective))
        with capsys.disabled():
            print(f"Peak memory: ours {ours:.0f} MB, plain {plain:.0f} MB; the logits are {z.nbytes / 1e6:.1f} MB")
    if (losses := where_installed("mlcpl.losses")) is None:
        return
    settings = {"label_priors": prior, "likelihood_topk": top_k, "prior_threshold": 0.5, "reduction": "sum"}
    loss = losses.PartialSelectiveAsymmetricWithLogitLoss(gamma_pos=0, gamma_neg=4, **settings)
    target = torch.where(y == 0, torch.nan, (y > 0).float())

    def mlcpl(z: Tensor, y: Tensor, top_k: int, prior: Tensor) -> Tensor:
        return loss(z, target)  # type: ignore[no-any-return]

    torch.testing.assert_close(gradient(ours_as_mlcpl), gradient(mlcpl), atol=1e-4, rtol=1e-4)
    seconds = by_turns(
        5 if shape[1] > 5000 else 100, ours=lambda: gradient(ours_as_mlcpl), mlcpl=lambda: gradient(mlcpl)
    )
    show("The same as mlcpl computes it, over the batch", seconds)


def test_top_k_against_argsort(show: Callable[..., None]) -> None:
    z = torch.randn(1024, 9600, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(z.shape, dtype=torch.int8)
    seconds = by_turns(
        3,
        ours=lambda: selective_weight(z, y, top_k=200),
        argsort=lambda: z.argsort(dim=-1, descending=True),
        topk=lambda: z.topk(200, dim=-1),
    )
    show("Top 200 of 1,024 x 9,600", seconds)


def test_ap_of_two_million_cells(show: Callable[..., None]) -> None:
    rng, num_cells, num_classes = np.random.default_rng(5), 2_000_000, 9600
    share = 1 / (np.arange(num_classes) + 5.0)
    classes = rng.choice(num_classes, num_cells, p=share / share.sum())
    scores, positives = rng.random(num_cells, np.float32).round(4), rng.random(num_cells) < 0.4

    def sklearn_over_classes() -> npt.NDArray[np.float64]:
        order = np.argsort(classes, kind="stable")
        ends = np.searchsorted(classes[order], np.arange(num_classes + 1))
        result = np.full(num_classes, np.nan)
        for class_index, cells in enumerate(np.split(order, ends[1:-1])):
            hits = positives[cells]
            if hits.any() and not hits.all():
                result[class_index] = average_precision_score(hits, scores[cells])
        return result

    begin = process_time()
    expected = sklearn_over_classes()
    sklearn = process_time() - begin  # once: a quarter of a minute
    ours = average_precision(classes, scores, positives, num_classes)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)
    seconds = by_turns(5, ours=lambda: average_precision(classes, scores, positives, num_classes))
    seconds["sklearn"] = sklearn
    show("AP of 2 M cells of 9,600 classes", seconds)


@pytest.mark.parametrize(("shape", "density"), [((19_809, 1203), 0.01), ((40_137, 80), 1.0)])
def test_map_against_libraries(shape: tuple[int, int], density: float, show: Callable[..., None]) -> None:
    rng = np.random.default_rng(3)
    scores = rng.random(shape, np.float32).round(3)  # with ties
    labels = np.where(rng.random(shape) < 0.1, 1, -1).astype(np.int8) * (rng.random(shape) < density)

    def sklearn_over_classes() -> npt.NDArray[np.float64]:
        result = np.full(shape[1], np.nan)
        for class_index, (answers, of_class) in enumerate(zip(labels.T, scores.T, strict=True)):
            known = answers != 0
            hits = answers[known] > 0
            if hits.any() and not hits.all():
                result[class_index] = average_precision_score(hits, of_class[known])
        return result

    np.testing.assert_allclose(evaluate(scores, labels).ap, sklearn_over_classes(), rtol=0, atol=1e-12)
    calls: dict[str, Callable[[], Any]] = {"ours": lambda: evaluate(scores, labels), "sklearn": sklearn_over_classes}
    given, known = torch.from_numpy(scores), torch.from_numpy(labels)
    if (theirs := where_installed("torchmetrics.functional.classification")) is not None:
        target = torch.where(known == 0, 2, known > 0).long()
        calls["torchmetrics"] = lambda: theirs.multilabel_average_precision(
            given, target, shape[1], average=None, ignore_index=2, validate_args=False
        )
    if (partial := where_installed("mlcpl.metrics")) is not None:
        answers = torch.where(known == 0, torch.nan, (known > 0).float())
        calls["mlcpl"] = lambda: partial.partial_multilabel_average_precision(given, answers, average="none")
    show(f"mAP of {shape[0]:,} x {shape[1]:,}, {density:.0%} known", by_turns(2, **calls))


def resampling_loop(cells: Cells, number: int) -> None:
    """Repeat cells as often as their image was drawn, and evaluate these."""
    begins = np.searchsorted(cells.rows, np.arange(cells.num_images + 1))
    for column in resample_weights(cells.num_images, number, 0).T:
        images = np.repeat(np.arange(cells.num_images), column.astype(np.int64))
        sizes = np.diff(begins)[images]
        ends = np.cumsum(sizes)
        chosen = np.arange(ends[-1]) + np.repeat(begins[images] - (ends - sizes), sizes)
        rows = np.repeat(np.arange(images.size), sizes)
        drawn = (cells.class_index[chosen], cells.scores[chosen], cells.positives[chosen])
        evaluate_cells(Cells(rows, *drawn, images.size, cells.num_classes))


def coco_val() -> Cells:
    shape, rng = (40_137, 80), np.random.default_rng(3)
    labels = np.where(rng.random(shape) < 0.04, 1, -1).astype(np.int8)
    return Cells.from_scores(rng.standard_normal(shape, np.float32) + (labels > 0), labels)


def openimages_test() -> Cells:
    """2 M known cells of 125,436 images and 9,600 classes, few of many classes."""
    num_images, num_classes, rng = 125_436, 9600, np.random.default_rng(3)
    share = 1 / (np.arange(num_classes) + 5.0)
    cells = np.unique(
        rng.integers(0, num_images, 2_200_000) * num_classes + rng.choice(num_classes, 2_200_000, p=share / share.sum())
    )
    rows, classes = np.divmod(cells, num_classes)
    positives = rng.random(cells.size) < 0.4
    scores = rng.standard_normal(cells.size, np.float32) + positives
    return Cells(rows, classes, scores, positives, num_images, num_classes)


@pytest.mark.parametrize("make", [coco_val, openimages_test])
def test_bootstrap_against_a_loop_over_resamples(
    make: Callable[[], Cells], show: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """1,000 replicates of ours, 2 of the loop."""
    cells = make()
    seconds = by_turns(1, ours=lambda: replicates(cells, 1000, seed=0), loop=lambda: resampling_loop(cells, 2))
    size = f"{cells.num_images:,} x {cells.num_classes:,}, {cells.scores.size:,} known"
    show(f"1,000 bootstrap replicates of {size}", {"ours": seconds["ours"], "loop": 500 * seconds["loop"]})
    with capsys.disabled():
        print(f"Peak memory: {peak_memory(lambda: replicates(cells, 64, seed=0)):.0f} MB")
