"""Runs that train in one pass, with the same results as alone."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from plbench.errors import TrainingError
from plbench.progress import Reporter
from plbench.runs import run as runner
from plbench.runs.active import ActiveRun
from plbench.runs.inputs import OpenInputs
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.record import Record, figures
from plbench.runs.workspace import Workspace
from plbench.training.inputs import FeatureInputs
from plbench.training.interruption import Stopped, listening
from plbench.training.stacked.heads import Head, bytes_per_head, fit_together, is_stackable
from plbench.training.stacked.layers import layers_of
from plbench.training.state import FitState

STACK_BYTES = 2 << 30
"""Memory for parameters, optimisers and activations of heads that train together, in addition to features; on a GPU,
half of the free memory."""


def can_stack(plan: ResolvedRun) -> bool:
    """Return whether a run can be stacked: on cached features, with a method whose loss broadcasts over heads.

    Raises:
        PluginError: if the method is declared stackable, but is not.
    """
    spec = plan.spec
    plain = spec.plan.accumulate == 1 and spec.precision != "float16"  # each head would need its own loss scale
    pooled = plan.features_model.pooling != "none"  # heads on feature maps are not stacks of linear layers
    return spec.regime == "probe" and plain and pooled and is_stackable(plan.method)


def groups(plans: Sequence[ResolvedRun], nproc: int = 1) -> list[list[ResolvedRun]]:
    """Group runs that can train together, in groups as large as possible; other runs are alone.

    Args:
        plans: the runs.
        nproc: processes per run; with more than one, every run is alone.
    """
    found: dict[str, list[ResolvedRun]] = defaultdict(list)
    for plan in plans:
        found[_common(plan) if nproc == 1 and can_stack(plan) else plan.spec.key].append(plan)
    return list(found.values())


def groups_in_order(plans: Sequence[ResolvedRun], nproc: int = 1) -> list[list[ResolvedRun]]:
    """Group runs that can train together, with prerequisites first.

    Args:
        plans: each after its prerequisites.
        nproc: as in `groups`.
    """
    depth: dict[str, int] = {}
    waves: dict[int, list[ResolvedRun]] = defaultdict(list)
    for plan in plans:
        depths = [depth.get(first.spec.key, -1) for first in plan.prerequisites]
        depth[plan.spec.key] = 1 + max(depths, default=-1)
        waves[depth[plan.spec.key]].append(plan)
    return [members for wave in waves.values() for members in groups(wave, nproc)]


def _common(plan: ResolvedRun) -> str:
    """Return the key shared by the runs of a group: everything except method, seed, rate and decay."""
    spec = plan.spec
    common = spec.plan.model_copy(update={"lr": 1.0, "weight_decay": 0.0})
    method = spec.method.model_copy(update={"name": "", "version": "", "source_sha256": "", "params": {}})
    seed = spec.seed if spec.model.weights == "random" else 0  # features of random weights depend on the seed
    update = {"method": method, "plan": common, "seed": seed, "tuned_by": None, "stages": {}, "embeddings": None}
    return spec.model_copy(update=update).canonical()


def in_memory(plans: Sequence[ResolvedRun], workspace: Workspace) -> Iterator[list[ActiveRun]]:
    """Yield runs of a group, ready to train, as many at a time as memory allows, on shared features.

    Args:
        plans: one of `groups`, all of whose stages are done.
        workspace: where and how.
    """
    inputs, protocol_data = OpenInputs(workspace), plans[0].protocol_data  # shared; labels depend on the seed
    plans = [replace(plan, protocol_data=protocol_data.at_seed(plan.spec.seed)) for plan in plans]
    # open the first, since its model determines how many fit into memory
    first = _prepared(plans[0], workspace, inputs)
    most = most_at_once(first.state.model, first.spec.plan.batch_size, workspace.device)
    for start in range(0, len(plans), most):
        members = plans[start : start + most]
        yield [first if plan is plans[0] else _prepared(plan, workspace, inputs) for plan in members]


def _prepared(plan: ResolvedRun, workspace: Workspace, inputs: OpenInputs) -> ActiveRun:
    artifacts = {name: runner.stage_artifact(plan, name, workspace) for name in plan.stages}
    active = ActiveRun(plan, workspace, artifacts, inputs, runner.chosen_epoch(plan, workspace))
    with active.phase("data"):
        active.prepare()
        active.open_scored_part()
    return active


def most_at_once(model: nn.Module, batch_size: int, device: torch.device) -> int:
    """Return how many heads like this one fit into memory together; 1 for a model that cannot be stacked."""
    if layers_of(model) is None:
        return 1
    available = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else STACK_BYTES
    return max(1, available // bytes_per_head(model, batch_size))


def train(runs: Sequence[ActiveRun], workspace: Workspace, *, is_kept: bool) -> list[Head]:
    """Train runs together, each from its current state.

    Args:
        runs: from `in_memory`.
        workspace: where and how.
        is_kept: whether each run is evaluated and saved as when alone, including on a stop signal; otherwise nothing is
            kept.

    Returns:
        The head of each run, in order, with its error if it failed.

    Raises:
        Stopped: on a stop signal.
    """
    inputs = runs[0].train_inputs
    assert isinstance(inputs, FeatureInputs)
    with listening() as heard:

        def end_epoch(active: ActiveRun, state: FitState) -> None:
            active.epoch_end(state)
            if heard.number is not None:
                active.save()

        def between_epochs() -> None:
            if heard.number is not None:
                # not at the end of a single run's epoch, when the others would not be saved
                raise Stopped(heard.number)

        # checkpoints may be at different epochs, but heads of a stack must be at the same one
        standing: dict[int, list[Head]] = defaultdict(list)
        heads = []
        for active in runs:
            head = Head(active.state, active.spec.plan, active.spec.seed, active.stop_after)
            head.labels = active.train_inputs.labels
            if is_kept:
                head.after_epoch = partial(end_epoch, active)
            heads.append(head)
            standing[head.state.epoch].append(head)
        for members in standing.values():
            what = runs[0].method.title if len(members) == 1 else f"{len(members)} heads together"
            with workspace.reporter.task(f"Training {what}") as report:
                fit_together(members, inputs, runs[0].execution, report=report, between_epochs=between_epochs)
    return heads


def run_group(plans: Sequence[ResolvedRun], workspace: Workspace) -> list[Record | TrainingError]:
    """Execute runs that train together; each gets the same record as alone.

    Args:
        plans: one of `groups`, no two with one key, all of whose stages are done.
        workspace: where and how.
    """
    with contextlib.ExitStack() as held:
        for key in sorted(plan.spec.key for plan in plans):  # locked in the same order everywhere, to avoid deadlocks
            held.enter_context(workspace.store.lock(key, workspace.reporter.line))
        found = {
            plan.spec.key: plan.finished(workspace.store) for plan in plans
        }  # another process may have finished some
        results: dict[str, Record | TrainingError] = {key: record for key, record in found.items() if record}
        missing = [plan for plan in plans if plan.spec.key not in results]
        for runs in in_memory(missing, workspace) if missing else ():
            results |= _make(runs, workspace)
    return [results[plan.spec.key] for plan in plans]


def _make(runs: Sequence[ActiveRun], workspace: Workspace) -> dict[str, Record | TrainingError]:
    said: dict[str, None] = {}  # most resume at the same step
    with contextlib.ExitStack() as kept:
        for active in runs:
            kept.enter_context(runner.discard_incomplete_run(active.plan, workspace))
            runner.write_spec(active)
            said.update(dict.fromkeys(active.resume()))
            # stacks cannot resume a checkpoint within an epoch
            active.finish_epoch()
            active.tracking = kept.enter_context(active.followed())
        for sentence in said:
            workspace.reporter.line(sentence)
        heads = train(runs, workspace, is_kept=True)
        results: dict[str, Record | TrainingError] = {}
        with (
            workspace.reporter.task(f"Scoring {len(runs)} runs") as report,
            ThreadPoolExecutor(torch.get_num_threads(), "scoring") as pool,  # much of it is single-threaded numpy
        ):
            for result in pool.map(partial(_result, workspace, len(runs) - 1), runs, heads):
                results[runs[len(results)].spec.key] = result
                report(len(results), len(runs))
    return results


def _result(workspace: Workspace, num_others: int, active: ActiveRun, head: Head) -> Record | TrainingError:
    """Conclude a trained run, without its own progress bars, which would hide the overall one."""
    active.workspace = replace(workspace, reporter=Reporter())
    active.conclude()
    if head.error is None:
        record = runner.conclude(active, {}, shared_with=num_others)
        active.tracking.finished(active.state.step, figures(record))
        return record
    try:
        with runner.discard_incomplete_run(active.plan, workspace):
            # raised, so that the failed record is saved as for a separate run
            raise active.explained(head.error)
    except TrainingError as error:
        active.tracking.failed(error)
        return error
