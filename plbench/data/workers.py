"""Failures of processes that decode images, as messages instead of tracebacks."""

from __future__ import annotations

import contextlib
import errno
import signal
from collections.abc import Iterator

from plbench.errors import DataError, PlbenchError

# from torch's DataLoader: worker killed or raised, shared memory or file descriptor not available
_TOO_MANY = (errno.EMFILE, errno.ENFILE)
_SIGNS = ("DataLoader worker", "shared memory", "ancdata", "shm")


def ignore_interrupts(worker: int) -> None:
    """Ignore Ctrl-C in a worker, which a terminal also sends to it: the main process ends its workers in order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def failures_in_words() -> Iterator[None]:
    """Turn failures of torch's DataLoader and its workers inside the scope into messages.

    Raises:
        DataError: as raised by a worker, without the worker's traceback, which torch prepends. PlbenchError: if a
            worker was killed, or ran out of memory or file descriptors.
    """
    try:
        yield
    except DataError as error:
        # drop the traceback, which would keep the loader alive and delay the shutdown of its workers
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
