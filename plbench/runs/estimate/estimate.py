"""Estimate what runs will take: existing and missing results, time, memory and steps.

`estimate_runs` collects the runs and their prerequisites, groups the missing ones as the schedule would, measures one
run of each kind, and adds everything up.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from plbench.errors import PlbenchError
from plbench.loading.features import feature_dtype, features_key, features_name
from plbench.loading.resumable_array import open_matrix
from plbench.models.backbones import feature_shape
from plbench.progress import counted, duration, memory
from plbench.runs.environment import device_name
from plbench.runs.estimate.measured import Measured, measure, scored_images
from plbench.runs.estimate.stacked import Stack, alike, measure_stack
from plbench.runs.plan.resolved import ResolvedRun, in_order
from plbench.runs.together import groups_in_order
from plbench.runs.workspace import Workspace
from plbench.training.checkpoint import Checkpoints
from plbench.training.distributed import World

DAY = 86400.0


@dataclass(frozen=True)
class Item:
    """One training, or computation of features, in order of execution.

    Attributes:
        key: of the run; None for features. state: "going on" if there is a checkpoint. steps_done: at the checkpoint.
        seconds: remaining time. num_steps: of the whole training; 0 for features.
    """

    what: str
    key: str | None
    state: Literal["done", "to do", "going on"]
    seconds: float
    steps_done: int = 0
    num_steps: int = 0


@dataclass(frozen=True)
class Estimate:
    """Estimated requirements of runs. All seconds and bytes are estimates.

    Attributes:
        plan: the last of the runs; if there is only one, that run.
        num_processes: that train together. workers: per process, for decoding images.
        measured: for the plan, or a similar one; None if nothing had to be measured, or only stacks.
        peak_bytes: of the GPU, or on a CPU of a process; None if nothing was measured.
        map_bytes: of the feature maps still to be cached.
    """

    plan: ResolvedRun
    items: tuple[Item, ...]
    device: torch.device
    num_processes: int
    workers: int
    measured: Measured | None
    peak_bytes: int | None
    map_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Total time of everything that is missing."""
        return sum(item.seconds for item in self.items)

    @property
    def missing(self) -> list[Item]:
        """Trainings that are not done."""
        return [item for item in self.items if item.key is not None and item.state != "done"]

    @property
    def num_trainings(self) -> int:
        """Number of trainings, including finished ones."""
        return sum(item.key is not None for item in self.items)

    @property
    def steps_left(self) -> int:
        """Optimisation steps of all missing trainings."""
        return sum(item.num_steps - item.steps_done for item in self.missing)

    @property
    def words(self) -> str:
        """Time, steps and memory in words."""
        if self.missing and not self.steps_left:
            return "only scoring"
        if self.peak_bytes is None:
            return "nothing to do" if not self.missing else "the time cannot be estimated in advance"
        steps, peak = counted(self.steps_left, "step"), memory(self.peak_bytes)
        text = f"about {duration(self.seconds)} on {self.device.type}, {steps}, {peak} of memory at the peak"
        return text + (f", {memory(self.map_bytes)} of feature maps in the cache" if self.map_bytes else "")

    def totals(self) -> dict[str, Any]:
        """Return the totals, for JSON."""
        peak = None if self.peak_bytes is None else self.peak_bytes / 2**20
        return {"seconds": self.seconds, "steps": self.steps_left, "peak_memory_mb": peak}

    def as_dict(self) -> dict[str, Any]:
        """Return the estimate for one run, for JSON."""
        spec, measured = self.plan.spec, self.measured
        return {
            "spec": spec,
            **self.totals(),
            "items": [vars(item) for item in self.items],
            "steps_per_epoch": self.plan.steps_per_epoch,
            "num_steps": self.plan.num_steps,
            "batch_size": spec.plan.batch_size,
            "accumulate": spec.plan.accumulate,
            "precision": spec.precision,
            "device": device_name(self.device),
            "processes": self.num_processes,
            "workers": self.workers,
            "parameters": None if measured is None else measured.num_parameters,
            "trainable_parameters": None if measured is None else measured.num_trainable,
            "measured": None if measured is None else vars(measured),
            "notes": self.notes,
        }


