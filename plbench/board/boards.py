"""Data of a board: its setting, the ledger of submissions, and rows quoted from papers."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from operator import methodcaller
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, StringConstraints, ValidationError

from plbench.errors import PlbenchError, did_you_mean, first_invalid
from plbench.files import locked, unwritable, write_atomically, write_json
from plbench.files.paths import read_plain, refuse_links
from plbench.files.plain_json import MAX_BYTES, parse_json
from plbench.runs.record import Percent
from plbench.spec import STANDARD_TRIALS, Frozen

BOARD, LEDGER, RECORDS, PUBLISHED = "board.json", "ledger.json", "records", "published"

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]{0,63}$")]
Key = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Sentence = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f<>]*$", max_length=500)]
Metric = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
_Kind = TypeVar("_Kind", bound=Frozen)


class Board(Frozen):
    """The setting of a board.

    Attributes:
        protocol: its name; protocol_sha256: of the protocol. Records of other protocols are rejected.
        ceiling_sha256: of the protocol without a simulation, whose records are shown as the upper bound.
        dataset_fingerprint: of the data of all records; None until the first is added.
        max_trials: maximum number of tuning trials per row, the same for every method.
        order: position of the board on the page, lowest first; ties by name.
        version: increased whenever a row is removed or changed, as explained in `about`.
    """

    name: Name
    title: Sentence
    about: Sentence = ""
    dataset: Name
    protocol: Sentence
    protocol_sha256: Sha256
    ceiling_sha256: Sha256 | None = None
    dataset_fingerprint: Sha256 | None = None
    max_trials: Annotated[int, Field(ge=0)] = STANDARD_TRIALS
    order: Annotated[int, Field(ge=0)] = 100
    version: Annotated[int, Field(ge=1)] = 1


class Event(Frozen):
    """An entry of the ledger.

    Attributes:
        sha256: of the record file when added. at: UTC. why: reason of withdrawal. by: key of the run that reproduced
            it.
    """

    event: Literal["added", "verified", "withdrawn"]
    key: Key
    at: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
    sha256: Sha256 | None = None
    by: Sentence | None = None
    why: Sentence | None = None


class Ledger(Frozen):
    """Log of added, verified and withdrawn records."""

    events: tuple[Event, ...]


class Quotation(Frozen):
    """One row of a paper's table, shown next to a board's own rows but not ranked.

    Attributes:
        figures: percent by the paper's metric: map_c, map_o, group_1 … group_5, ap_person.
        source: of the row. selection: how the source chose its checkpoint, if known.
        caution: limits of comparability.
    """

    title: Sentence
    backbone: Sentence
    figures: dict[Metric, Percent]
    source: Sentence
    selection: Sentence | None = None
    caution: Sentence | None = None


class Quotations(Frozen):
    """All quoted rows of one board."""

    board: Name
    rows: tuple[Quotation, ...]


class BoardFolder:
    """One board's folder.

    Attributes:
        board: its setting. ledger: its log, oldest first.
    """

    def __init__(self, path: Path) -> None:
        """Read board and ledger.

        Raises:
            PlbenchError: if there is no such board, or a file is damaged, with the field.
        """
        self.path = path
        self._read()

    def _read(self) -> None:
        path = self.path
        for name in (BOARD, LEDGER, RECORDS):
            refuse_links(path.parent, path / name)
        self.board = read_model(Board, path.parent, path / BOARD)
        if self.board.name != path.name:
            raise PlbenchError(f"{path / BOARD}: name is {self.board.name!r}, but its folder is {path.name!r}")
        there = (path / LEDGER).exists()
        self.ledger = read_model(Ledger, path.parent, path / LEDGER).events if there else ()

    @contextlib.contextmanager
    def changing(self) -> Iterator[Path]:
        """Lock the board for this process, with its current setting and ledger.

        Yields:
            As `holding`.

        Raises:
            PlbenchError: as for a board that is opened. StoreError: as `holding`.
        """
        with holding(self.path.parent, self.path.name, undo=self._remove_unnoted) as staging:
            self._read()
            yield staging

    def tidy(self) -> None:
        """Undo unlogged changes of a killed process; StoreError if the folder is not writable."""
        tidy(self.path.parent, self.path.name, undo=self._remove_unnoted)

    def place(self, name: str, content: bytes, staging: Path) -> None:
        """Add a file to the records; the caller then logs it in the ledger.

        Args:
            name: of the file.
            content: of the file.
            staging: from `changing`.

        Raises:
            PlbenchError: if a link is in the way. StoreError: if it cannot be written.
        """
        copy, target = staging / name, self.path / RECORDS / name
        refuse_links(self.path.parent, target)
        write_atomically(copy, methodcaller("write", content))
        try:
            target.parent.mkdir(exist_ok=True)
            target.unlink(missing_ok=True)
            try:
                # under both names until logged, so that the change of a killed process can be detected
                os.link(copy, target)
            except OSError:  # a file system without hard links
                copy.rename(target)
        except OSError as error:
            raise unwritable(target, error) from error

    def is_unnoted(self, path: Path) -> bool:
        """Return whether a file among the records is not logged yet."""
        copy = _staging(self.path.parent, self.path.name) / path.name
        return copy.is_file() and not copy.is_symlink() and copy.samefile(path)

    def _remove_unnoted(self) -> None:
        self._read()
        place = self.path / RECORDS
        for path in place.iterdir() if place.is_dir() else ():
            if path.name.partition(".")[0] not in self.added and self.is_unnoted(path):
                path.unlink()

    def quotations(self) -> tuple[Quotation, ...]:
        """Return the rows quoted on the board, if any.

        Raises:
            PlbenchError: if their file is damaged or of another board, with the field.
        """
        root, name = self.path.parent, self.board.name
        path = root / PUBLISHED / f"{name}.json"
        refuse_links(root, path)
        if not path.exists():
            return ()
        found = read_model(Quotations, root, path)
        if found.board != name:
            raise PlbenchError(f"{path}: board is {found.board!r}, but its file is named {name!r}")
        return found.rows

    @property
    def added(self) -> dict[str, Event]:
        """The event that added each key."""
        return {event.key: event for event in self.ledger if event.event == "added"}

    @property
    def updated(self) -> str | None:
        """The date of the last entry of the ledger, "2026-11-29"; None if it is empty."""
        return self.ledger[-1].at[:10] if self.ledger else None

    @property
    def withdrawn(self) -> dict[str, str]:
        """The reason of each withdrawn key."""
        return {event.key: event.why or "" for event in self.ledger if event.event == "withdrawn"}

    @property
    def verified(self) -> set[str]:
        """Keys that were reproduced."""
        return {event.key for event in self.ledger if event.event == "verified"}

    def append(self, events: Sequence[Event], board: Board | None = None, staging: Path | None = None) -> None:
        """Append entries to the current ledger.

        Args:
            events: the entries.
            board: written if it changed.
            staging: from `changing`, if the caller already holds the lock.

        Raises:
            PlbenchError: if an entry is invalid because another process added or withdrew a record meanwhile.
        """
        with self.changing() if staging is None else contextlib.nullcontext(staging) as unfinished:
            for event in events:
                if (event.event == "added") == (event.key in self.added) or event.key in self.withdrawn:
                    raise PlbenchError(f"{self.path / LEDGER}: record {event.key} can no longer be {event.event}")
            self.ledger = (*self.ledger, *events)
            if board is not None:
                self.board = board
                write_json(self.path / BOARD, board.model_dump(mode="json"), unfinished)
            write_json(self.path / LEDGER, Ledger(events=self.ledger).model_dump(exclude_none=True), unfinished)


def _staging(root: Path, name: str) -> Path:
    return root / f".{name}.unfinished"


def tidy(root: Path, name: str, *, undo: Callable[[], None] = lambda: None) -> None:
    """Remove files left by a killed process; wait if another one holds the lock.

    Args:
        root, name, undo: as in `holding`.

    Raises:
        StoreError: if it cannot be removed. PlbenchError: if a link is in the way.
    """
    if _staging(root, name).exists() or (root / f".{name}.lock").exists():
        with holding(root, name, undo=undo):
            pass


@contextlib.contextmanager
def holding(root: Path, name: str, *, undo: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Lock a named item below a folder for this process. The lock and unfinished files are next to it.

    Args:
        root: the folder.
        name: of the item.
        undo: called first, before unfinished files of a killed process are deleted.

    Yields:
        An empty staging folder, so that unfinished files of a killed process are never published. The next process
        deletes it.

    Raises:
        StoreError: if the folder cannot be written to. PlbenchError: if a link is in the way.
    """
    staging, lock_path = _staging(root, name), root / f".{name}.lock"
    refuse_links(root, staging)
    refuse_links(root, lock_path)
    with locked(root / name):
        try:
            undo()
            shutil.rmtree(staging, ignore_errors=True)
            try:
                staging.mkdir()
            except OSError as error:
                raise unwritable(staging, error) from error
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            lock_path.unlink(missing_ok=True)  # while locked: a process that opened it meanwhile notices its removal


