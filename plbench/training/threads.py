"""How many threads torch computes with: one for each core, or fewer where other programs keep the cores busy.

Each product waits for the slowest of its threads. Where another program has a core, that thread waits for its turn, and
a training beside eight others took 34 s on all cores and 16 s on one.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from plbench.randomness import on_threads

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_LOAD = Path("/proc/loadavg")
_BY_USER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_SAMPLES, _ROUNDS, _PRODUCTS = 9, 5, 4
_GAIN = 1.1  # by which fewer threads have to be faster: the number moves last digits, and noise must not choose it

Measure = Callable[[list[int]], Mapping[int, float]]


def settle_threads(
    asked: int | None,
    tell: Callable[[str], None],
    *,
    cores: Callable[[], int] | None = None,
    others: Callable[[], int] | None = None,
    measure: Measure | None = None,
) -> bool:
    """Set the number of torch's threads; return whether that was measured here, and not what somebody said.

    An idle machine keeps one thread a core. So does one where OMP_NUM_THREADS or MKL_NUM_THREADS is set, whatever it
    says: that is what torch has taken then.

    Args:
        asked: number of threads that a person gave; None to choose it.
        tell: is told in a sentence of a number other than torch's own.
        cores, others, measure: `allowed_cores`, `busy_others` and `seconds_of_products`, or what stands for them.
    """
    if asked is not None:
        torch.set_num_threads(asked)
        return False
    if any(os.environ.get(name) for name in _BY_USER):
        return False
    usual = torch.get_num_threads()
    allowed = min(usual, (cores or allowed_cores)())
    chosen, why = allowed, f"this process may use {allowed} of the machine's cores"
    running = (others or busy_others)() if allowed > 1 else 0
    if running:
        seconds = (measure or seconds_of_products)(sorted({allowed, max(1, allowed - running), 1}, reverse=True))
        fastest = min(seconds, key=seconds.__getitem__)
        if seconds[allowed] > _GAIN * seconds[fastest]:
            gain = seconds[allowed] / seconds[fastest]
            chosen, why = fastest, f"other programs are running, and {allowed} threads take {gain:.1f} times as long"
    if chosen != usual:
        torch.set_num_threads(chosen)
        tell(f"Computing with {chosen} of {usual} threads: {why}; `threads={usual}` uses all")
    return True


def allowed_cores() -> int:
    """Return how many cores this process may use: of those it is bound to, and of a container's share of time."""
    number = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _QUOTA.read_text(encoding="ascii").split()
        return max(1, min(number, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max": no limit
        return number


def busy_others() -> int:
    """Return how many other threads of this machine want to compute now, the middle of some looks; 0 if unknown.

    Not the load average, which remembers for a minute what has ended: also the command before this one.
    """
    looks = []
    for _ in range(_SAMPLES):
        try:
            running = int(_LOAD.read_text(encoding="ascii").split()[3].partition("/")[0])
        except (OSError, ValueError, LookupError):
            return 0
        looks.append(running - 1)  # this one
        time.sleep(0.005)
    return max(0, int(statistics.median(looks)))


def seconds_of_products(numbers: list[int]) -> Mapping[int, float]:
    """Time a product as a head's step has it on each number of threads, by turns: the middle of some rounds."""
    left, right = torch.ones(256, 1280), torch.ones(1280, 512)
    taken: dict[int, list[float]] = {number: [] for number in numbers}
    for turn in range(_ROUNDS + 1):
        for number in numbers:
            with on_threads(number):
                start = time.perf_counter()
                for _ in range(_PRODUCTS):
                    left @ right
                if turn:  # the first starts the threads
                    taken[number].append(time.perf_counter() - start)
    return {number: statistics.median(seconds) for number, seconds in taken.items()}