def describe(plan: ResolvedRun, workspace: Workspace, *, force: bool = False) -> str:
    """Return one line on a run that is about to start, and its estimate.

    Args:
        plan: the run.
        workspace: where and how.
        force: the run, but not its stages, is repeated if it is done.
    """
    try:
        found = estimate_runs([plan], workspace, force=force, processes=workspace.world.size)
    except PlbenchError:  # the run itself will report it
        return plan.describe()
    text = f"{plan.describe()}; {found.words}"
    if workspace.decode == "gpu":
        text += ", JPEG files decoded on the GPU"
    missing = {item.key for item in found.missing}
    waiting = [name for name, (_, stage) in plan.stages.items() if stage.spec.key in missing]
    if waiting:
        text += f", stage {', '.join(waiting)} included"
    return "; ".join([text, *_quicker(found)])


def estimate_runs(
    plans: Sequence[ResolvedRun],
    workspace: Workspace,
    *,
    force: bool = False,
    processes: int = 1,
    thorough: bool = False,
) -> Estimate:
    """Check for existing results, and measure a few steps of what is missing; nothing is stored.

    Args:
        plans: the runs; those that can train together do.
        workspace: where and how.
        force: the runs, but not their prerequisites, are repeated if they are done.
        processes: that would train together on this machine.
        thorough: measure more steps, on a GPU with whole batches.

    Raises:
        PlbenchError: if a single run cannot be measured, or a checkpoint to continue from is damaged.
    """
    workspace = replace(workspace, world=World(0, processes))
    wanted, asked = in_order(plans), {plan.spec.key for plan in plans}
    done = {key for key, run in wanted.items() if not (force and key in asked) and run.finished(workspace.store)}
    missing = in_order(plans, but=done)  # finished runs need no prerequisites
    groups = groups_in_order(list(missing.values()), processes) if len(plans) > 1 else []
    company = {plan.spec.key: members for members in groups for plan in members}
    titles, reads = _titles(wanted, asked), _features([*missing.values(), *wanted.values()], missing, workspace)
    files = list(dict.fromkeys(file for files in reads.values() for file in files))
    pace = _Pace(plans, workspace, thorough, reads)
    with workspace.reporter.patience("Measuring a few steps"):
        items = []
        for file in files:
            seconds = pace.features(file.plan, file.num_images) if file.is_missing else 0.0
            items.append(Item(file.what, None, "to do" if file.is_missing else "done", seconds))
        for key, run in wanted.items():
            if key in done:
                items.append(Item(titles[key], key, "done", 0.0, 0, run.num_steps))
            elif key in missing:
                found = None
                if not (force and key in asked):
                    checkpoints = Checkpoints(workspace.store.run_folder(key), run.spec)
                    found = checkpoints.newest(workspace.reporter.line)
                steps = 0 if found is None else found.step
                seconds = pace.run(run, company.get(key, [run]), steps, is_stage=key not in asked)
                items.append(Item(titles[key], key, "going on" if steps else "to do", seconds, steps, run.num_steps))
    if workspace.device.type == "cuda":  # free memory for the runs, so that their records state only their own
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(workspace.device)
    peak = pace.peak_bytes(missing)
    map_bytes = sum(file.num_bytes for file in files if file.is_maps and file.is_missing)
    done_by = (workspace.device, processes, workspace.workers)
    estimate = Estimate(plans[-1], tuple(items), *done_by, pace.own, peak, map_bytes)
    return replace(estimate, notes=(*_notes(estimate, workspace), *pace.errors))


def _titles(wanted: Mapping[str, ResolvedRun], asked: set[str]) -> dict[str, str]:
    """Return each run's title; runs that were not asked for are named by the run that needs them."""
    titles = {key: f"run: {run.method.title}" for key, run in wanted.items()}
    for run in wanted.values():
        needed = {f"stage {name}": stage for name, (_, stage) in run.stages.items()}
        if run.chooser is not None:
            needed["choice of the epoch"] = run.chooser
        titles |= {r.spec.key: f"{what}: {r.method.title}" for what, r in needed.items() if r.spec.key not in asked}
    return titles