def open_boards(root: Path, names: Sequence[str] = ()) -> list[BoardFolder]:
    """Return all boards below a folder, usually `leaderboards`, or those with these names, in order.

    Raises:
        PlbenchError: if there is none, or none of a name.
    """
    there = sorted(path.parent.name for path in root.glob(f"*/{BOARD}"))
    if not there:
        raise PlbenchError(f"{root} holds no boards; give the folder of a checkout's leaderboards with `boards=DIR`")
    for name in names:
        if name not in there:
            raise PlbenchError(f"{root} has no board {name!r}; {did_you_mean(name, there)}")
    folders = [BoardFolder(root / name) for name in there if not names or name in names]
    return sorted(folders, key=lambda folder: (folder.board.order, folder.path.name))


def read_model(kind: type[_Kind], root: Path, path: Path) -> _Kind:
    """Read a JSON file of a board: a regular file without duplicate keys, not through links.

    Raises:
        PlbenchError: if it cannot be read, or is not valid, with the field.
    """
    try:
        content = parse_json(read_plain(root, path, MAX_BYTES))
    except PlbenchError:
        raise
    except (OSError, ValueError) as error:
        raise PlbenchError(f"{path} cannot be read: {error}") from error
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        field, message, *_ = first_invalid(error)
        raise PlbenchError(f"{path}: {field}: {message}") from error
