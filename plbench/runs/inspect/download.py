"""Select the published files of a dataset to download, and confirm large downloads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from plbench.data.dataset import Dataset
from plbench.data.download.remote import RemoteFile, is_here, size_in_words
from plbench.errors import PlbenchError, did_you_mean
from plbench.runs.workspace import Workspace, locate_dataset

ASK_ABOVE = 500 * 10**9
"""Size above which a download must be confirmed."""


@dataclass(frozen=True)
class Fetched:
    """Result of a download: files that existed already, and new ones."""

    dataset: str
    folder: str
    present: tuple[str, ...]
    fetched: tuple[str, ...]


def fetch(
    name: str,
    workspace: Workspace,
    *,
    annotations_only: bool,
    splits: Sequence[str],
    parallel: int,
    confirm: Callable[[str], bool],
) -> Fetched:
    """Download, verify and unpack a dataset's published files into its folder.

    Args:
        annotations_only: leave the images out.
        splits: only files of these, and those that all splits need; empty for every split.
        parallel: maximum number of concurrent downloads.
        confirm: called with a question before large downloads; False cancels.

    Raises:
        PlbenchError: if the dataset has no published files, there is no such split, or the download was cancelled.
        DataError: if a file is unavailable or differs from what its publisher states. StoreError: if the disk is full.
    """
    from plbench.data.download.files import download, total_bytes  # requests is slow to import

    dataset = locate_dataset(name, workspace)
    chosen = choose(dataset, annotations_only=annotations_only, splits=splits)
    missing = [file for file in chosen if not is_here(file, dataset.root)]
    present = tuple(file.path for file in chosen if file not in missing)
    if missing:
        size = total_bytes(missing, dataset.root)
        amount = "an amount that the servers do not tell" if size is None else size_in_words(size)
        workspace.reporter.line(f"Fetching {len(missing)} files, {amount}, into {dataset.root}")
        if (size is None or size > ASK_ABOVE) and not confirm(f"Fetch {amount} into {dataset.root}?"):
            raise PlbenchError("nothing was downloaded; `annotations_only=True` or `split=NAME` fetch less")
        with workspace.reporter.task(f"Downloading {dataset.title}", bytes=True) as report:
            download(missing, dataset.root, report, parallel=parallel, note=workspace.reporter.line)
    return Fetched(name, str(dataset.root), present, tuple(file.path for file in missing))


def choose(dataset: Dataset, *, annotations_only: bool, splits: Sequence[str]) -> list[RemoteFile]:
    """Return the selected published files.

    Raises:
        PlbenchError: if the dataset has none, or none of a split.
    """
    if not dataset.downloads:
        how = dataset.fetch_hint() if dataset.needs_files else "it makes its own files when it is first used"
        raise PlbenchError(f"dataset {dataset.name!r} has no files to download; {how}")
    known = {file.split for file in dataset.downloads if file.split is not None}
    for split in splits:
        if split not in known:
            others = did_you_mean(split, known) if known else "all splits need all of its files"
            raise PlbenchError(f"no file of {dataset.name!r} belongs to split {split!r} alone; {others}")
    return [
        file
        for file in dataset.downloads
        if not (annotations_only and file.kind == "images") and (not splits or file.split in (None, *splits))
    ]
