"""JSON files of a known shape, decoded in one go."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from plbench.api import DataError

Shape = TypeVar("Shape")


def read_json(path: Path, shape: type[Shape]) -> Shape:
    """Return what a file holds; keys that the shape does not name are passed over.

    Raises:
        DataError: if it cannot be read, or holds something else: the place, what was found, what was expected.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=shape)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except msgspec.ValidationError as error:
        raise DataError(f"{path}: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error
