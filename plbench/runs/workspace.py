"""Locations and compute options on this machine, and opening datasets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_data_path
from pydantic import ValidationError

from plbench.data.dataset import Dataset
from plbench.data.shards.prepared import is_prepared, prepared_kind
from plbench.errors import MissingDataError, PlbenchError, did_you_mean, first_invalid
from plbench.files import locked, unwritable
from plbench.progress import Reporter
from plbench.runs.registry import Registry
from plbench.runs.store import Store
from plbench.training.distributed import ALONE, World

SAVE_EVERY_SECONDS = 20.0


@dataclass(frozen=True)
class Workspace:
    """Locations and compute options: everything a run needs that does not affect its result.

    Attributes:
        data_root: the dataset's own folder; None for the default location.
        data_options: the dataset's other options, by name.
        weights_file: of a backbone whose weights are "file". pretraining: datasets that it was trained on, as given by
            the user; None if not given.
        decode: what decodes JPEG files: "pil", in the workers, or "gpu"; see `plbench.loading.jpegs`.
        track: names of trackers for each training; see `plbench.tracking`.
        dropped: trackers that failed and are no longer used.
        world: processes of distributed training.
        save_every: maximum seconds between two checkpoints. save_epochs: epochs between two additional ones.
        compiles: whether to use `torch.compile`.
        profiles: whether some steps of each training are traced.
        shares_machine: whether other processes of the same sweep may be running.
        chose_threads: whether torch's number of threads was chosen by measurement; resumed trainings then keep their
            number.
        nproc: processes per run, see `plbench.runs.processes`; 1 to train in this process.
    """

    store: Store
    registry: Registry
    reporter: Reporter
    device: torch.device
    workers: int
    data_root: Path | None = None
    data_options: Mapping[str, Any] = field(default_factory=dict)
    weights_file: Path | None = None
    pretraining: tuple[str, ...] | None = None
    track: tuple[str, ...] = ()
    decode: str = "pil"
    dropped: set[str] = field(default_factory=set, compare=False)
    world: World = ALONE
    save_every: float = SAVE_EVERY_SECONDS
    save_epochs: int | None = None
    compiles: bool = False
    profiles: bool = False
    shares_machine: bool = False
    nproc: int = 1
    chose_threads: bool = False

    @property
    def trackers(self) -> tuple[str, ...]:
        """Names of this process's trackers; with several processes, only the main one has any."""
        return self.track if self.world.is_main else ()


def open_dataset(name: str, workspace: Workspace) -> Dataset:
    """Return a dataset with its files, generated or checked.

    Raises:
        DataError: if files are missing: which, the expected location, and how to get them. StoreError: if generated
            files cannot be written.
    """
    dataset = locate_dataset(name, workspace)
    missing = dataset.missing()
    if missing:
        where = f", not found in {dataset.root} (give another folder with `data_root=DIR`)"
        needs = ", ".join(missing) + (where if dataset.needs_root else "")
        raise MissingDataError(f"dataset {name!r} needs {needs}; {dataset.fetch_hint()}", dataset)
    dataset.warn = workspace.reporter.line  # type: ignore[method-assign,assignment]
    doing = "Reading the annotations of" if dataset.needs_files else "Preparing"
    with (
        locked(workspace.store.cache / "data" / name),
        workspace.reporter.task(f"{doing} {dataset.title}", bytes=dataset.needs_files) as report,
    ):
        try:
            dataset.prepare(report)
        except OSError as error:
            raise unwritable(dataset.root, error) from error
    return dataset


def fingerprint(dataset: Dataset, workspace: Workspace) -> str:
    """Return a dataset's fingerprint. Images are hashed once, with progress, by the main process first.

    Raises:
        StoreError: if the cache cannot be written.
    """

    def hash_images() -> None:
        doing = f"Hashing the images of {dataset.title}, once"
        with locked(workspace.store.cache / "data" / dataset.name), workspace.reporter.task(doing) as report:
            for split in dataset.used_splits():
                dataset.image_sha256s(split, report)

    if dataset.needs_files:
        workspace.world.shared(hash_images)
    return dataset.fingerprint()


def locate_dataset(name: str, workspace: Workspace) -> Dataset:
    """Return a dataset with its location and options; nothing is read.

    Raises:
        PlbenchError: if an option does not exist, or its value is not valid.
    """
    kind = workspace.registry.dataset(name)
    root, cache = dataset_root(kind, workspace), workspace.store.cache
    if is_prepared(root):  # options of the original files no longer apply
        return prepared_kind(kind)(root, cache=cache)
    known = kind.Options.model_fields
    for option in workspace.data_options:
        if option not in known:
            takes = did_you_mean(option, known) if known else "it takes none"
            raise PlbenchError(f"dataset {kind.name!r} has no option {option!r}; {takes}")
    try:
        return kind(root, cache=cache, options=kind.Options.model_validate(dict(workspace.data_options)))
    except ValidationError as error:
        option, message, given, wrong = first_invalid(error)
        if wrong == "missing":
            asks = f"needs to be told {option!r}: {known[option].description}"
            raise PlbenchError(f"dataset {kind.name!r} {asks}") from error
        raise PlbenchError(f"dataset {kind.name!r}: {option} = {given!r} is not valid: {message}") from error


def dataset_root(kind: type[Dataset], workspace: Workspace) -> Path:
    """Return the given or the default folder: in the cache for generated datasets, in the user's data for others."""
    if workspace.data_root is not None:
        return workspace.data_root
    if not kind.needs_files:
        return workspace.store.cache / "data" / kind.name
    return user_data_path("plbench") / kind.name
