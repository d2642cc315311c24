"""What a board is: the question that it asks, the ledger of what was handed in, and the rows quoted from papers."""

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
    """One question, and the records that answer it.

    Attributes:
        protocol: its name; protocol_sha256: of the very protocol. A record of another one is refused.
        ceiling_sha256: of the protocol without a simulation, whose records are shown as the ceiling.
        dataset_fingerprint: of the bytes that all records must have been made on; None until the first is added.
        max_trials: tuning trials that a row may have had: the same for every method.
        order: of the board on the page, lowest first; equal ones by name.
        version: raised whenever a row is removed or changed, which `about` then explains.
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
    """A line of the ledger.

    Attributes:
        sha256: of the record file as it was added. at: UTC. why: it was withdrawn. by: key of the run that repeated it.
    """

    event: Literal["added", "verified", "withdrawn"]
    key: Key
    at: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
    sha256: Sha256 | None = None
    by: Sentence | None = None
    why: Sentence | None = None


class Ledger(Frozen):
    """What was added, verified and withdrawn, in order."""

    events: tuple[Event, ...]


class Quotation(Frozen):
    """One row of a paper's table, shown beside a board's own rows, never ranked with them.

    Attributes:
        figures: percent by the paper's metric: map_c, map_o, group_1 … group_5, ap_person.
        source: where it stands. selection: how the source chose its checkpoint, where that is known.
        caution: what keeps it from being compared.
    """

    title: Sentence
    backbone: Sentence
    figures: dict[Metric, Percent]
    source: Sentence
    selection: Sentence | None = None
    caution: Sentence | None = None


class Quotations(Frozen):
    """All that is quoted on one board."""

    board: Name
    rows: tuple[Quotation, ...]


class BoardFolder:
    """One board's folder.

    Attributes:
        board: what it asks. ledger: what happened, oldest first.
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
        """Hold the board for this process, with question and ledger as they are now: others that change it wait.

        Yields:
            As `holding`.

        Raises:
            PlbenchError: as for a board that is opened. StoreError: as `holding`.
        """
        with holding(self.path.parent, self.path.name, undo=self._remove_unnoted) as staging:
            self._read()
            yield staging

    def tidy(self) -> None:
        """Undo what a killed process began and did not note; StoreError if the folder cannot be written to."""
        tidy(self.path.parent, self.path.name, undo=self._remove_unnoted)

    def place(self, name: str, content: bytes, staging: Path) -> None:
        """Put a file among the records, which the caller then notes in the ledger.

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
                # under both names until it is noted: a process that is killed before leaves the other one as a witness
                os.link(copy, target)
            except OSError:  # a disk without such links
                copy.rename(target)
        except OSError as error:
            raise unwritable(target, error) from error

    def is_unnoted(self, path: Path) -> bool:
        """Return whether a file among the records was put there by a process that has not noted it, or never will."""
        copy = _staging(self.path.parent, self.path.name) / path.name
        return copy.is_file() and not copy.is_symlink() and copy.samefile(path)

    def _remove_unnoted(self) -> None:
        self._read()
        place = self.path / RECORDS
        for path in place.iterdir() if place.is_dir() else ():
            if path.name.partition(".")[0] not in self.added and self.is_unnoted(path):
                path.unlink()

    def quotations(self) -> tuple[Quotation, ...]:
        """Return the rows quoted on the board; none where there are none.

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
        """The day of the last line of the ledger, "2026-11-29"; None where there is none."""
        return self.ledger[-1].at[:10] if self.ledger else None

    @property
    def withdrawn(self) -> dict[str, str]:
        """Why, for each key that was withdrawn."""
        return {event.key: event.why or "" for event in self.ledger if event.event == "withdrawn"}

    @property
    def verified(self) -> set[str]:
        """Keys that somebody reproduced."""
        return {event.key for event in self.ledger if event.event == "verified"}

    def append(self, events: Sequence[Event], board: Board | None = None, staging: Path | None = None) -> None:
        """Add lines to the ledger as it is by now.

        Args:
            events: the lines.
            board: written where it changed.
            staging: from `changing`, where the caller holds the board already.

        Raises:
            PlbenchError: if another process added or withdrew a record meanwhile, so that a line is not possible.
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
    """Remove what a killed process left beside something of a name; wait where another one is changing it.

    Args:
        root, name, undo: as `holding` takes them.

    Raises:
        StoreError: if it cannot be removed. PlbenchError: if a link is in the way.
    """
    if _staging(root, name).exists() or (root / f".{name}.lock").exists():
        with holding(root, name, undo=undo):
            pass


@contextlib.contextmanager
def holding(root: Path, name: str, *, undo: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Hold something of a name below a folder for this process: others wait. Lock and unfinished files lie beside it.

    Args:
        root: the folder.
        name: of what is held.
        undo: called first, while what a killed process left unfinished is still there.

    Yields:
        An empty folder for files that are not whole yet, so that what a killed process leaves is never among those
        that are published. The next process deletes it.

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
            lock_path.unlink(missing_ok=True)  # while it is held: who opened it meanwhile sees that it is gone


def open_boards(root: Path, names: Sequence[str] = ()) -> list[BoardFolder]:
    """Return the boards below a folder, usually `leaderboards`, in their order: those of these names, or all.

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
    """Read a JSON file of a board: a plain one, of one meaning, through no link below the folder of boards.

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
