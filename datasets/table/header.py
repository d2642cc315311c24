"""Where in a CSV file the names of its columns are, and what separates them."""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from plbench.api import DataError
from plbench.data.spelling import look, trim

from .options import TableOptions

_DELIMITERS = ",;\t|"
_NAMES = {"\t": "tab", " ": "blank", "|": "pipe"}
_LOOKED_AT = 40  # lines
_FARTHEST = 20  # line that the names may be in


def find_header(path: Path, text: str, options: TableOptions) -> tuple[int, str, tuple[str, ...], tuple[str, ...]]:
    """Find the line with the names of the columns. What stands above it is skipped if it can be nothing else.

    Args:
        path: for messages.
        text: the file's first megabytes.
        options: what a person says of the file.

    Returns:
        The line, from 1; the delimiter, where a blank stands for any number of blanks; the names as they are written;
        and sentences on what was skipped or taken.

    Raises:
        DataError: if the file is JSON, or the first line is no header: what it is, and which option helps.
    """
    if re.match(r"\s*(\{|\[\s*[\[{\"])", text):
        raise DataError(
            f"{path} is JSON, not CSV; write it as CSV with the columns image, label and value, or as Parquet "
            "(docs/your-own-data.md); COCO's own JSON is read by `dataset='coco'`"
        )
    lines = re.split(r"\r\n|\r|\n", text, maxsplit=_LOOKED_AT)[:_LOOKED_AT]
    line, image, delimiter = options.header_line, options.image_column, options.delimiter
    notes: tuple[str, ...] = ()
    if line is None:
        line, delimiter, notes = _skip_prelude(lines, image, delimiter)
    elif line > len(lines) or not lines[line - 1].strip():
        raise DataError(f"{path} has no names of columns in line {line}, as `options.header_line=` says")
    delimiter = delimiter or _tell_delimiter(path, lines[line - 1 :], image)
    below = io.StringIO(text, newline="")
    for _ in range(line - 1):
        below.readline()
    try:
        names = next(read_fields(below, delimiter, strict=True), [""])
    except csv.Error as error:
        raise DataError(f"{path}, line {line}: {error}; expected the names of the columns") from error
    if delimiter == " " and not _has(names, image):
        widths = {len(fields) for fields in read_fields(lines[line:-1], " ") if fields}
        if widths == {len(names) + 1}:  # the image's column has no name
            names = [image, *names]
            notes += (f"rows have a field more than line {line} has names; their first is taken for the image",)
    if options.header_line is None and not _has(names, image):
        _check_is_header(path, lines, line, image, options.delimiter or _DELIMITERS)
    return line, delimiter, tuple(names), notes


def _skip_prelude(
    lines: Sequence[str], image_column: str, delimiter: str | None
) -> tuple[int, str | None, tuple[str, ...]]:
    """Pass over blank lines, `sep=;`, comments and a number of rows: the line below, the delimiter, and notes."""
    told = delimiter
    skipped: list[str] = []
    for number, line in enumerate(lines[:_FARTHEST], 1):
        text = trim(line).strip('"')
        if mark := re.fullmatch(r'\W*sep=(\\t|.)"?\s*', line, re.IGNORECASE):
            told = told or mark[1].replace("\\t", "\t")
        elif (text and not re.fullmatch(r"#.*|\d+", text)) or (
            _names_in(line, image_column) and not re.fullmatch(r"#[^,;|\t]*", text)
        ):
            said = f"what stands above the names of the columns was skipped: {', '.join(map(repr, skipped))}"
            return number, told, (said,) if skipped else ()
        if text:
            skipped.append(text[:40])
    return 1, delimiter, ()


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
    # the last line looked at may be cut off
    widths = {len(fields) for fields in read_fields(lines[1:-1], " ") if fields}
    num_names = len(_split(lines[0], " "))
    return " " if num_names > 1 and widths <= {num_names, num_names + 1} else ","


def _check_is_header(path: Path, lines: Sequence[str], line: int, image_column: str, delimiters: str) -> None:
    """Refuse a title or a comment in place of names.

    Raises:
        DataError: if a line below has the image column, or lines below have other fields than this one.
    """
    first = f"{path}, line {line}: {lines[line - 1].strip()!r:.60} is no list of the columns' names"
    for number in range(line + 1, min(len(lines), _FARTHEST) + 1):
        if _names_in(lines[number - 1], image_column):
            raise DataError(
                f"{first}, which are in line {number}: delete the lines above it, or give "
                f"`options.header_line={number}`"
            )
    for mark in delimiters:
        fields = {number: _split(text, mark) for number, text in enumerate(lines, 1) if text.strip()}
        below = [len(found) for number, found in fields.items() if number > line]
        width, often = Counter(below).most_common(1)[0] if below else (1, 0)
        number = next((number for number, found in fields.items() if len(found) == width), line)
        if width == 1 or often <= 0.8 * len(below) or number <= line:
            continue
        # names are no numbers, and no files
        if not any(re.search(r"^\s*-?\d*\.?\d*\s*$|\.\w{3,4}\s*$", name) for name in fields[number]):
            raise DataError(
                f"{first}; lines from {number} on have {width} fields: if line {number} has the names, delete the "
                f"lines above it, or give `options.header_line={number}`"
            )
