"""numpy's files from anywhere: whatever is wrong with one is a ValueError, and no object in it is unpickled."""

from __future__ import annotations

import contextlib
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator

# numpy, the parser of its headers, zipfile and zlib each raise their own where a file is damaged
_DAMAGE = (
    *(LookupError, ValueError, TypeError, EOFError, RuntimeError, SyntaxError, MemoryError, OverflowError),
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
        raise ValueError(f"it is damaged ({type(error).__name__}: {' '.join(str(error).split())})") from error
