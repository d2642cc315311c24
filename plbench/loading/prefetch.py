"""Batches on their way to the device: the next one is copied while the device works on this one."""

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
    """Yield what `move` gives of each batch; on a GPU one ahead, in a stream of its own.

    Closing it, or an error, closes `batches`. An error comes where its batch would have come, after all before it.

    Args:
        move: copies a batch; on a GPU, out of pinned memory and without waiting (`non_blocking`).
        device: where to. On a GPU, a batch is for use in the stream that is current when it is asked for.
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
        current.wait_event(arrived)  # not for the whole stream, in which the next copy is queued already
        for tensor in tensors_in(moved):
            if tensor.device.type == "cuda":
                tensor.record_stream(current)  # or a later copy might be given its memory while it is still read
        yield moved


def ahead(items: Iterator[Moved]) -> Iterator[Moved]:
    """Yield the same items, each once the next one has been taken. An error comes after all items before it."""
    held: list[Moved] = []
    try:
        for item in items:
            held.append(item)
            if len(held) > 1:
                yield held.pop(0)
    except Exception:  # waits for its turn
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
