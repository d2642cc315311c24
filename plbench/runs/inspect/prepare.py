"""Making prepared datasets: every split packed into shards, with its labels beside it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from filelock import FileLock

from plbench.data.annotations.collect import Annotations
from plbench.data.dataset import LabelledSplit
from plbench.data.pixels import PIXELS
from plbench.data.shards.packing import pack
from plbench.data.shards.prepared import PREPARED, Preparation, PreparedDataset, is_prepared, read_preparation
from plbench.data.shards.shards import PackedSplit, ShardedImages
from plbench.data.text_column import TextColumn
from plbench.errors import DataError, PlbenchError
from plbench.files import unwritable, write_json
from plbench.files.paths import refuse_links
from plbench.runs.workspace import Workspace, fingerprint, open_dataset


def prepare(
    name: str, workspace: Workspace, out: Path, *, short_side: int, quality: int, splits: Sequence[str] = ()
) -> dict[str, Any]:
    """Pack the images of a dataset, and their labels, into a folder to read it from later.

    Interrupted and called again with the same options it goes on, to the same bytes. Images that cannot be read are
    left out and named.

    Args:
        name: of the dataset.
        workspace: where its files are.
        out: the folder to write.
        short_side: in pixels; smaller images keep their size.
        quality: of JPEGs that are written.
        splits: those to pack; empty for those that the dataset's protocols use.

    Returns:
        Folder, and by split: images, bytes and what was left out.

    Raises:
        DataError: if the dataset cannot be read, or the folder holds something else. StoreError: if it cannot be
            written.
    """
    dataset = open_dataset(name, workspace)
    if isinstance(dataset, PreparedDataset):
        raise PlbenchError(
            f"{dataset.root} is prepared already; give the folder of the published files as `data_root=`"
        )
    chosen = tuple(dict.fromkeys(splits)) or dataset.used_splits()
    about = Preparation(
        dataset=name,
        source=fingerprint(dataset, workspace),
        short_side=short_side,
        quality=quality,
        splits=chosen,
        num_images={split: len(dataset.split(split).images) for split in chosen},
        groups=dataset.groups(),
        done=False,
        pixels=PIXELS,
    )
    _check_same(about, out)
    for split in chosen:  # before anything is written
        for name in (".lock", "labels"):
            refuse_links(out, out / split / name)
    write_json(out / PREPARED, about.model_dump(mode="json"))
    summary = []
    for split in chosen:
        labelled, num_absent = _present(dataset.split(split), split, workspace)
        with workspace.reporter.task(f"Packing {len(labelled.images):,} {split} images") as report:
            packed = pack(
                labelled.images,
                out / split,
                short_side=short_side,
                quality=quality,
                workers=workspace.workers,
                report=report,
            )
        _write_labels(labelled, out / split, dataset.notes().get(split, ()))
        summary.append(_summary(split, packed, num_absent))
    write_json(out / PREPARED, about.model_copy(update={"done": True}).model_dump(mode="json"))
    return {"dataset": name, "folder": str(out), "short_side": short_side, "splits": summary}


def _present(labelled: LabelledSplit, split: str, workspace: Workspace) -> tuple[LabelledSplit, int]:
    """Return the images that are there at all, and how many are not: of OpenImages' train most people have a part."""
    absent = labelled.images.absent()
    if not absent:
        return labelled, 0
    number = len(labelled.images)
    workspace.reporter.line(
        f"{len(absent):,} of {number:,} {split} images are not there, such as {labelled.images.name(absent[0])}; they "
        "are left out"
    )
    rows = np.setdiff1d(np.arange(number), absent)
    if len(rows) == 0:
        raise DataError(f"none of the {number:,} {split} images is there, such as {labelled.images.name(0)}")
    return labelled.subset(rows), len(absent)


def _check_same(about: Preparation, out: Path) -> None:
    if not is_prepared(out):
        if out.is_dir() and any(out.iterdir()):
            raise DataError(f"{out} holds other files; give an empty or new folder as `out=`")
        return
    before = read_preparation(out)
    given, found = (item.model_dump(exclude={"done", "groups", "num_images"}) for item in (about, before))
    if differing := [f"{name} {found[name]}, not {given[name]}" for name in given if given[name] != found[name]]:
        raise DataError(f"{out} was prepared with {', '.join(differing)}; give the same options, or another `out=`")


def _write_labels(labelled: LabelledSplit, folder: Path, notes: tuple[str, ...]) -> None:
    """Write labels of the packed images in their order beside them; whole or not at all."""
    ids = ShardedImages(folder).ids
    known = labelled.images.ids
    every = known if isinstance(known, TextColumn) else TextColumn.of(known)
    rows = pc.index_in(ids.array, value_set=every.array).to_numpy()
    try:
        with FileLock(folder / ".lock"):
            for leftover in folder.glob(".labels.*"):  # of a process that was killed
                shutil.rmtree(leftover)
            temporary = Path(tempfile.mkdtemp(prefix=".labels.", dir=folder))
            Annotations(ids, labelled.labels.subset(rows), notes=notes).write(temporary)
            temporary.chmod(0o755)  # others may share the folder
            shutil.rmtree(folder / "labels", ignore_errors=True)
            temporary.rename(folder / "labels")
    except OSError as error:
        raise unwritable(folder / "labels", error) from error


def _summary(split: str, packed: PackedSplit, num_absent: int) -> dict[str, Any]:
    return {
        "split": split,
        "images": packed.num_images,
        "bytes": packed.num_bytes,
        "absent": num_absent,
        "unreadable": [{"image": image, "why": why} for image, why in packed.unreadable.items()],
    }
