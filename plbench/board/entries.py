"""A record as it lies on a board: its three files, read with limits, since anybody may have written them."""

from __future__ import annotations

import csv
import hashlib
import io
import lzma
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from plbench.errors import PlbenchError, StoreError
from plbench.record import Record, parse_record
from plbench.store import RECORD

PER_CLASS, REPLICATES = "per_class.csv", "replicates.csv"
FILES = (RECORD, PER_CLASS, REPLICATES)

PACKED = f"{REPLICATES}.xz"
"""What a board keeps in place of the replicates: a third of the bytes. Hashes are those of what it unpacks to."""

MOST_BYTES = {RECORD: 1 << 20, PER_CLASS: 4 << 20, REPLICATES: 4 << 20}
"""Bytes beyond which a file is not read at all."""

MOST_CLASSES = 20_000
MOST_REPLICATES = 20_000


class EntryError(PlbenchError):
    """A file of a record that cannot be read: `field` says which, and what in it."""

    def __init__(self, field: str, found: str) -> None:
        """Keeps the field apart from what was found there."""
        super().__init__(f"{field}: {found}")
        self.field, self.found = field, found


@dataclass(frozen=True)
class ClassRow:
    """One class of `per_class.csv`: AP in percent, None where undefined; known positives and negatives in test.

    Attributes:
        auroc, precision, recall: percent. predicted: known cells that reach `threshold`. None in tables before schema
            5 of records, and where they are undefined or no thresholds were chosen.
    """

    class_id: str
    class_name: str
    ap: float | None
    positives: int
    negatives: int
    groups: tuple[str, ...]
    quintile: int | None
    auroc: float | None = None
    threshold: float | None = None
    predicted: int | None = None
    precision: float | None = None
    recall: float | None = None


@dataclass(frozen=True)
class Entry:
    """One record with its tables.

    Attributes:
        folder: where it lies. sha256, num_bytes: of its files by name, unpacked.
        replicates: [R] by metric, percent.
    """

    folder: Path
    record: Record
    per_class: tuple[ClassRow, ...]
    replicates: dict[str, np.ndarray]
    sha256: dict[str, str]
    num_bytes: dict[str, int]

    @property
    def key(self) -> str:
        """Of the run."""
        return self.record.key


def read_entry(folder: Path) -> Entry:
    """Reads a record's files, none of them larger than `MOST_BYTES`.

    Raises:
        EntryError: if a file is missing, too large, damaged, or holds what is no number, with the field.
    """
    contents = {name: _content(folder / name) for name in (RECORD, PER_CLASS)}
    contents[REPLICATES] = _replicates_content(folder)
    try:
        record = parse_record(contents[RECORD], folder / RECORD)
    except StoreError as error:
        raise _of_record(error) from error
    return Entry(
        folder=folder,
        record=record,
        per_class=_per_class(contents[PER_CLASS]),
        replicates=_replicates(contents[REPLICATES]),
        sha256={name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
        num_bytes={name: len(content) for name, content in contents.items()},
    )


def pack_replicates(content: bytes) -> bytes:
    """The replicates as a board keeps them."""
    return lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)


def _replicates_content(folder: Path) -> bytes:
    """Of the plain file, or else of the packed one, unpacked no further than `MOST_BYTES`."""
    packed = folder / PACKED
    if (folder / REPLICATES).exists() or not packed.exists():
        return _content(folder / REPLICATES)
    limit = MOST_BYTES[REPLICATES]
    try:
        content = lzma.LZMADecompressor().decompress(_content(packed), max_length=limit + 1)
    except (lzma.LZMAError, EOFError) as error:
        raise EntryError(PACKED, f"cannot be unpacked: {error}") from error
    if len(content) > limit:
        raise EntryError(PACKED, f"unpacks to more than {limit:,} bytes")
    return content


