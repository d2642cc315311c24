"""Check before a run starts that its images can be read."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from plbench.data.dataset import Dataset
from plbench.data.images import find_unreadable
from plbench.errors import DataError
from plbench.files import locked
from plbench.files.checksums import read_checked_json, write_checked_json
from plbench.runs.workspace import Workspace, fingerprint
from plbench.spec import Protocol

MAX_DECODED = 200_000
"""Maximum number of images that are decoded before a run, to find broken ones: 15 minutes on two cores."""

MAX_SKIPPED = 10_000
"""Maximum number of images that a run can leave out, since each is named in its spec."""


def check_images(dataset: Dataset, protocol: Protocol, workspace: Workspace, *, skip: bool) -> tuple[str, ...]:
    """Return unreadable images, as "split/id", after decoding each once per dataset and folder.

    Images of prepared datasets were decoded when they were packed, and millions of files would take hours: in these
    cases only missing images are detected, unless `plbench data verify --decode` has read them all.

    Raises:
        DataError: if there are any and they are not to be skipped, with the first, or if there are too many to skip.
    """
    if not dataset.needs_files:
        return ()
    unreadable: dict[str, str] = {}
    for split in (protocol.train_split, protocol.test_split):
        found = _unreadable(dataset, split, workspace)
        unreadable |= {f"{split}/{image_id}": reason for image_id, reason in found.items()}
    if unreadable and not skip:
        raise DataError(
            f"{next(iter(unreadable.values()))} ({len(unreadable)} such images in all); fix or fetch them again, or "
            "give `skip_unreadable=True` to continue without them"
        )
    return tuple(sorted(unreadable))


def _unreadable(dataset: Dataset, split: str, workspace: Workspace) -> dict[str, str]:
    """Return reasons by image id. Results are cached: only images that failed are read again."""
    images = dataset.split(split).images
    absent = images.absent()
    if len(absent) > MAX_SKIPPED:
        raise DataError(
            f"{len(absent):,} of {len(images):,} {split} images of {dataset.name!r} are missing, such as "
            f"{images.name(absent[0])}; fetch them, or let plbench data prepare {dataset.name} --out DIR pack the "
            "others"
        )
    with note_of_unreadable(dataset, split, workspace) as note:
        noted = read_checked_json(note)  # from an earlier check; None also if the note is invalid
        suspects: Sequence[int] = range(len(images))
        if noted is not None:
            failed, there = set(noted["unreadable"]), set(absent)
            suspects = absent
            if failed:
                suspects = [row for row, name in enumerate(images.ids) if row in there or name in failed]
        elif images.block_rows > 1 or len(images) > MAX_DECODED:
            if images.block_rows == 1:
                workspace.reporter.line(
                    f"{len(images):,} {split} images are too many to decode before a run; plbench data verify "
                    f"{dataset.name} --decode does"
                )
            return {images.ids[row]: f"image {images.name(row)} does not exist" for row in absent}
        chosen = images.subset(np.array(suspects, np.int64))
        with workspace.reporter.task(f"Checking that every {split} image can be read") as report:
            reasons = {chosen.ids[row]: reason for row, reason in find_unreadable(chosen, report).items()}
        if noted != (found := {"unreadable": sorted(reasons)}):  # otherwise a read-only cache suffices
            write_checked_json(note, found)
    return reasons


def note_of_unreadable(dataset: Dataset, split: str, workspace: Workspace) -> AbstractContextManager[Path]:
    """Return the path of the note on undecodable images of a split, locked within the scope."""
    name = f"{dataset.name}-{split}-{fingerprint(dataset, workspace)[:16]}.json"
    return locked(workspace.store.cache / "checked" / name)
