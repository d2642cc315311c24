"""numpy's files from anywhere: whatever is wrong with one is a ValueError, and no object in it is unpickled."""

from __future__ import annotations

import contextlib
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

# numpy, the parser of its headers, zipfile and zlib each raise their own where a file is damaged
_DAMAGE = (
    *(
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        EOFError,
        RuntimeError,
        SyntaxError,
        MemoryError,
        OverflowError,
    ),
    *(tokenize.TokenError, struct.error, zipfile.BadZipFile, zlib.error),
)


@contextlib.contextmanager
def damage_in_words() -> Iterator[None]:
    """Turn whatever numpy raises at a damaged .npy or .npz file inside the scope into a ValueError.

    An OSError is not damage and passes, and so does an error of ours.
    """
    try:
        yield
    except _DAMAGE as error:
        if isinstance(error, ValueError):
            raise
        said = " ".join(str(error).split())  # zipfile quotes as much of a file as a damaged length says
        raise ValueError(f"it is damaged ({type(error).__name__}: {said:.200})") from error


def usable(member: Any) -> np.ndarray:
    """Return a member of an .npz file, which numpy gives as bytes where it is no array.

    Raises:
        ValueError: if it is none, or of text that holds what is no character: numpy takes any four bytes for one, and
            fails at them later.
    """
    if not isinstance(member, np.ndarray):
        raise ValueError("one of its members is not an array")
    if member.dtype.kind == "U":
        codes = np.frombuffer(member.astype(member.dtype.newbyteorder("=")).tobytes(), np.uint32)
        if ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes <= 0xDFFF))).any():
            raise ValueError("one of its members holds invalid text")
    return member
