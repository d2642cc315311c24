"""Measure heads that train stacked, by a few steps on synthetic features."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from plbench.errors import PlbenchError
from plbench.runs import summary
from plbench.runs.estimate.measured import resident_bytes, scored_images
from plbench.runs.estimate.synthetic import about_to_train, synthetic
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.protocol import Part
from plbench.runs.together import most_at_once
from plbench.runs.workspace import Workspace
from plbench.training.evaluation import collect_cells, predict_share
from plbench.training.execution import Execution
from plbench.training.inputs import FeatureInputs
from plbench.training.stacked.heads import Head, bytes_per_head, fit_together
from plbench.training.stacked.layers import layers_of
from plbench.training.state import FitState

_STEPS = 6  # timed steps, after the same number of untimed ones
_MAX_HEADS = 24
_SCORED_IMAGES = 500
_BUDGET_SECONDS = 3.0  # approximate limit per measurement


@dataclass(frozen=True)
class Stack:
    """Measurement of heads that train stacked.

    Attributes:
        step_seconds: per head and step. scoring_seconds: per run, with intervals.
        peak_bytes: of all heads that train at once. program_bytes: of the program itself.
    """

    step_seconds: float
    scoring_seconds: float
    peak_bytes: int
    program_bytes: int


def alike(members: Sequence[ResolvedRun]) -> str:
    """Return a key of groups with the same speed: the shape of the heads, methods and seeds."""
    first = members[0]
    heads = [(plan.method.name, plan.spec.seed) for plan in members[:_MAX_HEADS]]
    num_classes = first.protocol_data.train(first.spec.train_part).labels.num_classes
    return f"{first.spec.model.model_dump_json()} {first.spec.precision} {first.spec.plan} {num_classes} {heads}"


def measure_stack(members: Sequence[ResolvedRun], width: int, workspace: Workspace) -> Stack:
    """Measure one head first, to find how many together are affordable.

    Args:
        members: of a group. width: number of features. workspace: where and how.

    Raises:
        PlbenchError: if a head cannot be built, trained on random inputs, or stacked.
    """
    first, batch_size = members[0], members[0].spec.plan.batch_size
    alone = _timed(members[:1], width, workspace)
    state = _state(first, width, workspace)
    room = most_at_once(state.model, batch_size, workspace.device)
    number = min(len(members), _MAX_HEADS, room, int(_BUDGET_SECONDS / (2 * _STEPS * alone)))
    step_seconds = _timed(members[:number], width, workspace) if number > 1 else alone
    scoring_seconds = _scoring_seconds(first, state, width, workspace) / torch.get_num_threads()
    num_bytes = min(len(members), room) * bytes_per_head(state.model, batch_size)
    return Stack(step_seconds, scoring_seconds, num_bytes, resident_bytes())


def _state(plan: ResolvedRun, width: int, workspace: Workspace) -> FitState:
    return about_to_train(plan, None, (width,), Execution(workspace.device, plan.spec.precision))


def _timed(members: Sequence[ResolvedRun], width: int, workspace: Workspace) -> float:
    """Return the seconds per head and step."""
    first = members[0]
    inputs = _inputs(first.protocol_data.train(first.spec.train_part), _STEPS * first.spec.plan.batch_size, width)
    plan = first.spec.plan.model_copy(update={"epochs": 2})
    states = [_state(member, width, workspace) for member in members]
    if layers_of(states[0].model) is None:
        raise PlbenchError(f"the head of method {first.method.name!r} cannot be stacked")
    heads = [Head(state, plan, member.spec.seed) for state, member in zip(states, members, strict=True)]
    ends: list[float] = []
    execution = Execution(workspace.device, first.spec.precision)
    fit_together(heads, inputs, execution, between_epochs=lambda: ends.append(time.perf_counter()))
    for head in heads:
        if head.error is not None:
            raise head.error
    # per image, since the last batch may be small
    return (ends[1] - ends[0]) / len(inputs) * plan.batch_size / len(heads)


def _scoring_seconds(plan: ResolvedRun, state: FitState, width: int, workspace: Workspace) -> float:
    """Return the seconds for scores, figures and intervals of one run on one core, from its first images."""
    execution, data = Execution(workspace.device, plan.spec.precision), plan.protocol_data
    scored = data.held_out(plan.spec.train_part) if plan.spec.only_selects else data.test()
    groups = data.dataset.groups()
    inputs = _inputs(scored, _SCORED_IMAGES, width)
    start = time.perf_counter()
    cells = collect_cells(predict_share(state.model, state.method, inputs, execution), inputs.labels)
    num_labels = np.add(*inputs.labels.counts())
    summary.summarise(cells, inputs.labels, groups, num_labels, None)
    middle = time.perf_counter()
    replicates = summary.draw_replicates(cells, inputs.labels, groups, 0, lambda *_: None)
    summary.summarise(cells, inputs.labels, groups, num_labels, replicates)
    with_intervals = (time.perf_counter() - middle) * len(scored.rows)
    return (with_intervals + (middle - start) * scored_images(plan, is_stage=False)) / len(inputs)


def _inputs(part: Part, most: int, width: int) -> FeatureInputs:
    """Return synthetic features [n, D] for the first images of a part, with their own labels."""
    rows = np.arange(min(most, len(part.rows)))
    return FeatureInputs(synthetic(len(rows), width).numpy(), rows, part.labels.subset(rows))
