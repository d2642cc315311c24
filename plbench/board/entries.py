"""A record submitted to a board: its three files, read with limits, since they are untrusted."""

from __future__ import annotations

import hashlib
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
"""Files of a record on a board; all others stay in the run's folder."""

MAX_BYTES = {RECORD: 1 << 20, PER_CLASS: 4 << 20, REPLICATES: 4 << 20}
"""Maximum size of each file; larger ones are not read."""

Contents = dict[str, bytes]
"""Files of one record by name."""


@dataclass(frozen=True)
class Entry(ScoredRun):
    """One record with its tables.

    Attributes:
        sha256, num_bytes: of its files by name.
    """

    per_class: tuple[ClassRow, ...]
    sha256: dict[str, str]
    num_bytes: dict[str, int]

    @property
    def key(self) -> str:
        """Key of the run."""
        return self.record.key


def read_contents(folder: Path) -> Contents:
    """Read the files of a record from its run's folder: regular files of at most `MAX_BYTES`.

    Raises:
        EntryError: if one is missing, not a regular file, or too large.
    """
    return {name: _read_file(folder / name) for name in FILES}


def _read_file(path: Path) -> bytes:
    try:
        if path.is_symlink() or not path.is_file():
            raise EntryError(path.name, "is missing, or not a plain file")
        size, most = path.stat().st_size, MAX_BYTES[path.name]
        if size > most:
            raise EntryError(path.name, f"has {size:,} bytes; expected at most {most:,}")
        return path.read_bytes()
    except OSError as error:
        raise EntryError(path.name, f"cannot be read: {error.strerror}") from error


def parse_entry(contents: Contents) -> Entry:
    """Parse a record with its tables.

    Raises:
        EntryError: if a file is damaged or contains invalid numbers, with the field.
    """
    try:
        record = parse_record(contents[RECORD], Path(RECORD))
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
        record=record,
        per_class=parse_per_class(contents[PER_CLASS]),
        replicates=parse_replicates(contents[REPLICATES]),
        sha256={name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
        num_bytes={name: len(content) for name, content in contents.items()},
    )


def parse_whole_entry(contents: Contents, place: Path) -> Entry:
    """Parse a record and verify its figures against its tables, for a board or a page.

    Args:
        contents: of its files. place: their location, for messages.

    Raises:
        EntryError: as `parse_entry`, or if a table does not match the record; with place and first field.
    """
    try:
        entry = parse_entry(contents)
    except EntryError as error:
        raise EntryError(f"{place}: {error.field}", error.found) from error
    findings = Findings(entry.key)
    findings.require("test" in entry.record.metrics, "metrics", sorted(entry.record.metrics), "the figures on test")
    check_tables(entry, findings)
    if findings.problems:
        first = findings.problems[0]
        raise EntryError(f"{place}: {first.field}", f"{first.found}; expected {first.expected}")
    return entry


def check_tables(entry: Entry, findings: Findings) -> None:
    """Verify the hashes of the tables, and the record's figures against them."""
    check_checksums(entry, findings)
    if entry.record.metrics:
        check_table_figures(entry.record, entry.per_class, findings)
        check_intervals(entry.record, entry.replicates, findings)


def check_checksums(entry: Entry, findings: Findings) -> None:
    """Verify the hashes of the tables against the record."""
    for name in (PER_CLASS, REPLICATES):
        stated = entry.record.files.get(name)
        if stated is None:
            findings.refuse(f"files.{name}", "missing", "the hash of the table")
            continue
        findings.equal(f"files.{name}.num_bytes", stated.num_bytes, entry.num_bytes[name])
        if stated.sha256 != entry.sha256[name]:
            findings.refuse(f"files.{name}.sha256", stated.sha256, f"{entry.sha256[name]}, of the file")
