"""The rank of a row among those that cost no more."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from plbench.board import rows
from plbench.board.text import rank_words
from plbench.metrics.statistics import Sample


class Row(rows._Row):
    """A row of a table whose values and cost are given."""

    def __init__(self, mean: float, passes: int | None, head: int | None, trials: int = 0) -> None:
        self.mean = mean
        self.cost = {"image_passes": passes, "head_images": head, "trials": trials}

    def sample(self, name: str) -> Sample:
        noise = np.random.default_rng(0).normal(size=1000)
        points = self.mean + np.array([-0.02, -0.01, 0.0, 0.01, 0.02]) * (1 + self.mean / 100)
        return Sample.of_runs(points, np.tile(self.mean + 0.1 * noise, (5, 1)), range(5), (0.0, 100.0))


def ranks_of(*made: Row) -> list[tuple[Any, Any]]:
    rows._rank(made)
    return [(row.rank, row.rank_at_cost) for row in made]


def test_rows_that_cost_more_do_not_count() -> None:
    best, dear, cheap = Row(50, 10, 300), Row(49, 10, 200), Row(48, 10, 100)
    assert ranks_of(best, dear, cheap) == [(1, 1), (2, 1), (3, 1)]
    assert ranks_of(Row(50, 10, 100), Row(49, 10, 200), Row(48, 10, 300)) == [(1, 1), (2, 2), (3, 3)]


def test_equal_cost_is_no_more() -> None:
    assert ranks_of(*(Row(value, 10, 100, 16) for value in (50, 49, 48))) == [(1, 1), (2, 2), (3, 3)]


@pytest.mark.parametrize("dearer", [(11, 100, 0), (10, 101, 0), (10, 100, 16), (None, None, 0)])
def test_each_count_is_a_cost(dearer: tuple[int | None, int | None, int]) -> None:
    assert ranks_of(Row(50, *dearer), Row(48, 10, 100)) == [(1, 1), (2, 1)]


def test_rows_that_tie_share_a_rank() -> None:
    assert ranks_of(Row(50, 10, 300), Row(50, 10, 100)) == [(1, 1), (1, 1)]


def test_words() -> None:
    row = {"withdrawn": None, "ceiling": False, "unranked": None, "provisional": True}
    assert rank_words({**row, "rank": 4, "rank_at_cost": 1}) == "4 (1 at its cost)"
    assert rank_words({**row, "rank": 4, "rank_at_cost": 4}) == "4"
    assert rank_words({**row, "rank": None, "rank_at_cost": None}) == "provisional"
