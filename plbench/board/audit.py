"""Audit of boards: repeat a random sample of their rows."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from plbench.board.boards import BoardFolder
from plbench.board.entries import parse_entry
from plbench.board.packs import records_of
from plbench.board.reproduce import Comparison, reproduce
from plbench.comparison.identity import row_key
from plbench.errors import PlbenchError
from plbench.runs.workspace import Workspace


@dataclass(frozen=True)
class Audited:
    """One sampled row, and the result of repeating one of its records.

    Attributes:
        board, key: of the record. row: its title. seed: of the run.
        compared: each figure; empty if the run was not possible. why: the reason, or what differs; "" if within
            tolerance.
    """

    board: str
    key: str
    row: str
    seed: int
    compared: tuple[Comparison, ...]
    why: str

    @property
    def within(self) -> bool | None:
        """Whether the record was reproduced; None if it could not be run."""
        return not self.why if self.compared else None


def sample_rows(boards: Sequence[BoardFolder], number: int, seed: int) -> list[tuple[BoardFolder, str]]:
    """Sample rows of boards uniformly, and one record of each row.

    Args:
        boards: to sample from; withdrawn records are left out.
        number: of rows; all if there are fewer.
        seed: of the sample, which is reproducible.

    Raises:
        PlbenchError: if there is no record. EntryError: if one cannot be read.
    """
    rows: dict[tuple[str, str], list[str]] = defaultdict(list)
    by_name = {board.board.name: board for board in boards}
    for name, board in by_name.items():
        for key, files in records_of(board).items():
            if key not in board.withdrawn:
                rows[name, row_key(parse_entry(files).record)].append(key)
    if not rows:
        raise PlbenchError(f"no record to run again on {', '.join(by_name)}; plbench board show lists boards and rows")
    draw = random.Random(seed)
    chosen = draw.sample(sorted(rows), min(number, len(rows)))
    return [(by_name[name], draw.choice(sorted(rows[name, row]))) for name, row in chosen]


def audit(boards: Sequence[BoardFolder], number: int, seed: int, workspace: Workspace) -> Iterator[Audited]:
    """Repeat a random sample of rows, one record each, and compare figures with the tolerance of `reproduce`.

    Args:
        boards, number, seed: as in `sample_rows`.
        workspace: with the datasets.

    Yields:
        Each row as soon as it is finished.
    """
    for board, key in sample_rows(boards, number, seed):
        record = parse_entry(records_of(board)[key]).record
        compared: tuple[Comparison, ...] = ()
        try:
            compared = tuple(reproduce(board, key, workspace)[1])
            why = next((comparison.words for comparison in compared if not comparison.within), "")
        except PlbenchError as error:
            why = f"could not be run here: {error}"
        yield Audited(board.board.name, key, record.title, record.spec.seed, compared, why)
