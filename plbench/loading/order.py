"""Which rows a training epoch visits, batch by batch: from seed and epoch alone, whatever the workers and ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import torch
from torch import Tensor

from plbench.randomness import generator

NUM_STAND_INS = 2
"""Rows that a process without a share computes: batch normalisation wants more than one value a channel."""

_BATCHES_AHEAD = 16  # of an order that is no EpochOrder: as many as two loaders of four workers hold


def share_of(size: int, rank: int, num_ranks: int) -> range:
    """Return which of a batch's rows fall to one process: neighbours, as many as to any other or one more or less."""
    return range(size * rank // num_ranks, size * (rank + 1) // num_ranks)


@dataclass(frozen=True)
class EpochOrder(Sequence[list[int]]):
    """Rows of each training batch of one epoch, every row once. Lazy: eight bytes a row, lists only of what is asked.

    With `block_rows` 1 it is a uniform permutation. With more, blocks of neighbouring rows come in random order and
    rows are shuffled among the blocks of one window: what a window reads from disk is whole blocks, and a batch mixes
    rows of up to `window_blocks` places.

    Attributes:
        batch_size: of the batch over all ranks. The last one may be short.
        block_rows: neighbouring rows that are read together. window_blocks: blocks whose rows are mixed.
        rank, num_ranks: this process's share: each batch is cut into slices that differ by one row at most. One whose
            share is empty gets the batch's first row twice, so that it has something to compute; the engine counts
            none of it.
        first_batch: where to begin, to go on in the middle of an epoch.
    """

    num_rows: int
    batch_size: int
    seed: int
    epoch: int
    block_rows: int = 1
    window_blocks: int = 128
    rank: int = 0
    num_ranks: int = 1
    first_batch: int = 0

    def __post_init__(self) -> None:
        """Check what the engine promises."""
        assert self.num_rows >= 0 and min(self.batch_size, self.block_rows, self.window_blocks) >= 1
        assert 0 <= self.rank < self.num_ranks and self.first_batch >= 0

    @property
    def num_blocks(self) -> int:
        """Blocks in the epoch; the last rows of the dataset may fill one only in part."""
        return -(-self.num_rows // self.block_rows)

    @cached_property
    def blocks(self) -> Tensor:
        """Number of each block in the order in which the epoch comes to it, int64 [num_blocks]."""
        return self._orders[0]

    @cached_property
    def rows(self) -> Tensor:
        """Every row in the order in which the epoch visits it, over all ranks, int64 [num_rows]."""
        return self._orders[1]

    @cached_property
    def _orders(self) -> tuple[Tensor, Tensor]:
        chance = generator(self.seed, "shuffle", self.epoch)
        blocks = torch.randperm(self.num_blocks, generator=chance)
        if self.block_rows == 1:
            return blocks, blocks
        rows = torch.empty(self.num_rows, dtype=torch.int64)
        filled, within = 0, torch.arange(self.block_rows)
        for window in blocks.split(self.window_blocks):
            members = (window[:, None] * self.block_rows + within).flatten()
            members = members[members < self.num_rows]
            rows[filled : filled + len(members)] = members[torch.randperm(len(members), generator=chance)]
            filled += len(members)
        return blocks, rows

    def __len__(self) -> int:
        """Return the number of batches from `first_batch` on."""
        return max(0, -(-self.num_rows // self.batch_size) - self.first_batch)

    @overload
    def __getitem__(self, batch: int) -> list[int]: ...
    @overload
    def __getitem__(self, batch: slice) -> Sequence[list[int]]: ...
    def __getitem__(self, batch: int | slice) -> list[int] | Sequence[list[int]]:
        """Return this rank's rows of one batch, or its stand-ins; of a slice, those of each."""
        if isinstance(batch, slice):
            return [self[number] for number in range(len(self))[batch]]
        # range knows negative numbers and raises the IndexError
        number = self.first_batch + range(len(self))[batch]
        start = number * self.batch_size
        size = min(self.batch_size, self.num_rows - start)
        share = share_of(size, self.rank, self.num_ranks)
        if not share:
            return [int(self.rows[start])] * NUM_STAND_INS
        rows: list[int] = self.rows[start + share.start : start + share.stop].tolist()
        return rows


def reading_ahead(batches: Sequence[Sequence[int]], expect: Callable[[range], None]) -> Iterator[Sequence[int]]:
    """Yield the batches as they are, and tell in time which neighbouring rows will be asked for.

    Of an `EpochOrder`, every block of a window has been told before the window's first batch, and the next window's
    blocks are told evenly over the batches of this one, so that the disk is never asked for all of them at once. Of
    other orders, ranges are told some batches ahead.

    Args:
        expect: is told ranges of rows, such as an image source's method that has the system read them.
    """
    if not isinstance(batches, EpochOrder):
        for number, batch in enumerate(batches):
            for coming in batches[number + _BATCHES_AHEAD : number + _BATCHES_AHEAD + 1]:
                if isinstance(coming, range):
                    expect(coming)
            yield batch
        return
    order, block_rows = batches, batches.block_rows
    told = order.first_batch * order.batch_size // (block_rows * order.window_blocks) * order.window_blocks
    for number, batch in enumerate(order, order.first_batch + 1):
        # one more than the division says: the block that is not full may have come already
        until = -(-number * order.batch_size // block_rows) + order.window_blocks + 1
        for block in order.blocks[told:until].tolist():
            expect(range(block * block_rows, min((block + 1) * block_rows, order.num_rows)))
        told = max(told, until)
        yield batch
