"""The bootstrap by sums of bags against repeating rows."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plbench.errors import PlbenchError
from plbench.metrics import evaluate
from plbench.metrics.bootstrap import Replicates, class_variances, draw_indices, replicates, resample_weights
from plbench.metrics.cells import Cells

Array = npt.NDArray[Any]
GROUPS = {"first": [0, 1], "last": [5], "none": []}


def draw(seed: int, num_images: int = 30, num_classes: int = 6) -> tuple[Array, Array]:
    """Scores [N, C] with ties and partial labels [N, C]; some classes have few positives, or none."""
    rng = np.random.default_rng(seed)
    shape = (num_images, num_classes)
    present = rng.random(shape) < rng.uniform(0, 0.5, num_classes)
    scores = rng.integers(0, 12, shape) + 4 * present
    labels = np.where(present, 1, -1) * (rng.random(shape) < rng.uniform(0.1, 1))
    return scores.astype(np.float32), labels.astype(np.int8)


def naive_replicates(scores: Array, labels: Array, num_replicates: int, seed: int) -> Array:
    """[2 + groups, R]: repeat the rows of each resample and evaluate it, with stand-ins for undefined classes."""
    return naively(scores, labels, num_replicates, seed)[0]


def naively(scores: Array, labels: Array, num_replicates: int, seed: int) -> tuple[Array, Array]:
    """Those replicates, and AP [C, R] that they come from."""
    weights = resample_weights(len(scores), num_replicates, seed).astype(int)
    whole = evaluate(scores, labels)
    scored = [c for c in range(labels.shape[1]) if not np.isnan(whole.ap[c])]
    values, of_classes = [], []
    for number, weight in enumerate(weights.T):
        drawn = np.repeat(np.arange(len(scores)), weight)
        metrics = evaluate(scores[drawn], labels[drawn])
        ap = metrics.ap.copy()
        for c, other in stand_ins(scored, whole.num_positives, seed, number).items():
            if np.isnan(ap[c]):
                ap[c] = whole.ap[c] + 2**0.5 * (whole.ap[other] - whole.ap[c])
        parts = [[100 * ap[c] for c in part if c in scored] for part in (scored, *GROUPS.values())]
        first, *groups = [np.clip(np.mean(part), 0, 100) if part else np.nan for part in parts]
        values.append([first, metrics.map_o, *groups])
        of_classes.append(ap)
    return np.array(values).T, np.array(of_classes).T


def stand_ins(scored: list[int], positives: Array, seed: int, number: int) -> dict[int, int]:
    """For each scored class the one whose AP stands in: drawn from the 20 nearest in number of positives."""
    if len(scored) < 2:
        return {}
    by_positives = sorted(scored, key=lambda c: positives[c])
    size = min(21, len(scored))
    draws = draw_indices(f"{seed}/neighbours/{number}", len(scored), size - 1)
    found = {}
    for c, drawn in zip(scored, draws, strict=True):
        first = min(max(by_positives.index(c) - size // 2, 0), len(scored) - size)
        found[c] = [other for other in by_positives[first : first + size] if other != c][drawn]
    return found


def stacked(result: Replicates) -> Array:
    return np.array([result.map_c, result.map_o, *result.groups.values()])


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_replicates_equal_repeating_the_rows(seed: int) -> None:
    scores, labels = draw(seed)
    got = replicates(Cells.from_scores(scores, labels), 12, seed=seed, groups=GROUPS)
    np.testing.assert_allclose(stacked(got), naive_replicates(scores, labels, 12, seed), rtol=0, atol=1e-9)
    assert list(got.groups) == list(GROUPS)


def test_replicates_equal_repeating_the_rows_at_a_larger_size() -> None:
    scores, labels = draw(3, num_images=700, num_classes=40)
    got = replicates(Cells.from_scores(scores, labels), 5, seed=9, groups=GROUPS)
    np.testing.assert_allclose(stacked(got), naive_replicates(scores, labels, 5, 9), rtol=0, atol=1e-9)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_variances_of_classes_are_those_of_the_same_replicates(seed: int) -> None:
    scores, labels = draw(seed)
    _, ap = naively(scores, labels, 12, seed)
    expected = np.var(100 * ap, axis=1, ddof=1)
    for memory_bytes in (2**28, 0):  # all replicates at once, and one by one
        got = class_variances(Cells.from_scores(scores, labels), 12, seed=seed, memory_bytes=memory_bytes)
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


def test_chunks_change_no_bit() -> None:
    cells = Cells.from_scores(*draw(1, num_images=200, num_classes=30))
    calls: list[tuple[int, int]] = []
    whole = replicates(cells, 150, seed=4, groups=GROUPS, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (150, 150) and calls == sorted(calls) and len(calls) > 1
    for memory_bytes in (0, 200_000):
        np.testing.assert_array_equal(
            stacked(whole), stacked(replicates(cells, 150, seed=4, groups=GROUPS, memory_bytes=memory_bytes))
        )
    fewer = replicates(cells, 70, seed=4, groups=GROUPS)
    np.testing.assert_array_equal(stacked(whole)[:, :70], stacked(fewer))


def test_order_of_cells_changes_nothing() -> None:
    cells = Cells.from_scores(*draw(6))
    shuffled = np.random.default_rng(0).permutation(cells.scores.size)
    columns = ("rows", "class_index", "scores", "positives")
    other = replace(cells, **{name: getattr(cells, name)[shuffled] for name in columns})
    np.testing.assert_array_equal(stacked(replicates(cells, 20, seed=0)), stacked(replicates(other, 20, seed=0)))


def test_nothing_known_is_undefined_in_every_replicate() -> None:
    cells = Cells.from_scores(np.ones((4, 3)), np.zeros((4, 3), np.int8))
    assert np.isnan(stacked(replicates(cells, 5, seed=0, groups=GROUPS))).all()


def test_resamples_are_the_same_on_every_machine() -> None:
    weights = resample_weights(7, 5, seed=0)
    digest = hashlib.sha256(weights.astype("<f4").tobytes()).hexdigest()
    assert digest == "d8bd1a624aba6355a7915b1e3813a964098c973b0c59bc045d854b3600c7d493"


def test_resamples_follow_the_documented_draw() -> None:
    num_images, seed = 1000, 12
    key = int.from_bytes(hashlib.sha256(f"{seed}/images/3".encode()).digest()[:16], "little")
    raw = np.random.PCG64(key).random_raw(num_images)
    drawn = [(int(word) >> 32) * num_images >> 32 for word in raw]
    expected = np.bincount(drawn, minlength=num_images)
    np.testing.assert_array_equal(resample_weights(num_images, 1, seed, start=3)[:, 0], expected)


def test_resamples_are_fair_and_do_not_depend_on_the_start() -> None:
    weights = resample_weights(200, 2000, seed=3)
    assert (weights.sum(axis=0) == 200).all()
    assert weights.var() == pytest.approx(1 - 1 / 200, abs=0.02)  # multinomial
    assert np.abs(weights.mean(axis=1) - 1).max() < 5 / np.sqrt(2000)
    np.testing.assert_array_equal(weights[:, 900:910], resample_weights(200, 10, seed=3, start=900))
    assert not np.array_equal(weights, resample_weights(200, 2000, seed=4))


@pytest.mark.parametrize(("num_images", "num_replicates"), [(0, 5), (5, 0), (2**24 + 1, 1)])
def test_impossible_resamples_are_one_sentence(num_images: int, num_replicates: int) -> None:
    with pytest.raises(PlbenchError, match="cannot resample"):
        resample_weights(num_images, num_replicates, 0)
