"""Rows quoted from papers: shown beside a board's own rows, never ranked with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from pydantic import StringConstraints, ValidationError

from plbench.board.boards import PUBLISHED, Name, Sentence
from plbench.errors import PlbenchError
from plbench.record import Percent
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
    """The rows quoted on a board; none where there are none.

    Args:
        root: usually `leaderboards`.
        board: its name.

    Raises:
        PlbenchError: if the file is damaged or of another board, with the field.
    """
    path = root / PUBLISHED / f"{board}.json"
    if not path.is_file():
        return ()
    try:
        found = Quotations.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise PlbenchError(f"{path}: {field}: {first['msg']}") from error
    except (OSError, ValueError) as error:
        raise PlbenchError(f"{path} cannot be read: {error}") from error
    if found.board != board:
        raise PlbenchError(f"{path}: board is {found.board!r}, but its file is named {board!r}")
    return found.rows
