"""The grid {CE, focal, ASL, P-ASL} x {Ignore, Negative, Selective}: each cell's formula, and its limits."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from plbench.api import Batch, Method, PlbenchError, Progress, Task
from plbench.runs.plan.resolved import validate_params
from plbench.runs.registry import Registry

NUM_ROWS, NUM_CLASSES = 6, 5
START = Progress(0, 40, 0, 10)
PRIOR = torch.tensor([0.1, 0.7, 0.3, 0.9, 0.2])
GRID = {  # Ignore, Negative, Selective
    "ce": ("ce-ignore", "ce-negative", "ce-selective"),
    "focal": ("focal-ignore", "focal", "focal-selective"),
    "asl": ("asl-ignore", "asl-negative", "asl-selective"),
    "pasl": ("pasl-ignore", "pasl-negative", "selective"),
}
NEW = ["focal-ignore", "asl-ignore", "pasl-ignore", "ce-selective", "focal-selective", "asl-selective"]
OTHER_VALUES: dict[str, dict[str, float]] = {
    "ce": {},
    "focal": {"gamma": 1.5},
    "asl": {"gamma_pos": 0.5, "gamma_neg": 2.0, "clip": 0.1},
    "pasl": {"gamma_pos": 0.5, "gamma_neg": 2.0, "clip": 0.1},
}


@pytest.fixture
def build(make_task: Callable[..., Task]) -> Callable[..., Method]:
    def make(name: str, **params: Any) -> Method:
        method = Registry.discover().method(name)
        return method(validate_params(method, params), make_task(NUM_CLASSES, {"prior": PRIOR}))

    return make


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(NUM_ROWS, NUM_CLASSES, generator=generator, dtype=torch.float64)
    labels = torch.tensor([1, -1, 0, 0])[torch.randint(4, logits.shape, generator=generator)]
    labels[0] = 0
    return Batch(logits, labels.to(torch.int8), torch.arange(NUM_ROWS))


def loss_and_gradient(method: Method, batch: Batch) -> tuple[float, torch.Tensor]:
    logits = batch.inputs.clone().requires_grad_()
    loss = method.loss(logits, batch, START)
    (gradient,) = torch.autograd.grad(loss.total / loss.weight, logits)
    return float(loss.total.detach()) / float(loss.weight), gradient


def assert_same(method: Method, other: Method, batch: Batch) -> None:
    """The same loss and the same gradient: a gradient through the focusing factor would show."""
    (loss, gradient), (expected, slopes) = loss_and_gradient(method, batch), loss_and_gradient(other, batch)
    assert loss == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(gradient, slopes, rtol=1e-12, atol=1e-15)


def plain(loss: str, batch: Batch, ignored: set[tuple[int, int]]) -> float:
    """The formula of a row of the grid at its default values, one label after another."""
    g_pos, g_neg, g_unknown, shift = {
        "ce": (0, 0, 0, 0), "focal": (2, 2, 2, 0), "asl": (0, 4, 4, 0.05), "pasl": (0, 3, 4, 0),
    }[loss]  # fmt: skip
    total = 0.0
    for row in range(NUM_ROWS):
        for column in range(NUM_CLASSES):
            p, y = 1 / (1 + math.exp(-float(batch.inputs[row, column]))), int(batch.labels[row, column])
            shifted = max(p - shift, 0.0)
            if y > 0:
                total -= (1 - p) ** g_pos * math.log(p)
            elif y < 0 or (row, column) not in ignored:
                total -= shifted ** (g_neg if y < 0 else g_unknown) * math.log(1 - shifted)
    return total / NUM_ROWS


def unknown_cells(batch: Batch) -> set[tuple[int, int]]:
    return {(row, column) for row, column in (batch.labels == 0).nonzero().tolist()}


def selected(batch: Batch, top_k: int, eta: float) -> set[tuple[int, int]]:
    """The K likeliest unknown labels of each image, and those of classes with a prior above eta."""
    chosen = {(row, column) for row, column in unknown_cells(batch) if float(PRIOR[column]) > eta}
    for row in range(NUM_ROWS):
        mine = [column for r, column in unknown_cells(batch) if r == row]
        mine.sort(key=lambda column: -float(batch.inputs[row, column]))
        chosen |= {(row, column) for column in mine[:top_k]}
    return chosen


@pytest.mark.parametrize("loss", GRID)
class TestGrid:
    def test_formula_of_all_three_treatments(self, build: Callable[..., Method], batch: Batch, loss: str) -> None:
        ignore, negative, selective = GRID[loss]
        chosen = selected(batch, 2, 0.6)
        assert 0 < len(chosen) < len(unknown_cells(batch))
        for method, ignored in (
            (build(ignore), unknown_cells(batch)),
            (build(negative), set()),
            (build(selective, top_k=2, eta=0.6), chosen),
        ):
            value, _ = loss_and_gradient(method, batch)
            assert value == pytest.approx(plain(loss, batch, ignored), rel=1e-9), method.name

    @pytest.mark.parametrize("changed", [False, True])
    def test_k_of_all_classes_is_ignore(
        self, build: Callable[..., Method], batch: Batch, loss: str, changed: bool
    ) -> None:
        ignore, _, selective = GRID[loss]
        values = OTHER_VALUES[loss] if changed else {}
        every = build(selective, mode="likelihood", top_k=NUM_CLASSES, **values)
        assert_same(every, build(ignore, **values), batch)

    @pytest.mark.parametrize("changed", [False, True])
    def test_k_of_0_without_a_prior_is_negative(
        self, build: Callable[..., Method], batch: Batch, loss: str, changed: bool
    ) -> None:
        _, negative, selective = GRID[loss]
        values = OTHER_VALUES[loss] if changed else {}
        none = build(selective, mode="likelihood", top_k=0, **values)
        assert_same(none, build(negative, **values), batch)

    def test_an_eta_of_0_ignores_all(self, build: Callable[..., Method], batch: Batch, loss: str) -> None:
        ignore, _, selective = GRID[loss]
        assert_same(build(selective, mode="prior", eta=0.0), build(ignore), batch)

    def test_complete_labels_leave_nothing_to_treat(
        self, build: Callable[..., Method], batch: Batch, loss: str
    ) -> None:
        labels = torch.where(batch.labels == 0, -1, batch.labels).to(torch.int8)
        complete = Batch(batch.inputs, labels, batch.index)
        ignore, negative, selective = (build(name) for name in GRID[loss])
        assert_same(ignore, negative, complete)
        assert_same(ignore, selective, complete)


@pytest.mark.parametrize(
    ("name", "limit", "values"),
    [
        ("focal-ignore", "ce-ignore", {"gamma": 0.0}),
        ("asl-ignore", "ce-ignore", {"gamma_neg": 0.0, "clip": 0.0}),
        ("focal-selective", "ce-selective", {"gamma": 0.0}),
        ("asl-selective", "ce-selective", {"gamma_neg": 0.0, "clip": 0.0}),
    ],
)
def test_without_focus_and_shift_a_row_is_cross_entropy(
    build: Callable[..., Method], batch: Batch, name: str, limit: str, values: dict[str, float]
) -> None:
    assert_same(build(name, **values), build(limit), batch)


def test_asl_selective_is_selective_at_its_values(build: Callable[..., Method], batch: Batch) -> None:
    assert_same(build("asl-selective"), build("selective", gamma_neg=4.0, gamma_unann=4.0, clip=0.05), batch)
    assert_same(build("ce-selective"), build("selective", gamma_neg=0.0, gamma_unann=0.0), batch)


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("per_head", [False, True])
def test_heads_stacked_equal_heads_alone(build: Callable[..., Method], batch: Batch, name: str, per_head: bool) -> None:
    kind, space = type(build(name)), type(build(name)).Params.search_space()
    of_losses = {key: search for key, search in space.items() if key not in ("eta", "eta_top", "alpha")}
    bounds = {key: search.bounds(build(name).task) for key, search in of_losses.items()}
    members = [
        build(name, **{key: type(low)(low + share * (high - low)) for key, (low, high) in bounds.items()})
        for share in (0.0, 0.4, 1.0)
    ]
    logits = torch.stack([batch.inputs, batch.inputs.flip(0), 0.5 * batch.inputs]).float()
    labels = torch.stack([batch.labels, batch.labels.flip(1), batch.labels]) if per_head else batch.labels[None]
    total = kind.stack(members).loss(logits, Batch(logits, labels, batch.index), START).total
    assert total.shape == (3,)
    for head, method in enumerate(members):
        own = labels[head if per_head else 0]
        alone = method.loss(logits[head], Batch(logits[head], own, batch.index), START).total
        assert float(total[head]) == pytest.approx(float(alone), rel=1e-6)


@pytest.mark.parametrize("name", ["ce-selective", "focal-selective", "asl-selective"])
def test_the_prior_comes_from_the_stage_of_selective(make_task: Callable[..., Task], name: str) -> None:
    registry = Registry.discover()
    kind, selective = registry.method(name), registry.method("selective")
    task = make_task(NUM_CLASSES)
    assert kind.stages(validate_params(kind, {}), task) == selective.stages(validate_params(selective, {}), task)
    object.__setattr__(task, "negatives", 0 * task.negatives)
    assert kind.stages(validate_params(kind, {"mode": "likelihood"}), task) == ()
    with pytest.raises(PlbenchError, match=rf"^method '{name}' estimates the class prior"):
        kind.stages(validate_params(kind, {}), task)
    with pytest.raises(PlbenchError, match=rf"top_k = 9 of method '{name}' exceeds the 5 classes"):
        kind.stages(validate_params(kind, {"top_k": 9}), task)


@pytest.mark.parametrize("name", ["ce-selective", "focal-selective", "asl-selective"])
def test_eta_and_eta_top_exclude_each_other_as_in_selective(build: Callable[..., Method], name: str) -> None:
    method = build(name, eta_top=2)
    assert method.params.eta is None
    assert int((method.eta < PRIOR).sum()) == 2


def test_protocols_suggest_the_same_for_all_cells_that_share_a_loss_or_a_treatment() -> None:
    registry = Registry.discover()
    for dataset in ("scenes", "coco", "lvis", "openimages-v6"):
        for protocol in registry.dataset(dataset).protocols:
            suggested = protocol.suggested
            if not suggested:
                continue
            treatment = {key: value for key, value in suggested["selective"].items() if "gamma" not in key}
            assert treatment
            assert all(suggested[GRID[loss][2]] == treatment for loss in ("ce", "focal", "asl"))
            of_known = {**suggested["pasl-ignore"], "gamma_unann": suggested["pasl-negative"]["gamma_unann"]}
            assert of_known == suggested["pasl-negative"]
            for name, values in suggested.items():
                validate_params(registry.method(name), values)


def test_the_tag_names_the_new_cells() -> None:
    registry = Registry.discover()
    tagged = [name for name in registry.names("method") if "grid" in registry.method(name).tags]
    assert sorted(tagged) == sorted(NEW)
    assert all("negatives" in registry.method(names[0]).needs for names in GRID.values())
