"""Where in a CSV file the names of its columns are, and what separates them."""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plbench.api import DataError
from plbench.data.spelling import look, trim

_DELIMITERS = ",;\t|"
_NAMES = {"\t": "tab", " ": "blank", "|": "pipe"}
_LOOKED_AT = 40  # lines
_FARTHEST = 20  # line that the names may be in


@dataclass(frozen=True)
class Header:
    """The names of the columns.

    Attributes:
        line: that they are in, from 1.
        delimiter: between them; a blank stands for any number of blanks.
        names: as they are written.
        notes: sentences on what was skipped or taken.
    """

    line: int
    delimiter: str
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class CsvForm:
    """What a person says of a CSV file; None, or a name that is not there, where it is to be told from the file.

    Attributes:
        image_column: a name that the line of names should have.
        encoding: as Python names it. delimiter: one character. header_line: from 1.
    """

    image_column: str = "image"
    encoding: str = "utf-8"
    delimiter: str | None = None
    header_line: int | None = None


def find_header(path: Path, text: str, form: CsvForm) -> Header:
    """Find the line with the names of the columns. What stands above it is skipped if it can be nothing else.

    Args:
        path: for messages.
        text: the file's first megabytes.
        form: what a person says of it.

    Raises:
        DataError: if the file is JSON, or the first line is no header: what it is, and which option helps.
    """
    if re.match(r"\s*(\{|\[\s*[\[{\"])", text):
        raise DataError(
            f"{path} is JSON, not CSV; write it as CSV with the columns image, label and value, or as Parquet "
            "(docs/your-own-data.md); COCO's own JSON is read by `dataset='coco'`"
        )
    lines = re.split(r"\r\n|\r|\n", text, maxsplit=_LOOKED_AT)[:_LOOKED_AT]
    if form.header_line is not None:
        if form.header_line > len(lines) or not lines[form.header_line - 1].strip():
            raise DataError(
                f"{path} has no names of columns in line {form.header_line}, as `options.header_line=` says"
            )
        return _read_names(path, text, lines, form.header_line, form)
    start, notes, delimiter = _skip_prelude(lines, form)
    header = _read_names(path, text, lines, start, CsvForm(form.image_column, form.encoding, delimiter), notes)
    if not _has(header.names, form.image_column):
        _check_is_header(path, lines, header, form)
    return header


def _skip_prelude(lines: Sequence[str], form: CsvForm) -> tuple[int, tuple[str, ...], str | None]:
    """Pass over blank lines, `sep=;`, comments and a number of rows: the line below, notes, and the delimiter."""
    delimiter = form.delimiter
    skipped: list[str] = []
    for number, line in enumerate(lines[:_FARTHEST], 1):
        text = trim(line).strip('"')
        if mark := re.fullmatch(r'\W*sep=(\\t|.)"?\s*', line, re.IGNORECASE):
            delimiter = delimiter or mark[1].replace("\\t", "\t")
        elif (text and not re.fullmatch(r"#.*|\d+", text)) or (
            _names_in(line, form.image_column) and not re.fullmatch(r"#[^,;|\t]*", text)
        ):
            shown = ", ".join(map(repr, skipped))
            notes = (f"what stands above the names of the columns was skipped: {shown}",) if skipped else ()
            return number, notes, delimiter
        if text:
            skipped.append(text[:40])
    return 1, (), form.delimiter


def _names_in(line: str, image_column: str) -> bool:
    """Return whether a line has the image column under any delimiter."""
    plain = not any(mark in line for mark in _DELIMITERS)
    return any(_has(_split(line, mark), image_column) for mark in (_DELIMITERS + " " * plain))


def _has(names: Sequence[str], wanted: str) -> bool:
    return look(wanted).casefold() in (look(name).casefold() for name in names)


def _split(line: str, mark: str) -> list[str]:
    with contextlib.suppress(csv.Error):
        return next(read_fields([line], mark), [])
    return []


