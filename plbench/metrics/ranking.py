"""Known cells ranked by score per class or image, for average precision, AUROC, F1 and P@k."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from plbench.metrics.cells import BoolArray, Cells, Float64Array, FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class PositiveGroups:
    """The groups of equal scores of each owner that contain a positive, sufficient for AP and AUROC.

    Attributes:
        owner: [G] the class or image of each group; by owner, then by descending score.
        positives, negatives: [G] number of cells in it.
        positives_down, cells_down: [G] number of its owner's cells with at least this score.
        num_positives, num_negatives: [num_owners] number of cells of each owner.
    """

    owner: IntArray
    positives: IntArray
    negatives: IntArray
    positives_down: IntArray
    cells_down: IntArray
    num_positives: IntArray
    num_negatives: IntArray


@dataclass(frozen=True, eq=False)
class Ranking:
    """All K cells in groups of one owner (their class, or their image) with equal scores.

    Attributes:
        owner: [G], the class or image of each group; by owner, then by descending score.
        sizes: [G], number of cells in each group.
        positives: [G], how many of them are positive.
        order: [K], the cell at each rank.
        starts: [G], the rank at which each group begins.
    """

    owner: IntArray
    sizes: IntArray
    positives: IntArray
    order: IntArray
    starts: IntArray

    def running(self, counts: IntArray) -> IntArray:
        """Return cumulative sums [G] of `counts` [G] down each owner's ranking, including the group itself."""
        first = run_starts(self.owner)
        total = np.cumsum(counts)
        return total - np.repeat(total[first] - counts[first], np.diff(first, append=counts.size))

    def counts(self, num_owners: int) -> tuple[IntArray, IntArray]:
        """Return the numbers of positives and negatives of each owner, [num_owners] each."""
        positives, sizes = (
            np.bincount(self.owner, numbers, minlength=num_owners).astype(np.int64)
            for numbers in (self.positives, self.sizes)
        )
        return positives, sizes - positives

    def positive_groups(self, num_owners: int) -> PositiveGroups:
        """Return the groups that contain a positive."""
        found = self.positives > 0
        return PositiveGroups(
            self.owner[found],
            self.positives[found],
            (self.sizes - self.positives)[found],
            self.running(self.positives)[found],
            self.running(self.sizes)[found],
            *self.counts(num_owners),
        )


def run_starts(*keys: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """Return the positions where runs of equal entries in all `keys` (each [K]) begin."""
    begins = np.zeros(keys[0].size, np.bool_)
    begins[:1] = True
    for key in keys:
        begins[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(begins)


def rank_cells(owner: IntArray, scores: FloatArray, positives: BoolArray) -> Ranking:
    """Rank the K cells of every owner at once: one sort by score, then a stable one by owner.

    Args:
        owner: [K] at least 0: the class of each cell, or its image.
        scores: [K] finite.
        positives: [K] bool.
    """
    # need not be stable: equal scores form one group, in any order
    by_score = np.argsort(-scores)
    narrow = owner.astype(np.min_scalar_type(owner.max(initial=0)))  # 16 bits or fewer sort in linear time
    order = by_score[np.argsort(narrow[by_score], kind="stable")]
    sorted_owner = owner[order]
    starts = run_starts(sorted_owner, scores[order])
    hits = np.add.reduceat(positives[order], starts, dtype=np.int64)
    return Ranking(sorted_owner[starts], np.diff(starts, append=order.size), hits, order, starts)


def group_cells(owner: IntArray, scores: FloatArray, positives: BoolArray, num_owners: int) -> PositiveGroups:
    """Return the groups of `rank_cells` that contain a positive, without their cells, by one sort of integers.

    Owner, 32-bit score and sign of the label fit into 64 bits. A float's bits are mapped to an integer in descending
    order: for a non-negative float, all bits but the sign are flipped.

    Args:
        owner: [K] in 0..num_owners-1: the class of each cell, or its image.
        scores: [K] finite.
        positives: [K] bool.
        num_owners: C, or N.
    """
    if scores.dtype.itemsize > 4 or num_owners >= 2**31:
        return rank_cells(owner, scores, positives).positive_groups(num_owners)
    bits = (scores.astype(np.float32, copy=False) + np.float32(0)).view(np.int32)  # maps -0 to 0
    falling = bits ^ (~(bits >> 31) & 0x7FFFFFFF)
    keys = owner.astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= falling.view(np.uint32)
    keys <<= np.uint64(1)
    keys |= positives
    keys.sort()
    # positives have odd keys and are at the end of their group
    places = np.flatnonzero((keys & np.uint64(1)).astype(np.bool_))  # several times as fast on booleans
    odd = keys[places]
    last = np.flatnonzero(np.append(odd[1:] != odd[:-1], True)[: odd.size])
    first_place = places[np.append(0, last[:-1] + 1)[: last.size]]
    key, in_group = odd[last], np.diff(last, prepend=-1)
    negatives = np.zeros_like(in_group)
    tied = np.flatnonzero((first_place > 0) & (keys[first_place - 1] == key - np.uint64(1)))
    negatives[tied] = first_place[tied] - keys.searchsorted(key[tied] - np.uint64(1))
    group_owner = (key >> np.uint64(33)).astype(np.int64)
    begins = keys.searchsorted(np.arange(num_owners + 1, dtype=np.uint64) << np.uint64(33))
    num_positives = np.bincount(group_owner, in_group, minlength=num_owners).astype(np.int64)
    positives_before = np.cumsum(num_positives) - num_positives
    return PositiveGroups(
        group_owner,
        in_group,
        negatives,
        last + 1 - positives_before[group_owner],
        places[last] + 1 - begins[group_owner],
        num_positives,
        np.diff(begins) - num_positives,
    )


def rank_by_class(cells: Cells) -> Ranking:
    """Return each class's known cells by score."""
    return rank_cells(cells.class_index, cells.scores, cells.positives)


def group_by_class(cells: Cells) -> PositiveGroups:
    """Return the groups of equal scores of each class that contain a positive, for `evaluate_cells` and `auroc`."""
    return group_cells(cells.class_index, cells.scores, cells.positives, cells.num_classes)


def rank_by_image(cells: Cells) -> Ranking:
    """Return each image's known cells by score, for `ranking_loss` and `precision_at_k`."""
    return rank_cells(cells.rows, cells.scores, cells.positives)


def rank_pooled(cells: Cells) -> Ranking:
    """Return all known cells by score, as if they were of one class."""
    return rank_cells(np.zeros_like(cells.class_index), cells.scores, cells.positives)


def count_cells(owner: IntArray, chosen: BoolArray, num_owners: int) -> tuple[IntArray, IntArray]:
    """Return the numbers of `chosen` [K] and other cells of each class (or image), `owner` [K]."""
    inside = np.bincount(owner[chosen], minlength=num_owners)
    return inside, np.bincount(owner, minlength=num_owners) - inside


def share_of(part: npt.NDArray[Any], whole: npt.NDArray[Any], defined: BoolArray | None = None) -> Float64Array:
    """Return part / whole; NaN where the whole is 0 or not `defined`."""
    share = np.full(part.shape, np.nan)
    np.divide(part, whole, out=share, where=whole > 0 if defined is None else defined)
    return share
