"""Validation of a board's records: individually, against each other, against the ledger, and against a commit.

A record is compared with its protocol, its tables, the ledger and the other records. Figures that depend on the scores
of all test cells are recomputed if the cells are given; otherwise only bounds are checked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from plbench.board.boards import Board, BoardFolder
from plbench.board.consistency import check_agreement, check_ledger
from plbench.board.entries import Contents, Entry, check_checksums, check_tables, parse_entry
from plbench.board.evidence import Place, Question, check_labels, question_of, truth_of
from plbench.board.history import check_commits, check_history, keys_at
from plbench.board.identity import Role, check_added, check_identity, role_of
from plbench.board.installed import Installed
from plbench.board.likeness import check_copies, check_replicates
from plbench.board.names import check_values
from plbench.board.packs import read_packs
from plbench.board.recompute import check_cells
from plbench.board.signatures import check_signature
from plbench.runs.findings import Findings, Problem
from plbench.runs.store import CELLS
from plbench.runs.summary import NUM_REPLICATES
from plbench.runs.tables import EntryError

if TYPE_CHECKING:
    from plbench.runs.workspace import Workspace


def check_entry(
    entry: Entry, board: Board, *, role: Role | None = None, installed: Installed | None = None
) -> list[Problem]:
    """Return reasons to reject a record, judged by its own files; empty if there are none.

    Args:
        entry: the record with its tables.
        board: the target board.
        role: "row", or "ceiling" for a record with complete labels; None to derive it from the protocol.
        installed: methods and datasets that are known here; None to look them up.
    """
    findings = Findings(entry.key)
    if _is_sound(entry, findings):
        _check(entry, board, role or role_of(entry.record, board), installed or Installed(), findings)
    return findings.problems


def verify_board(
    folder: BoardFolder,
    *,
    cells: Path | None = None,
    workspace: Workspace | None = None,
    against: str | None = None,
    installed: Installed | None = None,
    note: Callable[[str], None] = lambda sentence: None,
) -> list[Problem]:
    """Return problems of a board; empty if it is consistent.

    Withdrawn records only have to be unchanged.

    Args:
        folder: the board.
        cells: a folder with the cells of some records: <key>/cells.npz, as in a store's runs, or published ones.
        workspace: location of the dataset, to compare its labels with those of the cells; None to skip this.
        against: the git commit since which the board may only have grown; None for HEAD. If it and cells are given, new
            records need cells.
        installed: methods and datasets that are known here; None to look them up.
        note: receives messages on skipped checks.

    Raises:
        PlbenchError: if the dataset cannot be opened.
    """
    installed = installed or Installed()
    packs = read_packs(folder)
    problems = [*check_ledger(folder), *packs.problems]
    entries: list[Entry] = []
    place = None if cells is None else Place(cells, folder.board.name)
    with_cells: list[tuple[Entry, str]] = []
    recomputed: set[str] = set()
    for key in folder.added:
        if key not in packs.records:
            continue  # already rejected
        findings = Findings(key)
        entry = _verify(folder, packs.records.pop(key), installed, findings)
        if entry is not None and key not in folder.withdrawn:
            entries.append(entry)
            if place is not None and place.find(key) is not None:
                labels = check_cells(entry, place, findings)
                with_cells += [] if labels is None else [(entry, labels)]
                recomputed.add(key)
        problems += findings.problems
    problems += _check_labels(folder, with_cells, workspace, note)
    missing = [entry.key for entry in entries if entry.key not in recomputed]
    if cells is not None and missing:
        name, number = folder.board.name, len(missing)
        note(f"board {name}: {number} of {len(entries)} records were not recomputed: no cells in {cells}")
        before = set(missing) if against is None else keys_at(folder, against)
        words = "those of a record that is new on the board: docs/leaderboards.md says how to bring them"
        problems += [Problem(key, "cells", "missing", words) for key in missing if key not in before]
    problems += [*check_agreement(entries), *check_copies(entries, installed.learns), *check_replicates(entries)]
    commits = {entry.key: entry.record.environment.get("git_commit") for entry in entries}
    problems += [*check_commits(folder, commits, note), *check_history(folder, against, note)]
    return [*problems, *check_signature(folder, against, note)]


def _check_labels(
    folder: BoardFolder,
    found: Sequence[tuple[Entry, str]],
    workspace: Workspace | None,
    note: Callable[[str], None],
) -> list[Problem]:
    """Compare the labels of cells with each other, and with the dataset's own if available."""
    truth: dict[Question, str] = {}
    for entry, _ in found:
        if workspace is not None and question_of(entry) not in truth:
            own = truth_of(folder.board, entry.record.spec.protocol, workspace, note)
            if own is None:
                break
            truth[question_of(entry)] = own
    return check_labels(found, truth, folder.board.name, note)


def _verify(folder: BoardFolder, contents: Contents, installed: Installed, findings: Findings) -> Entry | None:
    """Check a record on its own and against the ledger; None if it is too broken for further checks."""
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
        _check(entry, folder.board, role_of(entry.record, folder.board), installed, findings)
    return entry


def _is_sound(entry: Entry, findings: Findings) -> bool:
    """Return whether names and numbers are valid, and the run is finished; otherwise nothing else is checked."""
    before = len(findings.problems)
    check_values(entry, findings)
    findings.equal("status", entry.record.status, "done")
    if entry.record.status == "done" and "test" not in entry.record.metrics:
        findings.refuse("metrics.test", "missing", "the figures on the test split")
    return len(findings.problems) == before


def _check(entry: Entry, board: Board, role: Role, installed: Installed, findings: Findings) -> None:
    check_identity(entry.record, board, role, installed, findings)
    check_tables(entry, findings)
    lengths = {len(values) for values in entry.replicates.values()}
    findings.equal("replicates.csv", lengths, {NUM_REPLICATES})
    findings.require(CELLS in entry.record.files, f"files.{CELLS}", None, "the hash of the cells")
