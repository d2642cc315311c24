"""Average precision against scikit-learn; every other metric against a plain loop or by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, roc_auc_score

from plbench.data.labels import PartialLabels
from plbench.errors import PlbenchError
from plbench.metrics import (
    F1,
    Metrics,
    auroc,
    average_precision,
    calibration_error,
    choose_thresholds,
    count_quintiles,
    evaluate,
    evaluate_cells,
    f1_scores,
    group_cells,
    micro_average_precision,
    per_class_table,
    precision_at_k,
    predictions_at,
    rank_cells,
    ranking_loss,
    thresholds_for_precision,
    top_f1_scores,
)
from plbench.metrics.cells import Cells, top_places

Array = npt.NDArray[Any]
SEEDS = st.integers(0, 2**32 - 1)


def draw(seed: int, *, density: float = 0.6, levels: int = 6) -> tuple[Array, Array]:
    """Small scores [N, C] with many ties (`levels` values; 0: none) and partial labels [N, C] int8."""
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 25)), int(rng.integers(1, 12)))
    scores = rng.integers(levels, size=shape) / levels if levels else rng.random(shape)
    present = rng.random(shape) < rng.uniform(0.05, 0.7)
    labels = np.where(present, 1, -1) * (rng.random(shape) < density)
    return scores.astype(f"f{rng.choice([4, 8])}"), labels.astype(np.int8)


def reordered(cells: Cells, order: Array) -> Cells:
    """The same cells in another order."""
    columns = ("rows", "class_index", "scores", "positives")
    return replace(cells, **{name: getattr(cells, name)[order] for name in columns})


def by_class(scores: Array, labels: Array, c: int) -> tuple[Array, Array]:
    """Truth and scores of the known cells of one class."""
    known = labels[:, c] != 0
    return labels[known, c] > 0, scores[known, c]


def reference_ap(scores: Array, labels: Array) -> Array:
    """AP [C] a class at a time, by scikit-learn."""
    ap = np.full(scores.shape[1], np.nan)
    for c in range(scores.shape[1]):
        truth, known_scores = by_class(scores, labels, c)
        if truth.any() and not truth.all():
            ap[c] = average_precision_score(truth, known_scores)
    return ap


def test_ap_equals_sklearn_on_a_thousand_classes_with_ties() -> None:
    rng = np.random.default_rng(0)
    class_index, scores, positives = [], [], []
    for c in range(1000):
        size = int(rng.integers(2, 80))
        truth = rng.random(size) < rng.uniform(0.05, 0.9)
        truth[:2] = True, False
        values = rng.standard_normal(size).astype(f"f{rng.choice([4, 8])}")
        scores.append(values if c % 3 == 0 else np.round(values, c % 3 - 1))
        class_index.append(np.full(size, c))
        positives.append(truth)
    expected = [average_precision_score(t, s) for t, s in zip(positives, scores, strict=True)]
    index, values, truth = (np.concatenate(column) for column in (class_index, scores, positives))
    shuffled = rng.permutation(index.size)
    got = average_precision(index[shuffled], values[shuffled], truth[shuffled], 1000)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-9)


@given(SEEDS)
@settings(max_examples=60, deadline=None)
def test_partial_labels_equal_sklearn_on_the_known_cells(seed: int) -> None:
    scores, labels = draw(seed)
    metrics = evaluate(scores, labels)
    np.testing.assert_allclose(metrics.ap, reference_ap(scores, labels), rtol=0, atol=1e-9)
    np.testing.assert_array_equal(metrics.num_positives, (labels > 0).sum(0))
    np.testing.assert_array_equal(metrics.num_negatives, (labels < 0).sum(0))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("size", [0, 1, 3000])
def test_groups_by_one_sort_are_those_of_the_ranking(size: int, dtype: type[np.floating[Any]]) -> None:
    rng = np.random.default_rng(size)
    extreme = np.array([0.0, -0.0, 1e4, -1e4, 6e-8, -6e-8])  # 6e-8: the least that half precision has
    scores = np.where(rng.random(size) < 0.3, rng.choice(extreme, size), rng.standard_normal(size).round(1)).astype(
        dtype
    )
    owner, positives = rng.integers(0, 40, size).astype(np.int32), rng.random(size) < 0.4
    fast = group_cells(owner, scores, positives, 41)
    plain = rank_cells(owner, scores, positives).positive_groups(41)
    for name, column in vars(plain).items():
        np.testing.assert_array_equal(getattr(fast, name), column, err_msg=name)


def test_ap_is_undefined_without_a_known_positive_or_a_known_negative() -> None:
    labels = np.array([[1, 1, -1, 0], [-1, 1, -1, 0], [0, 0, 0, 0]])
    metrics = evaluate(np.eye(3, 4), labels)
    np.testing.assert_array_equal(np.isnan(metrics.ap), [False, True, True, True])
    assert metrics.num_classes_scored == 1
    assert metrics.map_c == metrics.map_o == 100.0


def test_nothing_known_is_nan_not_zero() -> None:
    metrics = evaluate(np.ones((3, 2)), np.zeros((3, 2), np.int8))
    assert np.isnan(metrics.map_c) and np.isnan(metrics.map_o)
    assert metrics.num_classes_scored == 0
    cells = Cells.from_scores(np.ones((3, 2)), np.zeros((3, 2), np.int8))
    assert np.isnan([micro_average_precision(cells), ranking_loss(cells), *vars(f1_scores(cells, 0.5)).values()]).all()


@given(SEEDS)
@settings(max_examples=40, deadline=None)
def test_order_of_images_changes_nothing(seed: int) -> None:
    scores, labels = draw(seed)
    shuffled = np.random.default_rng(seed).permutation(len(scores))
    one, other = evaluate(scores, labels), evaluate(scores[shuffled], labels[shuffled])
    np.testing.assert_array_equal(one.ap, other.ap)


@given(SEEDS)
@settings(max_examples=40, deadline=None)
def test_order_of_cells_changes_nothing(seed: int) -> None:
    cells = Cells.from_scores(*draw(seed))
    shuffled = np.random.default_rng(seed).permutation(cells.scores.size)
    other = reordered(cells, shuffled)
    np.testing.assert_array_equal(evaluate_cells(cells).ap, evaluate_cells(other).ap)
    np.testing.assert_allclose(ranking_loss(cells), ranking_loss(other), equal_nan=True)
    assert vars(f1_scores(cells, 0.5)) == pytest.approx(vars(f1_scores(other, 0.5)), nan_ok=True)


@given(SEEDS)
@settings(max_examples=40, deadline=None)
def test_unknown_cells_never_matter(seed: int) -> None:
    scores, labels = draw(seed)
    changed = np.where(labels == 0, np.random.default_rng(seed).choice([np.nan, np.inf, -9.0, 9.0]), scores)
    np.testing.assert_array_equal(evaluate(scores, labels).ap, evaluate(changed, labels).ap)


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_only_the_order_of_scores_matters(seed: int) -> None:
    scores, labels = draw(seed)
    np.testing.assert_array_equal(evaluate(scores, labels).ap, evaluate(np.exp(3 * scores) - 50, labels).ap)


def test_scoring_unknown_cells_as_negatives_is_another_number() -> None:
    scores, labels = np.array([[0.9], [0.8], [0.7], [0.1]]), np.array([[0], [0], [1], [-1]])
    assert evaluate(scores, labels).map_c == 100.0
    assert evaluate(scores, np.where(labels == 0, -1, labels)).map_c == pytest.approx(100 / 3)


def test_sparse_and_dense_labels_agree() -> None:
    scores, labels = draw(3, density=0.4)
    sparse = PartialLabels.from_dense(labels, [f"c{i}" for i in range(labels.shape[1])])
    np.testing.assert_array_equal(evaluate(scores, labels).ap, evaluate(scores, sparse).ap)
    cells = Cells.from_scores(scores, sparse)
    assert cells.scores.size == sparse.num_known and (cells.num_images, cells.num_classes) == labels.shape


def test_half_precision_scores_lose_nothing() -> None:
    scores, labels = draw(5)
    half = scores.astype(np.float16)
    assert Cells.from_scores(half, labels).scores.dtype == np.float32
    np.testing.assert_array_equal(evaluate(half, labels).ap, evaluate(half.astype(np.float64), labels).ap)


def test_means_and_groups_by_hand() -> None:
    ap, positives = np.array([0.5, np.nan, 0.25, 1.0]), np.array([6, 9, 3, 1])
    metrics = Metrics(ap, positives, np.array([4, 0, 4, 4]))
    assert metrics.map_c == pytest.approx(100 * (0.5 + 0.25 + 1.0) / 3)
    assert metrics.map_o == pytest.approx(100 * (6 * 0.5 + 3 * 0.25 + 1 * 1.0) / 10)
    assert metrics.num_classes_scored == 3
    assert metrics.group([2, 3, 1]) == (pytest.approx(62.5), 2)
    assert metrics.group([0]) == (50.0, 1)
    assert np.isnan(metrics.group([1])[0]) and metrics.group([1])[1] == 0
    assert np.isnan(metrics.group([])[0])


def test_micro_pools_all_known_cells() -> None:
    scores, labels = draw(11, levels=0)
    known = labels != 0
    expected = 100 * average_precision_score(labels[known] > 0, scores[known])
    assert micro_average_precision(Cells.from_scores(scores, labels)) == pytest.approx(expected, abs=1e-9)


@given(st.lists(st.integers(0, 9), max_size=60))
def test_quintiles_are_a_partition_by_rising_count(counts: list[int]) -> None:
    groups = count_quintiles(counts)
    flat = [c for group in groups for c in group]
    assert flat == sorted(range(len(counts)), key=lambda c: (counts[c], c))
    assert len(groups) == 5 and max(map(len, groups)) - min(map(len, groups)) <= 1


def reference_f1(predicted_cells: Array, labels: Array) -> tuple[float, float]:
    precisions, recalls, pooled = [], [], [0, 0, 0]
    for c in range(labels.shape[1]):
        truth, predicted = by_class(predicted_cells, labels, c)
        hits = int((predicted & truth).sum())
        pooled = [pooled[0] + hits, pooled[1] + int(predicted.sum()), pooled[2] + int(truth.sum())]
        if truth.any() and not truth.all():
            precisions.append(hits / predicted.sum() if predicted.any() else 0.0)
            recalls.append(hits / truth.sum())
    of1 = 100 * 2 * pooled[0] / (pooled[1] + pooled[2]) if pooled[2] else np.nan
    if not precisions:
        return np.nan, of1
    precision, recall = np.mean(precisions), np.mean(recalls)
    return (100 * 2 * precision * recall / (precision + recall) if precision + recall else 0.0), of1


def both(figures: F1) -> tuple[float, float]:
    return figures.cf1, figures.of1


@given(SEEDS, st.sampled_from([0.0, 0.3, 0.5, 0.8, 2.0, None]))
@settings(max_examples=60, deadline=None)
def test_f1_equals_a_plain_loop(seed: int, threshold: float | None) -> None:
    """At one threshold, and at one for each class."""
    scores, labels = draw(seed)
    scores = scores.astype(np.float64)
    limits = np.random.default_rng(seed).random(scores.shape[1]) if threshold is None else threshold
    got = f1_scores(Cells.from_scores(scores, labels), limits)
    assert both(got) == pytest.approx(reference_f1(scores >= limits, labels), nan_ok=True)


@given(SEEDS)
@settings(max_examples=40, deadline=None)
def test_cf1_and_of1_are_harmonic_means_of_what_stands_beside_them(seed: int) -> None:
    got = f1_scores(Cells.from_scores(*draw(seed)), 0.4)
    for mean, first, second in (
        (got.cf1, got.class_precision, got.class_recall),
        (got.of1, got.overall_precision, got.overall_recall),
    ):
        assert mean == pytest.approx(2 * first * second / (first + second) if first + second else 0.0, nan_ok=True)


@given(SEEDS)
@settings(max_examples=40, deadline=None)
def test_of1_of_complete_labels_is_sklearns(seed: int) -> None:
    scores, labels = draw(seed, density=1.0)
    got = f1_scores(Cells.from_scores(scores, labels), 0.5)
    if (labels > 0).any():
        expected = f1_score((labels > 0).ravel(), (scores >= 0.5).ravel(), zero_division=0)
        assert got.of1 == pytest.approx(100 * expected)


@given(SEEDS, st.sampled_from([0, 3, 6]))
@settings(max_examples=60, deadline=None)
def test_auroc_equals_sklearn_on_the_known_cells(seed: int, levels: int) -> None:
    scores, labels = draw(seed, levels=levels)
    got = auroc(Cells.from_scores(scores, labels))
    for c in range(scores.shape[1]):
        truth, values = by_class(scores, labels, c)
        if truth.any() and not truth.all():
            assert got[c] == pytest.approx(roc_auc_score(truth, values), abs=1e-9)
        else:
            assert np.isnan(got[c])


@given(SEEDS, st.sampled_from([0, 15, 30]))
@settings(max_examples=60, deadline=None)
def test_calibration_error_equals_a_plain_loop(seed: int, levels: int) -> None:
    """Edges of bins belong to the upper one, 1 to the last."""
    scores, labels = draw(seed, levels=levels)
    scores = scores.astype(np.float64)
    cells = Cells.from_scores(scores, labels)
    total = 0.0
    for low in range(15):
        inside = np.floor(cells.scores * 15).clip(max=14) == low
        if inside.any():
            total += inside.sum() * abs(cells.scores[inside].mean() - cells.positives[inside].mean())
    expected = 100 * total / len(cells.scores) if len(cells.scores) else np.nan
    assert calibration_error(cells) == pytest.approx(expected, nan_ok=True)


def test_calibration_error_of_what_is_and_is_not_a_probability() -> None:
    labels = np.where(np.arange(100)[:, None] < 30, 1, -1)
    assert calibration_error(Cells.from_scores(np.full((100, 1), 0.3), labels)) == pytest.approx(0.0, abs=1e-9)
    assert calibration_error(Cells.from_scores(np.full((100, 1), 1.0), labels)) == pytest.approx(70.0)
    assert np.isnan(calibration_error(Cells.from_scores(np.full((100, 1), 1.5), labels)))


@given(SEEDS)
@settings(max_examples=60, deadline=None)
def test_thresholds_are_the_highest_of_the_best_that_sklearn_finds(seed: int) -> None:
    scores, labels = draw(seed)
    scores = scores.astype(np.float64)
    cells = Cells.from_scores(scores, labels)
    if not cells.positives.any():
        with pytest.raises(PlbenchError, match="no cell is a known positive"):
            choose_thresholds(cells)
        return
    thresholds, pooled = choose_thresholds(cells)

    def best(truth: Array, values: Array) -> float:
        candidates = np.unique(values)
        f1 = [f1_score(truth, values >= candidate) for candidate in candidates]
        precision, recall, _ = precision_recall_curve(truth, values)
        sums = precision + recall
        curve = 2 * precision * recall / np.where(sums > 0, sums, 1.0)
        assert max(f1) == pytest.approx(curve.max())
        return float(candidates[np.isclose(f1, max(f1), rtol=0, atol=1e-12)].max())

    assert pooled == best(cells.positives, cells.scores)
    for c in range(scores.shape[1]):
        truth, values = by_class(scores, labels, c)
        assert thresholds[c] == (best(truth, values) if truth.any() else pooled)


def test_thresholds_do_not_depend_on_the_order_of_cells() -> None:
    cells = Cells.from_scores(*draw(7))
    order = np.random.default_rng(0).permutation(cells.scores.size)
    np.testing.assert_array_equal(choose_thresholds(cells)[0], choose_thresholds(reordered(cells, order))[0])


@given(SEEDS)
@settings(max_examples=60, deadline=None)
def test_thresholds_for_a_precision_are_the_lowest_that_sklearn_finds(seed: int) -> None:
    scores, labels = draw(seed)
    wanted = np.random.default_rng(seed).uniform(0.05, 1.0)
    found = thresholds_for_precision(Cells.from_scores(scores, labels), wanted)
    for c in range(scores.shape[1]):
        truth, values = by_class(scores, labels, c)
        if not truth.any():
            assert found[c] == np.inf
            continue
        precision, _, candidates = precision_recall_curve(truth, values)
        assert found[c] == min(candidates[precision[:-1] >= wanted], default=np.inf)


def test_a_class_never_reached_by_its_threshold_has_precision_0() -> None:
    counts = predictions_at(Cells.from_scores([[0.1], [0.2]], [[1], [-1]]), [0.9])
    assert (counts.precision.tolist(), counts.recall.tolist()) == ([0.0], [0.0])
    assert both(counts.f1()) == (0.0, 0.0)


@given(SEEDS, st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_top_places_are_those_of_a_stable_sort(seed: int, k: int) -> None:
    scores, _ = draw(seed, levels=4)
    expected = np.zeros(scores.shape, bool)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    np.put_along_axis(expected, order, values=True, axis=1)
    np.testing.assert_array_equal(top_places(scores, k), expected)


@given(SEEDS)
@settings(max_examples=60, deadline=None)
def test_top_3_counts_known_cells_and_gives_places_to_unknown_ones(seed: int) -> None:
    scores, labels = draw(seed)
    cells = Cells.from_scores(scores, labels)
    with pytest.raises(PlbenchError, match="highest-scored"):
        top_f1_scores(cells)
    places = top_places(scores)
    cells = replace(cells, in_top=places[cells.rows, cells.class_index])
    assert both(top_f1_scores(cells)) == pytest.approx(reference_f1(places, labels), nan_ok=True)


def test_an_image_whose_places_all_go_to_unknown_classes_predicts_nothing() -> None:
    scores, labels = np.array([[0.9, 0.8, 0.7, 0.6]]), np.array([[0, 0, 0, 1]])
    cells = Cells.from_scores(scores, labels)
    top = top_f1_scores(replace(cells, in_top=top_places(scores)[cells.rows, cells.class_index]))
    assert (top.of1, top.overall_recall) == (0.0, 0.0)


def reference_ranking_loss(scores: Array, labels: Array) -> float:
    losses = []
    for row, known in zip(scores, labels, strict=True):
        pairs = [(p, n) for p in row[known > 0] for n in row[known < 0]]
        if pairs:
            losses.append(np.mean([1.0 if n > p else 0.5 if n == p else 0.0 for p, n in pairs]))
    return float(np.mean(losses)) if losses else float("nan")


@given(SEEDS)
@settings(max_examples=60, deadline=None)
def test_ranking_loss_equals_a_plain_loop(seed: int) -> None:
    scores, labels = draw(seed)
    got = ranking_loss(Cells.from_scores(scores, labels))
    assert got == pytest.approx(reference_ranking_loss(scores, labels), nan_ok=True)


@given(SEEDS)
@settings(max_examples=40, deadline=None)
def test_precision_at_k_equals_a_plain_loop(seed: int) -> None:
    scores, labels = draw(seed, density=1.0, levels=0)
    cells, num_classes = Cells.from_scores(scores, labels), scores.shape[1]
    for k in {1, (num_classes + 1) // 2, num_classes}:
        top = np.argsort(-scores, axis=1)[:, :k]
        expected = 100 * np.mean(np.take_along_axis(labels, top, axis=1) > 0)
        assert precision_at_k(cells, k) == pytest.approx(expected)


def test_precision_at_k_shares_tied_places() -> None:
    cells = Cells.from_scores([[0.9, 0.5, 0.5, 0.1]], [[1, 1, -1, -1]])
    assert precision_at_k(cells, 2) == pytest.approx(75.0)


@pytest.mark.parametrize(("k", "labels"), [(1, [[1, 0]]), (0, [[1, -1]]), (3, [[1, -1]])])
def test_precision_at_k_refuses_what_it_cannot_mean(k: int, labels: list[list[int]]) -> None:
    with pytest.raises(PlbenchError, match=f"P@{k}"):
        precision_at_k(Cells.from_scores([[0.1, 0.2]], labels), k)


def test_per_class_table_says_none_where_ap_is_undefined() -> None:
    metrics = evaluate([[0.9, 0.2], [0.4, 0.7]], [[1, 0], [-1, 1]])
    rows = per_class_table(metrics, ["/m/1", "/m/2"], ["Cat", "Cat"])
    assert rows == [
        {"class_id": "/m/1", "class_name": "Cat", "ap": 100.0, "positives": 1, "negatives": 1},
        {"class_id": "/m/2", "class_name": "Cat", "ap": None, "positives": 1, "negatives": 0},
    ]
    with pytest.raises(PlbenchError, match="class ids"):
        per_class_table(metrics, ["/m/1"], ["Cat"])
