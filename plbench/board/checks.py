"""Whether a board's records can be believed: each on its own, with one another, with the ledger, and since a commit.

A record is compared with its protocol, its tables, its ledger and the other records. What only the scores of all test
cells determine is recomputed where the cells are given; the record's own model bounds the rest.
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
    """Return reasons not to take a record onto a board; none where it can be believed as far as its own files tell.

    Args:
        entry: the record with its tables.
        board: that it is for.
        role: "row", or "ceiling" for a record of the board's complete labels; None for what its protocol makes it.
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
    """Return reasons not to believe a board; none where it holds together.

    Withdrawn records need only be what was added: why they are not believed any more, the ledger says.

    Args:
        folder: the board.
        cells: a folder with the cells of some records: <key>/cells.npz, as in a store's runs, or published ones.
        workspace: where the dataset is, with whose own labels those of the cells are compared; None not to.
        against: the git commit that the board may only have grown since; None for HEAD. Where it and cells are given,
            records that are new since need theirs.
        installed: methods and datasets that are known here; None to look them up.
        note: told, in a sentence each, what could not be checked.

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
            continue  # refused already
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
    """Compare the labels of cells with one another, and with the dataset's own where it is here."""
    truth: dict[Question, str] = {}
    for entry, _ in found:
        if workspace is not None and question_of(entry) not in truth:
            own = truth_of(folder.board, entry.record.spec.protocol, workspace, note)
            if own is None:
                break
            truth[question_of(entry)] = own
    return check_labels(found, truth, folder.board.name, note)


def _verify(folder: BoardFolder, contents: Contents, installed: Installed, findings: Findings) -> Entry | None:
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
        _check(entry, folder.board, role_of(entry.record, folder.board), installed, findings)
    return entry


def _is_sound(entry: Entry, findings: Findings) -> bool:
    """Return whether names and numbers are such, and the run is done; where not, nothing else is looked at."""
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
