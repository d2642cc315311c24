"""One run, from plan to record. Read this first."""

from __future__ import annotations

import contextlib
import datetime
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tomli_w
import torch
from torch import Tensor

from plbench.errors import StoreError, TrainingError
from plbench.files import write_text
from plbench.files.checksums import DAMAGED, Damaged, read_checked, set_aside, write_checked
from plbench.method import Stage
from plbench.runs import environment, outcome
from plbench.runs.active import Job, Watch
from plbench.runs.plan.resolve import ResolvedRun
from plbench.runs.record import Record, figures, whole_file, write_record
from plbench.runs.store import CHECKPOINT, RECORD
from plbench.runs.workspace import Workspace
from plbench.training import checkpoint
from plbench.training.evaluation import View


def run(plan: ResolvedRun, workspace: Workspace, *, force: bool = False, watch: Watch | None = None) -> Record:
    """Trains and evaluates what a plan says, and saves a record; a run that is done is read, not repeated.

    Args:
        plan: what to run.
        workspace: where and how.
        force: repeat a run that is done.
        watch: is told each epoch and its mAP(C) on the scored part; what it raises ends the run.

    Raises:
        PlbenchError: if the run cannot be made; what was worth keeping (a checkpoint) stays.
    """
    store, key, world = workspace.store, plan.spec.key, workspace.world
    if not force and (record := world.shared(lambda: plan.finished(workspace.store))):
        return record
    artifacts = {name: stage_artifact(plan, name, workspace) for name in plan.stages}
    stop_after = chosen_epoch(plan, workspace)
    with _held(plan, workspace):
        if not force and (record := world.shared(lambda: plan.finished(workspace.store))):
            return record  # another program made it while this one was busy with the stages
        if force and world.is_main:
            store.remove(key)
        folder = store.run_folder(key)
        with discard_incomplete_run(plan, folder, workspace):
            return _make(Job(plan, workspace, artifacts, stop_after, watch), folder)


@contextlib.contextmanager
def _held(plan: ResolvedRun, workspace: Workspace) -> Iterator[None]:
    """The run, held by the main process for all of them."""
    if not workspace.world.is_main:
        yield
        return
    key = plan.spec.key
    held = f"Run {key} is under way in another process; waiting for it"
    with workspace.store.lock(key, waiting=lambda: workspace.reporter.line(held)):
        yield


def _make(job: Job, folder: Path) -> Record:
    """Trains, evaluates, writes."""
    write_spec(job, folder)
    with job.phase("data"):
        job.prepare()
        job.open_scored_part()
    with job.followed(folder) as job.tracking:
        job.train(folder)
        record = conclude(job, folder)
        job.tracking.finished(job.state.step, figures(record))
    return record


def write_spec(job: Job, folder: Path) -> None:
    """What will run, first of all files."""
    if job.workspace.world.is_main:
        write_text(folder / "spec.toml", tomli_w.dumps(job.spec.model_dump(mode="json", exclude_none=True)))


def conclude(job: Job, folder: Path) -> Record:
    """Evaluates a model that is trained and writes its files; the record last, since it says that the run is whole."""
    with job.phase("evaluation"):
        scored = outcome.score(job)
    return job.workspace.world.shared(lambda: _write_down(job, scored, folder))


def _write_down(job: Job, scored: outcome.Scored | None, folder: Path) -> Record:
    """The main process's work alone."""
    assert scored is not None
    spec = job.plan.spec
    with job.phase("intervals"):
        metrics = outcome.summarise(job, scored, folder)
    checkpoint.save(folder / CHECKPOINT, spec.sha256(), job.state.weights())
    record = outcome.record(job, scored, metrics, folder, now())
    write_record(folder, record)
    checkpoint.Checkpoints(folder, spec).remove()  # what a training goes on from
    return record


