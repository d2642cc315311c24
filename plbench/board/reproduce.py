"""Running a board's record again, and comparing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from plbench.board.boards import BoardFolder, Event
from plbench.board.entrance import now
from plbench.board.entries import Entry, read_entry
from plbench.errors import PlbenchError
from plbench.record import Estimate, Record
from plbench.workspace import Workspace


@dataclass(frozen=True)
class Comparison:
    """One figure of a record and of its repetition, percent; whether the one lies in the other's interval."""

    metric: str
    recorded: float | None
    repeated: float | None
    low: float | None
    high: float | None
    within: bool


def reproduce(board: BoardFolder, key: str, workspace: Workspace) -> tuple[Record, list[Comparison]]:
    """Rebuilds the spec of a record, runs it here, and compares the headline figures with the record's intervals.

    Args:
        board: that has the record.
        key: of the record.
        workspace: where the repetition runs.

    Raises:
        PlbenchError: if the board has no such record, or the run cannot be the same here, naming what differs.
    """
    from plbench import runner
    from plbench.planning.resolve import plan_from_spec

    if key not in board.added:
        raise PlbenchError(f"board {board.board.name} has no record {key!r}")
    entry = read_entry(board.record_folder(key))
    record = runner.run(plan_from_spec(entry.record.spec, workspace), workspace, force=True)
    return record, compare_records(entry, record)


def compare_records(entry: Entry, repeated: Record) -> list[Comparison]:
    """The headline figures of a record and of its repetition."""
    names = ["map_c", "map_o", *entry.record.test.groups]
    return [_compare(name, _estimate(entry.record, name), _estimate(repeated, name)) for name in names]


def _estimate(record: Record, name: str) -> Estimate:
    own = {"map_c": record.test.map_c, "map_o": record.test.map_o}
    return own[name] if name in own else record.test.groups[name].map_c


def _compare(name: str, recorded: Estimate, repeated: Estimate) -> Comparison:
    if recorded.low is None or recorded.high is None or repeated.value is None:
        within = recorded.value == repeated.value
    else:
        within = recorded.low <= repeated.value <= recorded.high
    return Comparison(name, recorded.value, repeated.value, recorded.low, recorded.high, within)


def promote(board: BoardFolder, key: str, by: str) -> None:
    """Notes in the ledger that a record was reproduced.

    Args:
        board: that has it.
        key: of the record.
        by: who reproduced it, in a few words.

    Raises:
        PlbenchError: if it is not there or was withdrawn.
    """
    if key not in board.added or key in board.withdrawn:
        raise PlbenchError(f"board {board.board.name} has no record {key!r} that could be verified")
    board.append([Event(event="verified", key=key, at=now(), by=by)])


def home_of(boards: list[BoardFolder], key_or_path: str) -> tuple[BoardFolder, str]:
    """The board that has a record, named by its key, the start of it, or its folder.

    Raises:
        PlbenchError: if none or several have it.
    """
    wanted = Path(key_or_path).name
    found = [(board, key) for board in boards for key in board.added if key.startswith(wanted)]
    keys = {key for _, key in found}
    if len(keys) != 1:
        what = "no board has" if not keys else f"{len(keys)} records start with"
        raise PlbenchError(f"{what} {key_or_path!r}; plbench board show --json has their keys")
    return found[0]
