"""Statistics of comparison tables: uncertainty of means over seeds, and significant differences between rows.

A value is a mean over seeds. Its uncertainty has two separate sources: the test images, with a variance estimated by
bootstrap replicates of the mean over seeds (so that images count once), and the seeds, with a variance estimated from
the values on the same test set. docs/statistics.md has the simulations behind each rule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import scipy  # submodules are imported on first use; reading a record needs few of them

from plbench.errors import PlbenchError
from plbench.metrics.bootstrap import raw_uniforms
from plbench.metrics.cells import Float64Array

SIGNIFICANT = 0.05
"""Family-wise significance level of a table's comparisons."""

MIN_SEEDS = 3
"""Minimum number of seeds for testing differences between rows."""

MIN_SEEDS_RANKED = 5
"""Minimum number of seeds for a rank on boards; rows with fewer are provisional."""

POWER = 0.8
"""Power at which a difference is called detectable."""

# share of the 5 % level used by the test with a pair's own variance; the rest is for the test with shrunk variances
_SHARE_OF_OWN = 0.2
_MIN_PAIRS = 10  # from 5 rows on, there are enough variances for shrinkage


@dataclass(frozen=True)
class Figure:
    """A value with its 95 % interval, for display; NaN where undefined."""

    mean: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half the interval's width."""
        return (self.high - self.low) / 2


@dataclass(frozen=True, eq=False)
class Sample:
    """One metric of one row.

    Attributes:
        points: [S] by seed, or [S, K] by seed and tuning study, percent.
        replicates: [R] of the mean over all of its runs; samples on the same resamples of the same images are paired.
        seeds: [S] seeds by which values are paired; empty if unpaired.
        bounds: range of the metric on this data.
    """

    points: Float64Array
    replicates: Float64Array
    seeds: tuple[int, ...] = ()
    bounds: tuple[float, float] = (-math.inf, math.inf)

    @classmethod
    def of_runs(
        cls,
        points: npt.ArrayLike,
        replicates: npt.ArrayLike,
        seeds: Sequence[int] = (),
        bounds: tuple[float, float] = (-math.inf, math.inf),
    ) -> Sample:
        """Make the sample of runs: `replicates` [S, R] or [S, K, R] are those of each run; the rest as in the class."""
        values, drawn = np.asarray(points, np.float64), np.asarray(replicates, np.float64)
        # average over runs first: they share the test images, whose noise must count once
        return cls(values, drawn.reshape(-1, drawn.shape[-1]).mean(axis=0), tuple(seeds), bounds)

    @classmethod
    def of_seeds(cls, points: npt.ArrayLike, seeds: Sequence[int] = ()) -> Sample:
        """Make the sample of a quantity that varies only by seed: points [S]."""
        # one replicate, with variance 0: no uncertainty from test images
        return cls(np.asarray(points, np.float64), np.zeros(1), tuple(seeds))

    @property
    def mean(self) -> float:
        """The row's value."""
        return float(self.points.mean())

    def figure(self) -> Figure:
        """Return the mean with its 95 % interval over seeds and test images."""
        return self.estimate.figure()

    def shifted(self, by: float) -> Sample:
        """Return the sample shifted by a constant."""
        return replace(self, points=self.points + by, replicates=self.replicates + by)

    @property
    def estimate(self) -> Estimate:
        """The mean with its two variances."""
        seed_variance, dof = _seed_variance(self.points)
        return Estimate(self.mean, _variance(self.replicates), seed_variance, dof, self.bounds)

    def minus(self, other: Sample) -> Estimate:
        """Return the difference of means, paired by image, and by seed if both have the same seeds and studies.

        Raises:
            PlbenchError: if the two have different numbers of replicates.
        """
        if self.replicates.shape != other.replicates.shape:
            raise PlbenchError(
                f"{self.replicates.size} replicates cannot be paired with {other.replicates.size}; both rows need the "
                "same resamples of the same test set"
            )
        # of differences: effects of an image on both rows cancel
        images = _variance(self.replicates - other.replicates)
        is_paired = self.seeds == other.seeds and self.points.shape == other.points.shape
        of_each = _seed_variance(self.points), _seed_variance(other.points)
        seeds = _seed_variance(self.points - other.points) if is_paired else _added(*of_each)
        return Estimate(self.mean - other.mean, images, *seeds)


