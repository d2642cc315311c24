"""A step beside a bare loop over the same model, optimiser and data; a large last layer beside a naive loss."""

import os
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import plbench.models.torchvision_ops  # noqa: F401  # isort: skip
from timm.utils.model_ema import ModelEmaV3

from plbench.api import Method, PartialLabels, Plan, Task
from plbench.models.backbones import build_backbone, make_head
from plbench.runs.registry import Registry
from plbench.spec import ModelSpec
from plbench.training.engine import fit, prepare_fit
from plbench.training.execution import Execution
from plbench.training.inputs import FeatureInputs

pytestmark = pytest.mark.bench

NUM_IMAGES, BATCH_SIZE, IMAGE_SIZE, NUM_CLASSES = 512, 32, 96, 80
LARGE_CLASSES, LARGE_BATCH, WIDTH = 9600, 1024, 512
REPEATS = 5
EXECUTION = Execution(torch.device("cuda" if torch.cuda.is_available() else "cpu"), "float32")


@pytest.fixture(autouse=True)
def all_cores() -> Iterator[None]:
    """The tests' own settings leave one core to each worker."""
    before = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    yield
    torch.set_num_threads(before)


def some_labels(num_rows: int, num_classes: int) -> PartialLabels:
    rng = np.random.default_rng(0)
    labels = np.zeros((num_rows, num_classes), np.int8)
    labels[rng.random(labels.shape) < 0.05] = 1
    labels[rng.random(labels.shape) < 0.05] = -1
    return PartialLabels.from_dense(labels, [str(number) for number in range(num_classes)])


def a_method(name: str, labels: PartialLabels, steps_per_epoch: int) -> Method:
    kind = Registry.discover().method(name)
    names = labels.class_names
    counts = labels.counts()
    generator = torch.Generator()
    task = Task(labels.num_classes, names, names, *counts, labels.num_images, 1, steps_per_epoch, "probe", generator)
    return kind(kind.Params(), task)


def ratio(name: str, ours: Callable[[], None], theirs: Callable[[], None], images: int) -> float:
    """Median over pairs of runs, one after the other: how many times as fast ours is."""
    ours(), theirs()
    found, rates = [], []
    for _ in range(REPEATS):
        seconds = []
        for work in (ours, theirs):
            start = time.perf_counter()
            work()
            if EXECUTION.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        found.append(seconds[1] / seconds[0])
        rates.append(images / seconds[0])
    value = statistics.median(found)
    spread = f"{min(found):.2f} to {max(found):.2f}"
    print(f"\n{name}: {value:.3f} times as fast ({spread}; {statistics.median(rates):,.0f} images/s)")
    return value


def test_a_step_beside_a_bare_timm_loop() -> None:
    spec = ModelSpec(backbone="tf_efficientnet_lite0", weights="random", image_size=IMAGE_SIZE)
    labels = some_labels(NUM_IMAGES, NUM_CLASSES)
    images = np.random.default_rng(1).standard_normal((NUM_IMAGES, 3, IMAGE_SIZE, IMAGE_SIZE)).astype(np.float32)
    steps = NUM_IMAGES // BATCH_SIZE
    plan = Plan(epochs=1, batch_size=BATCH_SIZE, lr=1e-4, ema_horizon=0.5)

    def a_model() -> nn.Module:
        backbone = build_backbone(spec, None, seed=0)
        return nn.Sequential(backbone, make_head(spec, backbone.num_features, NUM_CLASSES))

    def ours() -> None:
        method = a_method("ce-negative", labels, steps)
        state = prepare_fit(our_model, method, plan, steps, EXECUTION)
        fit(state, FeatureInputs(images, np.arange(NUM_IMAGES), labels), plan, EXECUTION, seed=0)

    def bare() -> None:
        model = their_model.to(EXECUTION.device, memory_format=torch.channels_last).train()
        decays = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim <= 1]
        groups = [{"params": decays, "weight_decay": 1e-4}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=1e-4, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-4, total_steps=steps, pct_start=0.2)
        average = ModelEmaV3(model, decay=0.9, use_warmup=True)
        order = torch.randperm(NUM_IMAGES)
        for step, rows in enumerate(order.split(BATCH_SIZE), 1):
            pixels = torch.from_numpy(images[rows.numpy()])
            pixels = pixels.to(EXECUTION.device, memory_format=torch.channels_last)
            targets = torch.from_numpy(labels.rows(rows.numpy()) > 0).float().to(EXECUTION.device)
            optimizer.zero_grad(set_to_none=True)
            F.binary_cross_entropy_with_logits(model(pixels), targets, reduction="sum").div(BATCH_SIZE).backward()
            optimizer.step()
            schedule.step()
            average.update(model, step=step)

    our_model, their_model = a_model(), a_model()
    assert ratio("A step, beside a bare timm loop", ours, bare, NUM_IMAGES) > 0.5


