"""Choose torch's number of threads: one per core, or fewer if other programs use the cores.

Each matrix product waits for its slowest thread, which is delayed if another program uses its core. A training beside
eight others took 34 s on all cores and 16 s on one.
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
_GAIN = 1.1  # required speed-up of fewer threads; the number affects last digits, so noise must not choose it

Measure = Callable[[list[int]], Mapping[int, float]]


def settle_threads(
    asked: int | None,
    tell: Callable[[str], None],
    *,
    cores: Callable[[], int] | None = None,
    others: Callable[[], int] | None = None,
    measure: Measure | None = None,
) -> bool:
    """Set the number of torch's threads; return whether it was chosen by measurement.

    On an idle machine, or if OMP_NUM_THREADS or MKL_NUM_THREADS is set, torch's own number is kept.

    Args:
        asked: number of threads set by the user; None to choose it.
        tell: receives a message if the number differs from torch's own.
        cores, others, measure: `allowed_cores`, `busy_others` and `seconds_of_products`, or replacements in tests.
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
    """Return the number of cores that this process may use, by CPU affinity and the container's CPU quota."""
    number = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _QUOTA.read_text(encoding="ascii").split()
        return max(1, min(number, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max": no limit
        return number


def busy_others() -> int:
    """Return the median number of other runnable threads on this machine over a few samples; 0 if unknown.

    The load average is not used, since it includes programs that ended in the last minute, such as the previous
    command.
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
    """Return the median time of a product of a head's size with each number of threads, measured in turn."""
    left, right = torch.ones(256, 1280), torch.ones(1280, 512)
    taken: dict[int, list[float]] = {number: [] for number in numbers}
    for turn in range(_ROUNDS + 1):
        for number in numbers:
            with on_threads(number):
                start = time.perf_counter()
                for _ in range(_PRODUCTS):
                    left @ right
                if turn:  # the first round starts the threads
                    taken[number].append(time.perf_counter() - start)
    return {number: statistics.median(seconds) for number, seconds in taken.items()}
