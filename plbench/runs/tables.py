"""Read the tables of a record, with limits, since they are untrusted."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Annotated

import numpy as np
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from plbench.errors import PlbenchError, first_invalid
from plbench.files.escaping import csv_text
from plbench.metrics import Metrics

PER_CLASS, REPLICATES, GROUP_REPLICATES = "per_class.csv", "replicates.csv", "group_replicates.csv"

TEXT_COLUMNS = ("class_id", "class_name", "groups")
"""Text columns of `per_class.csv`, whose cells are escaped by `csv_cell`."""

MAX_CLASSES = 20_000
MAX_REPLICATES = 20_000

_Blank = BeforeValidator(lambda value: None if value == "" else value)
_Percent = Annotated[Annotated[float, Field(ge=0, le=100 + 1e-9)] | None, _Blank]
_Count = Annotated[int, Field(ge=0, le=10**9)]
_Names = BeforeValidator(
    lambda value: tuple(filter(None, csv_text(value).split(";"))) if isinstance(value, str) else value
)
_Text = Annotated[str, BeforeValidator(lambda value: csv_text(value) if isinstance(value, str) else value)]


class EntryError(PlbenchError):
    """An invalid file of a record; `field` is the file and the location in it."""

    def __init__(self, field: str, found: str) -> None:
        """Store the location, and what was found there."""
        super().__init__(f"{field}: {found}")
        self.field, self.found = field, found


@dataclass(frozen=True, config=ConfigDict(allow_inf_nan=False))
class ClassRow:
    """One class of `per_class.csv`: AP in percent, None where undefined; known positives and negatives in test.

    Attributes:
        auroc, precision, recall: percent. predicted: number of known cells that reach `threshold`. None in tables
            before schema 5, if undefined, or without thresholds.
    """

    class_id: _Text
    class_name: _Text
    ap: _Percent
    positives: _Count
    negatives: _Count
    groups: Annotated[tuple[str, ...], _Names] = ()
    quintile: Annotated[int | None, _Blank] = None
    auroc: _Percent = None
    threshold: Annotated[float | None, _Blank] = None
    predicted: Annotated[_Count | None, _Blank] = None
    precision: _Percent = None
    recall: _Percent = None


def parse_per_class(content: bytes) -> tuple[ClassRow, ...]:
    """Parse a per-class table.

    Raises:
        EntryError: if it is invalid, with the line.
    """
    parse = TypeAdapter(ClassRow).validate_python
    rows: list[ClassRow] = []
    try:
        for row in csv.DictReader(io.StringIO(_text(content, PER_CLASS)), strict=True):
            if len(rows) == MAX_CLASSES:
                raise EntryError(PER_CLASS, f"has more than {MAX_CLASSES:,} classes")
            rows.append(parse(row))
    except csv.Error as error:
        raise EntryError(PER_CLASS, f"is not CSV: {error}") from error
    except ValidationError as error:
        field, message, given, _ = first_invalid(error)
        raise EntryError(f"{PER_CLASS}, line {len(rows) + 2}", f"{field} {given!r:.80}: {message}") from error
    if not rows:
        raise EntryError(PER_CLASS, "has no classes")
    return tuple(rows)


def parse_replicates(content: bytes, name: str = REPLICATES) -> dict[str, np.ndarray]:
    """Parse bootstrap replicates; `name` is the file's name for messages.

    Returns:
        [R] by metric, percent; NaN if a replicate has no class to score.

    Raises:
        EntryError: if it is invalid, with the line.
    """
    lines = _text(content, name).splitlines()
    names = [csv_text(name) for name in lines[0].split(",")] if lines else []
    if len(lines) - 1 > MAX_REPLICATES or not names or len(set(names)) != len(names):
        raise EntryError(name, f"has {len(lines) - 1:,} rows of {len(names)} columns")
    table = np.empty((len(lines) - 1, len(names)))
    for number, line in enumerate(lines[1:]):
        try:
            values = [float(text) for text in line.split(",")]
            if len(values) != len(names) or not all(math.isnan(value) or 0 <= value <= 100 for value in values):
                raise ValueError(f"expected {len(names)} values between 0 and 100")
        except ValueError as error:
            raise EntryError(f"{name}, line {number + 2}", str(error)) from error
        table[number] = values
    return dict(zip(names, table.T.copy(), strict=True))


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise EntryError(name, f"byte {error.start} is not UTF-8") from error


def as_metrics(table: Sequence[ClassRow]) -> Metrics:
    """Return a per-class table as `Metrics`."""
    ap = np.array([math.nan if row.ap is None else row.ap / 100 for row in table])
    return Metrics(ap, np.array([row.positives for row in table]), np.array([row.negatives for row in table]))


def group_members(table: Sequence[ClassRow], names: Iterable[str]) -> dict[str, list[int]]:
    """Return the positions of each group's classes in the table."""
    return {name: [c for c, row in enumerate(table) if name in row.groups] for name in names}


def quintile_members(table: Sequence[ClassRow]) -> list[list[int]]:
    """Return the positions of each quintile's classes in the table."""
    return [[c for c, row in enumerate(table) if row.quintile == number] for number in range(1, 6)]
