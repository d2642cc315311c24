"""About how long runs take where those that can train together do, by a few steps of their own heads."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from plbench import metrics
from plbench.errors import PlbenchError
from plbench.models import Backbone
from plbench.randomness import seeded
from plbench.runs import summary
from plbench.runs.diagnostics import diagnose_training
from plbench.runs.estimate import estimate
from plbench.runs.estimate.measured import about_to_train
from plbench.runs.estimate.synthetic import synthetic
from plbench.runs.plan.resolve import ResolvedRun
from plbench.runs.protocol import Part
from plbench.runs.together import can_stack, groups, most_at_once
from plbench.runs.workspace import Workspace
from plbench.training.evaluation import collect_cells, predict_share
from plbench.training.execution import Execution
from plbench.training.inputs import FeatureInputs
from plbench.training.stacked.heads import Head, fit_together
from plbench.training.stacked.layers import layers_of
from plbench.training.state import FitState

_STEPS = 6  # that are timed, after as many that are not
_MOST_HEADS = 24
_SCORED_IMAGES = 500
_BUDGET_SECONDS = 3.0  # about how long one measurement may take


def seconds_of_all(plans: Sequence[ResolvedRun], workspace: Workspace) -> float:
    """Seconds that runs of one setting take, prerequisites included; what is shared counts once.

    Args:
        plans: the runs, of one model.
        workspace: where and how.
    """
    with workspace.reporter.patience("Measuring how long a step takes"):
        found = paces(plans, workspace)
        known = [plan for plan in plans if plan.spec.key in found]
        scoring = len(found) * _scoring_seconds(known[0], workspace) / torch.get_num_threads() if known else 0.0
    return estimate.seconds_of_all(plans, workspace, found) + scoring


def paces(plans: Sequence[ResolvedRun], workspace: Workspace) -> dict[str, float]:
    """Seconds of training per image and head, by key: of those missing runs, stages included, that can be stacked."""
    found: dict[str, float] = {}
    measured: dict[str, float] = {}
    for members in _groups(plans, workspace):
        alike = _alike(members)
        if alike not in measured:
            try:
                measured[alike] = _pace(members, workspace)
            except PlbenchError:  # what the run itself will say at its time
                continue
        found |= {plan.spec.key: measured[alike] for plan in members}
    return found


def _groups(plans: Sequence[ResolvedRun], workspace: Workspace) -> Iterator[list[ResolvedRun]]:
    """Missing runs as they will train: stages before what needs them."""
    waves: dict[int, dict[str, ResolvedRun]] = defaultdict(dict)

    def depth(plan: ResolvedRun) -> int:
        if plan.finished(workspace.store) is not None:
            return -1
        place = 1 + max((depth(stage) for _, stage in plan.stages.values()), default=-1)
        waves[place][plan.spec.key] = plan
        return place

    for plan in plans:
        depth(plan)
    for wave in waves.values():
        yield from groups([plan for plan in wave.values() if can_stack(plan)])


def _alike(members: Sequence[ResolvedRun]) -> str:
    """What groups of one pace agree in: the shape of the heads, and which methods and seeds there are."""
    first = members[0]
    heads = [(plan.method.name, plan.spec.seed) for plan in members[:_MOST_HEADS]]
    num_classes = first.protocol_data.train(first.spec.train_part).labels.num_classes
    return f"{first.spec.model.model_dump_json()} {first.spec.precision} {first.spec.plan} {num_classes} {heads}"


def _pace(members: Sequence[ResolvedRun], workspace: Workspace) -> float:
    """Seconds per image and head: of one alone first, which says how many can be afforded.

    Raises:
        PlbenchError: if a head cannot be made, trained on random inputs or stacked.
    """
    first, alone = members[0], _timed(members[:1], workspace)
    images = 2 * _STEPS * first.spec.plan.batch_size
    number = min(len(members), _MOST_HEADS, _room(first, workspace), int(_BUDGET_SECONDS / (images * alone)))
    return _timed(members[:number], workspace) if number > 1 else alone


def _room(plan: ResolvedRun, workspace: Workspace) -> int:
    """Heads such as that of a run that memory allows at once."""
    state = _state(plan, _width(plan, workspace), workspace)
    return most_at_once(state.model, plan.spec.plan.batch_size, workspace.device)


def _state(plan: ResolvedRun, width: int, workspace: Workspace) -> FitState:
    return about_to_train(plan, nn.Identity(), width, _execution(plan, workspace))


def _timed(members: Sequence[ResolvedRun], workspace: Workspace) -> float:
    first, width = members[0], _width(members[0], workspace)
    inputs = _inputs(first.protocol_data.train(first.spec.train_part), _STEPS * first.spec.plan.batch_size, width)
    plan = first.spec.plan.model_copy(update={"epochs": 2})
    states = [_state(member, width, workspace) for member in members]
    if layers_of(states[0].model) is None:
        raise PlbenchError(f"the head of method {first.method.name!r} cannot be stacked")
    heads = [Head(state, plan, member.spec.seed) for state, member in zip(states, members, strict=True)]
    ends: list[float] = []
    fit_together(heads, inputs, _execution(first, workspace), between_epochs=lambda: ends.append(time.perf_counter()))
    for head in heads:
        if head.error is not None:
            raise head.error
    return (ends[1] - ends[0]) / len(inputs) / len(heads)


def _scoring_seconds(plan: ResolvedRun, workspace: Workspace) -> float:
    """Of the scores, figures and intervals of one run, on one core; of its first images."""
    execution, width = _execution(plan, workspace), _width(plan, workspace)
    state = _state(plan, width, workspace)
    scored = plan.protocol_data.whole(plan.spec.protocol.test_split)
    inputs, groups = _inputs(scored, _SCORED_IMAGES, width), plan.protocol_data.dataset.groups()
    start = time.perf_counter()
    for drawn in (True, False):  # of averaged weights with intervals, of the last ones without
        cells = collect_cells(predict_share(state.model, state.method, inputs, execution), inputs.labels)
        replicates = summary.draw_replicates(cells, inputs.labels, groups, 0, lambda *_: None) if drawn else None
        summary.summarise(cells, inputs.labels, groups, np.add(*inputs.labels.counts()), replicates)
    seconds = (time.perf_counter() - start) * len(scored.rows) / len(inputs)
    start = time.perf_counter()  # thresholds come from scores of the validation part
    cells = collect_cells(predict_share(state.model, state.method, inputs, execution), inputs.labels)
    if cells.positives.any():
        metrics.choose_thresholds(cells)
    chosen = plan.spec.protocol.validation_share * len(plan.protocol_data.whole_train.rows)
    seconds += (time.perf_counter() - start) * chosen / len(inputs)
    truth = plan.protocol_data.hidden_truth(plan.spec.train_part)
    if truth is None:
        return seconds
    seen = plan.protocol_data.train(plan.spec.train_part)
    inputs = _inputs(seen, _SCORED_IMAGES, width)
    start = time.perf_counter()
    diagnose_training(state.model, state.method, inputs, truth.subset(inputs.rows), execution)
    return seconds + (time.perf_counter() - start) * len(seen.rows) / len(inputs)


def _inputs(part: Part, most: int, width: int) -> FeatureInputs:
    """Made-up features [n, D] of a part's first images, with their own labels."""
    rows = np.arange(min(most, len(part.rows)))
    return FeatureInputs(synthetic(len(rows), width).numpy(), rows, part.labels.subset(rows))


def _width(plan: ResolvedRun, workspace: Workspace) -> int:
    """Number of features."""
    width = estimate.cached_width(plan, workspace)
    if width is None:
        with seeded(0):
            width = Backbone(plan.spec.model).num_features
    return width


def _execution(plan: ResolvedRun, workspace: Workspace) -> Execution:
    return Execution(workspace.device, plan.spec.precision)
