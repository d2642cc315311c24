"""Making a dataset that is a selection of another."""

from __future__ import annotations

from pathlib import Path

from plbench.errors import PlbenchError
from plbench.files import locked, unwritable
from plbench.runs.workspace import Workspace, locate_dataset


def make_dataset(name: str, source: Path, workspace: Workspace) -> Path:
    """Have a dataset write its files from another's folder, and return where they are.

    Args:
        name: of the dataset to make.
        source: folder of the one that it is a selection of.
        workspace: where.

    Raises:
        PlbenchError: if it is not made from another, or is there already. DataError: if the source is not whole.
        StoreError: if the files cannot be written.
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
