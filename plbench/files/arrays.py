"""Read numpy's files from untrusted sources: all damage raises ValueError, and no object is unpickled."""

from __future__ import annotations

import contextlib
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

# errors of numpy, its header parser, zipfile and zlib on damaged files
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
    """Turn all errors of numpy on damaged .npy or .npz files inside the scope into ValueErrors.

    OSErrors and our own errors are passed on.
    """
    try:
        yield
    except _DAMAGE as error:
        if isinstance(error, ValueError):
            raise
        said = " ".join(str(error).split())  # zipfile quotes as much of a file as a damaged length states
        raise ValueError(f"it is damaged ({type(error).__name__}: {said:.200})") from error


def usable(member: Any) -> np.ndarray:
    """Return a member of an .npz file, which is bytes if it is not an array.

    Raises:
        ValueError: if it is not an array, or text with invalid characters: numpy reads any four bytes as a character,
            and fails later.
    """
    if not isinstance(member, np.ndarray):
        raise ValueError("one of its members is not an array")
    if member.dtype.kind == "U":
        codes = np.frombuffer(member.astype(member.dtype.newbyteorder("=")).tobytes(), np.uint32)
        if ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes <= 0xDFFF))).any():
            raise ValueError("one of its members holds invalid text")
    return member
