"""Errors shown to users as one sentence: what is wrong, where, what is expected, and how to fix it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError


_MAX_BEGINNING, _MAX_END = 1200, 700  # characters of a message


class PlbenchError(ValueError):
    """An error that the user can fix. The command line prints it and exits with code 2.

    Attributes:
        what: the message without the command that shows more, for output of that same command. Long messages, such as
            those that quote a file, are cut to their beginning and end.
    """

    def __init__(self, what: object, command: str = "") -> None:
        """Store what is wrong, and the command that shows more."""
        self.what = str(what)
        if len(self.what) > _MAX_BEGINNING + _MAX_END + 99:
            self.what = f"{self.what[:_MAX_BEGINNING]} […] {self.what[-_MAX_END:]}"
        super().__init__(f"{self.what}; {command}" if command else self.what)


class DataError(PlbenchError):
    """A dataset that is missing or malformed, or lacks something requested."""


class MissingDataError(DataError):
    """A dataset whose files are missing.

    Attributes:
        dataset: the instance whose files are missing.
    """

    def __init__(self, what: object, dataset: Any = None) -> None:
        """Store what is missing, and the dataset."""
        super().__init__(what)
        self.dataset = dataset


class PluginError(PlbenchError):
    """A method or dataset plugin that cannot be found, loaded or trusted."""


class StoreError(PlbenchError):
    """Runs or cache on disk that cannot be read or written."""


class UnwritableError(StoreError):
    """A location that is not writable. The command line adds the options that set another."""


class TrainingError(PlbenchError):
    """A training that cannot continue, for instance because its loss is no longer finite."""


def first_invalid(error: ValidationError) -> tuple[str, str, Any, str]:
    """Return the first error that pydantic found: dotted field name, message, value, error type.

    The field is empty if the whole input is invalid, for instance not JSON.
    """
    first = error.errors()[0]
    return ".".join(f"{part!s:.80}" for part in first["loc"]), plain_words(first["msg"]), first["input"], first["type"]


_PLAIN = {
    r"^Value error, ": "",
    r"^Input should be a valid integer\b.*": "expected a whole number",
    r"^Input should be a valid number\b.*": "expected a number",
    r"^Input should be a valid boolean\b.*": "expected true or false",
    r"^Input should be a valid string$": "expected text",
    r"^Input should be a valid ": "expected a ",
    r"^Input should be (?=greater|less)": "expected a number ",
    r"^Input should be ": "expected ",
    r"^Field required$": "it is missing",
    r"^Extra inputs are not permitted$": "there is no such field",
}


def plain_words(message: str) -> str:
    """Return pydantic's message about a value in plain words.

    Examples:
        >>> plain_words("Input should be greater than 0"), plain_words("Value error, 'exe' is none")
        ('expected a number greater than 0', "'exe' is none")
    """
    for pattern, words in _PLAIN.items():
        message = re.sub(pattern, words, message)
    return message


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the known names, the likely intended one first, for the end of an error message.

    Examples:
        >>> did_you_mean("selectve", ["ce-ignore", "selective"])
        'did you mean selective? (known: ce-ignore, selective)'
    """
    names = sorted(known)
    listing = f"known: {', '.join(names)}" if names else "none are known"
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]}? ({listing})" if close else listing
