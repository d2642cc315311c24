"""What a training takes of a CPU's memory, counted while it runs."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from torch import Tensor, nn


class Kept:
    """Counts what autograd keeps for the backward pass, parameters apart, each memory once."""

    def __init__(self, model: nn.Module) -> None:
        self._seen = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.num_bytes = self.largest = 0

    def pack(self, tensor: Tensor) -> Tensor:
        """Count a tensor that autograd keeps, which calls it with each."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.num_bytes += storage.nbytes()
            self.largest = max(self.largest, storage.nbytes())
        return tensor.detach()


def resident_bytes() -> int:
    """Return memory that this process takes: now on Linux, where it can be asked for, else the most it ever took."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def in_words(num_bytes: int) -> str:
    """Return bytes in words that a person would use."""
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"