def _of_record(error: StoreError) -> EntryError:
    """What is wrong with a record's file, under the name of the field where one is to blame."""
    cause = error.__cause__
    if isinstance(cause, ValidationError):
        first = cause.errors()[0]
        return EntryError(".".join(str(part) for part in first["loc"]), first["msg"])
    if cause is None:
        return EntryError("schema_version", str(error).partition(RECORD)[2].removeprefix(" has ") or str(error))
    return EntryError(RECORD, f"no record: {cause}")


def _content(path: Path) -> bytes:
    try:
        if path.is_symlink() or not path.is_file():
            raise EntryError(path.name, "is missing, or no plain file")
        size = path.stat().st_size
        most = MOST_BYTES[path.name.removesuffix(".xz")]
        if size > most:
            raise EntryError(path.name, f"has {size:,} bytes; expected at most {most:,}")
        return path.read_bytes()
    except OSError as error:
        raise EntryError(path.name, f"cannot be read: {error.strerror}") from error


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise EntryError(name, f"byte {error.start} is not UTF-8") from error


def _per_class(content: bytes) -> tuple[ClassRow, ...]:
    rows = []
    try:
        for number, row in enumerate(csv.DictReader(io.StringIO(_text(content, PER_CLASS)), strict=True), 2):
            if number > MOST_CLASSES + 1:
                raise EntryError(PER_CLASS, f"has more than {MOST_CLASSES:,} classes")
            rows.append(_class_row(row, number))
    except csv.Error as error:
        raise EntryError(PER_CLASS, f"is not CSV: {error}") from error
    if not rows:
        raise EntryError(PER_CLASS, "has no classes")
    return tuple(rows)


def _percent(row: dict[str, str], name: str) -> float | None:
    value = float(row[name]) if (row["ap"] if name == "ap" else row.get(name)) else None
    if value is not None and not 0 <= value <= 100 + 1e-9:  # NaN is not in there either
        raise ValueError(f"{name} {row[name]!r} is not between 0 and 100")
    return value


def _class_row(row: dict[str, str], number: int) -> ClassRow:
    try:
        ap, auroc, precision, recall = (_percent(row, name) for name in ("ap", "auroc", "precision", "recall"))
        positives, negatives = int(row["positives"]), int(row["negatives"])
        predicted = int(row["predicted"]) if row.get("predicted") else None
        if min(positives, negatives, predicted or 0) < 0 or max(positives, negatives, predicted or 0) > 10**9:
            raise ValueError("a count is negative or beyond a billion")
        threshold = float(row["threshold"]) if row.get("threshold") else None
        if threshold is not None and not math.isfinite(threshold):
            raise ValueError(f"threshold {row['threshold']!r} is no finite number")
        return ClassRow(
            row["class_id"],
            row["class_name"],
            ap,
            positives,
            negatives,
            tuple(filter(None, (row.get("groups") or "").split(";"))),
            int(row["quintile"]) if row.get("quintile") else None,
            auroc,
            threshold,
            predicted,
            precision,
            recall,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise EntryError(f"{PER_CLASS}, line {number}", str(error)) from error


def _replicates(content: bytes) -> dict[str, np.ndarray]:
    lines = _text(content, REPLICATES).splitlines()
    names = lines[0].split(",") if lines else []
    if len(lines) - 1 > MOST_REPLICATES or not names or len(set(names)) != len(names):
        raise EntryError(REPLICATES, f"has {len(lines) - 1:,} rows of {len(names)} columns")
    table = np.empty((len(lines) - 1, len(names)))
    for number, line in enumerate(lines[1:]):
        try:
            values = [float(text) for text in line.split(",")]
            if len(values) != len(names):
                raise ValueError(f"it has {len(values)} values for {len(names)} columns")
            if not all(math.isnan(value) or 0 <= value <= 100 for value in values):
                raise ValueError("a value is not between 0 and 100")
            table[number] = values
        except ValueError as error:
            raise EntryError(f"{REPLICATES}, line {number + 2}", str(error)) from error
    return dict(zip(names, table.T.copy(), strict=True))
