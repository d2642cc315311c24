"""Simulated tables: how often equal methods are called different, how often unequal ones are found.

`make validate-statistics` runs `main`; the test suite runs small parts of it.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats

from plbench.metrics import evaluate_cells
from plbench.metrics.bootstrap import replicates
from plbench.metrics.cells import Cells
from plbench.metrics.statistics import SIGNIFICANT, Sample, compare_pairs

NUM_REPLICATES = 1000
ROWS, SEEDS = (5, 20, 26, 60), (3, 5, 10)


@dataclass(frozen=True)
class Noise:
    """What moves the rows of a table: standard deviations in points.

    Attributes:
        images: of a row, beside what all rows share. seeds: of one training.
        loudest: factor of the first row's seed noise. spread: of the logarithm of each row's seed noise.
        shared: of what a seed does to all rows alike, such as its labels.
    """

    images: float
    seeds: float
    loudest: float = 1.0
    spread: float = 0.0
    shared: float = 0.0


KINDS = {
    "images alone": Noise(1.0, 0.0),
    "seeds alone": Noise(0.0, 1.0),
    "mixed": Noise(0.7, 0.7),
    "one row ten times as noisy": Noise(0.5, 0.7, loudest=10.0),
    "one row ten times as noisy, seeds alone": Noise(0.0, 1.0, loudest=10.0),
    "noise differs from row to row": Noise(0.3, 1.0, spread=0.7),
    "seeds that move all rows": Noise(0.3, 0.7, shared=2.0),
}


def draw_table(
    noise: Noise, num_rows: int, num_seeds: int, generator: np.random.Generator, effects: np.ndarray | float = 0.0
) -> list[Sample]:
    """Return the rows of one table; `effects` are their true values."""
    own = noise.images * generator.normal(size=num_rows)
    shared_images = 3 * noise.images * generator.normal()
    replicates = noise.images * (
        3 * generator.normal(size=(1, NUM_REPLICATES)) + generator.normal(size=(num_rows, NUM_REPLICATES))
    )
    loudness = noise.seeds * np.exp(noise.spread * generator.normal(size=num_rows))
    loudness[0] *= noise.loudest
    by_seed = noise.shared * generator.normal(size=num_seeds)
    points = loudness[:, None] * generator.normal(size=(num_rows, num_seeds)) + by_seed
    points += (effects + own + shared_images)[:, None]
    seeds = tuple(range(num_seeds))
    return [Sample(point, drawn, seeds) for point, drawn in zip(points, replicates, strict=True)]


def error_rate(noise: Noise, num_rows: int, num_seeds: int, num_tables: int, seed: int = 0) -> float:
    """Return the share of tables of equal methods in which any pair is called different."""
    generator = np.random.default_rng([seed, num_rows, num_seeds])
    wrong = 0
    for _ in range(num_tables):
        pairs = compare_pairs(draw_table(noise, num_rows, num_seeds, generator))
        wrong += bool((pairs.p_values < SIGNIFICANT).any())
    return wrong / num_tables


def power(noise: Noise, num_rows: int, num_seeds: int, num_tables: int, seed: int = 0) -> tuple[float, float]:
    """Return the share of pairs found when values lie evenly over 6 points, and the mean detectable difference."""
    generator = np.random.default_rng([seed, num_rows, num_seeds])
    effects = np.linspace(6, 0, num_rows)
    found, detectable = [], []
    for _ in range(num_tables):
        pairs = compare_pairs(draw_table(noise, num_rows, num_seeds, generator, effects))
        found.append((pairs.p_values < SIGNIFICANT).mean() * num_rows / max(num_rows - 1, 1))
        detectable.append(pairs.detectable)
    return float(np.mean(found)), float(np.mean(detectable))


def highest_by_chance(num_tables: int) -> float:
    """Return the share that a true rate of 5 % exceeds in one of a thousand simulations."""
    return float(stats.binom.ppf(0.999, num_tables, SIGNIFICANT) / num_tables)


def coverage(noise: Noise, num_seeds: int, num_rows: int, seed: int = 0) -> tuple[float, float]:
    """Return how often a row's 95 % interval holds its true value, and a difference's the true difference (percent)."""
    generator = np.random.default_rng([seed, num_seeds])
    inside = np.zeros(2)
    for _ in range(num_rows):
        one, other = draw_table(noise, 2, num_seeds, generator)
        for place, estimate in enumerate((one.estimate, one.minus(other))):
            low, high = estimate.interval
            inside[place] += low <= 0 <= high
    values = 100 * inside / num_rows
    return float(values[0]), float(values[1])


@dataclass(frozen=True)
class TestSet:
    """Test images with few positives of a class.

    Attributes:
        share: of the images that show a class. shifts: how many standard deviations higher positives score, by class.
    """

    num_images: int
    share: float
    shifts: tuple[float, ...]

    def draw(self, generator: np.random.Generator) -> tuple[Cells, Cells]:
        """Return the cells of two equal methods whose scores have much in common."""
        shape = (self.num_images, len(self.shifts))
        present = generator.random(shape) < self.share
        common = math.sqrt(0.7) * generator.standard_normal(shape) + np.array(self.shifts) * present
        own = [common + math.sqrt(0.3) * generator.standard_normal(shape) for _ in range(2)]
        labels = np.where(present, 1, -1)
        return Cells.from_scores(own[0], labels), Cells.from_scores(own[1], labels)


_EVEN, _MIXED = (2.0,) * 20, tuple(np.linspace(0.5, 4, 20))
RARE = {
    "1 positive a class, 20 alike": TestSet(100, 0.01, _EVEN),
    "1 positive a class, 20 unlike": TestSet(100, 0.01, _MIXED),
    "3 positives a class, 20 alike": TestSet(100, 0.03, _EVEN),
    "3 positives a class, 20 unlike": TestSet(100, 0.03, _MIXED),
    "10 positives a class, 20 unlike": TestSet(100, 0.1, _MIXED),
    "30 positives a class, 5 near the ceiling": TestSet(120, 0.25, (4.0,) * 5),
}


def rare_coverage(test_set: TestSet, num_sets: int, seed: int = 0) -> tuple[float, float]:
    """Return how often a 95 % interval of mAP(C) over images covers the truth, and one of a difference 0 (percent).

    The truth is the mean of what the classes that a test set scores come to on average.
    """
    generator = np.random.default_rng([seed, test_set.num_images])
    pairs = [test_set.draw(generator) for _ in range(num_sets)]
    metrics = [(evaluate_cells(one), evaluate_cells(other)) for one, other in pairs]
    average = np.nanmean([evaluation.ap for both in metrics for evaluation in both], axis=0)
    inside = np.zeros(2)
    for number, (cells, (one, other)) in enumerate(zip(pairs, metrics, strict=True)):
        truth = 100 * average[~np.isnan(one.ap)].mean()
        first, second = (
            Sample(
                np.array([evaluation.map_c]),
                replicates(own, 150, seed=number).map_c,
                bounds=(evaluation.lowest.map_c, 100.0),
            )
            for own, evaluation in zip(cells, (one, other), strict=True)
        )
        for place, (estimate, value) in enumerate(((first.estimate, truth), (first.minus(second), 0.0))):
            low, high = estimate.interval
            inside[place] += low <= value <= high
    values = 100 * inside / num_sets
    return float(values[0]), float(values[1])


def lines(num_tables: int) -> Iterator[str]:
    """Yield a Markdown table of everything, line by line as it is computed."""
    yield "| noise | rows | seeds | any equal pair called different, % | pairs found, % | detectable, points |"
    yield "|---|---|---|---|---|---|"
    for name, noise in KINDS.items():
        for num_rows in ROWS:
            for num_seeds in SEEDS:
                rate = error_rate(noise, num_rows, num_seeds, num_tables)
                found, detectable = power(noise, num_rows, num_seeds, max(num_tables // 20, 3))
                yield (
                    f"| {name} | {num_rows} | {num_seeds} | {100 * rate:.1f} | {100 * found:.1f} | {detectable:.2f} |"
                )
    yield f"\n5 % itself exceeds {100 * highest_by_chance(num_tables):.1f} % in 1 of 1,000 of {num_tables} tables.\n"
    yield "| noise | seeds | 95 % interval of a row covers, % | of a difference, % |"
    yield "|---|---|---|---|"
    for name, noise in KINDS.items():
        for num_seeds in (*SEEDS, 1) if noise.seeds == 0 else SEEDS:
            row, difference = coverage(noise, num_seeds, 20 * num_tables)
            yield f"| {name} | {num_seeds} | {row:.1f} | {difference:.1f} |"


def rare_lines(num_sets: int) -> Iterator[str]:
    """Yield the coverage with few positives, as a Markdown table."""
    yield "\n| test set | interval of one run covers, % | of a difference, % |"
    yield "|---|---|---|"
    for name, test_set in RARE.items():
        run, difference = rare_coverage(test_set, num_sets)
        yield f"| {name} | {run:.1f} | {difference:.1f} |"


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=int, default=1000, help="simulated tables for each setting")
    number = parser.parse_args().tables
    for line in itertools.chain(lines(number), rare_lines(number)):
        print(line, flush=True)


if __name__ == "__main__":
    main()