@dataclass(frozen=True, eq=False)
class _Features:
    """Features of a split. shape: per image; () if unknown. is_missing: whether a run is waiting for them."""

    plan: ResolvedRun
    split: str
    num_images: int
    shape: tuple[int, ...]
    is_missing: bool

    @property
    def num_bytes(self) -> int:
        """Total size in bytes; 0 if unknown."""
        if not self.shape:
            return 0
        return self.num_images * math.prod(self.shape) * np.dtype(feature_dtype(self.shape)).itemsize

    @property
    def is_maps(self) -> bool:
        """Whether they are feature maps."""
        return self.plan.features_model.pooling == "none"

    @property
    def what(self) -> str:
        """Description of the features; for maps with their size, since they are large."""
        of_images = f"of {self.num_images:,} {self.split} images"
        if not (self.is_maps and self.shape):
            return f"{'feature maps' if self.is_maps else 'features'} {of_images}"
        return f"feature maps {of_images}, {' x '.join(map(str, self.shape))}, {memory(self.num_bytes)}"


def _features(
    plans: Sequence[ResolvedRun], missing: Mapping[str, ResolvedRun], workspace: Workspace
) -> dict[str, list[_Features]]:
    """Return the features that each run reads, by its key; those of finished runs are left out."""
    found: dict[Path, _Features] = {}
    reads: dict[str, list[_Features]] = {}
    for plan in plans:
        spec, is_needed = plan.spec, plan.spec.key in missing
        splits = [spec.protocol.train_split] if spec.regime == "probe" and plan.method.learns else []
        splits += [spec.protocol.test_split] if splits and not spec.only_selects else []
        reads[spec.key] = []
        for split in splits:
            images, model = plan.protocol_data.whole(split).images, plan.features_model
            key = features_key(
                spec.dataset_fingerprint, split, images, model, spec.precision, spec.seed, workspace.decode
            )
            path = workspace.store.cache / features_name(key)
            if path not in found:
                stored = open_matrix(path, num_rows=len(images)) if is_needed else None
                is_missing = is_needed and stored is None
                shape = () if stored is None else stored.shape[1:]
                if is_missing and model.pooling == "none":  # their size is worth a look at the backbone
                    shape = feature_shape(model)
                found[path] = _Features(plan, split, len(images), shape, is_missing)
            reads[spec.key].append(found[path])
    return reads


