"""Repeat a board's record and compare the results."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from plbench.board.boards import BoardFolder, Event
from plbench.board.entries import Entry, parse_entry
from plbench.board.packs import records_of
from plbench.board.submit import now
from plbench.comparison.identity import same_but_seed
from plbench.errors import PlbenchError
from plbench.metrics.statistics import MIN_SEEDS
from plbench.runs.record import Record
from plbench.runs.tables import PER_CLASS, REPLICATES
from plbench.runs.workspace import Workspace

SPREADS = 1.0
"""Tolerance on another machine, in standard deviations between the row's seeds."""

ROUNDING = 1e-4
"""Tolerance in percentage points for heads that trained stacked: their sums are rounded differently than alone."""

# if all of these agree, results are bit-identical
_MACHINE = ("plbench", "python", "system", "packages", "device", "cuda", "cpu")


@dataclass(frozen=True)
class Comparison:
    """One figure of a record and of its repetition, in percent.

    Attributes:
        allowed: largest difference that counts as reproduced. On the same software and processor 0, or `ROUNDING` if
            the record's head trained stacked; None if unknown.
        within: whether the difference is within it.
    """

    metric: str
    recorded: float | None
    repeated: float | None
    allowed: float | None
    within: bool

    @property
    def words(self) -> str:
        """Description of the difference and its tolerance."""
        if self.allowed is None:
            return f"{self.metric} is not the same, and its row has fewer than {MIN_SEEDS} seeds to say what may differ"
        if self.allowed == 0:
            return f"on the same software and processor {self.metric} and the tables behind it have to be bit-identical"
        if self.allowed == ROUNDING:
            return f"on the same software and processor {self.metric} has to agree to {ROUNDING} points"
        return f"{self.metric} differs by more than {self.allowed:.2f} points, the spread of its row's seeds"


def reproduce(board: BoardFolder, key: str, workspace: Workspace) -> tuple[Record, list[Comparison]]:
    """Rebuild the spec of a record, run it here, and compare the headline figures.

    On a CPU, the run uses as many threads as the record's training: other numbers of threads change the order of sums,
    which changes results by tenths of a point.

    Raises:
        PlbenchError: if the board has no such record, or the run cannot be the same here, with the difference.
    """
    from torch import get_num_threads

    from plbench.randomness import on_threads
    from plbench.runs import run as runner
    from plbench.runs.plan.resolve import plan_from_spec

    if key not in board.added:
        raise PlbenchError(f"board {board.board.name} has no record {key!r}")
    entries = {other: parse_entry(files) for other, files in records_of(board).items()}
    entry = entries[key]
    threads = entry.record.environment.get("torch_threads")  # of all heads that trained stacked
    own = max(1, threads // (1 + _num_others(entry.record))) if isinstance(threads, int) else None
    with on_threads(own or get_num_threads()):
        record = runner.run(plan_from_spec(entry.record.spec, workspace), workspace, force=True)
    standing = [other.record for key, other in entries.items() if key not in board.withdrawn]
    wanted = same_but_seed(entry.record.spec)
    return record, compare_records(entry, record, [other for other in standing if same_but_seed(other.spec) == wanted])


def _num_others(record: Record) -> int:
    return 0 if record.cost is None else record.cost.shared_with


def compare_records(entry: Entry, repeated: Record, siblings: Sequence[Record]) -> list[Comparison]:
    """Compare the headline figures of a record with those of its repetition.

    On the same software and processor the tables must be bit-identical, since runs are deterministic. If the record's
    head trained stacked, its weights are identical and scores differ by rounding. Elsewhere trainings diverge after
    some steps, so that figures may differ like those of the row's seeds.

    Args:
        entry: the record.
        repeated: its repetition.
        siblings: records that differ from it only in seed.
    """
    same_machine = all(entry.record.environment.get(name) == repeated.environment.get(name) for name in _MACHINE)
    alone = _num_others(entry.record) == _num_others(repeated) == 0
    tables = (PER_CLASS, REPLICATES) if same_machine and alone else ()
    same = all(entry.record.files[name].sha256 == repeated.files[name].sha256 for name in tables)
    compared = []
    for name, estimate in entry.record.test.estimates.items():
        before, after = estimate.value, repeated.test.estimates[name].value
        of_seeds = [value for one in siblings if (value := one.test.estimates[name].value) is not None]
        allowed: float | None = 0.0 if alone else ROUNDING
        if not same_machine:
            allowed = SPREADS * statistics.stdev(of_seeds) if len(of_seeds) >= MIN_SEEDS else None
        if before is None or after is None or allowed is None:
            within = before == after
        else:
            within = abs(before - after) <= allowed
        compared.append(Comparison(name, before, after, allowed, within and same))
    return compared


def promote(board: BoardFolder, key: str, by: str) -> None:
    """Add to the ledger that a record was reproduced, and by whom.

    Args:
        board: the board. key: of the record. by: a few words.

    Raises:
        PlbenchError: if the record is missing or withdrawn.
    """
    if key not in board.added or key in board.withdrawn:
        raise PlbenchError(f"board {board.board.name} has no record {key!r} that could be verified")
    board.append([Event(event="verified", key=key, at=now(), by=by)])


def home_of(boards: list[BoardFolder], key_or_path: str) -> tuple[BoardFolder, str]:
    """Return the board and key of a record given by key, prefix of the key, or folder.

    Raises:
        PlbenchError: if no board or several have it.
    """
    wanted = Path(key_or_path).name
    found = [(board, key) for board in boards for key in board.added if key.startswith(wanted)]
    keys = {key for _, key in found}
    if len(keys) != 1:
        what = "no board has" if not keys else f"{len(keys)} records start with"
        raise PlbenchError(f"{what} {key_or_path!r}; plbench board show --json has their keys")
    return found[0]
