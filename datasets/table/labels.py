"""The class names in a person's own table: several in one cell, and names that are easily taken for one another."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from plbench.api import DataError, ProgressReport
from plbench.data.spelling import look, trim, trim_column

from .file import MAX_COLUMNS, TableFile
from .options import SEPARATORS

_MAX_NAME = 1000  # letters
_LIST = "list"
_ONE = "none"
_NEVER_IN_NAMES = "|;"


class LabelCells:
    """The labels in the cells of a long table's column: one in each, or several with a separator between them."""

    def __init__(self, separator: str | None) -> None:
        """Nothing has been read.

        Args:
            separator: between labels; `list` for Python's and JSON's lists; None for one label in each cell.
        """
        self._separator = None if separator == _ONE else separator
        self._known: dict[str, tuple[str, ...]] = {}

    def names(self, text: str) -> tuple[str, ...]:
        """Return the labels in a cell, each once; none in an empty one."""
        if (found := self._known.get(text)) is None:
            parts = [text]
            if self._separator == _LIST:
                listed = read_list(text)
                parts = parts if listed is None else listed
            elif self._separator is not None:
                parts = text.split(self._separator)
            found = self._known[text] = tuple(dict.fromkeys(filter(None, map(trim, parts))))
        return found

    def expand(self, texts: pa.Array) -> tuple[npt.NDArray[np.int64] | None, pa.Array]:
        """Take cells [K] apart: the cell of each label [L], and the labels [L], null for a cell without any.

        Without a separator the cells are the labels, and None stands for 0 to K - 1.
        """
        if self._separator is None:
            return None, trim_column(texts)
        encoded = texts.dictionary_encode()
        found = [self.names(text) or (None,) for text in encoded.dictionary.to_pylist()]
        lists = pa.array(found, pa.list_(pa.string())).take(encoded.indices)
        return pc.list_parent_indices(lists).to_numpy(), pc.list_flatten(lists)


def read_list(text: str) -> list[str] | None:
    """Read a list of texts as Python, numpy or JSON writes it; None if it is no list."""
    text = text.strip()
    if not re.fullmatch(r"\[.*\]|\(.*\)|\{.*\}", text, re.DOTALL):
        return None
    spaced = re.sub(r"(?<=['\"])\s+(?=['\"])", ", ", text)  # numpy writes ['a' 'b']
    for read, written in ((json.loads, text), (ast.literal_eval, spaced)):
        try:
            found = read(written)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return [str(item) for item in found] if isinstance(found, list | tuple | set) else None
    inner = text[1:-1].split(",")
    return None if text[0] != "[" or re.search(r"['\"\[\]]", text[1:-1]) else inner  # [a, b]


def collect_labels(
    table: TableFile, column: str, separator: str | None, report: ProgressReport
) -> tuple[list[str], LabelCells, list[str]]:
    """Read a column of labels once.

    Returns:
        The classes, sorted; what takes cells apart; notes on what that changed.

    Raises:
        DataError: if there are none, too many, or cells that seem to hold several where no separator is given.
    """
    cells = LabelCells(_LIST if separator is None and column in table.lists else separator)
    found: set[str] = set()
    texts: set[str] = set()
    for (batch,) in table.texts([column], report):
        new = set(batch.unique().to_pylist()) - texts
        texts |= new
        found.update(name for text in new for name in cells.names(text))
        if len(found) > MAX_COLUMNS:
            raise DataError(
                f"{table.path} has more than {MAX_COLUMNS:,} different labels in column {column!r}; is that the "
                "column of classes? Name it, such as `options.label_column='class'`; or do cells hold several labels, "
                "as with `options.label_separator='pipe'`?"
            )
    if not texts:
        raise DataError(f"{table.path} has a header and no rows; expected one row per label")
    if separator is None and column not in table.lists:
        if any(not cells.names(text) for text in texts):
            raise DataError(f"{table.path}, {table.where(column, '')} has no label; expected the name of a class")
        if joined := find_joined(found):
            text, mark = joined
            raise DataError(
                f"{table.path}, {table.where(column, text)}: {text!r:.60} seems to hold several labels; say what "
                f"separates them with `options.label_separator={mark!r}`, or give "
                "`options.label_separator='none'` if it is one class"
            )
    elif separator not in (None, _LIST, _ONE) and not any(separator in text for text in texts):
        raise DataError(
            f"{table.path}: no cell of column {column!r} has {separator!r}, which `options.label_separator=` names"
        )
    notes = check_names(table, sorted(found))
    if spaced := sorted(text for text in texts if cells.names(text) == (trim(text),) and text != trim(text)):
        said = f"white space or invisible letters around {len(spaced):,} labels, such as {spaced[0]!a}, were left out"
        notes.insert(0, said)
    return sorted(found), cells, notes


def find_joined(labels: Iterable[str]) -> tuple[str, str] | None:
    """Find a label that seems to be several, and the separator's name; None if all look like one.

    A list, `|` and `;` are in no usual name. Of other marks, most names that have one must consist of labels that
    occur by themselves, or all of parts that come again and again: `cat dog` beside `cat` and `dog`, not `hot dog`.
    """
    known, labels = sorted(labels), set(labels)
    if listed := next((label for label in known if read_list(label) is not None), None):
        return listed, _LIST
    for name, mark in SEPARATORS.items():
        parts = {label: [p for p in map(trim, label.split(mark)) if p] for label in known if mark in label}
        joined = {label: found for label, found in parts.items() if len(found) > 1}
        often = Counter(part for found in joined.values() for part in set(found))
        alone = sum(all(part in labels for part in found) for found in joined.values())
        again = sum(all(often[part] > 1 or part in labels for part in found) for found in joined.values())
        combine = alone > len(joined) / 2 or (len(joined) > len(often) and again > 0.9 * len(joined))
        if joined and (mark in _NEVER_IN_NAMES or combine):
            return next(iter(joined)), name
    return None


def check_names(table: TableFile, classes: list[str]) -> list[str]:
    """Note on class names that are easily taken for one another.

    Raises:
        DataError: if a name is endless or has control characters, or two look the same.
    """
    seen: dict[str, str] = {}
    for name in classes:
        if len(name) > _MAX_NAME:
            raise DataError(f"{table.path}: class {name[:40]!r}… has a name of {len(name):,} letters; is it a name?")
        if any(unicodedata.category(letter) == "Cc" for letter in name):
            raise DataError(
                f"{table.path}: class {name!r:.60} has a line break or control character in it; a quote may be missing"
            )
        if (other := seen.setdefault(look(name), name)) != name:
            raise DataError(
                f"{table.path}: classes {other!r} and {name!r} look the same and are written with other characters "
                f"({other!a}, {name!a}); write both the same way"
            )
    folded: dict[str, str] = {}
    alike = [(folded[f], name) for name in classes if (f := name.casefold()) in folded or folded.update({f: name})]
    return [f"classes {a!r} and {b!r} differ in capitals alone; they were taken for two" for a, b in alike[:8]]
