"""One run, from plan to record. Read this first."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator

import numpy as np
import tomli_w
import torch
from torch import Tensor

from plbench.errors import TrainingError
from plbench.files import write_text
from plbench.files.checksums import write_checked
from plbench.runs import artifacts, environment, outcome
from plbench.runs.active import ActiveRun, Watch
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.record import Record, figures, write_record
from plbench.runs.store import CHECKPOINT
from plbench.runs.task_file import save_task
from plbench.runs.workspace import Workspace
from plbench.training import checkpoint
from plbench.training.evaluation import View


def run(plan: ResolvedRun, workspace: Workspace, *, force: bool = False, watch: Watch | None = None) -> Record:
    """Train and evaluate a plan, and save its record; a finished run is read, not repeated.

    Args:
        plan: the run.
        workspace: locations and compute options.
        force: repeat a finished run.
        watch: receives each epoch and its mAP(C) on the scored part; an exception in it ends the run.

    Raises:
        PlbenchError: if the run is not possible; checkpoints are kept.
    """
    store, key, world = workspace.store, plan.spec.key, workspace.world
    # one process checks for all: the store might change between checks of several processes
    if not force and (record := world.shared(lambda: plan.finished(workspace.store))):
        return record
    # before locking the run: stages may take hours, and lock their own runs
    of_stages = {name: stage_artifact(plan, name, workspace) for name in plan.stages}
    stop_after = chosen_epoch(plan, workspace)
    with contextlib.ExitStack() as held:
        if world.is_main:  # for all of them
            held.enter_context(store.lock(key, workspace.reporter.line))
        if not force and (record := world.shared(lambda: plan.finished(workspace.store))):
            return record  # another program finished it while this one ran the stages
        if force and world.is_main:
            # only now that it is locked: another process may have been writing it
            store.remove(key)
        active = ActiveRun(plan, workspace, of_stages, stop_after=stop_after, watch=watch)
        held.enter_context(discard_incomplete_run(plan, workspace))
        write_spec(active)
        with active.phase("data"):
            active.prepare()
            active.open_scored_part()
        with active.followed() as active.tracking:
            active.train()
            record = conclude(active, active.state.clock.seconds())
            active.tracking.finished(active.state.step, figures(record))
        return record


def write_spec(active: ActiveRun) -> None:
    """Write the spec, the first file of a run."""
    if active.workspace.world.is_main:
        spec = active.spec.model_dump(mode="json", exclude_none=True)
        write_text(active.folder / "spec.toml", tomli_w.dumps(spec))


def conclude(active: ActiveRun, phases: dict[str, float], shared_with: int = 0) -> Record:
    """Evaluate a trained model and write its files, with the record last, since it marks the run as complete.

    Args:
        active: a run whose training has ended.
        phases: training seconds by phase, if measured for this run alone.
        shared_with: number of other heads that trained in the same pass.
    """
    with active.phase("evaluation"):
        scored = outcome.score(active)

    def write_down() -> Record:
        assert scored is not None
        folder, spec = active.folder, active.spec
        with active.phase("intervals"):
            metrics = outcome.summarise(active, scored)
        checkpoint.save(folder / CHECKPOINT, spec.sha256(), active.state.weights())
        if spec.embeddings is None:  # otherwise the task contains a model's outputs on all train images
            save_task(folder, active.method.task)
        record = outcome.record(active, scored, metrics, now(), phases, shared_with)
        write_record(folder, record)
        # after the record: an interruption in between does not lose the training
        checkpoint.Checkpoints(folder, spec).remove()  # no longer needed
        return record

    return active.workspace.world.shared(write_down)


def stage_artifact(plan: ResolvedRun, name: str, workspace: Workspace) -> Tensor:
    """Return a stage's artifact: its run is trained and reduced to a tensor once, and shared."""
    stage, stage_plan = plan.stages[name]
    world = workspace.world
    if world.shared(lambda: stage_plan.finished(workspace.store)) is None:
        workspace.reporter.line(f"Stage {name!r}: {stage_plan.describe()}")
    run(stage_plan, workspace)
    path = artifacts.path_of(stage, workspace.store.run_folder(stage_plan.spec.key))
    value = world.shared(lambda: artifacts.read(path, workspace.reporter.line))
    if value is None:
        # this sets aside weights that do not match the record; the run then counts as not done
        if not world.shared(lambda: artifacts.has_its_weights(stage_plan, workspace)):
            run(stage_plan, workspace)
        needed = {other: stage_artifact(stage_plan, other, workspace) for other in stage_plan.stages}
        active = ActiveRun(stage_plan, workspace, needed)
        active.prepare()
        active.state.load_weights(checkpoint.load(active.folder / CHECKPOINT, stage_plan.spec.sha256()))
        view = View(active.state, active.train_inputs, active.execution)
        reduced = value = stage.reduce(view).cpu().numpy()
        if world.is_main:
            write_checked(path, lambda file: np.save(file, reduced, allow_pickle=False))
    return torch.from_numpy(value)


def chosen_epoch(plan: ResolvedRun, workspace: Workspace) -> int | None:
    """Return, under validation selection, the best epoch of the same run on train without its validation part."""
    if plan.chooser is None:
        return None
    workspace.reporter.line(f"Choosing the epoch on the validation part: {plan.chooser.describe()}")
    selection = run(plan.chooser, workspace).selection
    assert selection is not None
    return selection.epoch


@contextlib.contextmanager
def discard_incomplete_run(plan: ResolvedRun, workspace: Workspace) -> Iterator[None]:
    """If a training fails, save a failed record; after any other failure, remove a run without a checkpoint."""
    folder, is_main = workspace.store.run_folder(plan.spec.key), workspace.world.is_main
    try:
        yield
    except TrainingError as error:
        if is_main:
            failed = Record(
                key=plan.spec.key,
                spec_sha256=plan.spec.sha256(),
                spec=plan.spec,
                status="failed",
                finished_at=now(),
                title=plan.method.title,
                environment=environment.describe(workspace.device, workspace.decode),
                error=str(error),
            )
            write_record(folder, failed)
        raise
    # including Ctrl-C: without weights or a checkpoint, a run cannot be resumed
    except BaseException:
        begun = (folder / CHECKPOINT).is_file() or checkpoint.Checkpoints(folder, plan.spec).exist()
        if is_main and not begun:
            workspace.store.remove(plan.spec.key)
        raise


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
