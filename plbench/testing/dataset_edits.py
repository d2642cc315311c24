"""Whether a fingerprint follows the files: small edits of a copy, after which labels or images are others."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from plbench.data.dataset import Dataset, DatasetOptions
from plbench.errors import PlbenchError
from plbench.testing.dataset_words import DatasetSubject
from plbench.testing.findings import Check, Mismatch, NotApplicable


def check_follows(subject: DatasetSubject) -> None:
    """Edit the files of a copy one by one: where labels or images are others then, so must the fingerprint be."""
    if not subject.is_fixture:
        raise NotApplicable("the files are not a fixture's, so they are not edited")
    before = _facts(subject.opened())
    changed: set[str] = set()
    for name, path, edits in _edits(subject.root):
        for edit in edits:
            after = _edited(subject, path, edit)
            what = [] if after is None else [what for what in _WHAT if after[what] != before[what]]
            if after is not None and what and after["fingerprint"] == before["fingerprint"]:
                raise Mismatch(FOLLOWS.expected, f"the same fingerprint though {' and '.join(what)} changed", name)
            changed.update(what)
            if what:
                break  # one edit of each file that tells
    never = [what for what in _WHAT if what not in changed]
    if never:
        raise Mismatch(
            "a fixture some edit of whose files (CSV, JSON, Parquet, text, images) changes labels, and one images",
            f"none changes {never[0]}",
        )


_WHAT = ("labels", "images")
Edit = Callable[[Path], bool]


def _edited(subject: DatasetSubject, path: Path, edit: Edit) -> dict[str, Any] | None:
    """Return what a copy says after an edit; None where the edit cannot be made, or the files are refused then."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(subject.root, copy)
        if not edit(copy / path):
            return None
        try:
            return _facts(subject.opened(copy, _moved(subject.options, subject.root, copy)))
        except PlbenchError:
            return None


def _moved(options: Any, old: Path, new: Path) -> Any:
    """Return options whose paths below one folder lie below another."""
    if not isinstance(options, DatasetOptions):
        return options
    changes = {
        name: new / value.relative_to(old)
        for name, value in options
        if isinstance(value, Path) and value.is_relative_to(old)
    }
    return options.model_copy(update=changes)


def _facts(dataset: Dataset) -> dict[str, Any]:
    splits = [dataset.split(name) for name in dataset.used_splits()]
    pixels = []
    for split in splits:
        absent = set(split.images.absent())
        rows = [row for row in range(len(split.images)) if row not in absent]
        pixels.append([(split.images.ids[row], len(split.images.read(row))) for row in rows])
    labels = [(list(split.images.ids), split.labels.fingerprint()) for split in splits]
    return {"labels": labels, "images": pixels, "fingerprint": dataset.fingerprint()}


def _edits(root: Path) -> Iterator[tuple[str, Path, list[Edit]]]:
    """Yield what is done to a file, its path, and edits that do it; tables lose an entry, images change or go."""
    files = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    for path in files:
        if (shortened := _SHORTENED.get(path.suffix.lower())) is not None:
            edits: list[Edit] = [partial(shortened, share) for share in (1.0, 0.5, 0.3, 0.7, 0.1, 0.9)]
            yield f"an entry less in {path}", path, edits
    images = [path for path in files if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
    for path in images[:1] + images[-1:]:
        yield f"other bytes in {path}", path, [_longer]
        yield f"the lack of {path}", path, [_gone]


def _fewer_lines(share: float, path: Path) -> bool:
    lines = path.read_bytes().splitlines(keepends=True)
    if len(lines) < 3:
        return False
    del lines[_place(share, len(lines))]
    path.write_bytes(b"".join(lines))
    return True


def _fewer_entries(share: float, path: Path) -> bool:
    """Return one entry less in the longest list of a JSON file: usually that of annotations."""
    content = json.loads(path.read_text(encoding="utf-8"))
    lists = [content] if isinstance(content, list) else [v for v in content.values() if isinstance(v, list) and v]
    if not lists:
        return False
    chosen = max(lists, key=len)
    del chosen[_place(share, len(chosen))]
    path.write_text(json.dumps(content), encoding="utf-8")
    return True


def _fewer_rows(share: float, path: Path) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    place = _place(share, table.num_rows)
    pq.write_table(pa.concat_tables([table.slice(0, place), table.slice(place + 1)]), path)
    return bool(table.num_rows > 1)


def _place(share: float, length: int) -> int:
    """Of an entry, never the first, which may be a heading."""
    return min(length - 1, max(1, round(share * (length - 1)))) if length > 1 else 0


def _longer(path: Path) -> bool:
    path.write_bytes(path.read_bytes() + b"\0")  # what follows a picture's end is not looked at
    return True


def _gone(path: Path) -> bool:
    path.unlink()
    return True


_SHORTENED: dict[str, Callable[[float, Path], bool]] = {
    ".csv": _fewer_lines,
    ".txt": _fewer_lines,
    ".json": _fewer_entries,
    ".parquet": _fewer_rows,
}

FOLLOWS = Check(
    "fingerprint follows the files", "another fingerprint wherever labels or images are others", check_follows
)
