"""What a board is: the question that it asks, and the ledger of what was handed in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, StringConstraints, ValidationError

from plbench.errors import PlbenchError, did_you_mean
from plbench.spec import STANDARD_TRIALS, Frozen
from plbench.store import write_json

BOARD, LEDGER, RECORDS, PUBLISHED = "board.json", "ledger.json", "records", "published"

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]{0,63}$")]
Key = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_Kind = TypeVar("_Kind", bound=Frozen)
Sentence = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f<>]*$", max_length=500)]


class Board(Frozen):
    """One question, and the records that answer it.

    Attributes:
        protocol: its name; protocol_sha256: of the very protocol. A record of another one is refused.
        ceiling_sha256: of the protocol without a simulation, whose records are shown as the ceiling.
        dataset_fingerprint: of the bytes that all records must have been made on; None until the first is added.
        max_trials: tuning trials that a row may have had: the same for every method.
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


class BoardFolder:
    """One board's folder.

    Attributes:
        path: of the folder. board: what it asks. ledger: what happened, oldest first.
    """

    def __init__(self, path: Path) -> None:
        """Reads board and ledger.

        Raises:
            PlbenchError: if there is no such board, or a file is damaged, with the field.
        """
        self.path = path
        self.board = _read(Board, path / BOARD)
        if self.board.name != path.name:
            raise PlbenchError(f"{path / BOARD}: name is {self.board.name!r}, but its folder is {path.name!r}")
        self.ledger = _read(_Ledger, path / LEDGER).events if (path / LEDGER).exists() else ()

    def record_folder(self, key: str) -> Path:
        """Where the files of an accepted record lie."""
        return self.path / RECORDS / key

    @property
    def added(self) -> dict[str, Event]:
        """The event that added each key."""
        return {event.key: event for event in self.ledger if event.event == "added"}

    @property
    def withdrawn(self) -> dict[str, str]:
        """Why, for each key that was withdrawn."""
        return {event.key: event.why or "" for event in self.ledger if event.event == "withdrawn"}

    @property
    def verified(self) -> set[str]:
        """Keys that somebody reproduced."""
        return {event.key for event in self.ledger if event.event == "verified"}

    def append(self, events: Sequence[Event], board: Board | None = None) -> None:
        """Adds lines to the ledger, and writes the board where it changed."""
        self.ledger = (*self.ledger, *events)
        if board is not None:
            self.board = board
            write_json(self.path / BOARD, board.model_dump(mode="json"))
        write_json(self.path / LEDGER, {"events": [event.model_dump(exclude_none=True) for event in self.ledger]})


class _Ledger(Frozen):
    events: tuple[Event, ...]


def open_boards(root: Path, names: Sequence[str] = ()) -> list[BoardFolder]:
    """The boards below a folder, by name.

    Args:
        root: usually `leaderboards`.
        names: those wanted; empty for all.

    Raises:
        PlbenchError: if there is none, or none of a name.
    """
    there = sorted(path.parent.name for path in root.glob(f"*/{BOARD}"))
    if not there:
        raise PlbenchError(f"{root} holds no boards; give the folder of a checkout's leaderboards with --boards DIR")
    for name in names:
        if name not in there:
            raise PlbenchError(f"{root} has no board {name!r}; {did_you_mean(name, there)}")
    return [BoardFolder(root / name) for name in there if not names or name in names]


def _read(kind: type[_Kind], path: Path) -> _Kind:
    try:
        return kind.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise PlbenchError(f"{path}: {field}: {first['msg']}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise PlbenchError(f"{path} cannot be read: {error}") from error
