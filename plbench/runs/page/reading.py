"""Read the folder of a run, including failed and interrupted runs, and runs of older versions."""

from __future__ import annotations

import contextlib
import json
import tomllib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from plbench.errors import StoreError, first_invalid
from plbench.metrics.cells import Cells
from plbench.runs.record import Record, SelectionReport, SplitMetrics, read_record, whole_file
from plbench.runs.store import RECORD, SPEC
from plbench.runs.stored import read_run
from plbench.runs.tables import PER_CLASS, ClassRow, parse_per_class
from plbench.runs.task_file import TASK, read_task
from plbench.spec import RunSpec
from plbench.training.checkpoint import FOLDER

LOG, CELLS = "log.jsonl", "cells.npz"

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TrainLabels:
    """Known labels of each class in the train part: [C] positives and negatives, and the number of images."""

    positives: Counts
    negatives: Counts
    num_images: int

    @property
    def unknown(self) -> Counts:
        """[C] number of images on which the class is unknown."""
        unknown: Counts = self.num_images - self.positives - self.negatives
        return unknown


@dataclass(frozen=True)
class RunFiles:
    """The files of a run.

    Attributes:
        record: None if the run is unfinished.
        saved_step: step of the last checkpoint of a run without a record; 0 if there is none.
        log: rows by epoch.
        selection: how its epoch was selected, with the curve; possibly from another run that selected it.
        classes: of the per-class table, in the order of the cells' class indices.
        train: content of `task.npz`.
        absent: names of files that the run, or its version of plbench, lacks.
    """

    folder: Path
    spec: RunSpec
    record: Record | None = None
    saved_step: int = 0
    log: list[dict[str, Any]] = field(default_factory=list)
    selection: SelectionReport | None = None
    classes: tuple[ClassRow, ...] = ()
    cells: Cells | None = None
    train: TrainLabels | None = None
    absent: tuple[str, ...] = ()

    @property
    def is_done(self) -> bool:
        """Whether there are figures."""
        return self.record is not None and bool(self.record.metrics)

    @cached_property
    def part(self) -> str:
        """The part that the run was scored on: "test", or "validation" for a run that only selects."""
        return "validation" if self.spec.only_selects else "test"

    @property
    def metrics(self) -> SplitMetrics:
        """Headline figures of a run that has any."""
        assert self.record is not None
        return self.record.metrics[self.part]


def read_files(folder: Path) -> RunFiles:
    """Read the files of a run; missing ones are listed, and changed ones rejected.

    Raises:
        StoreError: if the folder does not belong to a run, or one of its files is damaged or changed.
    """
    if not (folder / RECORD).is_file():
        return _without_record(folder)
    record = read_record(folder)
    there = {name for name in record.files if (folder / name).is_file()}
    if PER_CLASS in there:
        read_run(folder)  # compares the table with the figures
    cells = Cells.load(whole_file(folder, record, CELLS)) if CELLS in there else None
    classes = parse_per_class(whole_file(folder, record, PER_CLASS).read_bytes()) if PER_CLASS in there else ()
    train = None
    if TASK in there:
        task = read_task(whole_file(folder, record, TASK), record.spec)
        train = TrainLabels(task.positives.astype(np.int64), task.negatives.astype(np.int64), task.num_train)
    logged = whole_file(folder, record, LOG) if LOG in there else folder / LOG
    absent = tuple(name for name in (LOG, CELLS, PER_CLASS, TASK) if name not in there) if record.metrics else ()
    log, selection = _log(logged), _selection(folder, record)
    return RunFiles(folder, record.spec, record, 0, log, selection, classes, cells, train, absent)


def _selection(folder: Path, record: Record) -> SelectionReport | None:
    """Return how the epoch was selected, with the curve of the adjacent run that selected it, if available.

    That run differs only in its train part, as do the runs of its stages.
    """
    spec = record.spec
    if record.selection is None or spec.selection != "validation" or spec.train_part != "train":
        return record.selection
    differing = {"train_part", "stages"}
    wanted = spec.model_dump(mode="json", exclude_none=True, exclude=differing)
    for path in sorted(folder.absolute().parent.glob(f"*/{SPEC}")):
        with contextlib.suppress(OSError, ValueError, StoreError, RecursionError):  # another run that cannot be used
            own = tomllib.loads(path.read_text(encoding="utf-8"))
            is_it = own.get("train_part") == "fit" and {n: own[n] for n in own if n not in differing} == wanted
            if is_it and (found := read_record(path.parent).selection) is not None:
                return record.selection.model_copy(update={"curve": found.curve})
    return record.selection


def _without_record(folder: Path) -> RunFiles:
    path = folder / SPEC
    try:
        spec = RunSpec.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        # the note of a checkpoint is written after it, and named after its step
        notes = sorted((folder / FOLDER).glob("step-*.json"))
        step = int(json.loads(notes[-1].read_bytes())["step"]) if notes else 0
    except OSError as error:
        raise StoreError(f"{folder} is not a run: {error.filename} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        name, message, *_ = first_invalid(error)
        raise StoreError(f"{path} is not a run's spec: {name}: {message}; delete {folder}") from error
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise StoreError(
            f"{folder} cannot be read: {error!s:.200}; delete it, or run it again with `force=True`"
        ) from error
    return RunFiles(folder, spec, saved_step=step, log=_log(folder / LOG))


def _log(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a log; empty if there is none."""
    if not path.is_file():
        return []
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [{name: float(row[name]) for name in ("epoch", "step", "loss", "lr", "seconds")} for row in rows]
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise StoreError(f"{path} is not a log of a training ({error!s:.200}); delete it") from error
