"""Making coco-20k from COCO 2014's own files."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from plbench.api import DataError, ImageFiles, ProgressReport
from plbench.data.shards.packing import encode
from plbench.files import write_atomically

from ..coco.dataset import Coco2014
from ..complete_table import write_table
from .objects import write_objects

if TYPE_CHECKING:
    from .dataset import Coco20k

_QUALITY = 90  # of the JPEGs
_CHUNK = 50  # images that a worker makes at a time


def make_from_coco(dataset: Coco20k, source: Path, short_side: int, report: ProgressReport) -> None:
    """Write the images at a short side of `short_side` pixels, `objects.csv`, and last `labels.csv`.

    Images that an interrupted call wrote are kept.

    Raises:
        DataError: if the source lacks the train files of COCO 2014, or an image of the list.
    """
    coco = Coco2014(source)
    needed = (coco.annotation_files("train")[0], source / "train2014")
    if absent := [path for path in needed if not path.exists()]:
        raise DataError(f"{absent[0]} is not there; {coco.fetch_hint()}")
    annotations = coco.annotations("train")
    rows = {image_id: row for row, image_id in enumerate(annotations.image_ids)}
    if lost := next((image_id for image_id in dataset.shipped_split if image_id not in rows), None):
        raise DataError(f"{needed[0]} has no labels of image {lost}; take COCO 2014's own file")
    if annotations.labels.class_names != dataset.class_names:
        raise DataError(f"{needed[0]} does not have COCO's 80 classes")
    chosen = np.array([rows[image_id] for image_id in dataset.shipped_split], np.int64)
    images = coco.images("train", annotations).subset(chosen)
    (dataset.root / "images").mkdir(parents=True, exist_ok=True)
    targets = [dataset.root / dataset.image_path(image_id) for image_id in dataset.shipped_split]
    missing = [row for row, target in enumerate(targets) if not target.exists()]
    report(len(targets) - len(missing), len(targets))
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        chunks = [missing[start : start + _CHUNK] for start in range(0, len(missing), _CHUNK)]
        made = pool.map(
            _write_images,
            [images.subset(np.array(chunk, np.int64)) for chunk in chunks],
            [[targets[row] for row in chunk] for chunk in chunks],
            [short_side] * len(chunks),
        )
        done = len(targets) - len(missing)
        for number in made:
            done += number
            report(done, len(targets))
    prominence = {by: coco.prominence("train", by)[chosen] for by in ("size", "place")}
    write_objects(dataset.root, list(dataset.shipped_split), dataset.class_ids, prominence)
    present = annotations.labels.rows(chosen) > 0
    splits = dataset.shipped_split.items()
    write_table(
        dataset, [(one, split, np.flatnonzero(row).tolist()) for (one, split), row in zip(splits, present, strict=True)]
    )


def _write_images(images: ImageFiles, targets: list[Path], short_side: int) -> int:
    for row, target in enumerate(targets):
        content = encode(images, row, short_side, _QUALITY).content
        write_atomically(target, lambda file, content=content: file.write(content))  # type: ignore[misc]
    return len(targets)
