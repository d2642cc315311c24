"""Processes that decode images, and what becomes of their failures: a sentence, not a worker's traceback."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from plbench.errors import DataError, PlbenchError

# of torch's DataLoader: a worker that was killed or raised, memory that could not be shared, a descriptor not passed on
_TOO_MANY = (errno.EMFILE, errno.ENFILE)
_SIGNS = ("DataLoader worker", "shared memory", "ancdata", "shm")


@contextlib.contextmanager
def failures_in_words() -> Iterator[None]:
    """Turn failures of torch's DataLoader and its workers inside the scope into sentences.

    Raises:
        DataError: as a worker raised it, without the worker's traceback, which torch puts before it. PlbenchError: if a
            worker was killed, or lacked memory or open files.
    """
    try:
        yield
    except DataError as error:
        # whoever keeps the error keeps this frame, but no loader, whose workers would be waited for late and long
        error.__traceback__ = None
        raise DataError(str(error).strip().splitlines()[-1].rpartition("DataError: ")[2]) from None
    except (RuntimeError, OSError) as error:
        text = str(error).strip()
        if not (getattr(error, "errno", None) in _TOO_MANY or any(sign in text for sign in _SIGNS)):
            raise
        error.__traceback__ = None
        why = text.splitlines()[-1] if "Original Traceback" in text else " ".join(text.split())
        raise PlbenchError(
            f"a process that decodes images failed: {why:.300}; make /dev/shm larger or allow more open files "
            "(ulimit -n), or load images without such processes: `workers=0`"
        ) from None
