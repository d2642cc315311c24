"""Prefetching of batches to the device: the next one is copied while the device computes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any, TypeVar

import torch
from torch import Tensor

Batch = TypeVar("Batch")
Moved = TypeVar("Moved")


def prefetched(
    batches: Generator[Batch, None, None], move: Callable[[Batch], Moved], device: torch.device
) -> Generator[Moved, None, None]:
    """Apply `move` to each batch; on a GPU one batch ahead, in a separate stream.

    Closing the iterator, or an error, closes `batches`. Errors are raised in order, after all earlier batches.

    Args:
        move: copies a batch; on a GPU, out of pinned memory and asynchronously (`non_blocking`).
        device: target. On a GPU, a batch must be used in the stream that is current when it is requested.
    """
    with closing(batches):
        if device.type == "cuda":
            yield from _in_a_stream(batches, move, device)
        else:
            for batch in batches:
                yield move(batch)


def _in_a_stream(batches: Iterator[Batch], move: Callable[[Batch], Moved], device: torch.device) -> Iterator[Moved]:
    side = torch.cuda.Stream(device)

    def moving() -> Iterator[tuple[Moved, torch.cuda.Event]]:
        for batch in batches:
            with torch.cuda.stream(side):
                moved = move(batch)
            yield moved, side.record_event()

    for moved, arrived in ahead(moving()):
        current = torch.cuda.current_stream(device)
        current.wait_event(arrived)  # not for the whole stream, where the next copy is already queued
        for tensor in tensors_in(moved):
            if tensor.device.type == "cuda":
                tensor.record_stream(current)  # otherwise a later copy might reuse its memory while it is still read
        yield moved


def ahead(items: Iterator[Moved]) -> Iterator[Moved]:
    """Yield the same items, fetching one ahead. Errors are raised after all earlier items."""
    held: list[Moved] = []
    try:
        for item in items:
            held.append(item)
            if len(held) > 1:
                yield held.pop(0)
    except Exception:  # raised in order
        yield from held
        raise
    yield from held


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of a batch, through tuples and lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors_in(part)
