"""Order of rows in a training epoch, determined by seed and epoch alone, independent of workers and ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import torch
from torch import Tensor

from plbench.randomness import generator

NUM_STAND_INS = 2
"""Rows computed by a process without a share: batch normalisation needs more than one value per channel."""

_BATCHES_AHEAD = 16  # for other orders than EpochOrder: as many as two loaders of four workers hold


def share_of(size: int, rank: int, num_ranks: int) -> range:
    """Return one process's slice of a batch's rows; slice sizes differ by at most one."""
    return range(size * rank // num_ranks, size * (rank + 1) // num_ranks)


@dataclass(frozen=True)
class EpochOrder(Sequence[list[int]]):
    """Rows of each training batch of one epoch, every row once. Lazy: eight bytes per row, and lists only on access.

    With `block_rows` 1 it is a uniform permutation. With more, blocks of adjacent rows are in random order and rows are
    shuffled within windows of blocks: a window reads whole blocks from disk, and a batch mixes rows of up to
    `window_blocks` blocks.

    Attributes:
        batch_size: of the batch over all ranks. The last one may be short.
        block_rows: number of adjacent rows that are read together. window_blocks: number of blocks that are mixed.
        rank, num_ranks: this process's share: each batch is cut into slices that differ by one row at most. If a share
            is empty, it is the batch's first row twice, as a placeholder that the engine does not count.
        first_batch: where to start, to resume within an epoch.
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
        """Check the arguments."""
        assert self.num_rows >= 0 and min(self.batch_size, self.block_rows, self.window_blocks) >= 1
        assert 0 <= self.rank < self.num_ranks and self.first_batch >= 0

    @property
    def num_blocks(self) -> int:
        """Number of blocks in the epoch; the last block of the dataset may be partial."""
        return -(-self.num_rows // self.block_rows)

    @cached_property
    def blocks(self) -> Tensor:
        """Index of each block in the order of the epoch, int64 [num_blocks]."""
        return self._orders[0]

    @cached_property
    def rows(self) -> Tensor:
        """Every row in the order of the epoch, over all ranks, int64 [num_rows]."""
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
        """Return this rank's rows of one batch, or placeholders; for a slice, those of each batch."""
        if isinstance(batch, slice):
            return [self[number] for number in range(len(self))[batch]]
        # range handles negative indices and raises IndexError
        number = self.first_batch + range(len(self))[batch]
        start = number * self.batch_size
        size = min(self.batch_size, self.num_rows - start)
        share = share_of(size, self.rank, self.num_ranks)
        if not share:
            return [int(self.rows[start])] * NUM_STAND_INS
        rows: list[int] = self.rows[start + share.start : start + share.stop].tolist()
        return rows


def reading_ahead(batches: Sequence[Sequence[int]], expect: Callable[[range], None]) -> Iterator[Sequence[int]]:
    """Yield the batches unchanged, and announce ranges of rows for prefetching.

    For an `EpochOrder`, every block of a window is announced before the window's first batch, and the next window's
    blocks are spread evenly over the batches of this one, to avoid bursts of disk reads. For other orders, ranges are
    announced some batches ahead.

    Args:
        expect: receives ranges of rows, such as an image source's method for prefetching.
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
        # one more than the quotient: the partial block may have come already
        until = -(-number * order.batch_size // block_rows) + order.window_blocks + 1
        for block in order.blocks[told:until].tolist():
            expect(range(block * block_rows, min((block + 1) * block_rows, order.num_rows)))
        told = max(told, until)
        yield batch
