"""Dropout follows from seed, step, layer and row alone, however a batch is dealt out."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from plbench.training.dropout import Dropout, draws_alone, has_batch_statistics

ROWS = 13


class TwoDrops(nn.Module):
    """Dropout before and behind a layer; the first is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Dropout(0.3), nn.Dropout(0.6)

    def forward(self, values: Tensor) -> Tensor:
        return self.second(self.first(self.first(values)) + 1.0)


def passed(model: nn.Module, values: Tensor, cuts: list[int], *, step: int = 3, seed: int = 0) -> Tensor:
    """What a model makes of rows that are cut into pieces."""
    dropout, outputs = Dropout(seed, model.train()), []
    with dropout.installed():
        for start, stop in zip([0, *cuts], [*cuts, len(values)], strict=True):
            with dropout.drawing(step, start, stop - start):
                outputs.append(model(values[start:stop]))
    return torch.cat(outputs)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "features": (lambda: nn.Dropout(0.2), (37,)),
    "one feature": (lambda: nn.Dropout(0.5), (1,)),
    "two layers, one of them twice": (TwoDrops, (16,)),
    "a map": (lambda: nn.Dropout(0.5), (3, 4, 5)),
    "tokens": (lambda: nn.Dropout(0.5), (7, 6)),
    "whole channels": (lambda: nn.Dropout2d(0.5), (8, 2, 2)),
}


@pytest.mark.parametrize("cuts", [[1], [4, 8], [6, 6], list(range(1, ROWS))])
@pytest.mark.parametrize("name", MODELS)
def test_pieces_are_masked_as_the_whole(name: str, cuts: list[int]) -> None:
    build, shape = MODELS[name]
    values = torch.rand(ROWS, *shape) + 0.5
    assert torch.equal(passed(build(), values, cuts), passed(build(), values, []))


def test_stochastic_depth_of_timm() -> None:
    import plbench.models.torchvision_ops  # noqa: F401  # isort: skip
    from timm.layers import DropPath

    values = torch.ones(400, 3, 2)
    whole = passed(DropPath(0.25), values, [])
    assert torch.equal(passed(DropPath(0.25), values, [111, 300]), whole)
    assert whole[:, 0, 0].unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert torch.equal(whole, whole[:, :1, :1].expand_as(whole))  # an image is dropped as a whole
    assert set(passed(DropPath(0.25, scale_by_keep=False), values, []).flatten().tolist()) == {0.0, 1.0}


def test_a_longer_sequence_in_another_process_changes_nothing() -> None:
    values = torch.ones(4, 9, 6)
    short = passed(nn.Dropout(0.5), values[:, :5], [])
    assert torch.equal(short, passed(nn.Dropout(0.5), values, [])[:, :5])


def test_seed_step_layer_row_and_call_each_change_the_mask() -> None:
    values = torch.ones(2, 200)
    mask = passed(nn.Dropout(0.5), values, [])
    assert not torch.equal(mask[0], mask[1])
    assert not torch.equal(mask, passed(nn.Dropout(0.5), values, [], step=4))
    assert not torch.equal(mask, passed(nn.Dropout(0.5), values, [], seed=1))
    twice = nn.Dropout(0.5)
    assert len((passed(nn.Sequential(twice, twice), values, []) > 0).flatten().unique()) == 2
    assert (passed(nn.Sequential(twice, twice), values, []) > 0).float().mean() < 0.35  # other cells each time


@pytest.mark.parametrize("dropped", [0.1, 0.5, 0.9])
def test_the_mean_stays(dropped: float) -> None:
    factors = passed(nn.Dropout(dropped), torch.ones(500, 400), [])
    assert (factors == 0).float().mean().item() == pytest.approx(dropped, abs=0.005)
    assert factors.mean().item() == pytest.approx(1.0, abs=0.02)


def test_activations_that_are_computed_again_are_masked_as_they_were() -> None:
    model = TwoDrops().train()
    gradients = []
    for again in (False, True):
        values = torch.ones(ROWS, 5, requires_grad=True)
        dropout = Dropout(0, model)
        with dropout.installed(), dropout.drawing(0, 0, ROWS):
            output = checkpoint(model, values, use_reentrant=False) if again else model(values)
            dropout.rewind()
            output.square().sum().backward()
        gradients.append(values.grad)
    assert torch.equal(gradients[0], gradients[1])


def test_outside_a_step_and_afterwards_layers_are_torchs() -> None:
    model = nn.Dropout(0.5).train()
    dropout, values = Dropout(0, model), torch.ones(50, 50)
    with dropout.installed():
        torch.manual_seed(0)
        mine = model(values)
        torch.manual_seed(0)
        assert torch.equal(mine, nn.functional.dropout(values, 0.5))
        assert torch.equal(model.eval()(values), values)
    assert "forward" not in vars(model)


@pytest.mark.parametrize(
    ("model", "alone", "batch"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)), False, False),
        (nn.AlphaDropout(0.5), True, False),
        (nn.LSTM(2, 2, num_layers=2, dropout=0.1), True, False),
        (nn.Sequential(nn.BatchNorm2d(3)), False, True),
        (nn.MultiheadAttention(4, 2), False, False),
    ],
)
def test_what_is_not_drawn_by_row_is_known(model: nn.Module, alone: bool, batch: bool) -> None:
    assert draws_alone(model) is alone
    assert has_batch_statistics(model) is batch


@pytest.mark.parametrize(
    ("name", "alone", "batch"),
    [("ghostnet_050", True, True), ("vit_tiny_patch16_224", False, False), ("test_resnet", False, True)],
)
def test_backbones(name: str, alone: bool, batch: bool) -> None:
    import timm

    model = timm.create_model(name, num_classes=0)
    assert (draws_alone(model), has_batch_statistics(model)) == (alone, batch)
