"""A record as it lies on a board: its three files, read with limits, since anybody may have written them."""

from __future__ import annotations

import hashlib
import lzma
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from plbench.comparison.scores import ScoredRun
from plbench.errors import StoreError, first_invalid
from plbench.runs.agreement import check_intervals, check_table_figures
from plbench.runs.findings import Findings
from plbench.runs.record import parse_record
from plbench.runs.store import RECORD
from plbench.runs.tables import PER_CLASS, REPLICATES, ClassRow, EntryError, parse_per_class, parse_replicates

FILES = (RECORD, PER_CLASS, REPLICATES)
"""Of a record. On a board they are packed, `NAME.xz`: a third of the bytes. Hashes are of what they unpack to."""

MAX_BYTES = {RECORD: 1 << 20, PER_CLASS: 4 << 20, REPLICATES: 4 << 20}
"""Bytes beyond which a file is not read at all."""


@dataclass(frozen=True)
class Entry(ScoredRun):
    """One record with its tables.

    Attributes:
        folder: where it lies. sha256, num_bytes: of its files by name, unpacked.
    """

    folder: Path
    per_class: tuple[ClassRow, ...]
    sha256: dict[str, str]
    num_bytes: dict[str, int]

    @property
    def key(self) -> str:
        """Of the run."""
        return self.record.key


def read_entry(folder: Path) -> Entry:
    """Read a record's files, none of them larger than `MAX_BYTES`.

    Raises:
        EntryError: if a file is missing, too large, damaged, or holds what is no number, with the field.
    """
    contents = {name: read_content(folder, name) for name in FILES}
    try:
        record = parse_record(contents[RECORD], folder / RECORD)
    except StoreError as error:
        cause = error.__cause__
        if isinstance(cause, ValidationError):
            field, message, *_ = first_invalid(cause)
            raise EntryError(field, message) from error
        if cause is None:
            found = str(error).partition(RECORD)[2].removeprefix(" has ") or str(error)
            raise EntryError("schema_version", found) from error
        raise EntryError(RECORD, f"no record: {cause}") from error
    return Entry(
        folder=folder,
        record=record,
        per_class=parse_per_class(contents[PER_CLASS]),
        replicates=parse_replicates(contents[REPLICATES]),
        sha256={name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
        num_bytes={name: len(content) for name, content in contents.items()},
    )


def read_whole_entry(folder: Path) -> Entry:
    """Read a record whose figures are those of its own tables, for a board or a page.

    Raises:
        EntryError: as `read_entry`, or if a table is another one or gives other figures; with folder and first field.
    """
    try:
        entry = read_entry(folder)
    except EntryError as error:
        raise EntryError(f"{folder}: {error.field}", error.found) from error
    findings = Findings(entry.key)
    check_tables(entry, findings)
    if findings.problems:
        first = findings.problems[0]
        raise EntryError(f"{folder}: {first.field}", f"{first.found}; expected {first.expected}")
    return entry


def check_tables(entry: Entry, findings: Findings) -> None:
    """Compare the tables with those that the record refers to, and its figures with those that they give."""
    check_checksums(entry, findings)
    if entry.record.metrics:
        check_table_figures(entry.record, entry.per_class, findings)
        check_intervals(entry.record, entry.replicates, findings)


def check_checksums(entry: Entry, findings: Findings) -> None:
    """Compare the tables with those that the record refers to."""
    for name in (PER_CLASS, REPLICATES):
        stated = entry.record.files.get(name)
        if stated is None:
            findings.refuse(f"files.{name}", "missing", "the hash of the table")
            continue
        findings.equal(f"files.{name}.num_bytes", stated.num_bytes, entry.num_bytes[name])
        if stated.sha256 != entry.sha256[name]:
            findings.refuse(f"files.{name}.sha256", stated.sha256, f"{entry.sha256[name]}, of the file")


def pack_file(content: bytes) -> bytes:
    """Return a file of a record as a board keeps it."""
    return lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)


def files_of(folder: Path) -> tuple[str, ...]:
    """Return the names of the files that a record on a board has, packed or as they were written."""
    return tuple(f"{n}.xz" if not (folder / n).exists() and (folder / f"{n}.xz").exists() else n for n in FILES)


def read_content(folder: Path, name: str) -> bytes:
    """Read a file of a record: the plain one, or else the packed one, unpacked no further than `MAX_BYTES`.

    Raises:
        EntryError: if it is missing, a link or a device, too large, or cannot be unpacked.
    """
    there, limit = files_of(folder)[FILES.index(name)], MAX_BYTES[name]
    content = read_file(folder / there)
    if there == name:
        return content
    try:
        content = lzma.LZMADecompressor().decompress(content, max_length=limit + 1)
    except (lzma.LZMAError, EOFError) as error:
        raise EntryError(there, f"cannot be unpacked: {error}") from error
    if len(content) > limit:
        raise EntryError(there, f"unpacks to more than {limit:,} bytes")
    return content


def read_file(path: Path) -> bytes:
    """Read a file of a record: a plain one, no larger than `MAX_BYTES`.

    Raises:
        EntryError: if it is missing, a link or a device, or too large.
    """
    try:
        if path.is_symlink() or not path.is_file():
            raise EntryError(path.name, "is missing, or no plain file")
        size, most = path.stat().st_size, MAX_BYTES[path.name.removesuffix(".xz")]
        if size > most:
            raise EntryError(path.name, f"has {size:,} bytes; expected at most {most:,}")
        return path.read_bytes()
    except OSError as error:
        raise EntryError(path.name, f"cannot be read: {error.strerror}") from error