class _Pace:
    """Measures one run or group of each kind, and extrapolates to whole trainings."""

    def __init__(
        self,
        plans: Sequence[ResolvedRun],
        workspace: Workspace,
        thorough: bool,
        reads: Mapping[str, Sequence[_Features]],
    ) -> None:
        self._plan, self._is_single, self._thorough = plans[-1], len(plans) == 1, thorough
        self._workspace, self._processes, self._reads = workspace, workspace.world.size, reads
        self._on_cpu = workspace.device.type == "cpu"
        self._alone: dict[Any, Measured | None] = {}
        self._stacks: dict[str, Stack | None] = {}
        self.errors: dict[str, None] = {}

    @property
    def own(self) -> Measured | None:
        """Measurement of the last of the runs, or of a similar one."""
        return self._alone.get(self._kind(self._plan))

    def run(self, plan: ResolvedRun, members: list[ResolvedRun], steps_done: int, *, is_stage: bool) -> float:
        """Return the remaining seconds of a run that trains with the members of its group."""
        if not plan.method.learns:
            return 0.0  # scores are read from a file within seconds
        steps = plan.num_steps - steps_done
        if (stack := self._stack(members)) is not None:
            return steps * stack.step_seconds + stack.scoring_seconds
        if (measured := self._measured(plan)) is None:
            return 0.0
        compute = measured.step_seconds * (self._processes if self._on_cpu else 1)
        training = steps * self._loaded(measured, compute, plan.spec.plan.batch_size)
        # processes of a machine share its CPU, but each has its own GPU
        scoring = self._loaded(measured, measured.infer_seconds, 1) / (1 if self._on_cpu else self._processes)
        return training + scored_images(plan, is_stage=is_stage) * scoring

    def features(self, plan: ResolvedRun, num_images: int) -> float:
        """Return the seconds for computing the features of a split."""
        measured = self._measured(plan)
        return 0.0 if measured is None else num_images * self._loaded(measured, measured.extract_seconds, 1)

    def peak_bytes(self, missing: Iterable[str]) -> int | None:
        """Return the peak memory: on a GPU allocated memory, on a CPU including the program and its cached features."""
        measured = [one for one in (*self._alone.values(), *self._stacks.values()) if one is not None]
        if not measured or not self._on_cpu:
            return max((one.peak_bytes for one in measured), default=None)
        features = max(sum(file.num_bytes for file in self._reads[key]) for key in missing)
        return features + max(one.program_bytes + one.peak_bytes for one in measured)

    def _measured(self, plan: ResolvedRun) -> Measured | None:
        """Return the measurement of a run's step; None if one of several runs cannot be measured."""
        kind = self._kind(plan)
        if kind not in self._alone:
            representative = self._plan if self._kind(self._plan) == kind else plan
            shape = self._cached_shape(plan)
            try:
                self._alone[kind] = measure(representative, self._workspace, shape, thorough=self._thorough)
            except PlbenchError as error:
                if self._is_single and representative is self._plan:
                    raise
                self._alone[kind] = None
                self.errors[f"not counted, since it cannot be measured: {plan.method.title}: {error}"] = None
        return self._alone[kind]

    def _kind(self, plan: ResolvedRun) -> Any:
        """Return a key shared by runs that are assumed to be equally fast, such as most stages and their run."""
        spec, method = plan.spec, plan.method
        plan_ = (spec.plan.batch_size, spec.plan.accumulate, spec.plan.grad_checkpointing)
        hooks = (method.build, method.forward, method.transform)
        model, is_cached = plan.features_model, self._cached_shape(plan) is not None
        return spec.dataset_fingerprint, model, spec.regime, plan_, hooks, is_cached

    def _stack(self, members: list[ResolvedRun]) -> Stack | None:
        """Return the measurement of heads that train stacked; None if they do not, or cannot be measured."""
        if len(members) < 2:
            return None
        kind = alike(members)
        if kind not in self._stacks:
            shape = self._cached_shape(members[0]) or feature_shape(members[0].spec.model)
            try:
                self._stacks[kind] = measure_stack(members, shape[0], self._workspace)
            except PlbenchError:  # the run itself will report it
                self._stacks[kind] = None
        return self._stacks[kind]

    def _cached_shape(self, plan: ResolvedRun) -> tuple[int, ...] | None:
        """Return the shape of a run's features; None if some are still to be computed, or it uses none."""
        files = self._reads[plan.spec.key]
        return None if not files or any(file.is_missing or not file.shape for file in files) else files[0].shape

    def _loaded(self, measured: Measured, compute: float, num_images: int) -> float:
        """Return seconds for computing on images that workers load; concurrently on a GPU, sequentially on a CPU."""
        loading, workers = num_images * measured.load_seconds, self._workspace.workers
        if workers == 0:
            return compute + loading / (1 if self._on_cpu else self._processes)
        loading /= min(workers * self._processes, os.cpu_count() or 1)
        return compute + loading if self._on_cpu else max(compute, loading)


def _quicker(found: Estimate) -> Iterator[str]:
    quick = any(recipe.name == "quick" for recipe in found.plan.protocol_data.dataset.recipes)
    if found.seconds > DAY and quick and found.plan.recipe.name != "quick":
        yield '`recipe="quick"` takes minutes to hours'


def _notes(found: Estimate, workspace: Workspace) -> Iterator[str]:
    """Yield caveats about these figures, and suggestions."""
    measured, spec = found.measured, found.plan.spec
    if measured is None:
        return
    yield (
        f"time and memory are estimated from a few steps of {measured.measured_images} images with synthetic inputs"
        + (f", scaled up to {measured.batch_images}" if measured.measured_images < measured.batch_images else "")
    )
    if measured.is_too_large:
        total = torch.cuda.get_device_properties(workspace.device).total_memory
        pieces = math.ceil(measured.batch_images / measured.measured_images)
        yield (
            f"{measured.piece_images} images at a time do not fit into the {total / 2**30:.0f} GiB of this GPU; "
            f"`accumulate={pieces * spec.plan.accumulate}` computes the batch in smaller pieces"
        )
    if workspace.decode == "gpu":
        yield 'images were loaded without `decode="gpu"`: decoding on the GPU is not measured'
    if found.num_processes > 1:
        yield "communication between processes is not measured"
    yield from _quicker(found)
