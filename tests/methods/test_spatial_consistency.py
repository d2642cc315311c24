"""Spatial consistency against plain loops, with crops and mirrored views; its limits; what it remembers."""

import io
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from plbench.api import Batch, Plan, PlbenchError, Task
from plbench.loading.transforms import EvalTransform, TrainTransform
from plbench.losses import partial_asymmetric_loss
from plbench.method import Progress
from plbench.randomness import seeded
from plbench.runs.plan.resolved import validate_params
from plbench.runs.registry import Registry
from plbench.testing.small_data import Size
from plbench.testing.small_job import SmallJob, Subject
from plbench.training.state import ControlRequest, FitState

NUM_ROWS, NUM_CLASSES, NUM_PLACES = 64, 6, 4  # as many rows as make_task says
FIRST = Progress(0, 40, 0, 10)
GAMMAS = {"gamma_pos": 0.0, "gamma_neg": 0.0, "gamma_unann": 0.0}


@pytest.fixture
def build(make_task: Callable[..., Task]) -> Callable[..., Any]:
    def make(name: str = "spatial-consistency", num_classes: int = NUM_CLASSES, **params: Any) -> Any:
        method = Registry.discover().method(name)
        return method(validate_params(method, params), make_task(num_classes))

    return make


def maps_of(seed: int, places: int = NUM_PLACES) -> Tensor:
    """Logits of the whole images."""
    shape = (NUM_ROWS, NUM_CLASSES, places, places)
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def after_epochs(method: Any, *logits: Tensor) -> Any:
    """The method after epochs at whose ends its model gave these maps, in batches of 20 images."""
    for each in logits:

        def compute(function: Any, weights: str, each: Tensor = each) -> Any:
            assert weights == "raw"
            return ((rows, function(nn.Identity(), each[rows])) for rows in torch.arange(NUM_ROWS).split(20))

        method.epoch_end(SimpleNamespace(compute=compute), FIRST)
    return method


@pytest.fixture
def batch() -> Batch:
    """Some rows, in no order, in views of some part of the image, some mirrored; and a row with nothing known."""
    rng = np.random.default_rng(3)
    labels = torch.tensor([1, -1, 0, 0, 0], dtype=torch.int8)[rng.integers(5, size=(12, NUM_CLASSES))]
    labels[0] = 0
    corners = np.sort(rng.random((12, 2, 2)), axis=1)  # row, first and last, x and y
    location = torch.tensor(corners.reshape(12, 4), dtype=torch.float32)  # left, top, right, bottom
    location[::2] = location[::2][:, [2, 1, 0, 3]]
    images = torch.zeros(12, 3, 8, 8)
    return Batch(images, labels, torch.from_numpy(rng.permutation(NUM_ROWS)[:12]), (images, location))


