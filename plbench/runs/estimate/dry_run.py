"""What `plbench run` would do, without doing it: what is there already, what is missing, and what that would take."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from plbench.loading.features import stored_features
from plbench.runs.environment import device_name
from plbench.runs.estimate.estimate import DAY, features_path
from plbench.runs.estimate.measured import Measured, measure
from plbench.runs.plan.resolve import ResolvedRun
from plbench.runs.workspace import Workspace
from plbench.training.checkpoint import Checkpoints
from plbench.training.distributed import World


@dataclass(frozen=True)
class Item:
    """One thing that has to be there, in the order in which they are made.

    Attributes:
        key: of the run; None of features. state: "going on" where there is a checkpoint. steps_done: at it.
        seconds: that it still takes.
    """

    what: str
    key: str | None
    state: Literal["done", "to do", "going on"]
    seconds: float
    steps_done: int = 0


@dataclass(frozen=True)
class DryRun:
    """A run that was not made. All seconds and bytes are estimates.

    Attributes:
        steps_per_epoch, num_steps: of optimisation, of the run itself.
        num_processes: that train together. workers: that decode images, of each.
        measured: None where everything is done and nothing had to be measured.
        peak_bytes: of the device where it is a GPU, else of a process; None where nothing was measured.
    """

    plan: ResolvedRun
    items: tuple[Item, ...]
    steps_per_epoch: int
    num_steps: int
    device: str
    num_processes: int
    workers: int
    measured: Measured | None
    peak_bytes: int | None
    notes: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Of everything that is missing."""
        return sum(item.seconds for item in self.items)

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        spec, measured = self.plan.spec, self.measured
        return {
            "spec": spec,
            "seconds": self.seconds,
            "items": [vars(item) for item in self.items],
            "steps_per_epoch": self.steps_per_epoch,
            "num_steps": self.num_steps,
            "batch_size": spec.plan.batch_size,
            "accumulate": spec.plan.accumulate,
            "precision": spec.precision,
            "device": self.device,
            "processes": self.num_processes,
            "workers": self.workers,
            "parameters": None if measured is None else measured.num_parameters,
            "trainable_parameters": None if measured is None else measured.num_trainable,
            "peak_memory_mb": None if self.peak_bytes is None else self.peak_bytes / 2**20,
            "measured": None if measured is None else vars(measured),
            "notes": self.notes,
        }


def dry_run(plan: ResolvedRun, workspace: Workspace, *, force: bool = False, processes: int = 1) -> DryRun:
    """Looks at what is there and measures a few steps of what is missing; nothing is kept.

    Args:
        plan: the run.
        workspace: where and how.
        force: the run, though not its stages, is repeated if it is done.
        processes: that would train together on this machine.

    Raises:
        StoreError: if a checkpoint to go on from is damaged, as the run itself would.
    """
    workspace = replace(workspace, world=World(0, processes))
    runs = list(_runs(plan))
    is_done = {
        run.spec.key: (run.finished(workspace.store) is not None) and not (force and run is plan) for _, run in runs
    }
    missing = [run for _, run in runs if not is_done[run.spec.key]]
    measured = None
    if missing:
        with workspace.reporter.patience("Measuring a few steps"):
            measured = measure(plan, workspace, _cached_width(plan, missing, workspace))
    pace = None if measured is None else _Pace(measured, workspace, processes)
    items = [*_features(plan, missing, workspace, pace)]
    for what, run in runs:
        steps = 0 if is_done[run.spec.key] or (force and run is plan) else _steps_done(run, workspace)
        seconds = 0.0 if is_done[run.spec.key] or pace is None else pace.run(run, steps, is_stage=run is not plan)
        state: Any = "done" if is_done[run.spec.key] else "going on" if steps else "to do"
        items.append(Item(what, run.spec.key, state, seconds, steps))
    per_epoch = math.ceil(len(plan.protocol_data.train(plan.spec.train_part).rows) / plan.spec.plan.batch_size)
    peak = None if measured is None else _peak_bytes(plan, measured, workspace)
    outcome = DryRun(
        plan=plan,
        items=tuple(items),
        steps_per_epoch=per_epoch,
        num_steps=per_epoch * plan.spec.plan.epochs,
        device=device_name(workspace.device),
        num_processes=processes,
        workers=workspace.workers,
        measured=measured,
        peak_bytes=peak,
        notes=(),
    )
    return replace(outcome, notes=tuple(_notes(outcome, workspace)))


def _runs(plan: ResolvedRun) -> Iterator[tuple[str, ResolvedRun]]:
    """The trainings that the run needs, each once, and itself last, with what to call them."""
    seen: set[str] = set()

    def walk(run: ResolvedRun, what: str) -> Iterator[tuple[str, ResolvedRun]]:
        for name, (_, stage) in run.stages.items():
            yield from walk(stage, f"stage {name}: {stage.method.title}")
        if run.chooser is not None:
            yield from walk(run.chooser, f"choice of the epoch: {run.method.title}")
        if run.spec.key not in seen:
            seen.add(run.spec.key)
            yield what, run

    yield from walk(plan, f"run: {plan.method.title}")


