"""Bootstrap replicates of the headline metrics over test images.

A replicate is a test set of N images sampled with replacement from the N test images: a weight per image. Replicate r
of a seed samples the same images for every method and on every machine, so that any two records of one protocol can be
paired replicate by replicate.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import scipy

from plbench.errors import PlbenchError
from plbench.metrics.cells import Cells, Float64Array, IntArray
from plbench.metrics.evaluate import Metrics, evaluate_cells
from plbench.metrics.ranking import count_cells, rank_cells, run_starts, share_of

Float32Array = npt.NDArray[np.float32]

MAX_IMAGES = 2**24  # float32 counts exactly up to this number
MAX_CHUNK = 64  # replicates; larger products exceed the cache

_NEIGHBOURS = 20
_BLOCK = 4096  # segments at once: their counts in all replicates of a chunk stay in the CPU cache
_STEP = 32  # rows that one matrix product sums


@dataclass(frozen=True, eq=False)
class Replicates:
    """The headline metrics on each resample of the test images, in percent.

    Attributes:
        map_c: [R] mAP(C); NaN if only one class can be scored and a resample has no positive of it.
        map_o: [R] mAP(O), weighted by the positives of the resample.
        groups: [R] mAP(C) of each named group of classes.
    """

    map_c: Float64Array
    map_o: Float64Array
    groups: Mapping[str, Float64Array] = field(default_factory=dict)


def resample_weights(num_images: int, num_replicates: int, seed: int, start: int = 0) -> Float32Array:
    """Return how often each image is sampled in replicates start, start + 1, ...: [N, R], each column sums to N.

    Every replicate has its own raw PCG64 stream, since numpy only guarantees raw streams to stay the same, and maps
    each 64 bits to an image by multiply-shift. Results do not depend on how replicates are split into chunks.

    Args:
        num_images: N, at most 2^24.
        num_replicates: R.
        seed: of the protocol.
        start: number of the first replicate.

    Raises:
        PlbenchError: if there are no images, too many, or no replicates.
    """
    if not 1 <= num_images <= MAX_IMAGES or num_replicates < 1:
        raise PlbenchError(
            f"cannot resample {num_images} images {num_replicates} times; the bootstrap needs 1 to "
            f"{MAX_IMAGES} images and at least one replicate"
        )
    counts = np.empty((num_replicates, num_images), np.float32)
    for column in range(num_replicates):
        drawn = draw_indices(f"{seed:d}/images/{start + column:d}", num_images, num_images)
        counts[column] = np.bincount(drawn, minlength=num_images)
    # sums of bags read whole rows, the weights of one image in all replicates
    return np.ascontiguousarray(counts.T)


def draw_indices(stream: str, size: int, below: int) -> npt.NDArray[np.int64]:
    """Return [size] integers in 0..below-1, of at most 2^32, from the named stream; equal on every machine."""
    key = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:16], "little")
    # 32 of 64 bits, so that the product with `below` does not overflow
    high_bits = np.random.PCG64(key).random_raw(size) >> np.uint64(32)
    return (high_bits * np.uint64(below) >> np.uint64(32)).astype(np.int64)


def raw_uniforms(stream: str, size: int) -> Float64Array:
    """Return [size] numbers in (0, 1), in steps of 2^-31, from the named stream; equal on every machine."""
    # offset by half a step: quantiles at 0 and 1 would be infinite
    return (draw_indices(stream, size, 2**31) + 0.5) / 2**31


class _Segments:
    """Each class's ranking, cut after every group of equal scores that contains a positive, and at its end.

    Attributes:
        classes: [D] classes with a known positive and a known negative; others are undefined in every resample.
        blocks: segments of consecutive classes, small enough for the CPU cache.
    """

    def __init__(self, cells: Cells) -> None:
        """Rank the cells once for all replicates."""
        positives, negatives = count_cells(cells.class_index, cells.positives, cells.num_classes)
        self.classes = np.flatnonzero((positives > 0) & (negatives > 0))
        kept = np.isin(cells.class_index, self.classes)
        present = cells.positives[kept]
        ranking = rank_cells(cells.class_index[kept], cells.scores[kept], present)
        cuts = ranking.positives > 0
        cuts[run_starts(ranking.owner) - 1] = True  # the end of each class; -1 is the end of the last
        ends = np.concatenate(([0], (ranking.starts + ranking.sizes)[cuts]))
        images, hit = cells.rows[kept][ranking.order], present[ranking.order]
        hit_images, hit_ends = images[hit], np.concatenate(([0], np.cumsum(hit)))[ends]
        first = np.append(run_starts(ranking.owner[cuts]), ends.size - 1)  # first cut of each class, then the end
        self.blocks = []
        begin = 0
        while begin < self.classes.size:
            end = max(begin + 1, int(first.searchsorted(first[begin] + _BLOCK, "right")) - 1)
            part = slice(first[begin], first[end] + 1)
            bags = _Bags.cut(images, ends[part]), _Bags.cut(hit_images, hit_ends[part])
            self.blocks.append(_Block(*bags, first[begin : end + 1] - first[begin]))
            begin = end

    def average_precision(self, weights: Float32Array) -> tuple[Float64Array, Float64Array, Float64Array]:
        """Return AP of each class, 0 if undefined; number of positives; 1 if AP is defined, else 0: each [D, R]."""
        nothing = (np.empty((0, weights.shape[1])),) * 3
        parts = zip(nothing, *(block.average_precision(weights) for block in self.blocks), strict=True)
        ap, positives, defined = (np.concatenate(part) for part in parts)
        return ap, positives, defined


@dataclass(frozen=True, eq=False)
class _Bags:
    """T bags of images: bag t has images[ends[t]:ends[t + 1]]."""

    images: IntArray
    ends: IntArray

    @classmethod
    def cut(cls, images: IntArray, ends: IntArray) -> _Bags:
        """Return the bags with these ends, padded with empty ones to a multiple of `_STEP`."""
        padded = np.pad(ends - ends[0], (0, -(ends.size - 1) % _STEP), "edge")
        return cls(images[ends[0] : ends[-1]], padded)

    def sums(self, weights: Float32Array) -> Float32Array:
        """Return the sum [T, R] of each bag's rows of `weights` [N, R]; exact, since all are integers."""
        import torch  # lazy: reading boards does not need it

        images, table, ends = (torch.from_numpy(array) for array in (self.images, weights, self.ends))
        # several times as fast as scipy's product of a sparse matrix of ones and the weights
        sums = torch.nn.functional.embedding_bag(images, table, ends, mode="sum", include_last_offset=True)
        return sums.numpy()


