"""Records of finished runs, read against their own tables: a figure that these do not give is never passed on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from plbench.errors import PlbenchError, StoreError
from plbench.runs.agreement import check_intervals, check_table_figures
from plbench.runs.findings import Findings
from plbench.runs.record import Record, read_record
from plbench.runs.store import RECORD
from plbench.runs.tables import PER_CLASS, REPLICATES, parse_per_class, parse_replicates


def read_run(folder: Path) -> Record:
    """Read the record of a run, with figures that are those of its per-class table.

    Args:
        folder: of the run.

    Raises:
        StoreError: as `read_record`; or if the table is missing or another one, or gives other figures.
    """
    record = read_record(folder)
    if record.metrics:
        _check(
            folder,
            record,
            lambda findings: check_table_figures(record, parse_per_class(_table(folder, record, PER_CLASS)), findings),
        )
    return record


def read_own_run(folder: Path) -> Record:
    """Read the record of the run that a folder is named after.

    Args:
        folder: in a store, named by the key of its run.

    Raises:
        StoreError: as `read_run`, or if the record is of another run: a copy would count that run twice.
    """
    record = read_run(folder)
    if record.key != folder.name:
        raise StoreError(f"{folder / RECORD} is of run {record.key}, not of {folder.name}; delete {folder}")
    return record


def finished_record(folder: Path) -> Record | None:
    """Read the record of a run that is done; None where there is none yet, or only that of a failure.

    Raises:
        StoreError: as `read_own_run`.
    """
    if not (folder / RECORD).is_file():
        return None
    record = read_own_run(folder)
    return record if record.status == "done" else None


def replicates_of(folder: Path, record: Record) -> dict[str, np.ndarray]:
    """Read the bootstrap replicates of a run, which must give the intervals of its record.

    Args:
        folder: of the run.
        record: of the run, which is done.

    Returns:
        [R] by metric, percent; NaN where a replicate has no class to score.

    Raises:
        StoreError: if they are missing or others, or give other intervals.
    """
    found: dict[str, np.ndarray] = {}

    def compare(findings: Findings) -> None:
        found.update(parse_replicates(_table(folder, record, REPLICATES)))
        check_intervals(record, found, findings)

    _check(folder, record, compare)
    return found


def _table(folder: Path, record: Record, name: str) -> bytes:
    """Return the content of a table, if it is the very one that the record refers to."""
    path, stated = folder / name, record.files.get(name)
    try:
        content = path.read_bytes()
    except OSError as error:
        what = "is missing from" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror}), of"
        raise StoreError(
            f"{path} {what} run {record.key}; run it again with `force=True`, or delete {folder}"
        ) from error
    if stated is None or hashlib.sha256(content).hexdigest() != stated.sha256:
        raise StoreError(
            f"{path} was changed since run {record.key}; run it again with `force=True`, or delete {folder}"
        )
    return content


def _check(folder: Path, record: Record, compare: Callable[[Findings], None]) -> None:
    findings = Findings("")
    try:
        compare(findings)
        why = str(findings.problems[0]) if findings.problems else None
    except StoreError:
        raise
    except PlbenchError as error:
        why = str(error)
    if why is not None:
        raise StoreError(
            f"{folder / RECORD} does not agree with the tables of run {record.key}: {why}; run it again with "
            f"`force=True`, or delete {folder}"
        )
