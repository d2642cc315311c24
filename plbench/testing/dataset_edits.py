"""Check that a fingerprint changes with the files, by small edits of a copy that change labels or images."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from plbench.data.dataset import Dataset
from plbench.errors import PlbenchError
from plbench.testing.dataset_words import DatasetSubject
from plbench.testing.findings import Mismatch, NotApplicable, check

_MAX_TABLES = 12  # maximum number of tables edited


@check("fingerprint follows the files", "another fingerprint wherever labels or images are others")
def check_follows(subject: DatasetSubject) -> None:
    """Edit the files of a copy one by one: if labels or images change, so must the fingerprint."""
    if not subject.is_fixture:
        raise NotApplicable("the files are not a fixture's, so they are not edited")
    before = _facts(subject.opened())
    changed: set[str] = set()
    for name, path, edits in _edits(subject.root):
        for edit in edits:
            after = _edited(subject, path, edit) or before
            what = [part for part in ("labels", "images") if after[part] != before[part]]
            if what and after["fingerprint"] == before["fingerprint"]:
                raise Mismatch(f"the same fingerprint though {' and '.join(what)} changed", smallest=name)
            changed.update(what)
            if what:
                break  # one informative edit per file is enough
    if never := sorted({"labels", "images"} - changed, reverse=True):
        raise Mismatch(
            f"none changes {never[0]}",
            expected="a fixture some edit of whose files (CSV, JSON, Parquet, text, images) changes labels, and one "
            "images",
        )


Edit = Callable[[Path], object]


def _edited(subject: DatasetSubject, path: Path, edit: Edit) -> dict[str, Any] | None:
    """Return the content of a copy after an edit; None if the files are then rejected."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(subject.root, copy)
        edit(copy / path)
        try:
            moved = {
                name: copy / value.relative_to(subject.root)
                for name, value in subject.options
                if isinstance(value, Path) and value.is_relative_to(subject.root)
            }
            return _facts(subject.opened(copy, subject.options.model_copy(update=moved)))
        except PlbenchError:
            return None


def _facts(dataset: Dataset) -> dict[str, Any]:
    labels, images = [], []
    for split in map(dataset.split, dataset.used_splits()):
        labels.append((list(split.images.ids), split.labels.fingerprint()))
        there = set(range(len(split.images))) - set(split.images.absent())
        images.append([(split.images.ids[row], len(split.images.read(row))) for row in sorted(there)])
    return {"labels": labels, "images": images, "fingerprint": dataset.fingerprint()}


def _edits(root: Path) -> Iterator[tuple[str, Path, list[Edit]]]:
    """Yield a description, path and edits of each file: tables lose an entry, images are changed or removed."""
    files = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    tables = [path for path in files if path.suffix.lower() in (".csv", ".txt", ".json", ".parquet", ".npy")]
    for path in tables[:: 1 + len(tables) // _MAX_TABLES]:
        if path.suffix.lower() == ".npy":  # another array has the same number of rows
            yield f"another last row in {path}", path, [_change_last_row]
        else:
            yield f"an entry less in {path}", path, [partial(_shorten, share) for share in (1, 0.5, 0.3, 0.7, 0.1, 0.9)]
    images = [path for path in files if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
    for path in images[:1] + images[-1:]:
        # bytes after the end of an image are not decoded
        yield f"other bytes in {path}", path, [lambda file: file.write_bytes(file.read_bytes() + b"\0")]
        yield f"the lack of {path}", path, [Path.unlink]


def _change_last_row(path: Path) -> None:
    array = np.load(path, allow_pickle=False)
    array[-1] = array[0] if array.dtype.kind in "US" or np.any(array[0] != array[-1]) else 1 - array[0]
    np.save(path, array)


def _shorten(share: float, path: Path) -> None:
    """Remove an entry from a table; in JSON, from the longest list, usually the annotations."""
    if path.suffix.lower() == ".parquet":
        table = pq.read_table(path)
        place = _place(share, len(table))
        pq.write_table(pa.concat_tables([table[:place], table[place + 1 :]]), path)
    elif path.suffix.lower() == ".json":
        content = json.loads(path.read_text(encoding="utf-8"))
        lists = [content] if isinstance(content, list) else [v for v in content.values() if isinstance(v, list)]
        longest: list[Any] = max(lists, key=len, default=[])
        place = _place(share, len(longest))
        del longest[place : place + 1]
        path.write_text(json.dumps(content), encoding="utf-8")
    else:
        lines = path.read_bytes().splitlines(keepends=True)
        place = _place(share, len(lines))
        del lines[place : place + 1]
        path.write_bytes(b"".join(lines))


def _place(share: float, length: int) -> int:
    """Return the position of an entry, never the first, which may be a header."""
    return max(1, round(share * (length - 1)))