class _Block:
    """The segments of some classes.

    Precision is needed only at segment ends, so the cells of a segment form one bag of images: the sum of their rows of
    resample weights counts the cells for a whole chunk of replicates at once.
    """

    def __init__(self, cells: _Bags, positives: _Bags, first: IntArray) -> None:
        """Store the images of each segment's cells and positives, and `first` [D + 1], each class's first segment."""
        self.cells, self.positives, self.first = cells, positives, first[:-1]
        self.of_class = _indicator(first, np.arange(first[-1]), cells.ends.size - 1)

    def average_precision(self, weights: Float32Array) -> tuple[Float64Array, Float64Array, Float64Array]:
        """Do the same as `_Segments.average_precision` for these classes."""
        hits, cells = self.positives.sums(weights), self.cells.sums(weights)
        num_positives, num_cells = self.of_class @ hits, self.of_class @ cells
        running_hits, running_cells = self._running(hits, num_positives), self._running(cells, num_cells)
        # 1 if no image up to the cut was sampled: there are no hits either, and 0 / 1 adds nothing
        gain = np.divide(running_hits, np.maximum(running_cells, 1, out=running_cells), dtype=np.float64)
        gain *= hits
        defined = (num_positives > 0) & (num_cells > num_positives)
        ap = (self.of_class @ gain) / np.maximum(num_positives, 1) * defined
        return ap, num_positives.astype(np.float64), defined.astype(np.float64)

    def _running(self, counts: Float32Array, totals: Float32Array) -> Float32Array:
        """Return the cumulative sums [T, R] of `counts` within each class; `totals` [D, R] are its sums."""
        restarting = counts.copy()
        restarting[self.first[1:]] -= totals[:-1]
        # cumsum along the first axis is slow; a product with a triangle of ones sums _STEP rows, exactly
        sums: Float32Array = np.tri(_STEP, dtype=np.float32) @ restarting.reshape(-1, _STEP, counts.shape[1])
        sums[1:] += np.cumsum(sums[:-1, -1], axis=0)[:, None]
        return sums.reshape(counts.shape)


