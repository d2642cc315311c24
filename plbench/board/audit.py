"""Running a random sample of a board's rows again: what no file can tell, a repetition does."""

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
    """One row of a sample, and what became of the record that was run again.

    Attributes:
        board, key: of the record. row: its title. seed: of the run.
        compared: each figure; empty where the run was not possible here. why: it was not, or what differs; "" if it is
            within.
    """

    board: str
    key: str
    row: str
    seed: int
    compared: tuple[Comparison, ...]
    why: str

    @property
    def within(self) -> bool | None:
        """Whether the record was reproduced; None where it could not be run."""
        return not self.why if self.compared else None


def sample_rows(boards: Sequence[BoardFolder], number: int, seed: int) -> list[tuple[BoardFolder, str]]:
    """Draw rows of boards, each as likely as any other, and of each row one record, by its key.

    Args:
        boards: of whose rows; withdrawn records are left out.
        number: of rows; all of them where there are fewer.
        seed: of the draw: the same boards and seed, the same sample.

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
    """Run a random sample of rows again, one record each, and say which figures are within what `reproduce` allows.

    Args:
        boards, number, seed: as `sample_rows` takes them.
        workspace: with the datasets.

    Yields:
        Each row as soon as it was run.
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
