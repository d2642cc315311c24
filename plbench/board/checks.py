"""Whether a board's records can be believed: each on its own, with one another, with the ledger, and since a commit.

A record is compared with its protocol, its tables, its ledger and the other records. What only the scores of all test
cells determine is recomputed where the cells are given; the record's own model bounds the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from plbench.board.boards import Board, BoardFolder
from plbench.board.consistency import check_agreement, check_ledger
from plbench.board.entries import Contents, Entry, check_checksums, check_tables, parse_entry
from plbench.board.history import check_history
from plbench.board.identity import Role, check_added, check_identity, role_of
from plbench.board.names import check_values
from plbench.board.packs import read_packs
from plbench.board.recompute import check_cells
from plbench.runs.findings import Findings, Problem
from plbench.runs.store import CELLS
from plbench.runs.summary import NUM_REPLICATES
from plbench.runs.tables import EntryError


def check_entry(entry: Entry, board: Board, *, role: Role | None = None) -> list[Problem]:
    """Return reasons not to take a record onto a board; none where it can be believed as far as its own files tell.

    Args:
        entry: the record with its tables.
        board: that it is for.
        role: "row", or "ceiling" for a record of the board's complete labels; None for what its protocol makes it.
    """
    findings = Findings(entry.key)
    if _is_sound(entry, findings):
        _check(entry, board, role or role_of(entry.record, board), findings)
    return findings.problems


def verify_board(
    folder: BoardFolder,
    *,
    cells: Path | None = None,
    against: str | None = None,
    note: Callable[[str], None] = lambda sentence: None,
) -> list[Problem]:
    """Return reasons not to believe a board; none where it holds together.

    Withdrawn records need only be what was added: why they are not believed any more, the ledger says.

    Args:
        folder: the board.
        cells: a folder with <key>/cells.npz for some records, such as a store's runs.
        against: the git commit that the board may only have grown since; None for HEAD.
        note: told, in a sentence each, what could not be checked.
    """
    packs = read_packs(folder)
    problems = [*check_ledger(folder), *packs.problems]
    entries: list[Entry] = []
    recomputed = 0
    for key in folder.added:
        if key not in packs.records:
            continue  # refused already
        findings = Findings(key)
        entry = _verify(folder, packs.records.pop(key), findings)
        if entry is not None and key not in folder.withdrawn:
            entries.append(entry)
            if cells is not None and (cells / key / CELLS).is_file():
                check_cells(entry, cells / key / CELLS, findings)
                recomputed += 1
        problems += findings.problems
    if cells is not None and (missing := len(entries) - recomputed):
        note(f"board {folder.board.name}: {missing} of {len(entries)} records were not recomputed: no cells in {cells}")
    return [*problems, *check_agreement(entries), *check_history(folder, against, note)]


def _verify(folder: BoardFolder, contents: Contents, findings: Findings) -> Entry | None:
    """Return a record on its own and against the ledger; None where it is not even what it could be compared as."""
    key = findings.key
    try:
        entry = parse_entry(contents)
    except EntryError as error:
        findings.refuse(error.field, error.found, "what plbench wrote")
        return None
    findings.equal("key", entry.key, key)
    check_added(entry, folder.added[key], findings)
    if not _is_sound(entry, findings):
        return None
    if key in folder.withdrawn:
        check_checksums(entry, findings)
    else:
        _check(entry, folder.board, role_of(entry.record, folder.board), findings)
    return entry


def _is_sound(entry: Entry, findings: Findings) -> bool:
    """Return whether names and numbers are such, and the run is done; where not, nothing else is looked at."""
    before = len(findings.problems)
    check_values(entry, findings)
    findings.equal("status", entry.record.status, "done")
    if entry.record.status == "done" and "test" not in entry.record.metrics:
        findings.refuse("metrics.test", "missing", "the figures on the test split")
    return len(findings.problems) == before


def _check(entry: Entry, board: Board, role: Role, findings: Findings) -> None:
    check_identity(entry.record, board, role, findings)
    check_tables(entry, findings)
    lengths = {len(values) for values in entry.replicates.values()}
    findings.equal("replicates.csv", lengths, {NUM_REPLICATES})
    findings.require(CELLS in entry.record.files, f"files.{CELLS}", None, "the hash of the cells")