def _indicator(indptr: IntArray, columns: IntArray, num_columns: int) -> scipy.sparse.csr_array:
    """Return a CSR matrix with ones in row i at columns[indptr[i]:indptr[i + 1]]."""
    ones = np.ones(columns.size, np.float32)
    return scipy.sparse.csr_array((ones, columns, indptr), shape=(indptr.size - 1, num_columns))


def replicates(
    cells: Cells,
    num_replicates: int = 1000,
    *,
    seed: int,
    groups: Mapping[str, Sequence[int]] | None = None,
    memory_bytes: int = 2**28,
    progress: Callable[[int, int], None] | None = None,
) -> Replicates:
    """Return mAP(C), mAP(O) and group mAPs on resamples of the test images.

    Equals repeating each image as often as it was sampled and evaluating the result, at a fraction of the cost, except
    for classes without a positive or a negative in a resample; see `_fill`.

    Args:
        cells: the known cells of the whole test set.
        num_replicates: R.
        seed: of the protocol, so that the replicates of two methods can be paired.
        groups: named lists of class indices.
        memory_bytes: memory for a chunk of replicates; it does not affect results.
        progress: called with (done, total) after each chunk.

    Raises:
        PlbenchError: as `resample_weights`.
    """
    segments = _Segments(cells)
    groups = groups or {}
    averaged = [segments.classes, *(np.asarray(group, np.int64) for group in groups.values())]
    members = [np.flatnonzero(np.isin(segments.classes, classes)) for classes in averaged]
    offsets = np.cumsum([0, *(m.size for m in members)])
    pick = _indicator(offsets, np.concatenate(members), segments.classes.size)  # [1 + groups, D]
    means, map_o = np.empty((len(members), num_replicates)), np.empty(num_replicates)
    for drawn in _resampled(cells, segments, num_replicates, seed, memory_bytes, progress):
        # imputed values may lie outside the range of AP, hence the clip below
        filled, part = drawn.filled, drawn.part
        means[:, part] = np.clip(share_of(100 * (pick @ filled), pick @ np.ones_like(filled)), 0, 100)
        # not imputed: classes are weighted by the resample's positives, so undefined ones have weight 0
        weighted = pick @ (drawn.ap * drawn.positives)
        map_o[part] = share_of(100 * weighted, pick @ (drawn.positives * drawn.defined))[0]
    return Replicates(means[0], map_o, dict(zip(groups, means[1:], strict=True)))


