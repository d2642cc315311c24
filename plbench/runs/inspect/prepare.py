"""Create prepared datasets: every split packed into shards, with its labels."""

from __future__ import annotations

import shutil
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
from plbench.data.shards.shards import ShardedImages
from plbench.data.text_column import TextColumn
from plbench.errors import DataError, PlbenchError
from plbench.files import fresh_folder, is_unfinished, unwritable, write_json
from plbench.files.paths import refuse_links
from plbench.runs.workspace import Workspace, fingerprint, open_dataset


def prepare(
    name: str, workspace: Workspace, out: Path, *, short_side: int, quality: int, splits: Sequence[str] = ()
) -> dict[str, Any]:
    """Pack the images and labels of a dataset into a folder that can be used instead of the original files.

    After an interruption, a call with the same options continues, with identical bytes. Unreadable images are left out
    and listed.

    Args:
        name: of the dataset.
        workspace: location of its files.
        out: the folder to write.
        short_side: in pixels; smaller images keep their size.
        quality: of new JPEGs.
        splits: to pack; empty for those that the dataset's protocols use.

    Returns:
        Folder, and by split: images, bytes and omitted images.

    Raises:
        DataError: if the dataset cannot be read, or the folder has other content. StoreError: if it cannot be written.
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
    if is_prepared(out):
        given, found = (
            item.model_dump(exclude={"done", "groups", "num_images"}) for item in (about, read_preparation(out))
        )
        if differing := [f"{key} {found[key]}, not {given[key]}" for key in given if given[key] != found[key]]:
            raise DataError(f"{out} was prepared with {', '.join(differing)}; give the same options, or another `out=`")
    elif out.is_dir() and not all(map(is_unfinished, out.iterdir())):
        raise DataError(f"{out} holds other files; give an empty or new folder as `out=`")
    for split in chosen:  # before anything is written
        for place in (".lock", "labels"):
            refuse_links(out, out / split / place)
    write_json(out / PREPARED, about.model_dump(mode="json"))
    summary = []
    for split in chosen:
        labelled, folder = dataset.split(split), out / split
        absent, number = labelled.images.absent(), len(labelled.images)
        if len(absent):  # many users have only a part of OpenImages' train split
            first = labelled.images.name(absent[0])
            if len(absent) == number:
                raise DataError(f"none of the {number:,} {split} images is there, such as {first}")
            workspace.reporter.line(
                f"{len(absent):,} of {number:,} {split} images are missing, such as {first}; they are left out"
            )
            labelled = labelled.subset(np.setdiff1d(np.arange(number), absent))
        with workspace.reporter.task(f"Packing {len(labelled.images):,} {split} images") as report:
            packed = pack(
                labelled.images,
                folder,
                short_side=short_side,
                quality=quality,
                workers=workspace.workers,
                report=report,
            )
        _write_labels(labelled, folder, dataset.notes().get(split, ()))
        summary.append(
            {
                "split": split,
                "images": packed.num_images,
                "bytes": packed.num_bytes,
                "absent": len(absent),
                "unreadable": [{"image": image, "why": why} for image, why in packed.unreadable.items()],
            }
        )
    write_json(out / PREPARED, about.model_copy(update={"done": True}).model_dump(mode="json"))
    return {"dataset": name, "folder": str(out), "short_side": short_side, "splits": summary}


def _write_labels(labelled: LabelledSplit, folder: Path, notes: tuple[str, ...]) -> None:
    """Write labels of the packed images, in their order, next to them, atomically."""
    ids = ShardedImages(folder).ids
    known = labelled.images.ids
    every = known if isinstance(known, TextColumn) else TextColumn.of(known)
    rows = pc.index_in(ids.array, value_set=every.array).to_numpy()
    try:
        with FileLock(folder / ".lock"):
            for leftover in folder.glob(".labels.*"):  # of a killed process
                shutil.rmtree(leftover)
            temporary = fresh_folder(folder, ".labels.")
            Annotations(ids, labelled.labels.subset(rows), notes=notes).write(temporary)
            shutil.rmtree(folder / "labels", ignore_errors=True)
            temporary.rename(folder / "labels")
    except OSError as error:
        raise unwritable(folder / "labels", error) from error
