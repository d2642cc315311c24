"""Seeds derived from names, and the only place that touches the global generators.

Every consumer names its own stream, so adding a method, a stage or a sample never changes another's randomness.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed for one named purpose: sha256 of the run's seed and the names.

    Examples:
        >>> derive_seed(0, "shuffle", 1) == derive_seed(0, "shuffle", 1)
        True
        >>> derive_seed(0, "shuffle", 1) == derive_seed(0, "init")
        False
    """
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """Return a separate CPU generator for one named purpose."""
    return torch.Generator().manual_seed(derive_seed(seed, *names))


def reseed(seed: int) -> None:
    """Seed the CPU's global generators permanently, unlike `seeded`. For processes that plbench starts."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python's, numpy's and torch's global generators inside the scope, and restore them after it.

    For third-party code that samples from global state: timm's augmentation, initialisers and dropout.
    """
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    reseed(seed)
    for device in range(len(cuda_states)):
        torch.cuda.set_rng_state(torch.Generator(f"cuda:{device}").manual_seed(seed).get_state(), device)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)


@contextmanager
def on_threads(number: int) -> Iterator[None]:
    """Set torch's number of threads inside the scope; the number changes the order of summation."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def state_of_generators(device: torch.device) -> dict[str, Any]:
    """Return the states of the global generators, as tensors and plain values.

    Args:
        device: the device in use; states of other GPUs are not saved.
    """
    name, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def put_generators_back(state: dict[str, Any], device: torch.device) -> None:
    """Restore global generators from `state_of_generators`; call it inside `seeded`, which undoes it."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
