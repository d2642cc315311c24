"""Ctrl-C and SIGTERM while a model trains: heard at once, obeyed between two steps, when everything can be saved."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

_GRACE_SECONDS = 20.0
"""A process that waits for another that is gone cannot come to the end of its step; it is ended after so long."""


class Stopped(KeyboardInterrupt):
    """A training was told to stop by the signal `number`, has saved, and can go on from there."""

    def __init__(self, number: int) -> None:
        """Remember the signal."""
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


@dataclass
class Interruption:
    """The signal that asked for a stop, if one did."""

    number: int | None = None


@contextlib.contextmanager
def listening(*, among_several: bool = False) -> Iterator[Interruption]:
    """Note SIGINT and SIGTERM instead of ending the program, while the scope lasts.

    Alone, a second signal ends the program at once. Among several processes, which may be told twice (by the terminal
    and by what launched them), it is a timer that does so. Outside the main thread nothing changes.
    """
    heard = Interruption()
    # Python lets only the main thread set handlers
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return
    timers: list[threading.Timer] = []

    def note(number: int, frame: FrameType | None) -> None:
        if heard.number is not None and not among_several:
            raise KeyboardInterrupt
        if heard.number is None and among_several:
            # os._exit, as an exception would end the timer's thread alone; 128 + n is how a shell reports signal n
            timers.append(threading.Timer(_GRACE_SECONDS, os._exit, (128 + number,)))
            # or it would keep a program alive that ends in time
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
