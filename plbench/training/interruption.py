"""Handle Ctrl-C and SIGTERM during training: stop between two steps, after saving."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

_GRACE_SECONDS = 20.0
"""Grace period for a process that waits for one that has ended, and thus cannot finish its step."""

SAME_PRESS_SECONDS = 0.5
"""A second signal within this time counts as the first: `timeout` and launchers signal a process and then its group."""


class Interrupt:
    """Handler of Ctrl-C outside training: the first raises KeyboardInterrupt, a second one ends the program at once."""

    def __init__(self) -> None:
        """Wait for the first."""
        self._first: float | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal."""
        now = time.monotonic()
        if self._first is None:
            self._first = now
            raise KeyboardInterrupt
        if now - self._first > SAME_PRESS_SECONDS:
            os.write(2, b"plbench: stopped; the same command continues\n")
            os._exit(128 + number)  # an exception would be raised inside whatever is cleaning up


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

    With a single process, a second signal that does not belong to the first ends the program immediately. With several
    processes, which may receive it twice (from the terminal and from their launcher), a timer does. Outside the main
    thread nothing changes.
    """
    heard = Interruption()
    # only the main thread can set handlers
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return
    timers: list[threading.Timer] = []
    first = 0.0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if heard.number is not None and not among_several:
            if time.monotonic() - first > SAME_PRESS_SECONDS:
                raise KeyboardInterrupt
            return
        first = time.monotonic()
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