@pytest.mark.parametrize("name", ["ce-negative", "pasl-negative", "selective"])
def test_a_last_layer_of_9600_classes_beside_a_naive_loss(name: str) -> None:
    labels = some_labels(LARGE_BATCH, LARGE_CLASSES)
    features = np.random.default_rng(1).standard_normal((LARGE_BATCH, WIDTH)).astype(np.float32)
    plan = Plan(epochs=1, batch_size=LARGE_BATCH, lr=1e-4, ema_horizon=0.0)
    kind = Registry.discover().method(name)
    params = kind.Params(mode="likelihood", top_k=50) if name == "selective" else kind.Params()
    method = a_method("ce-negative", labels, 1)
    method = kind(params, method.task)
    ours_head, naive_head = (nn.Linear(WIDTH, LARGE_CLASSES).to(EXECUTION.device) for _ in range(2))
    state = prepare_fit(ours_head, method, plan, 1, EXECUTION)
    inputs = FeatureInputs(features, np.arange(LARGE_BATCH), labels)

    def ours() -> None:
        state.epoch = state.step = 0
        state.schedule.last_epoch = -1
        fit(state, inputs, plan, EXECUTION, seed=0)

    optimizer = torch.optim.AdamW(naive_head.parameters(), lr=1e-4, weight_decay=1e-4, fused=True)
    gammas = {} if name == "ce-negative" else {key: getattr(params, key) for key in ("gamma_pos", "gamma_neg")}
    unknown_gamma = 0.0 if name == "ce-negative" else params.gamma_unann
    top_k = 50 if name == "selective" else 0

    def naive() -> None:
        rows = torch.randperm(LARGE_BATCH)
        known = torch.from_numpy(labels.rows(rows.numpy())).to(EXECUTION.device)
        logits = naive_head(torch.from_numpy(features[rows.numpy()]).to(EXECUTION.device))
        optimizer.zero_grad(set_to_none=True)
        naive_loss(
            logits, known, gammas.get("gamma_pos", 0), gammas.get("gamma_neg", 0), unknown_gamma, top_k
        ).backward()
        optimizer.step()

    assert ratio(f"{name}, 9,600 classes at batch 1,024, beside the naive loss", ours, naive, LARGE_BATCH) > 0.5


def naive_loss(logits: Tensor, labels: Tensor, positive: float, negative: float, unknown: float, top_k: int) -> Tensor:
    """Eq. 3 and eq. 7 written down term by term, as a first implementation would."""
    p = torch.sigmoid(logits)
    weight = torch.ones_like(p)
    if top_k:
        scores = torch.where(labels == 0, p.detach(), -1.0)
        weight.scatter_(1, scores.topk(top_k, dim=1).indices, 0.0)
        weight = torch.where(labels == 0, weight, 1.0)
    eps = 1e-8
    terms = (labels > 0) * (1 - p).detach() ** positive * torch.log(p + eps)
    terms = terms + (labels < 0) * p.detach() ** negative * torch.log(1 - p + eps)
    terms = terms + (labels == 0) * weight * p.detach() ** unknown * torch.log(1 - p + eps)
    return -terms.sum() / len(logits)