def read_fields(lines: Iterable[str], delimiter: str, *, strict: bool = False) -> Any:
    """Read lines of fields: Python's reader, for which blanks in a row are one delimiter, and none ends a line."""
    trimmed = (line.rstrip(" \r\n") for line in lines) if delimiter == " " else lines
    return csv.reader(trimmed, delimiter=delimiter, skipinitialspace=delimiter == " ", strict=strict)


def _read_names(
    path: Path, text: str, lines: Sequence[str], line: int, form: CsvForm, notes: tuple[str, ...] = ()
) -> Header:
    """Return the names in a line; in a file of blanks, rows may have a field more, which has no name: the image."""
    delimiter = form.delimiter or _tell_delimiter(path, lines[line - 1 :], form.image_column)
    below = io.StringIO(text, newline="")
    for _ in range(line - 1):
        below.readline()
    try:
        names = next(read_fields(below, delimiter, strict=True), [""])
    except csv.Error as error:
        raise DataError(f"{path}, line {line}: {error}; expected the names of the columns") from error
    if delimiter == " " and not _has(names, form.image_column):
        rows = [fields for fields in read_fields(lines[line:-1], " ") if fields]
        if rows and {len(fields) for fields in rows} == {len(names) + 1}:
            names = [form.image_column, *names]
            notes = (*notes, f"rows have a field more than line {line} has names; their first is taken for the image")
    return Header(line, delimiter, tuple(names), notes)


def _tell_delimiter(path: Path, lines: Sequence[str], image_column: str) -> str:
    """Return the delimiter under which the line of names has the image column, or that the line has at all."""
    names = {mark: _split(lines[0], mark) for mark in _DELIMITERS}
    found = [mark for mark in names if _has(names[mark], image_column)] or [m for m in names if len(names[m]) > 1]
    if len(found) > 1:
        marks = " and ".join(_NAMES.get(mark, f"'{mark}'") for mark in found)
        raise DataError(
            f"{path} has {marks} in its first line; say which separates columns, such as `options.delimiter='tab'`"
        )
    if found:
        return found[0]
    widths = {
        len(fields) for fields in read_fields(lines[1:-1], " ") if fields
    }  # the last line looked at may be cut off
    num_names = len(_split(lines[0], " "))
    return " " if num_names > 1 and widths <= {num_names, num_names + 1} else ","


def _check_is_header(path: Path, lines: Sequence[str], header: Header, form: CsvForm) -> None:
    """Refuse a title or a comment in place of names.

    Raises:
        DataError: if a line below has the image column, or lines below have other fields than this one.
    """
    first = f"{path}, line {header.line}: {lines[header.line - 1].strip()!r:.60} is no list of the columns' names"
    for number in range(header.line + 1, min(len(lines), _FARTHEST) + 1):
        if _names_in(lines[number - 1], form.image_column):
            raise DataError(
                f"{first}, which are in line {number}: delete the lines above it, or give "
                f"`options.header_line={number}`"
            )
    for mark in (form.delimiter,) if form.delimiter else _DELIMITERS:
        widths = {number: len(_split(line, mark)) for number, line in enumerate(lines, 1) if line.strip()}
        below = [width for number, width in widths.items() if number > header.line]
        width, often = Counter(below).most_common(1)[0] if below else (1, 0)
        number = next((number for number in widths if widths[number] == width), header.line)
        if (
            width > 1
            and often > 0.8 * len(below)
            and number > header.line
            and _are_names(_split(lines[number - 1], mark))
        ):
            raise DataError(
                f"{first}; lines from {number} on have {width} fields: if line {number} has the names, delete the "
                f"lines above it, or give `options.header_line={number}`"
            )


def _are_names(fields: Sequence[str]) -> bool:
    """Return whether fields may be names of columns: no numbers, and no files."""
    return not any(re.search(r"^\s*-?\d*\.?\d*\s*$|\.\w{3,4}\s*$", field) for field in fields)
