"""The small files of OpenImages, class list and names, and what an image id may look like."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pyarrow.compute as pc

from plbench.api import DataError, TextColumn


def read_class_list(path: Path) -> list[str]:
    """Return MIDs, one a line, in the file's order (V3's is not sorted): the columns of the labels.

    Raises:
        DataError: if the file is not text, is empty, or has a line that is no MID or comes twice.
    """
    seen: dict[str, None] = {}
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if not (mid := line.strip()):
            continue
        if not mid.startswith("/") or len(mid) > 64 or " " in mid:
            raise DataError(f"{path}, line {number}: {mid[:40]!r} is no MID such as /m/04hgtk; download the file again")
        if mid in seen:
            raise DataError(f"{path}, line {number}: {mid} comes twice; download the file again")
        seen[mid] = None
    if not seen:
        raise DataError(f"{path} is empty; expected one MID a line")
    return list(seen)


def read_descriptions(path: Path) -> dict[str, str]:
    """Return display name by MID, with (V6) or without (V3) a first line of column names. Names may repeat.

    Raises:
        DataError: if the file is not text, or a line does not hold two fields.
    """
    names = {}
    reader = csv.reader(io.StringIO(_read_text(path), newline=""))
    try:
        for fields in reader:
            if len(fields) != 2 or "\n" in "".join(fields):  # where a quote is still open
                raise DataError(f"{path}, line {reader.line_num}: no MID and name; download the file again")
            names[fields[0]] = fields[1]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num} is not CSV: {error}; download the file again") from error
    names.pop("LabelName", None)
    return names


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; download the file again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def check_ids(ids: TextColumn, path: Path) -> None:
    """Check image ids, which become file names: letters, digits, - and _ only."""
    wrong = pc.invert(pc.match_substring_regex(ids.array, r"^[0-9A-Za-z_-]+$"))
    if pc.any(wrong).as_py():
        first = ids.array.filter(wrong)[0].as_py()
        raise DataError(f"{path}: ImageID {first[:40]!r} is no id such as 000026e7ee790996; download the file again")
