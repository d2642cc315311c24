"""Rows quoted from papers: shown beside a board's own rows, never ranked with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import StringConstraints

from plbench.board.boards import PUBLISHED, Name, Sentence, read_model
from plbench.errors import PlbenchError
from plbench.files.paths import refuse_links
from plbench.runs.record import Percent
from plbench.spec import Frozen

Metric = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,39}$")]


class Quotation(Frozen):
    """One row of a paper's table.

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


def read_quotations(root: Path, board: str) -> tuple[Quotation, ...]:
    """Return the rows quoted on a board; none where there are none.

    Args:
        root: usually `leaderboards`.
        board: its name.

    Raises:
        PlbenchError: if the file is damaged or of another board, with the field.
    """
    path = root / PUBLISHED / f"{board}.json"
    refuse_links(root, path)
    if not path.exists():
        return ()
    found = read_model(Quotations, root, path)
    if found.board != board:
        raise PlbenchError(f"{path}: board is {found.board!r}, but its file is named {board!r}")
    return found.rows