@dataclass(frozen=True)
class Estimate:
    """A value with its variances.

    Attributes:
        value: in the metric's unit.
        image_variance: of the mean over seeds, over test images.
        seed_variance: of the mean over seeds, over seeds and studies; 0 with one seed.
        dof: degrees of freedom of `seed_variance`; 0 with one seed.
        bounds: limits of intervals.
    """

    value: float
    image_variance: float
    seed_variance: float
    dof: float
    bounds: tuple[float, float] = (-math.inf, math.inf)

    @classmethod
    def of_interval(
        cls, value: float, ends: tuple[float, float], bounds: tuple[float, float] = (-math.inf, math.inf)
    ) -> Estimate:
        """Return the estimate of one run with this interval over test images: `interval`, solved for the variance.

        The variance is NaN if the value or an end is, and infinite if both ends are at the bounds.
        """
        low, high = bounds
        below, above = value - low, high - value
        if not low < value < high or math.isinf(high - low):
            # at a bound one end is the value itself
            half = max(value - ends[0], ends[1] - value)
        else:
            # both ends are equally far from the value in log odds; use the one less affected by rounding
            inside = max(ends, key=lambda end: min(end - low, high - end))
            shares = np.array([below / (high - low), (inside - low) / (high - low)])
            reach = abs(float(np.subtract(*scipy.special.logit(shares))))
            half = reach * below * above / (high - low)
        deviation = half / -float(scipy.special.ndtri(SIGNIFICANT / 2))
        return cls(value, deviation**2, 0.0, 0.0, bounds)

    @classmethod
    def of_runs(
        cls, points: npt.ArrayLike, runs: Sequence[Estimate], bounds: tuple[float, float] = (-math.inf, math.inf)
    ) -> Estimate:
        """Estimate the mean over runs from each run's variance over test images, without replicates.

        Errors from images are assumed to be fully shared, the worst case: the standard deviation of the mean is the
        mean of the standard deviations.

        Args:
            points: [S] by seed, or [S, K] by seed and tuning study.
            runs: the estimate of each run, in any order.
            bounds: of the mean.
        """
        values = np.asarray(points, np.float64)
        shared = float(np.mean([math.sqrt(run.image_variance) for run in runs]))
        return cls(float(values.mean()), shared**2, *_seed_variance(values), bounds)

    def __sub__(self, other: Estimate) -> Estimate:
        """Return the difference of two independent estimates."""
        seeds = _added((self.seed_variance, self.dof), (other.seed_variance, other.dof))
        return Estimate(self.value - other.value, self.image_variance + other.image_variance, *seeds)

    def figure(self) -> Figure:
        """Return the value with its 95 % interval."""
        return Figure(self.value, *self.interval)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval; NaN if the value is.

        With bounds, it is computed on the log-odds scale and lies within them: near the upper bound a metric can
        decrease more than increase, and symmetric 95 % intervals would cover only 88 %.
        """
        half = self.half_width(SIGNIFICANT)
        low, high = self.bounds
        # at a bound the log odds are infinite
        if not low < self.value < high or math.isinf(high - low):
            return max(self.value - half, low), min(self.value + half, high)
        # use both distances directly: a share that rounds to 1 still has finite log odds
        below, above = self.value - low, high - self.value
        # half the interval in log odds, whose derivative is (high - low) / (below * above)
        reach = half * (high - low) / (below * above)
        ends = scipy.special.expit(math.log(below / above) + np.array([-reach, reach]))
        return float(low + (high - low) * ends[0]), float(low + (high - low) * ends[1])

    def half_width(self, level: float) -> float:
        """Return half the width of the interval with two-sided error `level`; 0 without variance, NaN if a variance is.

        For nominal 95 %, Student's t with Satterthwaite's degrees of freedom is too narrow for few seeds with some
        image noise (92 % coverage), and the variance-weighted mean of both critical values (Cochran and Cox, 1950) is
        too wide (97.2 %); the mean of the two covers 93.5 to 96.5 %.
        """
        total = self.image_variance + self.seed_variance
        # not `<= 0`, which is False for NaN
        if not total > 0:
            return math.nan if math.isnan(total) else 0.0
        # with one seed, only the images' variance remains, whose distribution is near normal
        if self.dof <= 0:
            return -float(scipy.special.ndtri(level / 2)) * math.sqrt(total)
        share = self.seed_variance / total
        cochran = share * -scipy.special.stdtrit(self.dof, level / 2) + (1 - share) * -scipy.special.ndtri(level / 2)
        # as the share approaches 0, the degrees of freedom approach infinity and t becomes normal
        effective = self.dof / max(share**2, 1e-12)
        satterthwaite = -scipy.special.stdtrit(min(effective, 1e9), level / 2)
        return float((cochran + satterthwaite) / 2) * math.sqrt(total)

    @property
    def p_value(self) -> float:
        """Two-sided p-value of the null value 0: the level whose interval just reaches 0."""
        if math.isnan(self.value):
            return math.nan
        distance = abs(self.value)
        # outside the bracket of the search below, which is over powers of ten since p spans 15 of them
        if distance <= self.half_width(1.0):
            return 1.0
        if distance >= self.half_width(1e-15):
            return 1e-15
        found = scipy.optimize.brentq(lambda power: self.half_width(10.0**power) - distance, -15, 0, xtol=1e-9)
        return float(10.0**found)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Significant differences between a table's rows, with all pairs tested together.

    Attributes:
        differences: [M, M] first minus second. reach: [M, M] half the width of their intervals, which exclude 0 exactly
            if the pair is significantly different.
        p_values: [M, M] adjusted for all pairs of the table; 1 on the diagonal, NaN where a row has too few seeds.
        detectable: the difference from the best row that is detected with 80 % power: the median over rows; NaN if
            nothing is tested.
    """

    differences: Float64Array
    reach: Float64Array
    p_values: Float64Array
    detectable: float

    @property
    def ranks(self) -> list[int]:
        """1 + the number of rows that are significantly better, for rows given best first; non-decreasing."""
        return [int(rank) for rank in np.maximum.accumulate(1 + self.is_better.sum(axis=0))]

    @property
    def is_better(self) -> npt.NDArray[np.bool_]:
        """[M, M] whether the first of each pair is significantly better than the second."""
        # never true for NaN: a row with too few seeds is neither better nor worse than any
        return np.asarray((self.p_values < SIGNIFICANT) & (self.differences > 0))

    @property
    def tied(self) -> list[bool]:
        """Whether each row is statistically tied with the first: it has rank 1, or too few seeds to say."""
        return [rank == 1 or math.isnan(p) for rank, p in zip(self.ranks, self.p_values[0], strict=True)]


