"""Trace some steps with torch's profiler, for Perfetto or chrome://tracing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

SKIPPED, WARM_UP, TRACED = 4, 2, 6
"""Numbers of steps that are skipped, used as warm-up, and traced."""


@contextlib.contextmanager
def traced(
    folder: Path, *, rank: int, device: torch.device, tell: Callable[[str], None]
) -> Iterator[Callable[[], None]]:
    """Yield a function to call after each step; write `folder`/profile/rank-R.json, and report its path.

    The work of the `device` is traced as well as the CPU's.
    """
    from torch.profiler import ProfilerActivity, profile, schedule

    path = folder / "profile" / f"rank-{rank}.json"

    def write(profiler: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(path))
        tell(f"Trace of {TRACED} steps: {path}; ui.perfetto.dev shows it")

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    steps = schedule(wait=SKIPPED, warmup=WARM_UP, active=TRACED, repeat=1)
    with profile(activities=activities, schedule=steps, on_trace_ready=write, record_shapes=True) as profiler:
        yield profiler.step
    if not path.is_file():
        tell(f"No trace was made: a training must take more than {SKIPPED + WARM_UP} steps")
