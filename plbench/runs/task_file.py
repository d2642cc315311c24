"""A run's `Task`, saved with its weights, so that its model can be rebuilt without the dataset."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plbench.errors import StoreError
from plbench.files import write_atomically
from plbench.files.arrays import damage_in_words, usable
from plbench.method import Task
from plbench.randomness import generator
from plbench.spec import RunSpec

TASK = "task.npz"
_COUNTS = ("positives", "negatives")
_NAMES = ("class_ids", "class_names")


def save_task(folder: Path, task: Task) -> None:
    """Save a run's task, so that its model can be rebuilt without the dataset.

    Raises:
        StoreError: if it cannot be written.
    """
    expected = math.nan if task.expected_positives is None else task.expected_positives
    arrays: dict[str, Any] = {name: np.array(getattr(task, name)) for name in (*_NAMES, *_COUNTS, "num_train")}
    arrays |= {"expected_positives": expected}
    arrays |= {f"artifact.{name}": value.cpu().numpy() for name, value in task.artifacts.items()}
    write_atomically(folder / TASK, lambda file: np.savez_compressed(file, **arrays))


def read_task(path: Path, spec: RunSpec) -> Task:
    """Read a task saved by `save_task`.

    Args:
        path: of the file, verified against its record, which may be from an untrusted source.
        spec: of the run.

    Raises:
        StoreError: if it does not contain a task.
    """
    try:
        with path.open("rb") as file, damage_in_words(), np.load(file, allow_pickle=False) as stored:
            return _task_of({name: usable(stored[name]) for name in stored.files}, spec)
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path} does not hold what a method knew ({error}); run it again with `force=True`"
        ) from error


def _task_of(arrays: dict[str, np.ndarray], spec: RunSpec) -> Task:
    ids, numbers = arrays["class_ids"], (arrays["positives"], arrays["negatives"])
    if ids.ndim != 1 or {ids.dtype.kind, arrays["class_names"].dtype.kind} != {"U"}:
        raise ValueError("its classes are no texts")
    if any(array.dtype.kind not in "iuf" or array.shape != ids.shape for array in numbers):
        raise ValueError("its counts are not one number for each class")
    expected, num_train = float(arrays["expected_positives"]), int(arrays["num_train"])
    prefix = "artifact."
    return Task(
        num_classes=len(arrays["class_ids"]),
        class_ids=tuple(arrays["class_ids"].tolist()),
        class_names=tuple(arrays["class_names"].tolist()),
        positives=arrays["positives"],
        negatives=arrays["negatives"],
        num_train=num_train,
        epochs=spec.plan.epochs,
        steps_per_epoch=math.ceil(num_train / spec.plan.batch_size),
        regime=spec.regime,
        generator=generator(spec.seed, "method", spec.method.name),
        artifacts={n.removeprefix(prefix): torch.from_numpy(v) for n, v in arrays.items() if n.startswith(prefix)},
        expected_positives=None if math.isnan(expected) else expected,
    )
