"""Training time by phase: waiting for data, forward, loss, backward, optimiser."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping

import torch

PHASES = ("data", "forward", "loss", "backward", "optimizer", "other")
"""Parts of a training step, and what lies between the steps."""

_EVERY = 16
"""On a GPU one step in so many is timed, by events in its own queue, and stands for them all."""


class Clock:
    """Seconds by phase.

    On a CPU, every lap is measured. A GPU runs asynchronously, so laps are recorded as events in its queue, on some
    steps only, and read when something else synchronizes anyway. There, "data" is the time in which the device only
    waited for a batch and received it.
    """

    def __init__(self, device: torch.device) -> None:
        """Start with 0 seconds."""
        self._on_gpu = device.type == "cuda"
        self._earlier = dict.fromkeys(PHASES, 0.0)  # from earlier sessions of the training
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._marks: list[tuple[str, torch.cuda.Event]] = []
        self._measures = True
        self._last = time.perf_counter()
        self._steps = self._measured_steps = 0

    def start_step(self) -> None:
        """Begin a step, with waiting for its batch."""
        self._steps += 1
        if self._on_gpu:
            # 1 and not 0, so that short trainings also have a measured step
            self._measures = self._steps % _EVERY == 1
            self._measured_steps += self._measures
        # on a GPU, this also marks the start of a measured step's first lap
        self.lap("other")

    def lap(self, phase: str) -> None:
        """Add the time since the last lap to this phase of `PHASES`."""
        if not self._on_gpu:
            now = time.perf_counter()
            self._seconds[phase] += now - self._last
            self._last = now
        elif self._measures:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((phase, event))

    def resume(self) -> None:
        """Discard the time since the last lap."""
        self._last = time.perf_counter()

    def seconds(self) -> dict[str, float]:
        """Return seconds by phase over all steps; on a GPU, synchronize and extrapolate from measured steps."""
        if self._marks:
            # torch cannot subtract events that are still in the queue
            torch.cuda.synchronize()
            for (_, start), (phase, end) in itertools.pairwise(self._marks):
                if phase != "other":  # "other" spans unmeasured steps
                    self._seconds[phase] += start.elapsed_time(end) / 1000
            self._marks.clear()
        scale = self._steps / self._measured_steps if self._on_gpu and self._measured_steps else 1.0
        return {phase: self._earlier[phase] + scale * value for phase, value in self._seconds.items()}

    def go_on_from(self, state: Mapping[str, float]) -> None:
        """Continue from the `seconds` saved in a checkpoint."""
        self._earlier = {phase: float(state.get(phase, 0.0)) for phase in PHASES}
        self._seconds = dict.fromkeys(PHASES, 0.0)
        # the scale applies only to this session's steps; saved seconds are already scaled
        self._steps = self._measured_steps = 0
        self.resume()
