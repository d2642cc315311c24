"""Labels that published code draws: against the same draws written another way, and against published counts."""

from __future__ import annotations

import gzip
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from plbench.data.labels import PartialLabels
from plbench.data.published_masks import known_of_mlr_pl, validation_of_cole
from plbench.data.simulation import parse
from plbench.errors import PlbenchError

COCO = Path(__file__).parents[3] / "shared" / "data" / "coco2014-labels" / "coco_train_full.txt.gz"


def complete(present: np.ndarray) -> PartialLabels:
    """Complete labels [N, C]."""
    return PartialLabels.from_dense(np.where(present, 1, -1), [str(column) for column in range(present.shape[1])])


def some_labels(num_images: int = 40, num_classes: int = 6) -> np.ndarray:
    present: np.ndarray = np.random.default_rng(3).random((num_images, num_classes)) < 0.3
    return present


def observed_as_published(present: np.ndarray) -> np.ndarray:
    """The published loop with one list for each sign, num_pos = 1 and num_neg = 0."""
    numpy_state = np.random.RandomState(1200)
    observed = np.zeros(present.shape, int)
    for row in range(len(present)):
        for sign, number in ((1, 1), (-1, 0)):
            indices = np.nonzero(np.where(present[row], 1, -1) == sign)[0]
            numpy_state.shuffle(indices)
            observed[row, indices[:number]] = sign
    return observed


def test_the_shuffle_of_negatives_moves_the_generator_on() -> None:
    present = some_labels()
    kept = parse("cole2021").apply(complete(present), seed=0)
    assert np.array_equal(kept.rows(np.arange(40)), observed_as_published(present))


def test_the_order_is_theirs_and_the_rows_stay_ours() -> None:
    present = some_labels()
    place = np.random.default_rng(1).permutation(40)  # our row r is row place[r] of theirs
    theirs = np.empty_like(present)
    theirs[place] = present
    kept = parse("cole2021").apply(complete(present), 0, (place, 40))
    assert np.array_equal(kept.rows(np.arange(40)), observed_as_published(theirs)[place])


def test_no_seed_changes_published_masks() -> None:
    labels = complete(some_labels())
    for text in ("cole2021", "mlr-pl=0.3"):
        assert parse(text).is_published
        assert parse(text).apply(labels, 0).fingerprint() == parse(text).apply(labels, 5).fingerprint()


def test_a_part_of_the_images_has_other_draws_and_is_refused() -> None:
    with pytest.raises(PlbenchError, match="cole2021 needs all 41 images, not 40"):
        parse("cole2021").apply(complete(some_labels()), 0, (np.arange(40), 41))


def test_smaller_shares_lie_in_larger_ones() -> None:
    labels = complete(some_labels(300))
    known = [parse(f"mlr-pl=0.{tenth}").apply(labels, 0, (np.arange(300), 310)).rows(np.arange(300)) != 0
             for tenth in range(1, 10)]  # fmt: skip
    assert all(not np.any(small & ~large) for small, large in pairwise(known))
    assert known[0].mean() == pytest.approx(0.1, abs=0.03)
    np.random.seed(0)  # noqa: NPY002  (the generator of the published code)
    assert np.array_equal(known[4], np.random.random((310, 6))[:300] < 0.5)  # noqa: NPY002


def test_a_fifth_validates() -> None:
    held_out = validation_of_cole(82_081)
    assert held_out.sum() == 16_416
    permuted = np.random.RandomState(999).permutation(82_081)
    assert np.array_equal(np.flatnonzero(held_out), np.sort(permuted[-16_416:]))


def test_unlabelled_images_have_nothing_known_and_others_everything() -> None:
    labels = complete(some_labels(50))
    known = parse("unlabelled=0.9").apply(labels, 7).rows(np.arange(50)) != 0
    assert sorted(set(known.sum(1).tolist())) == [0, 6] and known.any(1).sum() == 5
    assert parse("unlabelled=0").apply(labels, 7).is_complete
    more = parse("unlabelled=0.5").apply(labels, 7).rows(np.arange(50)) != 0
    assert not np.any(known & ~more)  # the same images, and others


@pytest.mark.skipif(not COCO.exists(), reason="needs ../shared")
def test_the_public_list_of_coco_gives_the_published_counts() -> None:
    with gzip.open(COCO, "rt") as file:
        rows = [line.strip().split(",") for line in file]
    present = np.zeros((len(rows), 80), bool)
    for row, (_, classes) in enumerate(rows):
        present[row, [int(column) for column in classes.split()]] = True
    labels = complete(present)
    assert (labels.num_images, int(present.sum())) == (82_081, 241_035)
    ids = [str(int(name[-16:-4])) for name, _ in rows]
    place = np.empty(len(ids), np.int64)
    place[np.argsort(ids, kind="stable")] = np.arange(len(ids))
    single = parse("cole2021").apply(labels, 0, (place, len(ids)))
    assert single.num_known == 82_081 and single.counts()[1].sum() == 0
    known = known_of_mlr_pl(82_783, 80, 0.1)  # images without annotations are drawn for, too
    assert known.mean() == pytest.approx(0.1, abs=5e-4)
