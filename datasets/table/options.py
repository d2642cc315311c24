"""What a person says of their own table: which files, and how to read what can be read in two ways."""

from __future__ import annotations

import codecs
import csv
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from plbench.api import DatasetOptions
from plbench.data.spelling import trim

from .values import NegativeValue

Layout = Literal["long", "wide"]
SEPARATORS = {"pipe": "|", "semicolon": ";", "comma": ",", "slash": "/", "plus": "+", "ampersand": "&", "blank": " "}
"""Marks by the names that options take for them, in the order in which labels are searched for them."""

_MARKS = {**SEPARATORS, "tab": "\t", "\\t": "\t", "space": " "}


class TableOptions(DatasetOptions):
    """Which files, and how to read what can be read in two ways."""

    labels: Path | None = Field(None, description="a CSV or Parquet file")
    images: Path | None = Field(None, description="folder of images")
    negative_value: NegativeValue | None = Field(None, description="which number means verified absent")
    layout: Layout | None = Field(None, description="a row for every label, or for every image")
    image_column: str = Field("image", description="column of image files")
    label_column: str = Field("label", description="column of class names, in a long table")
    value_column: str = Field(
        "value", description="column of 1 / 0 / -1 or present / absent, in a long table; none: every row says present"
    )
    split_column: str = Field("split", description="column of train / test / val; none: a share tests, by a hash")
    leave_out: tuple[str, ...] = Field((), description="columns of no use, with commas between them")
    keep: tuple[str, ...] = Field((), description="columns of a wide table that are classes though they look like none")
    label_separator: str | None = Field(
        None, description="between several labels in a cell of a long table, such as pipe; list: ['a', 'b']; none"
    )
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    encoding: str = Field("utf-8", description="of a CSV file")
    delimiter: str | None = Field(None, description="of a CSV file: one character, or tab, blank or pipe")
    header_line: int | None = Field(None, ge=1, description="line of a CSV file with the names of its columns")

    @field_validator("encoding")
    @classmethod
    def _is_encoding(cls, encoding: str) -> str:
        try:
            return codecs.lookup(encoding).name
        except LookupError as error:
            raise ValueError("no such encoding; expected one such as utf-8, utf-16, cp1252 or latin-1") from error

    @field_validator("delimiter")
    @classmethod
    def _is_delimiter(cls, delimiter: str | None) -> str | None:
        mark = None if delimiter is None else _MARKS.get(delimiter, delimiter)
        if mark is not None and (len(mark) != 1 or not mark.isascii() or mark in '"\r\n\0'):
            raise ValueError("expected one character, or tab, comma, semicolon, blank or pipe")
        return mark

    @field_validator("label_separator")
    @classmethod
    def _is_separator(cls, separator: str | None) -> str | None:
        if separator is not None and not 0 < len(separator) <= 9:
            raise ValueError(
                "expected what stands between two labels, such as pipe, semicolon or blank; or list, or none"
            )
        return None if separator is None else _MARKS.get(separator, separator)

    @field_validator("leave_out", "keep", mode="before")
    @classmethod
    def _are_columns(cls, columns: object) -> object:
        """Return names with commas between them; a name with a comma is quoted, as in CSV."""
        if not isinstance(columns, str):
            return columns
        return tuple(sorted({trim(name) for name in next(csv.reader([columns], skipinitialspace=True), [])} - {""}))
