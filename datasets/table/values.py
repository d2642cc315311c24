"""What a cell of a person's own table says: present, absent or unknown. What could be read two ways is an error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from plbench.api import DataError
from plbench.data.spelling import trim

NegativeValue = Literal["0", "-1", "none"]
Codes = npt.NDArray[np.int8]

EMPTY, ONE, ZERO, MINUS, PRESENT, ABSENT, BAD = range(7)
_SPELLED = {
    **dict.fromkeys(("", "nan", "na", "n/a", "<na>", "null", "unknown"), EMPTY),
    **dict.fromkeys(("1", "true", "t"), ONE),
    **dict.fromkeys(("0", "false", "f"), ZERO),
    "-1": MINUS,
    **dict.fromkeys(("present", "positive", "pos", "yes", "y"), PRESENT),
    **dict.fromkeys(("absent", "negative", "neg", "no", "n"), ABSENT),
}
_NUMBERS = {1.0: ONE, 0.0: ZERO, -1.0: MINUS}
_MEANINGS = {
    "0": "0 is verified absent and -1 unknown",
    "-1": "-1 is verified absent and 0 unknown",
    "none": "neither 0 nor -1 is verified absent: both are unknown",
}


class CodeOf(dict[str, int]):
    """Code by text, of every text that has been asked for."""

    def __missing__(self, text: str) -> int:
        """Return the code of a text in whatever case and white space, and of a number as 1.0, 0.00 or 0,0."""
        plain = trim(text).lower()
        code = _SPELLED.get(plain)
        if code is None:
            with contextlib.suppress(ValueError):
                code = _NUMBERS.get(float(plain.replace(",", ".")))
        self[text] = code = BAD if code is None else code
        return code


def codes_of(texts: pa.Array) -> Codes:
    """Return code of each text: int8 [K]."""
    encoded = texts.dictionary_encode()
    distinct = np.fromiter(map(CodeOf().__getitem__, encoded.dictionary.to_pylist()), np.int8)
    return distinct[encoded.indices.to_numpy()] if len(texts) else np.empty(0, np.int8)


class Values:
    """The rule by which a table's values are read, and how often each has come."""

    def __init__(self, path: Path, negative_value: NegativeValue | None) -> None:
        self._path, self._negative = path, negative_value
        self._seen = np.zeros(7, np.int64)
        self._sign = np.array([0, 1, 0, 0, 1, -1, 0], np.int8)
        if negative_value in ("0", "-1"):
            self._sign[ZERO if negative_value == "0" else MINUS] = -1

    def signs(self, codes: Codes, locate: Callable[[int], tuple[str, str]]) -> Codes:
        """Return +1 present, -1 verified absent, 0 unknown: int8 in the shape of `codes`.

        Args:
            codes: of one batch, in any shape.
            locate: from a position in the flattened codes to where a person finds the cell, and its text.

        Raises:
            DataError: if a text is no value, or can be read in two ways: where, and which option resolves it.
        """
        flat = codes.reshape(-1)
        counts = np.bincount(flat, minlength=7)
        self._seen += counts
        if counts[BAD]:
            where, text = locate(int(np.argmax(flat == BAD)))
            raise DataError(
                f"{self._path}, {where}: {text!r:.60} is not a value; expected 1, 0, -1, true, false, present, absent, "
                "yes, no, or nothing where it is unknown"
            )
        if self._negative is None and counts[ZERO] + counts[MINUS]:
            where, text = locate(int(np.argmax((flat == ZERO) | (flat == MINUS))))
            choices = "; ".join(f"{value} if {meaning}" for value, meaning in _MEANINGS.items())
            spelled = " (false counts as 0)" if text.strip()[:1] in ("f", "F") else ""
            raise DataError(
                f"{self._path}, {where}: {text.strip()}{spelled} may mean verified absent or unknown; say which with "
                f"`negative_value=`: {choices}"
            )
        numbers, words = counts[[ONE, ZERO, MINUS]].sum(), counts[[PRESENT, ABSENT]].sum()
        if self._seen[[ONE, ZERO, MINUS]].any() and self._seen[[PRESENT, ABSENT]].any():
            are_words = (flat == PRESENT) | (flat == ABSENT)
            odd = are_words if (words and numbers >= words) or not numbers else ~are_words & (flat != EMPTY)
            where, text = locate(int(np.argmax(odd)))
            raise DataError(
                f"{self._path}, {where}: {text!r} in a table that has both numbers and words for values; write all "
                "as 1 / 0 / -1 or true / false, or all as present / absent or yes / no"
            )
        return self._sign[codes]

    def notes(self) -> tuple[str, ...]:
        """Return how numbers were taken."""
        if not self._seen[ZERO] + self._seen[MINUS]:
            return ()
        counted = f"{self._seen[ZERO]:,} cells are 0, {self._seen[MINUS]:,} are -1"
        return (f"{counted}: {_MEANINGS[self._negative or 'none']}, as --negative-value says",)
