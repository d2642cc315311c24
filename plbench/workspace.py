"""Where things are on this machine, and opening what lies there: datasets whose files are whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from platformdirs import user_data_path

from plbench.api import Dataset
from plbench.console import Reporter
from plbench.errors import DataError
from plbench.images import find_unreadable
from plbench.registry import Registry
from plbench.spec import Protocol
from plbench.store import Store, unwritable, write_json


@dataclass(frozen=True)
class Workspace:
    """Where things are and how to compute: all that a run needs and its outcome does not depend on.

    Attributes:
        data_root: the dataset's own folder; None to look where datasets usually are.
        weights_file: of a backbone whose weights are "file".
    """

    store: Store
    registry: Registry
    reporter: Reporter
    device: torch.device
    workers: int
    data_root: Path | None = None
    weights_file: Path | None = None


def open_dataset(name: str, workspace: Workspace) -> Dataset:
    """A dataset whose files are there, drawn or checked.

    Raises:
        DataError: if files are missing: which, where they were looked for, and how to get them. StoreError: if
            those that the dataset makes itself cannot be written.
    """
    kind = workspace.registry.dataset(name)
    dataset = kind(dataset_root(kind, workspace))
    missing = dataset.missing()
    if missing:
        raise DataError(
            f"dataset {name!r} needs {', '.join(missing)}, not found in {dataset.root} (give another folder with "
            f"--data-root DIR); {dataset.fetch_hint()}"
        )
    if kind.needs_files:
        with workspace.reporter.patience(f"Reading the annotations of {kind.title} in {dataset.root}"):
            dataset.split(kind.protocols[0].train_split)  # which keeps what it read
    else:
        with (
            workspace.store.cache_lock(f"data/{name}"),
            workspace.reporter.task(f"Preparing {kind.title}") as report,
        ):
            try:
                dataset.prepare(report)
            except OSError as error:
                raise unwritable(dataset.root, error) from error
    return dataset


def dataset_root(kind: type[Dataset], workspace: Workspace) -> Path:
    """The folder given, or where datasets usually are: the cache for drawn ones, the user's data for others."""
    if workspace.data_root is not None:
        return workspace.data_root
    if not kind.needs_files:
        return workspace.store.cache / "data" / kind.name
    return user_data_path("plbench") / kind.name


def check_images(dataset: Dataset, protocol: Protocol, workspace: Workspace, *, skip: bool) -> tuple[str, ...]:
    """Images that cannot be read, as "split/id", after decoding each once per dataset and folder.

    Raises:
        DataError: if there are any and they are not to be skipped, naming the first.
    """
    if not dataset.needs_files:
        return ()
    unreadable: dict[str, str] = {}
    for split in (protocol.train_split, protocol.test_split):
        found = _unreadable(dataset, split, workspace)
        unreadable |= {f"{split}/{image_id}": reason for image_id, reason in found.items()}
    if unreadable and not skip:
        raise DataError(
            f"{next(iter(unreadable.values()))} ({len(unreadable)} such images in all); mend or fetch them again, or "
            "give --skip-unreadable to go on without them"
        )
    return tuple(sorted(unreadable))


def _unreadable(dataset: Dataset, split: str, workspace: Workspace) -> dict[str, str]:
    """Reasons by image id. What was found is noted in the cache: only images that failed are read again."""
    images = dataset.split(split).images
    name = f"checked/{dataset.name}-{split}-{dataset.fingerprint()[:16]}.json"
    with workspace.store.cache_lock(name) as note:
        suspects: Sequence[int] = range(len(images))
        if (failed := _noted(note)) is not None:
            absent = set(images.absent())
            suspects = [row for row in suspects if row in absent or images.ids[row] in failed]
        chosen = images.subset(np.array(suspects, np.int64))
        with workspace.reporter.task(f"Checking that every {split} image can be read") as report:
            reasons = {chosen.ids[row]: reason for row, reason in find_unreadable(chosen, report).items()}
        write_json(note, {"unreadable": sorted(reasons)})
    return reasons


def _noted(note: Path) -> set[str] | None:
    """Ids that an earlier check found unreadable; None where there was none, or its note says nothing to us."""
    try:
        return {str(image_id) for image_id in json.loads(note.read_text(encoding="utf-8"))["unreadable"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
