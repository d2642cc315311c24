"""Create a dataset that is a selection of another."""

from __future__ import annotations

from pathlib import Path

from plbench.errors import PlbenchError
from plbench.files import locked, unwritable
from plbench.runs.workspace import Workspace, locate_dataset


def make_dataset(name: str, source: Path, workspace: Workspace) -> Path:
    """Write a dataset's files from another dataset's folder, and return their location.

    Args:
        name: of the dataset to create.
        source: folder of the original dataset.
        workspace: locations.

    Raises:
        PlbenchError: if it is not derived from another dataset, or exists already. DataError: if the source is
            incomplete. StoreError: if the files cannot be written.
    """
    dataset = locate_dataset(name, workspace)
    if dataset.needs_files and not dataset.missing():
        raise PlbenchError(f"{dataset.root} holds {name!r} already; give another folder with `data_root=DIR`")
    with (
        locked(workspace.store.cache / "data" / name),
        workspace.reporter.task(f"Making {dataset.title}") as report,
    ):
        try:
            dataset.make(source, report)
        except OSError as error:
            raise unwritable(dataset.root, error) from error
    return dataset.root
