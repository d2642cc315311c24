"""Labels hidden by the size or place of objects: how many stay, which ones, and what it is without a bias."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from plbench.data import simulation as simulate
from plbench.data.labels import PartialLabels
from plbench.data.simulation import (
    WITHOUT_NEGATIVES,
    object_biased,
    parse,
    random_per_annotation,
    single_positive,
    single_positive_biased,
)
from plbench.errors import PlbenchError

KINDS = ("size-biased=0.4,bias=1", "place-biased=0.4,bias=1", "single-positive-size=1", "single-positive-place=1")


def some(num_images: int = 2000, num_classes: int = 6) -> tuple[PartialLabels, sparse.csr_array]:
    """Complete labels [N, C], the last image empty, and sizes of what is present, from 1e-4 to 1."""
    dice = np.random.default_rng(5)
    present = dice.random((num_images, num_classes)) < 0.4
    present[-1] = False
    labels = PartialLabels.from_dense(np.where(present, 1, -1), [str(column) for column in range(num_classes)])
    return labels, sparse.csr_array(np.where(present, 10 ** dice.uniform(-4, 0, present.shape), 0.0))


LABELS, SIZES = some()
ALL = np.arange(LABELS.num_images)
PRESENT = LABELS.rows(ALL) > 0


def known(labels: PartialLabels) -> np.ndarray:
    cells: np.ndarray = labels.rows(ALL) != 0
    return cells


@pytest.mark.parametrize("share", [0.1, 0.4, 0.9])
@pytest.mark.parametrize("bias", [0.0, 0.5, 1.0, 3.0])
def test_the_share_that_stays_is_the_one_asked_for(share: float, bias: float) -> None:
    kept = known(object_biased(LABELS, share, bias=bias, prominence=SIZES, seed=1))
    for cells in (PRESENT, ~PRESENT):
        assert abs(kept[cells].sum() - share * cells.sum()) < 4 * np.sqrt(share * (1 - share) * cells.sum())
    assert set(np.unique(LABELS.rows(ALL)[kept])) == {-1, 1}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=40), st.floats(0, 1), st.floats(0, 4))
def test_chances_add_up_and_rise_with_size(sizes: list[float], share: float, bias: float) -> None:
    weights = simulate._powers(sizes, bias)
    chance = simulate._shared_out(weights, np.ones(len(sizes), np.int64), share)
    assert ((chance >= 0) & (chance <= 1)).all()
    assert chance.sum() == pytest.approx(share * len(sizes), rel=1e-9)
    assert (np.diff(chance[np.argsort(sizes, kind="stable")]) >= 0).all()
    uncapped = chance < 1
    ratio = chance[uncapped] / weights[uncapped]
    np.testing.assert_allclose(ratio, ratio[:1].repeat(len(ratio)), rtol=1e-6)


def test_small_objects_are_hidden_first_and_the_more_the_greater_the_bias() -> None:
    sizes = SIZES.toarray()[PRESENT]
    quarter = np.searchsorted(np.quantile(sizes, [0.25, 0.5, 0.75]), sizes)
    least = 1.0
    for bias in (0.3, 1.0, 2.0):
        kept = known(object_biased(LABELS, 0.4, bias=bias, prominence=SIZES, seed=2))[PRESENT]
        shares = [kept[quarter == number].mean() for number in range(4)]
        assert shares == sorted(shares) and shares[0] < least
        least = shares[0]


def test_without_a_bias_labels_are_those_of_rpa_and_of_single_positive() -> None:
    equal = sparse.csr_array(0.25 * PRESENT)
    for share, seed in ((0.5, 3), (0.3, 4), (0.0, 5), (1.0, 6)):
        plain = random_per_annotation(LABELS, 1 - share, seed=seed).fingerprint()
        assert object_biased(LABELS, share, bias=0.0, prominence=SIZES, seed=seed).fingerprint() == plain
        assert object_biased(LABELS, share, bias=1.0, prominence=equal, seed=seed).fingerprint() == plain
        alone = single_positive(LABELS, seed=seed).fingerprint()
        assert single_positive_biased(LABELS, 0.0, prominence=SIZES, seed=seed).fingerprint() == alone
        assert single_positive_biased(LABELS, 2.0, prominence=equal, seed=seed).fingerprint() == alone


def test_limits_are_exact_and_larger_shares_hold_smaller_ones() -> None:
    masks = [known(object_biased(LABELS, tenth / 10, prominence=SIZES, seed=7)) for tenth in range(11)]
    assert not masks[0].any() and masks[10].all()
    assert all((fewer <= more).all() for fewer, more in pairwise(masks))


def test_one_positive_of_each_image_in_proportion_to_size() -> None:
    labels = PartialLabels.from_dense(np.ones((9000, 3), np.int8), ["a", "b", "c"])
    sizes = sparse.csr_array(np.tile([0.1, 0.2, 0.3], (9000, 1)))
    for bias, expected in ((1.0, [1 / 6, 1 / 3, 1 / 2]), (2.0, [1 / 14, 4 / 14, 9 / 14])):
        chance = np.array(expected)
        kept, absent = single_positive_biased(labels, bias, prominence=sizes, seed=1).counts()
        assert kept.sum() == 9000 and not absent.any()
        assert (np.abs(kept - 9000 * chance) < 4 * np.sqrt(9000 * chance * (1 - chance))).all()
    of_each = known(single_positive_biased(LABELS, 1.0, prominence=SIZES, seed=1))
    assert (of_each.sum(axis=1) == PRESENT.any(axis=1)).all() and not of_each[~PRESENT].any()


@pytest.mark.parametrize("text", KINDS)
def test_each_seed_draws_its_own_and_text_says_all(text: str) -> None:
    simulation = parse(text)
    assert simulation.text == text and parse(text.removesuffix(",bias=1")) == simulation
    assert simulation.objects == ("size" if "size" in text else "place") and not simulation.is_published
    assert (simulation.kind in WITHOUT_NEGATIVES) == text.startswith("single-positive")
    drawn = [simulation.apply(LABELS, seed, None, SIZES).fingerprint() for seed in (0, 1, 2, 0)]
    assert len({*drawn}) == 3 and drawn[0] == drawn[3]


def test_golden() -> None:
    """The same on every machine; a change here changes what protocols of these kinds ask."""
    image, column = np.mgrid[:40, :7]
    present = (7 * image + 3 * column + image * column) % 11 <= column
    labels = PartialLabels.from_dense(np.where(present, 1, -1), [str(number) for number in range(7)])
    sizes = sparse.csr_array(np.where(present, (1 + (5 * image + column) % 13) / 13, 0.0))
    found = [parse(text).apply(labels, 5, None, sizes).fingerprint()[:16] for text in (KINDS[0], KINDS[2])]
    assert found == ["4369e23f65a9e583", "631851c8040f67c2"]


def test_refuses_what_is_out_of_range_or_partial() -> None:
    with pytest.raises(PlbenchError, match="keep_probability must be a number from 0 to 1, not 2"):
        object_biased(LABELS, 2, prominence=SIZES, seed=0)
    with pytest.raises(PlbenchError, match="single-positive-size needs a number, not ''"):
        parse("single-positive-size")
    with pytest.raises(PlbenchError, match="bias must be a number from 0 to 4, not 5"):
        parse("single-positive-place=5")
    partial = random_per_annotation(LABELS, 0.5, seed=0)
    with pytest.raises(PlbenchError, match="needs complete labels"):
        parse("size-biased=0.5").apply(partial, 0)
