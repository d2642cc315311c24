"""The order of an epoch: every row once, from seed and epoch alone, in batches that resume and ranks that add up."""

import pickle
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plbench.api import ImageFiles
from plbench.loading.batches import ImageLoader
from plbench.loading.order import NUM_STAND_INS, EpochOrder, reading_ahead, share_of
from plbench.loading.transforms import EvalTransform
from plbench.randomness import generator

SHAPES = {
    "num_rows": st.integers(0, 400),
    "batch_size": st.integers(1, 70),
    "seed": st.integers(0, 5),
    "epoch": st.integers(0, 5),
    "block_rows": st.sampled_from([1, 2, 7, 16]),
    "window_blocks": st.integers(1, 9),
}
orders = st.builds(EpochOrder, **SHAPES)


def rows_of(batches: Iterable[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


class TestExactness:
    @given(orders)
    @settings(deadline=None)
    def test_every_row_comes_once_in_batches_of_one_size(self, order: EpochOrder) -> None:
        batches = list(order)
        assert sorted(rows_of(batches)) == list(range(order.num_rows))
        assert len(batches) == len(order)
        assert {len(batch) for batch in batches[:-1]} <= {order.batch_size}

    @given(**(SHAPES | {"num_rows": st.integers(60, 400)}))
    @settings(deadline=None)
    def test_it_follows_from_seed_and_epoch(self, **shape: int) -> None:
        order = EpochOrder(**shape)
        assert list(order) == list(EpochOrder(**shape))
        for other in ({"seed": order.seed + 1}, {"epoch": order.epoch + 1}):
            assert list(order) != list(EpochOrder(**(shape | other)))

    @given(num_rows=st.integers(0, 300), batch_size=st.integers(1, 70), seed=st.integers(0, 9), epoch=st.integers(0, 9))
    @settings(deadline=None)
    def test_blocks_of_one_row_are_the_uniform_permutation(
        self, num_rows: int, batch_size: int, seed: int, epoch: int
    ) -> None:
        permutation = torch.randperm(num_rows, generator=generator(seed, "shuffle", epoch)).tolist()
        assert rows_of(EpochOrder(num_rows, batch_size, seed, epoch)) == permutation

    def test_an_epoch_is_pinned(self) -> None:
        """Runs on record were trained in this order: another is another experiment."""
        assert list(EpochOrder(10, 4, seed=0, epoch=1)) == [[0, 9, 2, 5], [3, 6, 4, 8], [1, 7]]
        in_blocks = EpochOrder(10, 4, seed=0, epoch=1, block_rows=2, window_blocks=3)
        assert list(in_blocks) == [[1, 8, 0, 2], [3, 9, 6, 4], [7, 5]]

    @given(orders, st.integers(1, 5))
    @settings(deadline=None)
    def test_ranks_together_are_one(self, order: EpochOrder, num_ranks: int) -> None:
        shape = {name: getattr(order, name) for name in SHAPES}
        ranks = [EpochOrder(**shape, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
        assert {len(rank) for rank in ranks} == {len(order)}
        for number, batch in enumerate(order):
            sizes = [len(share_of(len(batch), rank, num_ranks)) for rank in range(num_ranks)]
            assert max(sizes) - min(sizes) <= 1
            shares = [rank[number] for rank in ranks]
            assert rows_of(share for share, size in zip(shares, sizes, strict=True) if size) == batch
            for share, size in zip(shares, sizes, strict=True):  # whoever has nothing computes something in its stead
                assert len(share) == size if size else share == [batch[0]] * NUM_STAND_INS


class TestSequence:
    @given(**(SHAPES | {"batch_size": st.integers(40, 70)}))
    @settings(deadline=None)
    def test_it_resumes_at_every_batch(self, **shape: int) -> None:
        order = EpochOrder(**shape)
        whole = list(order)
        for first in range(len(whole) + 2):
            assert list(EpochOrder(**shape, first_batch=first)) == list(order[first:]) == whole[first:]

    @given(orders, st.slices(9), st.integers(-9, 9))
    @settings(deadline=None)
    def test_it_is_indexed_as_a_list(self, order: EpochOrder, part: slice, number: int) -> None:
        whole = list(order)
        assert list(order[part]) == whole[part]
        if -len(whole) <= number < len(whole):
            assert order[number] == whole[number]
        else:
            with pytest.raises(IndexError):
                order[number]

    def test_it_is_lazy(self) -> None:
        order = EpochOrder(2_000_000, 128, seed=0, epoch=0, block_rows=64)
        assert order.rows.dtype == torch.int64
        assert pickle.loads(pickle.dumps(EpochOrder(9, 4, 0, 0))) == EpochOrder(9, 4, 0, 0)


class TestBlocks:
    @given(orders)
    @settings(deadline=None)
    def test_a_window_holds_its_blocks_and_no_others(self, order: EpochOrder) -> None:
        visited = order.rows
        if order.block_rows == 1:
            assert torch.equal(visited, order.blocks)
            return
        start = 0
        for window in order.blocks.split(order.window_blocks):
            expected = [row for row in range(order.num_rows) if row // order.block_rows in window.tolist()]
            assert sorted(visited[start : start + len(expected)].tolist()) == expected
            start += len(expected)

    def test_rows_of_a_window_are_mixed(self) -> None:
        order = EpochOrder(64 * 128, 128, seed=3, epoch=0, block_rows=64, window_blocks=128)
        places = [len({row // 64 for row in batch}) for batch in order]
        assert min(places) > 60, "128 draws from 128 blocks reach about 81 of them"


class TestReadingAhead:
    @given(orders, st.integers(0, 30))
    @settings(deadline=None)
    def test_rows_are_told_once_and_before_their_batch(self, order: EpochOrder, first: int) -> None:
        told: list[int] = []
        batches = []
        for batch in reading_ahead(replace(order, first_batch=order.first_batch + first), told.extend):
            assert set(batch) <= set(told)
            batches.append(batch)
        assert batches == list(order)[first:]
        assert len(told) == len(set(told))
        if first == 0:
            assert sorted(told) == list(range(order.num_rows))

    def test_no_more_than_two_windows_are_told_beforehand(self) -> None:
        order = EpochOrder(10_000, 50, seed=0, epoch=0, block_rows=10, window_blocks=8)
        told: list[int] = []
        for number, _ in enumerate(reading_ahead(order, told.extend), 1):
            assert len(told) - number * 50 <= 10 * (8 + 2)

    def test_ranges_are_told_some_batches_ahead(self) -> None:
        batches, told = [range(start, start + 4) for start in range(0, 200, 4)], []
        assert list(reading_ahead(batches, told.append)) == batches
        assert told == batches[len(batches) - len(told) :]
        assert len(told) > 30

    def test_lists_are_passed_on(self) -> None:
        told: list[range] = []
        assert list(reading_ahead([[3, 1], [2]], told.append)) == [[3, 1], [2]]
        assert told == []


@pytest.mark.parametrize("block_rows", [1, 8])
def test_any_number_of_workers_gives_the_same_batches(tiny_images: ImageFiles, block_rows: int) -> None:
    order = EpochOrder(len(tiny_images), 7, seed=1, epoch=2, block_rows=block_rows, window_blocks=2)
    base = EvalTransform(8, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0))
    seen = [
        [
            (rows.tolist(), views[0])
            for views, rows in ImageLoader(tiny_images, base, min_side=8, workers=n).batches(order)
        ]
        for n in (0, 1, 2)
    ]
    for run in seen:
        assert [rows for rows, _ in run] == list(order)
        assert all(torch.equal(pixels, first) for (_, pixels), (_, first) in zip(run, seen[0], strict=True))
