from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from plbench.board.critical import LEVEL, MIN_BOARDS, RankComparison, compare_ranks, draw, rank_pictures

SVG = "{http://www.w3.org/2000/svg}"


def random_scores(num_boards, num_methods, seed=0, lead=0.0):
    values = np.random.default_rng(seed).normal(60, 1, (num_boards, num_methods)) + lead * np.arange(num_methods)
    return {f"b{b}": {f"m{m}": float(values[b, m]) for m in range(num_methods)} for b in range(num_boards)}


def test_average_ranks_share_ties():
    comparison = compare_ranks({"x": {"a": 3, "b": 2, "c": 2}, "y": {"a": 1, "b": 5, "c": 0}})
    assert comparison.ranks == (("a", 1.5), ("b", 1.75), ("c", 2.75))


def test_methods_that_lack_a_board_are_left_out():
    scores = random_scores(6, 4)
    del scores["b3"]["m2"]
    assert {name for name, _ in compare_ranks(scores).ranks} == {"m0", "m1", "m3"}


@pytest.mark.parametrize("scores", [{}, {"x": {"a": 1.0, "b": 2.0}}, {"x": {"a": 1.0}, "y": {"a": 2.0, "b": 3.0}}])
def test_nothing_to_compare(scores):
    assert compare_ranks(scores) is None


@pytest.mark.parametrize("num_boards", [2, MIN_BOARDS - 1])
def test_few_boards_have_no_test(num_boards):
    comparison = compare_ranks(random_scores(num_boards, 5, lead=10))
    assert comparison.difference is None and comparison.friedman_p is None and not comparison.cliques
    assert "no test has the power" in comparison.sentence


def test_critical_difference_of_demsars_example():
    """Four methods on 14 data sets: 1.25 (Demšar, 2006, section 3.2.4)."""
    assert compare_ranks(random_scores(14, 4)).difference == pytest.approx(1.25, abs=0.005)


@pytest.mark.parametrize("decimals", [3, 0])  # without and with ties
def test_friedman_agrees_with_scipy(decimals):
    scores = {board: {m: round(v, decimals) for m, v in row.items()} for board, row in random_scores(9, 5).items()}
    chi_squared = stats.friedmanchisquare(*[[row[f"m{m}"] for row in scores.values()] for m in range(5)]).statistic
    statistic = 8 * chi_squared / (9 * 4 - chi_squared)
    assert compare_ranks(scores).friedman_p == pytest.approx(stats.f.sf(statistic, 4, 32))


def test_unanimous_and_equal_boards():
    assert compare_ranks({f"b{b}": {"x": 2.0, "y": 1.0} for b in range(8)}).friedman_p == 0
    equal = compare_ranks({f"b{b}": {"x": 1.0, "y": 1.0, "z": 1.0} for b in range(8)})
    assert equal.friedman_p == 1 and equal.cliques == ((0, 2),)
    assert "all methods are statistically tied" in equal.sentence


@given(seed=st.integers(0, 10_000), num_methods=st.integers(2, 9), num_boards=st.integers(5, 30))
def test_cliques_join_exactly_what_the_test_does_not_tell_apart(seed, num_methods, num_boards):
    comparison = compare_ranks(random_scores(num_boards, num_methods, seed, lead=0.5))
    reach = comparison.difference if comparison.friedman_p <= LEVEL else np.inf
    for i in range(num_methods):
        for j in range(i + 1, num_methods):
            joined = any(first <= i and j <= last for first, last in comparison.cliques)
            assert joined == (comparison.ranks[j][1] - comparison.ranks[i][1] < reach)
    firsts, lasts = [first for first, _ in comparison.cliques], [last for _, last in comparison.cliques]
    assert firsts == sorted(set(firsts)) and lasts == sorted(set(lasts))  # none lies within another


@pytest.mark.parametrize("num_boards", [3, 8, 20])
def test_picture_is_well_formed_and_the_same_twice(num_boards):
    scores = random_scores(num_boards, 7, lead=0.4)
    hostile = {"m0": "</desc><script>alert(1)</script>", "m1": "a & b < c", "m2": "x" * 80}
    svg = draw(compare_ranks(scores), titles=hostile, identifier="r")
    assert svg == draw(compare_ranks(dict(reversed(scores.items()))), titles=hostile, identifier="r")
    root = ElementTree.fromstring(svg)
    assert {element.tag for element in root.iter()} <= {
        SVG + t for t in ("svg", "title", "desc", "path", "text", "circle")
    }
    assert len(root.findall(f"{SVG}circle")) == 7
    assert root.get("aria-labelledby") == "r-title r-text"
    assert compare_ranks(scores).sentence in root.find(f"{SVG}desc").text
    assert hostile["m0"] in root.find(f"{SVG}desc").text


def test_overlapping_cliques_stand_side_by_side():
    from plbench.board.critical import draw

    ranks = tuple((f"m{index}", 1.0 + index) for index in range(6))
    comparison = RankComparison(("a",) * 9, ranks, 2.5, 0.001, ((0, 2), (1, 3), (3, 5)))
    svg = ElementTree.fromstring(draw(comparison, titles={}, identifier="r"))
    bars = [path.get("d").split(" ")[0] for path in svg.findall(f"{SVG}path") if path.get("stroke-width") == "4"]
    assert bars == ["M584", "M598", "M584"]


def test_settings_of_boards(boards):
    (picture,) = rank_pictures(boards)
    assert picture["boards"] == "scenes-fpc300, scenes-rpa0.5, scenes-single"
    assert picture["repeated"]
    assert "complete labels" not in picture["svg"]
    boards[0]["sections"][0]["ranked"] = False
    boards[1]["sections"][0]["configuration"] = "tuned"
    assert rank_pictures(boards) == []
