"""How records come onto a board, are confirmed there, and leave it: the ledger only ever grows."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from operator import methodcaller
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from plbench.board.boards import BOARD, Board, BoardFolder, Event, open_boards
from plbench.board.checks import check_entry
from plbench.board.entries import FILES, Entry, pack_file, read_content, read_whole_entry
from plbench.errors import PlbenchError, did_you_mean, first_invalid
from plbench.files import unwritable, write_atomically, write_json
from plbench.files.paths import refuse_links
from plbench.runs.record import Record
from plbench.runs.registry import Registry
from plbench.runs.store import RECORD
from plbench.spec import Protocol


def add(runs: Sequence[Path], root: Path, *, refused: Callable[[str], None] | None = None) -> list[tuple[str, str]]:
    """Copy records, with their per-class tables and replicates, onto the boards of their protocols.

    Args:
        runs: folders of finished runs.
        root: usually `leaderboards`.
        refused: told why, for each run that cannot be trusted, which is then left out; None to raise instead.

    Returns:
        Board and key of each record that was added; those that are there already are left out.

    Raises:
        PlbenchError: if no board asks a run's question, or a run cannot be trusted, naming the first field. Nothing is
            added then.
    """
    boards = open_boards(root)
    chosen = [(board, entry) for entry in map(read_whole_entry, runs) for board in _homes(entry, boards)]
    wanted = []
    for board, entry in chosen:
        if entry.key in board.added:
            continue
        try:
            _admit(board, entry)
            wanted.append((board, entry))
        except PlbenchError as error:
            if refused is None:
                raise
            refused(str(error))
    return [(board.board.name, entry.key) for board, entry in wanted if _place(board, entry)]


def _place(board: BoardFolder, entry: Entry) -> bool:
    """Move a whole copy of a record onto a board, and note it; return False where another process was faster."""
    admitted = board.board
    with board.changing() as staging:
        copy, target = staging / entry.key, board.record_folder(entry.key)
        if entry.key in board.added:
            return False
        if board.board != admitted:  # another process added the first record, which tells the data
            _admit(board, entry)
        try:
            copy.mkdir()
            for name in FILES:
                content = read_content(entry.folder, name)
                if hashlib.sha256(content).hexdigest() != entry.sha256[name]:
                    raise PlbenchError(f"{entry.folder / name} changed while it was added; add the run again")
                write_atomically(copy / f"{name}.xz", methodcaller("write", pack_file(content)))
            target.parent.mkdir(exist_ok=True)
            if target.exists():  # what a process left that was killed before it noted it
                shutil.rmtree(target)
            copy.rename(target)
        except OSError as error:
            raise unwritable(target, error) from error
        fingerprint = {"dataset_fingerprint": entry.record.spec.dataset_fingerprint}
        changed = board.board.model_copy(update=fingerprint) if board.board.dataset_fingerprint is None else None
        board.append([Event(event="added", key=entry.key, at=now(), sha256=entry.sha256[RECORD])], changed, staging)
    return True


def asked_for(found: Sequence[tuple[Path, Record]], root: Path) -> list[Path]:
    """Return the finished runs among these whose protocol is a board's question or ceiling, or one by another seed."""
    boards = open_boards(root)
    asked = {sha for board in boards for sha in (board.board.protocol_sha256, board.board.ceiling_sha256)}
    done = [(folder, record) for folder, record in found if record.status == "done" and "test" in record.metrics]
    return [folder for folder, record in done if record.spec.protocol.sha256() in asked]


def _homes(entry: Entry, boards: Sequence[BoardFolder]) -> list[BoardFolder]:
    """Return the boards that ask the run's question, or have its protocol for their ceiling."""
    record = entry.record
    sha256 = record.spec.protocol.sha256()
    homes = [board for board in boards if sha256 in (board.board.protocol_sha256, board.board.ceiling_sha256)]
    if not homes:
        raise PlbenchError(
            f"run {record.key}: no board asks protocol {record.spec.protocol.name} (sha256 {sha256[:16]}…); plbench "
            "board new makes one for an official protocol"
        )
    return homes


def _admit(board: BoardFolder, entry: Entry) -> None:
    """Refuse what the board's verification would refuse."""
    if problems := check_entry(entry, board.board):
        more = f" ({len(problems)} fields in all)" if len(problems) > 1 else ""
        raise PlbenchError(f"{board.board.name} does not take {problems[0]}{more}")


def withdraw(key: str, why: str, root: Path) -> list[str]:
    """Mark a record as withdrawn on every board that has it; nothing is deleted.

    Returns:
        Names of the boards.

    Raises:
        PlbenchError: if no board has it, or it is withdrawn already.
    """
    boards = [board for board in open_boards(root) if key in board.added and key not in board.withdrawn]
    if not boards:
        raise PlbenchError(f"no board in {root} has a record {key!r} that is not withdrawn yet")
    for board in boards:
        board.append([Event(event="withdrawn", key=key, at=now(), why=why)])
    return [board.board.name for board in boards]


def found_board(root: Path, name: str, title: str, protocol: str, registry: Registry, **about: Any) -> BoardFolder:
    """Found a board for a protocol named as its dataset names it; the ceiling is the dataset's complete labels.

    Args:
        root, name, title: as `new_board` takes them, and `about` for the others.
        protocol: its name. registry: of datasets.

    Raises:
        PlbenchError: if no dataset owns such a protocol; or as `new_board`.
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
    """Found a board.

    Args:
        root: usually `leaderboards`.
        name: of the folder. title: of the table. about: one sentence. order: on the page, lowest first.
        protocol: the question.
        ceiling: the protocol without a simulation, where there is one.

    Raises:
        PlbenchError: if there is one of that name already, or name or texts are none for a board.
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
        raise PlbenchError(f"{field} {given!r:.80} is none for a board: {message}") from error
    refuse_links(root, root / name / BOARD)
    if (root / name / BOARD).exists():
        raise PlbenchError(f"{root / name} is a board already")
    write_json(root / name / BOARD, board.model_dump(mode="json"))
    return BoardFolder(root / name)


def now() -> str:
    """Return UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