class _Pace:
    """Turns what was measured into seconds of whole trainings."""

    def __init__(self, measured: Measured, workspace: Workspace, processes: int) -> None:
        self._measured, self._workers, self._processes = measured, workspace.workers, processes
        self._on_cpu = workspace.device.type == "cpu"

    def run(self, plan: ResolvedRun, steps_done: int, *, is_stage: bool) -> float:
        """Training from a step on, scoring where something is selected and at the end, and a stage's reduction."""
        spec, protocol_data = plan.spec, plan.protocol_data
        num_train = len(protocol_data.train(spec.train_part).rows)
        num_scored = len((protocol_data.validation() if spec.train_part == "fit" else protocol_data.test()).rows)
        steps = math.ceil(num_train / spec.plan.batch_size) * spec.plan.epochs
        compute = self._measured.step_seconds * (self._processes if self._on_cpu else 1)
        training = (steps - steps_done) * self._loaded(compute, spec.plan.batch_size)
        num_weights = 2 if spec.plan.ema_decay else 1
        passes: float = num_weights * num_scored
        if spec.selection == "best-on-test":
            passes += num_weights * num_scored * spec.plan.epochs
        elif spec.selection == "validation" and spec.train_part == "fit":
            passes += num_scored * spec.plan.epochs
        if protocol_data.hidden_truth(spec.train_part) is not None:
            passes += num_train
        if is_stage:
            passes += num_train
        if spec.train_part == "train" and spec.selection != "validation":  # thresholds of the classes
            passes += spec.protocol.validation_share * num_train
        return training + passes * self._loaded(self._measured.infer_seconds, 1) / self._sharing

    def features(self, num_images: int) -> float:
        """Of computing the features of a split."""
        return num_images * self._loaded(self._measured.extract_seconds, 1)

    @property
    def _sharing(self) -> int:
        """Devices that work at the same time: a machine's processes share its CPU."""
        return 1 if self._on_cpu else self._processes

    def _loaded(self, compute: float, num_images: int) -> float:
        """Seconds of computing on images that workers load meanwhile: a CPU does both, one after the other."""
        loading = num_images * self._measured.load_seconds
        if self._workers == 0:
            return compute + loading / self._sharing
        cores = os.cpu_count() or 1
        at_a_time = min(self._workers * self._processes, cores)
        return compute + loading / at_a_time if self._on_cpu else max(compute, loading / at_a_time)


def _features(
    plan: ResolvedRun, missing: list[ResolvedRun], workspace: Workspace, pace: _Pace | None
) -> Iterator[Item]:
    """The features of each split that a training in the probe regime reads."""
    if plan.spec.regime != "probe":
        return
    protocol = plan.spec.protocol
    splits = [protocol.train_split]
    if any(run.spec.train_part == "train" for run in missing) or plan.spec.train_part == "train":
        splits.append(protocol.test_split)
    for split in splits:
        number = len(plan.protocol_data.whole(split).images)
        what = f"features of {number:,} {split} images"
        if not missing or _stored(plan, workspace, split) is not None:
            yield Item(what, None, "done", 0.0)
        else:
            assert pace is not None
            yield Item(what, None, "to do", pace.features(number))


def _cached_width(plan: ResolvedRun, missing: list[ResolvedRun], workspace: Workspace) -> int | None:
    """Width of the cached features; None where some of them are still to be computed, or the run uses none."""
    if plan.spec.regime != "probe":
        return None
    protocol = plan.spec.protocol
    needs_test = any(run.spec.train_part == "train" for run in missing)
    splits = [protocol.train_split, *([protocol.test_split] if needs_test else [])]
    widths = [_stored(plan, workspace, split) for split in splits]
    return None if None in widths else widths[0]


def _stored(plan: ResolvedRun, workspace: Workspace, split: str) -> int | None:
    """Width of a split's features in the cache; None where they are not there."""
    number = len(plan.protocol_data.whole(split).images)
    features = stored_features(features_path(plan, workspace, split), num_images=number)
    return None if features is None else int(features.shape[1])


def _steps_done(plan: ResolvedRun, workspace: Workspace) -> int:
    """Where the newest checkpoint stands."""
    checkpoints = Checkpoints(workspace.store.run_folder(plan.spec.key), plan.spec)
    found = checkpoints.newest(workspace.reporter.line)
    return 0 if found is None else found.step


def _peak_bytes(plan: ResolvedRun, measured: Measured, workspace: Workspace) -> int:
    """On a GPU what lies there; on a CPU with the program itself and the features that it keeps in memory."""
    if workspace.device.type == "cuda":
        return measured.peak_bytes
    features = 0
    if plan.spec.regime == "probe":
        protocol = plan.spec.protocol
        for split in (protocol.train_split, protocol.test_split):
            width = _stored(plan, workspace, split) or 0
            features += 4 * width * len(plan.protocol_data.whole(split).images)
    return measured.program_bytes + features + measured.peak_bytes


def _notes(found: DryRun, workspace: Workspace) -> Iterator[str]:
    """What a person should know about these figures, and what would help."""
    measured, spec = found.measured, found.plan.spec
    if measured is None:
        return
    yield (
        f"seconds and bytes are estimates, from a few steps of {measured.measured_images} images with made-up inputs"
        + (f", scaled up to {measured.batch_images}" if measured.measured_images < measured.batch_images else "")
    )
    if measured.is_too_large:
        total = torch.cuda.get_device_properties(workspace.device).total_memory
        pieces = math.ceil(measured.batch_images / measured.measured_images)
        yield (
            f"{measured.piece_images} images at a time do not fit into the {total / 2**30:.0f} GiB of this GPU; "
            f"--accumulate {pieces * spec.plan.accumulate} computes it in smaller pieces"
        )
    if workspace.decode == "gpu":
        yield "images were loaded as without --decode gpu: decoding there is not measured"
    if found.num_processes > 1:
        yield "the exchange between processes is not measured"
    quick = any(recipe.name == "quick" for recipe in found.plan.protocol_data.dataset.recipes)
    if found.seconds > DAY and quick and found.plan.recipe.name != "quick":
        yield "--recipe quick takes minutes to hours"