@pytest.fixture
def output() -> Tensor:
    """Logits of the views, in float64, on fewer places than the heatmaps have."""
    return 2 * torch.randn(12, NUM_CLASSES, 2, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def mean_loss(method: Any, output: Tensor, batch: Batch) -> float:
    loss = method.loss(output, batch, FIRST)
    return float(loss.total.detach()) / float(loss.weight)


def sigmoid(z: Any) -> Any:
    return 1 / (1 + np.exp(-z))


def interpolated(heatmap: np.ndarray, x: float, y: float) -> float:
    """Value at a point of the unit square, of values at the centres of cells."""
    rows, columns = heatmap.shape
    row, column = min(max(y * rows - 0.5, 0.0), rows - 1.0), min(max(x * columns - 0.5, 0.0), columns - 1.0)
    top, left = math.floor(row), math.floor(column)
    total = 0.0
    for i, share_i in ((top, 1 - (row - top)), (min(top + 1, rows - 1), row - top)):
        for j, share_j in ((left, 1 - (column - left)), (min(left + 1, columns - 1), column - left)):
            total += share_i * share_j * float(heatmap[i, j])
    return total


def test_formula(build: Callable[..., Any], output: Tensor, batch: Batch) -> None:
    k, mu, weight = 3, 0.7, 0.4
    history = [maps_of(seed) for seed in (1, 2, 3)]
    method = after_epochs(build(num_positives=k, momentum=mu, consistency=weight), *history)
    maps = [sigmoid(each.double().numpy()) for each in history]
    scores = [sigmoid(each.double().numpy().mean(axis=(2, 3))) for each in history]
    heat, average = maps[0], scores[0]
    for later_maps, later_scores in zip(maps[1:], scores[1:], strict=True):
        heat, average = mu * heat + (1 - mu) * later_maps, mu * average + (1 - mu) * later_scores
    total, left_out, apart = 0.0, 0, []
    for row, index in enumerate(batch.index.tolist()):
        labels = batch.labels[row].tolist()
        unknown = [column for column in range(NUM_CLASSES) if labels[column] == 0]
        positives = sorted(unknown, key=lambda column: -average[index, column])[: max(0, k - labels.count(1))]
        left_out += len(positives)
        left, top, right, bottom = batch.views[1][row].tolist()
        for column in range(NUM_CLASSES):
            logits = output[row, column].numpy()
            p = sigmoid(logits.mean())
            if labels[column] == 1:
                total -= math.log(p)
            elif column not in positives:
                total -= math.log(1 - p)
            distances = []
            for i in range(2):
                for j in range(3):
                    x, y = left + (right - left) * (j + 0.5) / 3, top + (bottom - top) * (i + 0.5) / 2
                    distances.append(abs(sigmoid(logits[i, j]) - interpolated(heat[index, column], x, y)))
            total += weight * sum(distances) / 6
            apart.append(sum(distances) / 6)
    assert 0 < left_out < int((batch.labels == 0).sum()) and np.mean(apart) > 0.1
    # heatmaps are float16
    assert mean_loss(method, output, batch) == pytest.approx(total / 12, rel=1e-4)
    assert method.marked.total() == left_out
    assert int(method.diagnostics(output, batch)["ignored"].sum()) == left_out


def test_the_first_epoch_is_ce_negative_of_pooled_logits(
    build: Callable[..., Any], output: Tensor, batch: Batch
) -> None:
    method, pooled = build(), output.mean(dim=(2, 3))
    negative = partial_asymmetric_loss(pooled, batch.labels, **GAMMAS).mean()
    assert mean_loss(method, output, batch) == pytest.approx(float(negative), rel=1e-12)
    assert torch.equal(method.scores(output), torch.sigmoid(pooled))
    assert not method.diagnostics(output, batch)["ignored"].any()


def test_without_consistency_it_is_ema_consistency_without_it(
    build: Callable[..., Any], output: Tensor, batch: Batch
) -> None:
    spatial = after_epochs(build(consistency=0.0), maps_of(1), maps_of(2))
    plain = build("ema-consistency", consistency=0.0)
    plain.average = spatial.average
    pooled = Batch(output.mean(dim=(2, 3)), batch.labels, batch.index)
    assert mean_loss(spatial, output, batch) == pytest.approx(mean_loss(plain, pooled.inputs, pooled), rel=1e-12)
    assert spatial.marked.total() == plain.marked.total() > 0


@pytest.mark.parametrize("is_mirrored", [False, True])
def test_whole_images_are_compared_place_by_place(build: Callable[..., Any], batch: Batch, is_mirrored: bool) -> None:
    method, alone = (after_epochs(build(consistency=each), maps_of(1)) for each in (1.0, 0.0))
    view, seen = maps_of(2)[batch.index].double(), torch.sigmoid(maps_of(1))[batch.index].double()
    location = torch.tensor([[1.0, 0.0, 0.0, 1.0] if is_mirrored else [0.0, 0.0, 1.0, 1.0]]).repeat(12, 1)
    whole = replace(batch, views=(batch.inputs, location))
    seen = seen.flip(-1) if is_mirrored else seen
    expected = (torch.sigmoid(view) - seen).abs().mean(dim=(2, 3)).sum(dim=1).mean()
    added = mean_loss(method, view, whole) - mean_loss(alone, view, whole)
    assert added == pytest.approx(float(expected), abs=1e-3)
    if not is_mirrored:  # which is what a batch without locations shows
        assert mean_loss(method, view, replace(batch, views=())) == mean_loss(method, view, whole)


class _Brightness(nn.Module):
    """Of red and green, the logit of the mean brightness at each of 8 x 8 places: as an image is moved, so is it."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.logit(nn.functional.adaptive_avg_pool2d(images[:, :2], 8).clamp(0.05, 0.95))


def test_an_equivariant_network_is_consistent_with_itself(build: Callable[..., Any]) -> None:
    """Whatever the crop and whether it is mirrored; and with the location of another view it is not."""
    base = EvalTransform(64, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    plan = Plan(epochs=1, batch_size=4, lr=1.0, random_resized_crop=0.3, horizontal_flip=0.5)
    x, y = np.meshgrid(np.linspace(0, 1, 120), np.linspace(0, 1, 90))
    waves = np.stack([0.5 + 0.35 * np.sin(5 * x + 2 * y), 0.5 + 0.35 * np.cos(4 * y - x), 0 * x], axis=-1)
    image, network = Image.fromarray(np.uint8(255 * waves)), _Brightness()
    method, alone = (build(num_classes=2, consistency=each, side=8, num_positives=1) for each in (1.0, 0.0))
    for each in (method, alone):
        each.task.__dict__["num_train"] = 1
        whole = base(image)[None]
        view = SimpleNamespace(compute=lambda f, weights, whole=whole: iter([(torch.arange(1), f(network, whole))]))
        each.epoch_end(view, FIRST)
    located, distances, mistaken = method.transform(TrainTransform(base, plan)), [], []
    for seed in range(30):
        with seeded(seed):
            pixels, location = located(image)
        maps, labels = network(pixels[None]), torch.zeros(1, 2, dtype=torch.int8)
        for place, found in ((location, distances), (1 - location, mistaken)):  # the latter is turned by 180 degrees
            batch = Batch(pixels[None], labels, torch.zeros(1, dtype=torch.int64), (pixels[None], place[None]))
            found.append(mean_loss(method, maps, batch) - mean_loss(alone, maps, batch))
    assert max(distances) < 0.03  # of two classes; cells of the view are smaller than those of the heatmaps
    assert min(mistaken) > 0.5


@pytest.mark.parametrize(("side", "kept"), [(1, 1), (2, 2), (4, 4), (7, 4)])
def test_heatmaps_are_no_larger_than_asked_for_nor_than_the_networks(
    build: Callable[..., Any], side: int, kept: int
) -> None:
    method, logits = after_epochs(build(side=side), maps_of(1)), maps_of(1)
    assert method.heatmaps.dtype == torch.float16 and method.heatmaps.shape == (NUM_ROWS, NUM_CLASSES, kept, kept)
    blocks = torch.sigmoid(logits).unflatten(3, (kept, -1)).unflatten(2, (kept, -1)).mean(dim=(3, 5))
    assert torch.allclose(method.heatmaps.float(), blocks, atol=5e-4)
    assert torch.allclose(method.average, torch.sigmoid(logits.mean(dim=(2, 3))))


def test_what_does_not_fit_into_memory_is_refused_with_a_cure(make_task: Callable[..., Task]) -> None:
    method, task = Registry.discover().method("spatial-consistency"), make_task(1000)
    with pytest.raises(PlbenchError, match=r"7 x 7 places of each of 100,000 x 1,000 labels.*10 GB.*-P side="):
        method(validate_params(method, {}), replace(task, num_train=100_000))
    method(validate_params(method, {"side": 4}), replace(task, num_train=100_000))


def test_what_it_remembers_comes_back(build: Callable[..., Any], output: Tensor, batch: Batch) -> None:
    method, resumed = after_epochs(build(), maps_of(1), maps_of(2)), build()
    file = io.BytesIO()
    torch.save(method.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert mean_loss(method, output, batch) == mean_loss(resumed, output, batch)


def test_what_had_no_effect_is_said(build: Callable[..., Any], output: Tensor, batch: Batch) -> None:
    method = after_epochs(build(num_positives=3), maps_of(1))
    method.loss(output, batch, FIRST)
    assert method.idle() == []
    assert "expected negative" in after_epochs(build(), maps_of(1)).idle()[0]
    assert build(consistency=0.0).idle()[-1] == "no map was compared with an average: lambda is 0"
    short = build()
    short.task.__dict__["epochs"] = 1
    assert "there was one epoch" in short.idle()[-1]


class _Cropping(SmallJob):
    """A small training whose images are cropped and mirrored."""

    @cached_property
    def plan(self) -> Plan:
        return super().plan.model_copy(update={"random_resized_crop": 0.3, "horizontal_flip": 0.5})


def test_a_training_on_crops_resumes_as_if_it_had_not_been_interrupted() -> None:
    registry = Registry.discover()
    method = registry.method("spatial-consistency")
    job = _Cropping(Subject(method, {"consistency": 1.0}, registry), Size(rows=12, batch_size=6, epochs=3))
    batch = next(iter(job.inputs.shuffled(6, epoch=0)))
    assert batch.views[0] is batch.inputs and batch.views[1].shape == (6, 4)
    assert (batch.views[1][:, 2] - batch.views[1][:, 0]).abs().min() < 0.99  # part of an image
    saved: list[bytes] = []

    def keep(state: FitState) -> None:
        file = io.BytesIO()
        torch.save({**state.state_dict(), "generators": state.generators}, file)
        saved.append(file.getvalue())

    state = job.state()
    requested = {"requested": lambda: ControlRequest(save=True), "handle": lambda request: keep(state)}
    job.go_on(state, after_epoch=keep, **requested)
    assert state.images_trained == 3 * 12  # locations are no images
    assert len(saved) == 6
    for content in saved:
        resumed = job.state()
        values = torch.load(io.BytesIO(content), weights_only=True)
        resumed.generators = values.pop("generators")
        resumed.load_state_dict(values)
        job.go_on(resumed)
        for name, value in state.model.state_dict().items():
            assert torch.equal(value, resumed.model.state_dict()[name]), name
        assert torch.equal(state.method.heatmaps, resumed.method.heatmaps)


def test_crops_change_what_is_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locations reach the loss: without them, the same crops train other weights."""
    registry = Registry.discover()
    method = registry.method("spatial-consistency")
    subject = Subject(method, {"consistency": 1.0}, registry)
    trained = []
    for is_blind in (False, True):
        job = _Cropping(subject, Size(rows=12, batch_size=6, epochs=2))
        if is_blind:
            monkeypatch.setattr(method, "transform", lambda self, train_transform: train_transform)
        trained.append(torch.cat([value.flatten() for value in job.trained().model.state_dict().values()]))
    assert not torch.equal(*trained)
