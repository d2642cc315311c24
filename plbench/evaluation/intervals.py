"""How sure a number is: intervals over test images and seeds, paired differences, Holm's correction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from plbench.errors import PlbenchError
from plbench.evaluation.bootstrap import Float64Array, draw_indices


@dataclass(frozen=True, eq=False)
class PairedDifference:
    """A difference between two methods on the same test images.

    Attributes:
        difference: first minus second, in the metric's unit.
        low: lower end of its interval.
        high: upper end.
        p_value: two-sided, of no difference.
    """

    difference: float
    low: float
    high: float
    p_value: float


def interval(values: npt.ArrayLike, level: float = 0.95, *, point: float | None = None) -> tuple[float, float]:
    """Percentile interval of bootstrap values; undefined (NaN) replicates are left out.

    A positive that is drawn twice ranks beside itself, which raises the AP of rare classes: replicates of a
    mAP lie above its value on the test set, near chance level almost all of them. Give `point` to move the
    interval of a mAP by that bias; between two methods on the same images it cancels.

    Args:
        values: [R].
        level: the share of replicates between the ends.
        point: the value on the whole test set: the replicates are shifted to have it as their mean.

    Returns:
        (low, high); both NaN where no replicate is defined.

    Raises:
        PlbenchError: if the level is not between 0 and 1.

    Examples:
        >>> interval(range(101), level=0.5)
        (25.0, 75.0)
        >>> interval(range(101), level=0.5, point=48.0)
        (23.0, 73.0)
    """
    if not 0 < level < 1:
        raise PlbenchError(f"an interval's level is a share between 0 and 1, for instance 0.95, not {level}")
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    if not known.size:
        return float("nan"), float("nan")
    shift = 0.0 if point is None else point - float(known.mean())
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low) + shift, float(high) + shift


def seeds_interval(replicates: npt.ArrayLike, *, seed: int, stream: str = "seeds") -> Float64Array:
    """Bootstrap distribution [R] of the mean over seeds: each replicate resamples the images and the seeds.

    Replicate r draws S of the S trained models with replacement and averages their values on resample r of
    the images. Give the result to `interval`. With S = 1 it is the bootstrap over images alone; with few
    seeds it is too narrow, since resampling S values shows (S - 1)/S of their variance.

    Args:
        replicates: [S, R] or [R], of one metric; row s is the model of seed s on the same resamples.
        seed: the protocol's.
        stream: sets apart draws that must be independent.
    """
    values = np.atleast_2d(np.asarray(replicates, np.float64))
    num_seeds, num_replicates = values.shape
    drawn = draw_indices(f"{seed:d}/{stream}", num_replicates * num_seeds, num_seeds).reshape(-1, num_seeds)
    means: Float64Array = np.take_along_axis(values.T, drawn, axis=1).mean(axis=1)
    return means


def paired_difference(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    point_a: npt.ArrayLike,
    point_b: npt.ArrayLike,
    *,
    seed: int,
    level: float = 0.95,
) -> PairedDifference:
    """Difference of two methods' means over seeds, with its interval and two-sided bootstrap p value.

    Replicates pair up by r, which drew the same images for both; seeds are drawn for each method on its own.
    The p value is 2 (1 + fewer) / (R + 1), at most 1, where `fewer` counts the replicates on the rarer side
    of no difference (those at exactly none are on both). It cannot fall below 2 / (R + 1), so that a board of
    M comparisons under Holm needs R of 40 M to find any at 5 %. Undefined replicates are left out.

    Args:
        a: [S, R] or [R] replicates of the first method.
        b: [S', R] or [R] of the second.
        point_a: the first method's value on the whole test set, or [S] of them.
        point_b: the second's.
        seed: the protocol's.
        level: of the interval.

    Raises:
        PlbenchError: if a and b have different numbers of replicates.
    """
    if np.shape(a)[-1] != np.shape(b)[-1]:
        raise PlbenchError(
            f"{np.shape(a)[-1]} replicates cannot be paired with {np.shape(b)[-1]}; both methods need the "
            "same resamples of the same test set"
        )
    gap = seeds_interval(a, seed=seed, stream="a") - seeds_interval(b, seed=seed, stream="b")
    gap = gap[~np.isnan(gap)]
    fewer = min(np.count_nonzero(gap <= 0), np.count_nonzero(gap >= 0))
    p_value = min(1.0, 2 * (1 + fewer) / (gap.size + 1))
    difference = float(np.asarray(point_a, np.float64).mean() - np.asarray(point_b, np.float64).mean())
    return PairedDifference(difference, *interval(gap, level), p_value)


def holm(p_values: npt.ArrayLike) -> Float64Array:
    """Holm's step-down adjustment (1979): the share of boards with any false claim stays below the level.

    Args:
        p_values: [M], one for each comparison.

    Returns:
        [M] in the same order, at most 1.

    Raises:
        PlbenchError: if one is not in [0, 1].

    Examples:
        >>> holm([0.01, 0.04, 0.03])
        array([0.03, 0.06, 0.06])
    """
    values = np.asarray(p_values, np.float64)
    if not np.all((values >= 0) & (values <= 1)):
        raise PlbenchError(f"a p value lies between 0 and 1, but these were given: {values.tolist()}")
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(values.size, 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted
