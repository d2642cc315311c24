"""A toy plane of points with six partly annotated classes, and small networks that learn from it.

The classes are discs, so that the true boundaries are known. The first is frequent and rarely annotated where present;
the others are rare and annotated almost everywhere, as if each class had the same annotation budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from plbench.experiments.shared.experiment import Findings
from plbench.experiments.shared.style import COLOURS, INK, PAPER, add_legend, new_figure, plain
from plbench.losses.priors import class_average
from plbench.method import Batch, Method, Progress, Task
from plbench.progress import ProgressReport
from plbench.randomness import derive_seed, generator, on_threads, seeded
from plbench.runs.registry import Registry

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DISCS = (  # centre and radius
    *((-0.15, 0.05, 0.72), (0.55, 0.55, 0.36), (0.6, -0.55, 0.3)),
    *((-0.7, 0.75, 0.22), (-0.7, -0.7, 0.25), (0.0, -0.85, 0.2)),
)
NUM_POINTS = 700
KNOWN_PRESENT = (0.06, 0.9, 0.9, 0.9, 0.9, 0.9)  # probability that a present label is annotated
KNOWN_ABSENT = (0.06, 0.012, 0.012, 0.012, 0.012, 0.012)
STEPS, RATE, WIDTH = 400, 0.01, 48
GRID = 81  # points per side
OVERLAP = "overlap"
"""Name of the measurement, see `overlap`."""

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Plane:
    """Points [N, 2] in [-1, 1], true labels [N, C], and known labels, int8 [N, C]."""

    points: Tensor
    truth: Tensor
    labels: Tensor


def true_classes(points: Tensor) -> Tensor:
    """Return whether each point is in each disc, bool [N, C]."""
    centres, radii = torch.tensor([d[:2] for d in DISCS]), torch.tensor([d[2] for d in DISCS])
    return torch.cdist(points, centres) < radii


def make_plane(seed: int) -> Plane:
    """Return points and annotations of one seed."""
    chance = generator(seed, "plane")
    points = 2 * torch.rand((NUM_POINTS, 2), generator=chance) - 1
    truth = true_classes(points)
    keep = torch.where(truth, torch.tensor(KNOWN_PRESENT), torch.tensor(KNOWN_ABSENT))
    known = torch.rand(truth.shape, generator=chance) < keep
    labels = torch.where(known, torch.where(truth, 1, -1), 0).to(torch.int8)
    return Plane(points, truth, labels)


def grid() -> Tensor:
    """Return points [GRID^2, 2] that cover the plane, row by row."""
    side = torch.linspace(-1, 1, GRID)
    return torch.cartesian_prod(side, side).flip(1)


def learn(
    kind: type[Method],
    params: Mapping[str, Any],
    plane: Plane,
    seed: int,
    artifacts: Mapping[str, Tensor],
    num_steps: int = STEPS,
) -> nn.Module:
    """Return a small network trained by a method on the known labels of a plane."""
    positives, negatives = ((plane.labels == value).sum(0).numpy() for value in (1, -1))
    names = tuple(str(c) for c in range(len(DISCS)))
    task = Task(
        num_classes=len(DISCS),
        class_ids=names,
        class_names=names,
        positives=positives,
        negatives=negatives,
        num_train=NUM_POINTS,
        epochs=num_steps,
        steps_per_epoch=1,
        regime="finetune",
        generator=generator(seed, "plane", "method"),
        artifacts=artifacts,
    )
    method = kind(kind.Params.model_validate(dict(params)), task)
    with seeded(derive_seed(seed, "plane", "init")):
        network = nn.Sequential(
            nn.Linear(2, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, len(DISCS))
        )
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-2)
    batch = Batch(plane.points, plane.labels, torch.arange(NUM_POINTS))
    for step in range(num_steps):
        progress = Progress(step, num_steps, step, num_steps)
        loss = method.loss(method.forward(network, batch, progress), batch, progress)
        optimiser.zero_grad()
        (loss.total / loss.weight).backward()
        optimiser.step()
    return network


def learn_all(
    modes: Mapping[str, tuple[str, Mapping[str, Any]]], registry: Registry, num_seeds: int, report: ProgressReport
) -> dict[str, list[npt.NDArray[np.float32]]]:
    """Return probabilities [GRID^2, C] of each mode on the plane of each seed.

    Args:
        modes: method and parameters by name. Priors, if needed, are estimated by a network of CE-Ignore.
        registry: of methods.
        num_seeds: number of planes, with one network per mode.
        report: receives progress.
    """
    learned: dict[str, list[npt.NDArray[np.float32]]] = {mode: [] for mode in modes}
    with on_threads(1):  # for such small networks, synchronising a second thread costs more than it saves
        for seed in range(num_seeds):
            plane = make_plane(seed)
            ignoring = learn(registry.method("ce-ignore"), {}, plane, seed, {})
            prior = class_average(probabilities(ignoring, plane.points))  # CSL, eq. 10
            for place, (mode, (name, params)) in enumerate(modes.items()):
                report(seed * len(modes) + place, num_seeds * len(modes))
                network = learn(registry.method(name), params, plane, seed, {"prior": prior})
                learned[mode].append(probabilities(network, grid()).numpy())
    return learned


def probabilities(network: nn.Module, points: Tensor) -> Tensor:
    """Return probabilities [N, C]."""
    with torch.inference_mode():
        return torch.sigmoid(network(points))


def overlap(predicted: BoolArray, true: BoolArray) -> float:
    """Return the intersection over union of two regions in percent."""
    union = np.count_nonzero(predicted | true)
    return 100.0 * np.count_nonzero(predicted & true) / union if union else 100.0


def draw_boundaries(findings: Findings) -> Figure:
    """Draw a column for each mode and a row for each class, with the learned and the true region, for the first seed.

    Each point's `shown` has column, probability and plane, as in `_draw_field`.
    """
    modes, classes = findings.series(), findings.panels
    figure, axes = new_figure(len(modes), len(classes), width=2.5, height=2.5)
    for place, (panel, mode) in zip(axes, [(p, m) for p in classes for m in modes], strict=True):
        point = next(p for p in findings.points if (p.series, p.panel) == (mode, panel))
        _draw_field(place, *point.shown)
        place.set_title(f"{mode}: {point.values[OVERLAP].figure().mean:.0f} %")
    for left, panel in zip(axes[:: len(modes)], classes, strict=True):
        left.set_ylabel(plain(panel))
    add_legend(figure, axes[:1], 5)
    return figure


def _draw_field(axes: Axes, column: int, probability: npt.NDArray[np.float32], plane: Plane) -> None:
    """Draw a network's probability of a class over the plane [GRID^2], the class's disc, and the training points."""
    from matplotlib.patches import Circle

    side = np.linspace(-1, 1, GRID)
    values = probability.reshape(GRID, GRID)
    axes.contourf(side, side, values, levels=[0.5, 1.01], colors=[COLOURS[0]], alpha=0.28)
    if values.min() < 0.5 < values.max():
        axes.contour(side, side, values, levels=[0.5], colors=[COLOURS[0]], linewidths=1.6)
    x, y, radius = DISCS[column]
    axes.add_patch(Circle((x, y), radius, fill=False, linestyle=(0, (4, 2)), color=INK, linewidth=1.1))
    labels, points = plane.labels[:, column].numpy(), plane.points.numpy()
    kinds = (
        (0, "unknown", ".", "#a8a8a8", 2.0),
        (-1, "known absent", "v", COLOURS[1], 4.5),
        (1, "known present", "o", COLOURS[2], 4.5),
    )
    for value, name, mark, colour, size in kinds:
        chosen = points[labels == value]
        edge = PAPER if value else colour
        axes.plot(*chosen.T, mark, color=colour, markersize=size, label=name, markeredgecolor=edge, markeredgewidth=0.4)
    axes.plot([], [], color=COLOURS[0], label="boundary learned")
    axes.plot([], [], color=INK, linestyle=(0, (4, 2)), label="true boundary")
    axes.set(xlim=(-1, 1), ylim=(-1, 1), xticks=[], yticks=[], aspect="equal")
    axes.grid(visible=False)