def widened_for_folds(replicates: npt.ArrayLike, value: float, num_folds: int) -> Float64Array:
    """Return widened replicates of a cross-validated figure: K models scored images that the others were trained on.

    The bootstrap treats the models as fixed. But each image is in the training set of K - 1 models, which correlates
    the scores, and this correlation cannot be estimated from one round of folds (Bengio and Grandvalet, 2004). Nadeau
    and Bengio (2003) assume a correlation of 1/K between folds, which multiplies the variance by 1 + K/(K - 1). Without
    it, 12 % of pairs of equal methods are called different; with it, 2 % (docs/statistics.md).

    Args:
        replicates: [R] of the pooled scores.
        value: over all images, the centre of the replicates.
        num_folds: K, at least 2.
    """
    return value + math.sqrt(1 + num_folds / (num_folds - 1)) * (np.asarray(replicates, np.float64) - value)


def compare_pairs(samples: Sequence[Sample]) -> Pairs:
    """Test all pairs of a table's rows, with a family-wise error rate of at most 5 %.

    Each pair has a variance over seeds with few degrees of freedom. The variances are shrunk towards each other (Smyth,
    2004), which makes 5 seeds sufficient, and Holm's correction is applied over all pairs at 4 %. The variance of a row
    that is far noisier than the others would be shrunk too much, so a pair must also differ by its own variance at 1 %.
    Both tests combine images and seeds by Banerjee's rule (1960), whose error rate never exceeds its level.

    Args:
        samples: M rows of one metric, on the same resamples.
    """
    size = len(samples)
    differences, reach = np.zeros((size, size)), np.zeros((size, size))
    p_values = np.ones((size, size))
    first, second = np.triu_indices(size, 1)
    pairs = [(samples[int(a)], samples[int(b)]) for a, b in zip(first, second, strict=True)]
    gaps = [one.minus(other) for one, other in pairs]
    tested = np.array([min(len(one.points), len(other.points)) >= MIN_SEEDS for one, other in pairs], bool)
    value, images, seeds, dof = (
        np.array([getattr(gap, name) for gap in gaps]) for name in ("value", "image_variance", "seed_variance", "dof")
    )
    adjusted = np.full(len(gaps), np.nan)
    half = np.array([gap.half_width(SIGNIFICANT) for gap in gaps])  # for untested pairs: without correction
    detectable = np.full(len(gaps), np.nan)
    if tested.any():
        chosen = value[tested], images[tested], seeds[tested], dof[tested]
        adjusted[tested], half[tested], detectable[tested] = _test_family(*chosen, num_rows=size)
    for table, numbers, sign in ((differences, value, -1), (reach, half, 1), (p_values, adjusted, 1)):
        table[first, second], table[second, first] = numbers, sign * numbers
    # pairs with the first row, the best one
    to_best = detectable[(first == 0) & tested] if size else detectable
    return Pairs(differences, reach, p_values, float(np.median(to_best)) if to_best.size else math.nan)


