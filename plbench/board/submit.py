"""Add, verify and withdraw records of boards; the ledger is append-only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from plbench.board.boards import BOARD, Board, BoardFolder, Event, holding, open_boards
from plbench.board.checks import check_entry
from plbench.board.entries import Contents, Entry, parse_whole_entry, read_contents
from plbench.board.installed import Installed
from plbench.board.packs import pack_name, pack_records
from plbench.comparison.identity import row_key
from plbench.errors import PlbenchError, did_you_mean, first_invalid
from plbench.files import write_json
from plbench.files.paths import refuse_links
from plbench.runs.record import Record
from plbench.runs.registry import Registry
from plbench.runs.store import RECORD
from plbench.spec import Protocol


def add(runs: Sequence[Path], root: Path, *, refused: Callable[[str], None] | None = None) -> list[tuple[str, str]]:
    """Copy records, with per-class tables and replicates, to the boards of their protocols, in one pack per row.

    Args:
        runs: folders of finished runs.
        root: usually `leaderboards`.
        refused: receives the reason for each run that is rejected and left out; None to raise instead.

    Returns:
        Board and key of each added record; existing ones are left out.

    Raises:
        PlbenchError: if no board has a run's protocol, or a run is rejected, with the first field. Nothing is added
            then.
    """
    boards, installed = open_boards(root), Installed()
    for board in boards:
        board.tidy()
    # by board and row; the checked contents are packed, even if the run's files change meanwhile
    wanted: dict[tuple[BoardFolder, str], dict[str, _Candidate]] = defaultdict(dict)
    for run in runs:
        contents = read_contents(run)
        entry = parse_whole_entry(contents, run)
        for board in _homes(entry, boards):
            if entry.key in board.added:
                continue
            try:
                _admit(board, entry, installed)
                wanted[board, row_key(entry.record)][entry.key] = _Candidate(entry, contents)
            except PlbenchError as error:
                if refused is None:
                    raise
                refused(str(error))
    added = [(board, _place(board, candidates, installed)) for (board, _), candidates in wanted.items()]
    return [(board.board.name, key) for board, keys in added for key in keys]


class _Candidate(NamedTuple):
    """A record to add, with the contents of its files."""

    entry: Entry
    contents: Contents


def _place(board: BoardFolder, candidates: Mapping[str, _Candidate], installed: Installed) -> list[str]:
    """Add a pack to a board and its ledger; return the keys that no other process added meanwhile."""
    admitted = board.board
    with board.changing() as staging:
        left = {key: candidate for key, candidate in candidates.items() if key not in board.added}
        if not left:
            return []
        if board.board != admitted:  # another process added the first record, which sets the data's fingerprint
            for entry, _ in left.values():
                _admit(board, entry, installed)
        pack = pack_records({key: candidate.contents for key, candidate in left.items()})
        board.place(pack_name(left), pack, staging)
        events = [Event(event="added", key=key, at=now(), sha256=one.entry.sha256[RECORD]) for key, one in left.items()]
        changed = None
        if board.board.dataset_fingerprint is None:
            first = next(iter(left.values())).entry.record
            changed = board.board.model_copy(update={"dataset_fingerprint": first.spec.dataset_fingerprint})
        board.append(events, changed, staging)
    return list(left)


def asked_for(found: Sequence[tuple[Path, Record]], root: Path) -> list[Path]:
    """Return the finished runs whose protocol, at any seed, is that of a board or its ceiling.

    Stages that a method trained for itself are left out, since nobody would choose them as rows.
    """
    boards = open_boards(root)
    asked = {sha for board in boards for sha in (board.board.protocol_sha256, board.board.ceiling_sha256)}
    done = [(folder, record) for folder, record in found if record.status == "done" and "test" in record.metrics]
    method = {record.key: record.spec.method.name for _, record in found}
    own_stages = {
        key for _, record in found for key in record.spec.stages.values() if method.get(key) == method[record.key]
    }
    done = [(folder, record) for folder, record in done if record.key not in own_stages]
    return [folder for folder, record in done if record.spec.protocol.sha256() in asked]


def _homes(entry: Entry, boards: Sequence[BoardFolder]) -> list[BoardFolder]:
    """Return the boards that have the run's protocol, also as their ceiling."""
    record = entry.record
    sha256 = record.spec.protocol.sha256()
    homes = [board for board in boards if sha256 in (board.board.protocol_sha256, board.board.ceiling_sha256)]
    if not homes:
        raise PlbenchError(
            f"run {record.key}: no board has protocol {record.spec.protocol.name} (sha256 {sha256[:16]}…); plbench "
            "board new makes one for an official protocol"
        )
    return homes


