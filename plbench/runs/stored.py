"""Records of finished runs, verified against their tables when read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from plbench.errors import StoreError
from plbench.runs.agreement import check_intervals, check_table_figures, headline_of
from plbench.runs.findings import Findings
from plbench.runs.record import Record, read_record, whole_file
from plbench.runs.store import RECORD
from plbench.runs.tables import (
    GROUP_REPLICATES,
    PER_CLASS,
    REPLICATES,
    EntryError,
    parse_per_class,
    parse_replicates,
)


def read_run(folder: Path) -> Record:
    """Read the record of a run, and check its figures against its per-class table.

    Raises:
        StoreError: as `read_record`; or if the table is missing, has changed, or does not match the figures.
    """
    record = read_record(folder)
    if record.metrics:
        table = whole_file(folder, record, PER_CLASS).read_bytes()
        with _agreeing(folder, record) as findings:
            check_table_figures(record, parse_per_class(table), findings)
    return record


def read_own_run(folder: Path) -> Record:
    """Read the record of a run in a store, and check that it belongs to the folder's name.

    Raises:
        StoreError: as `read_run`, or if the record is of another run, since copies would count twice.
    """
    record = read_run(folder)
    if record.key != folder.name:
        raise StoreError(f"{folder / RECORD} is of run {record.key}, not of {folder.name}; delete {folder}")
    return record


def finished_record(folder: Path) -> Record | None:
    """Read the record of a finished run; None if there is none or it failed.

    Raises:
        StoreError: as `read_own_run`.
    """
    record = read_own_run(folder) if (folder / RECORD).is_file() else None
    return record if record is not None and record.status == "done" else None


def replicates_of(folder: Path, record: Record) -> dict[str, np.ndarray]:
    """Read the bootstrap replicates of a finished run, and check its record's intervals against them.

    Replicates of groups are in a separate file; older runs have one file.

    Returns:
        [R] by metric, percent; NaN if no class can be scored in a replicate.

    Raises:
        StoreError: if they are missing, have changed, or do not match the intervals.
    """
    names = [REPLICATES, *([GROUP_REPLICATES] if GROUP_REPLICATES in record.files else [])]
    tables = {name: whole_file(folder, record, name).read_bytes() for name in names}
    replicates: dict[str, np.ndarray] = {}
    with _agreeing(folder, record) as findings:
        for name, table in tables.items():
            replicates |= parse_replicates(table, name)
        findings.equal("replicates", sorted(replicates), sorted(record.metrics[headline_of(record)].estimates))
        check_intervals(record, replicates, findings)
    return replicates


@contextlib.contextmanager
def _agreeing(folder: Path, record: Record) -> Iterator[Findings]:
    findings = Findings("")
    try:
        yield findings
        why = str(findings.problems[0]) if findings.problems else None
    except EntryError as error:
        why = str(error)
    if why is not None:
        raise StoreError(
            f"{folder / RECORD} does not agree with the tables of run {record.key}: {why}; run it again with "
            f"`force=True`, or delete {folder}"
        )