def class_variances(
    cells: Cells,
    num_replicates: int = 1000,
    *,
    seed: int,
    memory_bytes: int = 2**28,
    progress: Callable[[int, int], None] | None = None,
) -> Float64Array:
    """Return the variance of each class's AP over the resamples of `replicates`.

    Args:
        cells: the known cells of the whole test set.
        num_replicates: R, at least 2.
        seed: the protocol's.
        memory_bytes: memory for a chunk of replicates; it does not affect results.
        progress: called with (done, total) after each chunk.

    Returns:
        [C] in squared percentage points; NaN for a class without a known positive or without a known negative.

    Raises:
        PlbenchError: as `resample_weights`.
    """
    segments = _Segments(cells)
    whole = evaluate_cells(cells).ap[segments.classes]
    sums, squares = np.zeros(segments.classes.size), np.zeros(segments.classes.size)
    for drawn in _resampled(cells, segments, num_replicates, seed, memory_bytes, progress):
        gaps = 100 * (drawn.filled - whole[:, None])  # small, so squaring loses no precision
        sums += gaps.sum(axis=1)
        squares += (gaps**2).sum(axis=1)
    variances = np.full(cells.num_classes, np.nan)
    variances[segments.classes] = np.maximum(squares - sums**2 / num_replicates, 0) / (num_replicates - 1)
    return variances


@dataclass(frozen=True, eq=False)
class _Resampled:
    """A chunk of replicates, `part` of all: AP [D, R] from `_Segments`, without and with imputed values (`_fill`)."""

    part: slice
    ap: Float64Array
    positives: Float64Array
    defined: Float64Array
    filled: Float64Array


def _resampled(
    cells: Cells,
    segments: _Segments,
    num_replicates: int,
    seed: int,
    memory_bytes: int,
    progress: Callable[[int, int], None] | None,
) -> Iterator[_Resampled]:
    whole = evaluate_cells(cells)
    num_cuts = max((block.cells.ends.size for block in segments.blocks), default=0)
    per_replicate = 8 * cells.num_images + 40 * len(segments.classes) + 32 * num_cuts
    width = min(max(1, memory_bytes // per_replicate), MAX_CHUNK)
    for start in range(0, num_replicates, width):
        stop = min(start + width, num_replicates)
        weights = resample_weights(cells.num_images, stop - start, seed, start)
        ap, positives, defined = segments.average_precision(weights)
        filled = _fill(ap, defined, whole, segments.classes, (seed, start))
        yield _Resampled(slice(start, stop), ap, positives, defined, filled)
        if progress:
            progress(stop, num_replicates)


def _fill(
    ap: Float64Array, defined: Float64Array, whole: Metrics, classes: IntArray, stream: tuple[int, int]
) -> Float64Array:
    """Return AP [D, R] with imputed values for classes that are undefined in a resample.

    A class with one positive is missing from a third of the resamples, and in the others its AP hardly varies. If it
    were left out, the mean would be over other classes; if its AP were kept unchanged, it would count as certain, and
    nominal 95 % intervals of rare classes would cover only 67 %. The imputed value is its AP plus sqrt(2) times the
    difference to the AP of a class sampled from the 20 nearest in number of positives, since the spread between rare
    classes estimates their uncertainty. The sample is the same for all methods, so that differences stay paired
    (coverage: docs/statistics.md).

    Args:
        ap, defined: [D, R] of the resamples.
        whole: of the whole test set.
        classes: [D] the scored classes.
        stream: seed of the protocol and number of the first resample.
    """
    missing = defined == 0
    if not missing.any():
        return ap
    (seed, start), num_classes = stream, len(classes)
    # no other class to impute from
    if num_classes == 1:
        return np.where(missing, np.nan, ap)
    whole_ap = whole.ap[classes]
    order = np.argsort(whole.num_positives[classes], kind="stable")
    place = np.argsort(order)  # position of each class in that order
    window = min(_NEIGHBOURS + 1, num_classes)
    first = np.clip(place - window // 2, 0, num_classes - window)
    filled = ap.copy()
    for column in np.flatnonzero(missing.any(axis=0)):
        drawn = first + draw_indices(f"{seed:d}/neighbours/{start + column:d}", num_classes, window - 1)
        neighbour = order[drawn + (drawn >= place)]  # never the class itself
        other = whole_ap + math.sqrt(2) * (whole_ap[neighbour] - whole_ap)
        filled[:, column] = np.where(missing[:, column], other, ap[:, column])
    return filled
