"""Inputs that are means of several rows: what the model sees is what `Method.mixture` says, however it is loaded."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from plbench.api import ImageFiles, Loss, Method, PartialLabels, Plan
from plbench.errors import PluginError
from plbench.loading.transforms import EvalTransform, TrainTransform
from plbench.training.distributed import World
from plbench.training.hooks import mixture_of
from plbench.training.inputs import FeatureInputs, ImageInputs, Inputs
from plbench.training.stacked.heads import is_stackable

BASE = EvalTransform(24, (0.5, 0.4, 0.3), (0.2, 0.25, 0.5))
PLAN = Plan(epochs=1, batch_size=4, lr=1.0, randaugment="rand-m9-mstd0.5")


def thirds(index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
    """Even rows stay; odd ones get a quarter of row 0 and, in another epoch, of another row."""
    other = torch.stack([index, torch.zeros_like(index), torch.full_like(index, 1 + epoch)], dim=1)
    weights = torch.where((index % 2 == 0)[:, None], torch.tensor([1.0, 0, 0]), torch.tensor([0.5, 0.25, 0.25]))
    return other, weights


def labels_of(number: int) -> PartialLabels:
    return PartialLabels.from_dense(np.eye(number, 3, dtype=np.int8) + 0, ["a", "b", "c"])


def by_row(fed: Inputs, epoch: int = 0, batch_size: int = 4, world: World | None = None) -> dict[int, Tensor]:
    batches = fed.shuffled(batch_size, epoch, **({} if world is None else {"world": world}))
    return {int(row): values for batch in batches for row, values in zip(batch.index, batch.inputs, strict=True)}


def check(mixed: dict[int, Tensor], plain: dict[int, Tensor], epoch: int) -> None:
    assert sorted(mixed) == sorted(plain)
    for row, values in mixed.items():
        if row % 2 == 0:
            assert torch.equal(values, plain[row])
        else:
            assert torch.allclose(values, 0.5 * plain[row] + 0.25 * plain[0] + 0.25 * plain[1 + epoch], atol=1e-6)


def test_features_are_weighted_sums_of_the_rows_of_the_part() -> None:
    features = np.random.default_rng(0).standard_normal((30, 6), dtype=np.float32)
    rows = np.arange(3, 24, 2)
    inputs = FeatureInputs(features, rows, labels_of(len(rows)), seed=2)
    mixing = inputs.mixing(thirds)
    for epoch in (0, 1):
        check(by_row(mixing, epoch), by_row(inputs, epoch), epoch)
    assert torch.equal(next(iter(mixing.ordered(4)))[1], next(iter(inputs.ordered(4)))[1])


def image_inputs(images: ImageFiles, workers: int = 0, mixture: Any = None, transform: Any = None) -> ImageInputs:
    own = transform or TrainTransform(BASE, PLAN)
    return ImageInputs(images, labels_of(len(images)), BASE, workers, own, 1, mixture=mixture)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_are_weighted_sums_of_augmented_ones(tiny_images: ImageFiles, workers: int) -> None:
    check(by_row(image_inputs(tiny_images, workers, thirds), 1), by_row(image_inputs(tiny_images), 1), 1)


def test_every_view_is_mixed(tiny_images: ImageFiles) -> None:
    def two_views(image: Image.Image) -> tuple[Tensor, Tensor]:
        return BASE(image), -BASE(image)

    for batch in image_inputs(tiny_images, mixture=thirds, transform=two_views).shuffled(4, 0):
        assert torch.equal(batch.views[0], batch.inputs)
        assert torch.equal(batch.views[1], -batch.inputs)


def test_two_processes_see_what_one_sees(tiny_images: ImageFiles) -> None:
    inputs = image_inputs(tiny_images, mixture=thirds)
    shares = [by_row(inputs, world=World(rank, 2)) for rank in (0, 1)]
    assert min(map(len, shares)) > 0
    for row, values in by_row(inputs).items():
        (own,) = (share[row] for share in shares if row in share)
        assert torch.equal(own, values)


class Mixing(Method):
    """Mixes, and says that it can be stacked."""

    name = "mixing"
    title = "Mixing"
    stackable = True

    def mixture(self, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        return thirds(index, epoch)

    def loss(self, output: Any, batch: Any, progress: Any) -> Loss:
        return Loss.of_images(output.square().sum(dim=-1))


def test_who_mixes_nothing_costs_nothing_and_who_mixes_is_not_stacked(make_task: Any) -> None:
    class Plain(Mixing):
        mixture = Method.mixture

    task, index = make_task(3), torch.tensor([4, 2])
    plain, mixing = Plain(Plain.Params(), task), Mixing(Mixing.Params(), task)
    assert mixture_of(plain) is None
    rows, weights = plain.mixture(index, 0)
    assert torch.equal(rows[:, 0], index) and torch.equal(weights, torch.ones(2, 1))
    found = mixture_of(mixing)
    assert found is not None and torch.equal(found(index, 1)[0], thirds(index, 1)[0])
    assert is_stackable(Plain)
    with pytest.raises(PluginError, match="mixture"):
        is_stackable(Mixing)