def shares_best(samples: Sequence[Sample], *, seed: int) -> Float64Array:
    """Return each row's probability [M] of being the best with other test images and seeds; they sum to 1.

    Replicate r samples the same images for all rows and adds seed noise to each: Student's t, since few seeds estimate
    their variance poorly.
    """
    num_replicates = samples[0].replicates.size
    drawn = np.empty((len(samples), num_replicates))
    for place, sample in enumerate(samples):
        estimate = sample.estimate
        # one seed has no degrees of freedom, but its variance of 0 removes the noise
        noise = scipy.special.stdtrit(max(estimate.dof, 1), raw_uniforms(f"{seed:d}/best/{place}", num_replicates))
        # centred, since the mean of replicates differs slightly from the value
        images = sample.replicates - sample.replicates.mean()
        drawn[place] = estimate.value + images + math.sqrt(estimate.seed_variance) * noise
    if np.isnan(drawn).any():
        return np.full(len(samples), np.nan)
    wins = drawn == drawn.max(axis=0)
    # tied rows share the win, so that shares sum to 1
    return np.asarray((wins / wins.sum(axis=0)).mean(axis=1))


def holm(p_values: npt.ArrayLike) -> Float64Array:
    """Return p-values with Holm's step-down adjustment (1979), which controls the family-wise error rate.

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
    # monotone: Holm stops at the first comparison that is not significant
    stepped = np.maximum.accumulate(values[order] * np.arange(values.size, 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


def format_p(p_value: float | None) -> str:
    """Format a p-value with two significant digits, or "< 0.001"; never rounded across 0.05.

    Examples:
        >>> format_p(0.04995), format_p(0.0004), format_p(0.1), format_p(0.0512)
        ('0.0499', '< 0.001', '0.10', '0.051')
    """
    if p_value is None or math.isnan(p_value):
        return "–"
    if p_value < 0.001:
        return "< 0.001"
    text = f"{p_value:#.2g}"  # keeps the zero of 0.10
    if p_value < SIGNIFICANT <= float(text):  # 0.04995 must not be shown as 0.05
        return f"{math.floor(p_value * 10_000) / 10_000:.4f}"
    return text


def _seed_variance(points: Float64Array) -> tuple[float, float]:
    """Return the variance of the mean over seeds (and studies), with (Satterthwaite's) degrees of freedom."""
    if points.ndim == 1:
        return _variance(points) / max(len(points), 1), float(len(points) - 1)
    # a tuned row is a mean over seeds and over studies: each adds its own variance (docs/statistics.md)
    return _added(_seed_variance(points.mean(axis=1)), _seed_variance(points.mean(axis=0)))


def _added(*parts: tuple[float, float]) -> tuple[float, float]:
    """Return the sum of independent variances, with Satterthwaite's degrees of freedom."""
    known = [(variance, dof) for variance, dof in parts if dof > 0]
    total = sum(variance for variance, _ in known)
    weight = sum(variance**2 / dof for variance, dof in known)
    # a lower bound of Satterthwaite's number, up to rounding
    fewest = min((dof for _, dof in known), default=0.0)
    return float(total), float(max(total**2 / weight, fewest)) if weight > 0 else fewest


def _variance(values: Float64Array) -> float:
    """Return the unbiased variance; 0 for a single value. Replicates without a defined class are left out."""
    known = values[~np.isnan(values)]
    return float(known.var(ddof=1)) if known.size > 1 else 0.0


def _test_family(
    value: Float64Array, images: Float64Array, seeds: Float64Array, dof: Float64Array, *, num_rows: int
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Return adjusted p-value, half the interval's width and detectable difference of each of P pairs."""
    shrinks, size, level, shrunk, more = len(value) >= _MIN_PAIRS, len(value), SIGNIFICANT, seeds, dof
    if shrinks:
        # M rows have (M - 1) times the degrees of freedom of one pair, since pairs are not independent
        shrunk, more = shrink_variances(seeds, dof, max_dof=(num_rows - 1) * float(np.median(dof)))
        level = SIGNIFICANT * (1 - _SHARE_OF_OWN)
    p_values = banerjee_p(value, images, shrunk, more)
    adjusted = holm(p_values)
    # Holm's factor for each p-value, at least 1
    factor = np.maximum(np.divide(adjusted, p_values, out=np.ones(size), where=p_values > 0), 1)
    # at each pair's adjusted level, so that the interval excludes 0 exactly if p is below 5 %
    half = banerjee_reach(level / factor, images, shrunk, more)
    # at the strictest level, as if no other pair differed: detected whatever the others do
    least = banerjee_reach(np.full(size, level / size), images, shrunk, more)
    if shrinks:
        of_own = SIGNIFICANT * _SHARE_OF_OWN
        own = banerjee_p(value, images, seeds, dof)
        # each p is rescaled so that its level becomes 5 %; take the larger, since both tests must agree
        adjusted = np.minimum(1, np.maximum(adjusted * SIGNIFICANT / level, own * SIGNIFICANT / of_own))
        alone = banerjee_reach(np.full(size, of_own), images, seeds, dof)
        half, least = np.maximum(half, alone), np.maximum(least, alone)
    return adjusted, half, least + scipy.special.ndtri(POWER) * np.sqrt(images + shrunk)


def banerjee_reach(level: npt.ArrayLike, images: Float64Array, seeds: Float64Array, dof: Float64Array) -> Float64Array:
    """Return the critical difference [P], exceeded with probability at most `level` under the null (Banerjee, 1960).

    Args:
        level: scalar or [P]; two-sided.
        images: [P] known variance.
        seeds: [P] estimated variance.
        dof: [P] its degrees of freedom.
    """
    half = np.asarray(level, np.float64) / 2
    # at least 1: with 0 degrees of freedom the quantile is NaN, even times a variance of 0
    of_seeds = scipy.special.stdtrit(np.maximum(dof, 1), half) ** 2 * seeds
    return np.asarray(np.sqrt(scipy.special.ndtri(half) ** 2 * images + of_seeds))


def banerjee_p(value: Float64Array, images: Float64Array, seeds: Float64Array, dof: Float64Array) -> Float64Array:
    """Return two-sided p-values [P] of differences [P]: the levels, at least 1e-16, of which they are the reach."""
    # bisection handles all pairs at once; a root finder would handle one
    low, high = np.full(len(value), -16.0), np.zeros(len(value))  # powers of ten
    for _ in range(32):  # precise to 1e-9 of a power of ten
        middle = (low + high) / 2
        is_beyond = banerjee_reach(10.0**middle, images, seeds, dof) < np.abs(value)
        low, high = np.where(is_beyond, low, middle), np.where(is_beyond, middle, high)
    return np.asarray(10.0**high)


def shrink_variances(
    variances: Float64Array, dof: Float64Array, *, max_dof: float
) -> tuple[Float64Array, Float64Array]:
    """Shrink variances towards each other, depending on their similarity (empirical Bayes: Smyth, 2004, section 6.2).

    Args:
        variances: [P]; zeros are excluded from the estimate.
        dof: [P] degrees of freedom of each.
        max_dof: upper limit for the result's degrees of freedom, since pairs of a table are not independent.
    """
    known = variances > 0
    # similarity needs at least two variances
    if known.sum() < 2:
        return variances, dof
    d = np.maximum(dof[known], 1)
    logs = np.log(variances[known]) - scipy.special.digamma(d / 2) + np.log(d / 2)
    excess = float(logs.var(ddof=1) - scipy.special.polygamma(1, d / 2).mean())
    # otherwise they differ no more than equal variances would by chance, and are pooled
    if excess > 1e-6:
        prior_dof = 2 * scipy.optimize.brentq(lambda x: scipy.special.polygamma(1, x) - excess, 1e-8, 1e8)
        prior = math.exp(logs.mean() + scipy.special.digamma(prior_dof / 2) - math.log(prior_dof / 2))
    else:
        prior_dof, prior = math.inf, float(variances[known].mean())
    # a pair must not borrow more degrees of freedom than the table has
    weight = np.clip(np.minimum(prior_dof, max_dof - dof), 0, None)
    return (weight * prior + dof * variances) / (weight + dof), weight + dof
