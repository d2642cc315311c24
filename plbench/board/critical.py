"""Methods across boards: average ranks, groups without significant differences, and their diagram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from markupsafe import Markup

from plbench.board.text import page_template

LEVEL = 0.05  # of both tests
MIN_BOARDS = 5
"""Minimum number of boards for tests; with fewer, rank tests have almost no power. Demšar's examples use 14 data sets
and more."""


@dataclass(frozen=True)
class RankComparison:
    """Average ranks of the methods that are on every board.

    Attributes:
        boards: the boards included.
        ranks: (method, average rank), best first; 1 is the best rank, tied methods share the mean of theirs.
        difference: Nemenyi's critical difference of average ranks; None with fewer than `MIN_BOARDS` boards.
        friedman_p: of all methods being equal (Iman and Davenport's F); None likewise.
        cliques: first and last position in `ranks` of each maximal group without significant differences.
    """

    boards: tuple[str, ...]
    ranks: tuple[tuple[str, float], ...]
    difference: float | None
    friedman_p: float | None
    cliques: tuple[tuple[int, int], ...]

    @property
    def sentence(self) -> str:
        """Description of the diagram and its test, if any."""
        start = f"Average rank by mAP(C) of {len(self.ranks)} methods over {len(self.boards)} boards, 1 is best."
        if self.difference is None or self.friedman_p is None:
            return (
                f"{start} With fewer than {MIN_BOARDS} boards no test has the power to distinguish "
                "methods: these are ranks, not findings."
            )
        friedman = f"Friedman's test: p {'< 0.001' if self.friedman_p < 0.001 else f'= {self.friedman_p:.3f}'}"
        if self.friedman_p > LEVEL:
            return f"{start} {friedman}, so all methods are statistically tied."
        return (
            f"{start} {friedman}. A bar on the right joins methods that are statistically tied: their average ranks "
            f"lie within Nemenyi's critical difference, {self.difference:.2f} at {100 * LEVEL:g} % (Demšar, 2006)."
        )


def compare_ranks(scores: Mapping[str, Mapping[str, float]]) -> RankComparison | None:
    """Apply Friedman's test with Nemenyi's critical difference over boards (Demšar, JMLR 7, 2006).

    Boards are treated as independent samples, which boards of one dataset are not.

    Args:
        scores: by board, then method; higher is better. Methods that lack a board are left out.

    Returns:
        None if fewer than two boards share fewer than two methods.
    """
    boards = tuple(sorted(scores))
    methods = sorted(set.intersection(*(set(scores[board]) for board in boards))) if boards else []
    if len(boards) < 2 or len(methods) < 2:
        return None
    from scipy.stats import rankdata, studentized_range  # slow to import, and not needed for most pages

    table = np.array([[scores[board][method] for method in methods] for board in boards], np.float64)
    by_board = rankdata(-table, axis=1)
    ranks = sorted(zip(methods, by_board.mean(axis=0).tolist(), strict=True), key=lambda pair: pair[1])
    if len(boards) < MIN_BOARDS:
        return RankComparison(boards, tuple(ranks), None, None, ())
    quantile = float(studentized_range.ppf(1 - LEVEL, len(methods), np.inf)) / np.sqrt(2)
    difference = float(quantile * np.sqrt(len(methods) * (len(methods) + 1) / (6 * len(boards))))
    friedman_p = _friedman(by_board)
    cliques = _cliques([rank for _, rank in ranks], difference if friedman_p <= LEVEL else float("inf"))
    return RankComparison(boards, tuple(ranks), difference, friedman_p, cliques)


def _friedman(ranks: np.ndarray) -> float:
    """Return p value of Iman and Davenport's F for [boards, methods] ranks: an analysis of their variance."""
    from scipy.stats import f

    num_boards, num_methods = ranks.shape
    centred = ranks - ranks.mean()
    between = num_boards * (centred.mean(axis=0) ** 2).sum()
    within = (centred**2).sum() - between
    if within < 1e-9:  # all boards agree: on one order, or that all are equal
        return 0.0 if between else 1.0
    statistic = (num_boards - 1) * between / within
    return float(f.sf(statistic, num_methods - 1, (num_methods - 1) * (num_boards - 1)))


def _cliques(ranks: list[float], reach: float) -> tuple[tuple[int, int], ...]:
    """Return first and last position of each maximal run of sorted `ranks` that spans less than `reach`."""
    runs: list[tuple[int, int]] = []
    for first, start in enumerate(ranks):
        last = max(index for index, rank in enumerate(ranks) if index == first or (rank - start < reach))
        if last > first and not (runs and runs[-1][1] >= last):
            runs.append((first, last))
    return tuple(runs)


def rank_pictures(boards: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one diagram per setting (regime, model, default or tuned) in which boards rank the same methods.

    Args:
        boards: as in `plbench.board.page.render_page`. Only ranked rows count.

    Returns:
        setting, boards, sentence, svg, and repeated: whether several of the boards are of one dataset.
    """
    scores: dict[tuple[str, str, str], dict[str, dict[str, float]]] = {}
    titles: dict[str, str] = {}
    datasets = {board["name"]: board["dataset"] for board in boards}
    for board in boards:
        for section in board["sections"]:
            setting = (section["regime"], section["model"], section["configuration"])
            for row in section["rows"]:
                mean = (row["figures"].get("map_c") or {}).get("mean")
                if section["ranked"] and row["rank"] is not None and mean is not None:
                    titles.setdefault(row["method"], row["title"])
                    scores.setdefault(setting, {}).setdefault(board["name"], {}).setdefault(row["method"], mean)
    compared = [(setting, compare_ranks(found)) for setting, found in sorted(scores.items())]
    return [
        {
            "setting": f"{', '.join(setting)} values",
            "boards": ", ".join(comparison.boards),
            "sentence": comparison.sentence,
            "repeated": len({datasets[name] for name in comparison.boards}) < len(comparison.boards),
            "svg": draw(comparison, titles=titles, identifier=f"ranks-{number}"),
        }
        for number, (setting, comparison) in enumerate(compared)
        if comparison is not None
    ]


_LEFT, _RIGHT, _STEP = 236.0, 520.0, 24.0  # the axis' ends as in ranks.svg, and the distance of lines
_MAX_TITLE = 32  # characters of a method's title that fit to the left of the axis


def draw(comparison: RankComparison, *, titles: Mapping[str, str], identifier: str) -> str:
    """Return the SVG of a comparison with a text alternative: a line for each method, a bar beside those in one clique.

    Args:
        comparison: what to draw.
        titles: what to call a method.
        identifier: letters, digits and hyphens; names the elements inside, so that one page can hold several.
    """
    worst = len(comparison.ranks)
    named = [(titles.get(method, method), rank) for method, rank in comparison.ranks]
    groups = [", ".join(title for title, _ in named[first : last + 1]) for first, last in comparison.cliques]
    together = "".join(f" Not distinguishable: {group}." for group in groups)
    words = f"{comparison.sentence} {'; '.join(f'{title} {rank:.2f}' for title, rank in named)}.{together}"
    start = 46.0 if comparison.difference is None else 60.0

    def place(rank: float) -> str:
        return f"{min(_LEFT + (rank - 1) / (worst - 1) * (_RIGHT - _LEFT), _RIGHT):.1f}"

    def short(title: str) -> Markup:
        return Markup(escape(title if len(title) <= _MAX_TITLE else title[: _MAX_TITLE - 1] + "…"))

    bars = []
    ends: list[int] = []  # of the last bar in each column; a bar goes to the first column where it touches no other
    for first, last in comparison.cliques:
        column = next((index for index, end in enumerate(ends) if end < first), len(ends))
        ends[column : column + 1] = [last]
        bars.append((584 + 14 * column, start + _STEP * first - 3, start + _STEP * (last + 1) - 13))
    methods = [
        (short(title), rank, place(rank), start + _STEP * (n + 0.5) - 8) for n, (title, rank) in enumerate(named)
    ]
    picture = page_template("ranks.svg").render(
        identifier=identifier,
        width=600 + 14 * max(1, len(ends)),
        height=f"{start + _STEP * worst + 6:.0f}",
        words=Markup(escape(words)),  # html's escapes instead of markupsafe's, so that existing pages do not change
        ticks=[(n, place(n)) for n in range(1, worst + 1) if worst <= 12 or n in (1, worst) or n % 5 == 0],
        methods=methods,
        end=None if comparison.difference is None else place(1 + comparison.difference),
        bars=bars,
    )
    return picture.rstrip()
