"""Where the time of a training goes: waiting for data, forward, loss, backward, optimiser."""

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

    On a CPU every lap is measured. A GPU works through a queue while the program is already elsewhere, so laps are
    marked in the queue, on some steps only, and read when something else waits for the device anyway. There, "data" is
    the time in which the device had nothing to do but wait for a batch and receive it.
    """

    def __init__(self, device: torch.device) -> None:
        """Start at zero."""
        self._on_gpu = device.type == "cuda"
        self._earlier = dict.fromkeys(PHASES, 0.0)  # of the training's earlier sessions
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._marks: list[tuple[str, torch.cuda.Event]] = []
        self._measures = True
        self._last = time.perf_counter()
        self._steps = self._measured_steps = 0

    def start_step(self) -> None:
        """Begin the work of a step: with waiting for its batch."""
        self._steps += 1
        if self._on_gpu:
            # 1 and not 0, so that a training of fewer steps has a measured one too
            self._measures = self._steps % _EVERY == 1
            self._measured_steps += self._measures
        # on a GPU this is also the mark from which the first lap of a measured step counts
        self.lap("other")

    def lap(self, phase: str) -> None:
        """Count what was done since the last lap to this one of `PHASES`."""
        if not self._on_gpu:
            now = time.perf_counter()
            self._seconds[phase] += now - self._last
            self._last = now
        elif self._measures:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((phase, event))

    def resume(self) -> None:
        """Count what happened since the last lap to nobody."""
        self._last = time.perf_counter()

    def seconds(self) -> dict[str, float]:
        """Return seconds by phase of all steps; of a GPU, which it waits for, scaled up from those measured."""
        if self._marks:
            # torch refuses to subtract events that the queue has not come to
            torch.cuda.synchronize()
            for (_, start), (phase, end) in itertools.pairwise(self._marks):
                if phase != "other":  # between two measured steps there are many others
                    self._seconds[phase] += start.elapsed_time(end) / 1000
            self._marks.clear()
        scale = self._steps / self._measured_steps if self._on_gpu and self._measured_steps else 1.0
        return {phase: self._earlier[phase] + scale * value for phase, value in self._seconds.items()}

    def go_on_from(self, state: Mapping[str, float]) -> None:
        """Add to the `seconds` that a checkpoint kept."""
        self._earlier = {phase: float(state.get(phase, 0.0)) for phase in PHASES}
        self._seconds = dict.fromkeys(PHASES, 0.0)
        # the scale is of this session's steps alone: what a checkpoint kept is scaled already
        self._steps = self._measured_steps = 0
        self.resume()