def _admit(board: BoardFolder, entry: Entry, installed: Installed) -> None:
    """Reject what `verify_board` would reject."""
    if problems := check_entry(entry, board.board, installed=installed):
        more = f" ({len(problems)} fields in all)" if len(problems) > 1 else ""
        raise PlbenchError(f"{board.board.name} does not take {problems[0]}{more}")


def withdraw(key: str, why: str, root: Path) -> list[str]:
    """Mark a record as withdrawn on every board that has it; nothing is deleted.

    Returns:
        Names of the boards.

    Raises:
        PlbenchError: if no board has it, or it is already withdrawn.
    """
    boards = [board for board in open_boards(root) if key in board.added and key not in board.withdrawn]
    if not boards:
        raise PlbenchError(f"no board in {root} has a record {key!r} that is not withdrawn yet")
    for board in boards:
        board.append([Event(event="withdrawn", key=key, at=now(), why=why)])
    return [board.board.name for board in boards]


def found_board(root: Path, name: str, title: str, protocol: str, registry: Registry, **about: Any) -> BoardFolder:
    """Create a board for a protocol of a dataset; the ceiling uses the dataset's complete labels.

    Args:
        root, name, title: as in `new_board`; `about` has its other arguments.
        protocol: its name. registry: of datasets.

    Raises:
        PlbenchError: if no dataset has this protocol; or as `new_board`.
    """
    broken = registry.broken("dataset")
    kinds = [registry.dataset(dataset) for dataset in registry.names("dataset") if dataset not in broken]
    known = {own.name: (own, kind) for kind in kinds for own in kind.protocols if not own.name.startswith("custom/")}
    if protocol not in known:
        raise PlbenchError(f"no dataset owns protocol {protocol!r}; {did_you_mean(protocol, known)}")
    own, kind = known[protocol]
    complete = next((other for other in kind.protocols if other.simulation == "none"), None)
    ceiling = complete if own.simulation != "none" else None
    return new_board(root, name, title, own, ceiling=ceiling, **about)


def new_board(
    root: Path,
    name: str,
    title: str,
    protocol: Protocol,
    *,
    about: str = "",
    order: int = 100,
    ceiling: Protocol | None = None,
) -> BoardFolder:
    """Create a board.

    Args:
        root: usually `leaderboards`.
        name: of the folder. title: of the table. about: one sentence. order: on the page, lowest first.
        protocol: of the board's records.
        ceiling: the protocol without a simulation, if there is one.

    Raises:
        PlbenchError: if a board of that name exists, or name or texts are invalid.
    """
    question = {"dataset": protocol.dataset, "protocol": protocol.name, "protocol_sha256": protocol.sha256()}
    complete = None if ceiling is None else ceiling.sha256()
    try:
        board = Board(
            name=name,
            title=title,
            about=about,
            order=order,
            ceiling_sha256=complete,
            max_trials=protocol.budget,
            **question,
        )
    except ValidationError as error:
        field, message, given, _ = first_invalid(error)
        raise PlbenchError(f"{field} {given!r:.80} is not valid for a board: {message}") from error
    refuse_links(root, root / name / BOARD)
    with holding(root, name) as staging:
        if (root / name / BOARD).exists():
            raise PlbenchError(f"{root / name} already exists")
        write_json(root / name / BOARD, board.model_dump(mode="json"), staging)
    return BoardFolder(root / name)


def now() -> str:
    """Return the current time in UTC, with seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
