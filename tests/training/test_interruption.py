"""Ctrl-C once, twice at once, and twice."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from plbench.data.workers import ignore_interrupts
from plbench.training import interruption
from plbench.training.interruption import Stopped, listening

_PROGRAM = """
import signal, time
from plbench.training.interruption import Interrupt
signal.signal(signal.SIGINT, Interrupt())
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("first", flush=True)
signal.raise_signal(signal.SIGINT)
print("second, at once", flush=True)
time.sleep(0.6)
signal.raise_signal(signal.SIGINT)
print("never")
"""


def test_the_second_ends_a_program_that_cleans_up_unless_it_is_the_same_press() -> None:
    found = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stdout) == (130, "first\nsecond, at once\n")
    assert found.stderr == "plbench: stopped; the same command continues\n"


def test_training_notes_a_press_and_the_next_one_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), listening() as heard:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # the same one, told twice
        assert heard.number == signal.SIGTERM
        monkeypatch.setattr(interruption, "SAME_PRESS_SECONDS", -1.0)
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_several_processes_may_be_told_twice() -> None:
    with listening(among_several=True) as heard:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert heard.number == signal.SIGINT


def test_a_stop_says_by_what() -> None:
    assert str(Stopped(signal.SIGTERM)) == "stopped by SIGTERM"


def test_workers_do_not_hear_it() -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        ignore_interrupts(0)
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