def stage_artifact(plan: ResolvedRun, name: str, workspace: Workspace) -> Tensor:
    """What a stage hands on: its run, made once for everyone, and then reduced to a tensor, once too."""
    stage, stage_plan = plan.stages[name]
    world = workspace.world
    if world.shared(lambda: stage_plan.finished(workspace.store)) is None:
        workspace.reporter.line(f"Stage {name!r}: {stage_plan.describe()}")
    run(stage_plan, workspace)
    folder = workspace.store.run_folder(stage_plan.spec.key)
    path = folder / "artifacts" / f"{name}-{plan.spec.method.source_sha256[:16]}.npy"
    value = world.shared(lambda: _stored(path, workspace))
    if value is None:
        if not world.shared(lambda: _has_its_weights(stage_plan, workspace)):
            run(stage_plan, workspace)
        reduced = value = _reduce(stage, stage_plan, workspace, folder).cpu().numpy()
        if world.is_main:
            write_checked(path, lambda file: np.save(file, reduced, allow_pickle=False))
    return torch.from_numpy(value)


def _stored(path: Path, workspace: Workspace) -> np.ndarray | None:
    """An artifact on disk; None where there is none, or it was damaged, which is said, and set aside."""
    try:
        value: np.ndarray = np.load(io.BytesIO(read_checked(path)), allow_pickle=False)
    except FileNotFoundError:
        return None
    except (Damaged, ValueError, EOFError) as error:
        workspace.reporter.line(f"{error}; set aside as {set_aside(path)}, making it again")
        return None
    return value


def _has_its_weights(plan: ResolvedRun, workspace: Workspace) -> bool:
    """Whether the weights of a run that is done are those that its record speaks of.

    Where they are not, that is said, and weights and record are set aside, so that the run counts as not done.
    """
    folder = workspace.store.run_folder(plan.spec.key)
    record = plan.finished(workspace.store)
    if record is None:
        return False
    try:
        whole_file(folder, record, CHECKPOINT)
    except StoreError as error:
        what = str(error).partition(";")[0]
        workspace.reporter.line(f"{what}; it is set aside (*{DAMAGED}), and that run is made again")
        for name in (CHECKPOINT, RECORD):
            if (folder / name).exists():
                set_aside(folder / name)
        return False
    return True


def _reduce(stage: Stage, plan: ResolvedRun, workspace: Workspace, folder: Path) -> Tensor:
    """Applies a stage's reduction to its trained model, over its whole training part."""
    artifacts = {name: stage_artifact(plan, name, workspace) for name in plan.stages}
    job = Job(plan, workspace, artifacts, None)
    job.prepare()
    job.state.load_weights(checkpoint.load(folder / CHECKPOINT, plan.spec.sha256()))
    return stage.reduce(View(job.state, job.train_inputs, job.execution))


def chosen_epoch(plan: ResolvedRun, workspace: Workspace) -> int | None:
    """Under validation selection, the best epoch of the same run on train without its validation part."""
    if plan.chooser is None:
        return None
    workspace.reporter.line(f"Choosing the epoch on the validation part: {plan.chooser.describe()}")
    selection = run(plan.chooser, workspace).selection
    assert selection is not None
    return selection.epoch


@contextlib.contextmanager
def discard_incomplete_run(plan: ResolvedRun, folder: Path, workspace: Workspace) -> Iterator[None]:
    """On failure: a failed training leaves a failed record; without a checkpoint, anything else leaves nothing."""
    if not workspace.world.is_main:
        yield
        return
    try:
        yield
    except TrainingError as error:
        record = Record(
            key=plan.spec.key,
            spec_sha256=plan.spec.sha256(),
            spec=plan.spec,
            status="failed",
            finished_at=now(),
            title=plan.method.title,
            environment=environment.describe(workspace.device, workspace.decode),
            error=str(error),
        )
        write_record(folder, record)
        raise
    except BaseException:
        if not (folder / CHECKPOINT).is_file() and not checkpoint.Checkpoints(folder, plan.spec).exist():
            workspace.store.remove(plan.spec.key)
        raise


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
