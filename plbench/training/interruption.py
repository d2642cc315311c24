"""Handle Ctrl-C and SIGTERM during training: stop between two steps, after saving."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

_GRACE_SECONDS = 20.0
"""Grace period for a process that waits for one that has ended, and thus cannot finish its step."""


class Stopped(KeyboardInterrupt):
    """A training was stopped by the signal `number`, was saved, and can be resumed."""

    def __init__(self, number: int) -> None:
        """Store the signal."""
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


@dataclass
class Interruption:
    """The signal that requested a stop, if any."""

    number: int | None = None


@contextlib.contextmanager
def listening(*, among_several: bool = False) -> Iterator[Interruption]:
    """Record SIGINT and SIGTERM inside the scope, instead of ending the program.

    With a single process, a second signal ends the program immediately. With several, which may receive it twice (from
    the terminal and from their launcher), a timer does. Outside the main thread nothing changes.
    """
    heard = Interruption()
    # only the main thread can set handlers
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return
    timers: list[threading.Timer] = []

    def note(number: int, frame: FrameType | None) -> None:
        if heard.number is not None and not among_several:
            raise KeyboardInterrupt
        if heard.number is None and among_several:
            # os._exit, since an exception would only end the timer's thread; 128 + n is the shell's convention for
            # signal n
            timers.append(threading.Timer(_GRACE_SECONDS, os._exit, (128 + number,)))
            # otherwise it would keep a finished program alive
            timers[-1].daemon = True
            timers[-1].start()
        heard.number = number

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for timer in timers:
            timer.cancel()
