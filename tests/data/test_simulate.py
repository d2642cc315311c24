"""Simulators: what stays known, by how many, and the same on every machine."""

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plbench.data import simulation as simulate
from plbench.data.labels import PartialLabels
from plbench.data.simulation import (
    Simulation,
    fixed_per_class,
    frequency_biased,
    parse,
    positive_only,
    random_per_annotation,
    single_positive,
)
from plbench.errors import PlbenchError

BIASED = "frequency-biased=0.4,bias=1,negatives=2"
EVERY_KIND = [
    "none",
    "fpc=3",
    "rpa=0.5",
    "single-positive",
    "positive-only=0.5",
    BIASED,
]

# Of `golden_input()` with seed 5. A change here changes every protocol that simulates: raise their versions.
GOLDEN = {
    "none": "6043216eab73db199cb641ace462f72ea74c63719234a7498b6cbceddb3fec1a",
    "fpc=3": "cf6609c3b44814ab56da1ed05a20e68db333544e1abd362a95dc4577fb3e15c0",
    "rpa=0.5": "4c28610c018846676a54203676f22a309f029aed0d424d5017dd624b8a16a20f",
    "single-positive": "6edc88b92a6cf193d2b4ed36e54ad7d507d947c1a4a6b09d404c33932e950153",
    "positive-only=0.5": "6f5c180df134c559df7839de576ca90733a66059a989be33800b0a13a08477d1",
    BIASED: "c6f4515f18f143c112e725694965bf3b87cd7c818fab583ad0086791e6e52aa8",
}


def labels_of(dense: npt.ArrayLike) -> PartialLabels:
    dense = np.asarray(dense, dtype=np.int8)
    return PartialLabels.from_dense(dense, [f"id{c}" for c in range(dense.shape[1])])


def golden_input() -> PartialLabels:
    """Complete labels [40, 7] from arithmetic alone; the later the class, the more frequent."""
    image, class_index = np.mgrid[:40, :7]
    return labels_of(np.where((7 * image + 3 * class_index + image * class_index) % 11 <= class_index, 1, -1))


def long_tailed(num_images: int = 4000, seed: int = 1_000_003) -> PartialLabels:
    """Complete labels [N, 6] with class frequencies from 0.5 down to 0.01, and a class that never occurs."""
    frequency = [0.5, 0.2, 0.1, 0.03, 0.01, 0.0]
    return labels_of(np.where(np.random.default_rng(seed).random((num_images, 6)) < frequency, 1, -1))


class GivenKeys:
    """Stands in for a bit generator: its keys are those given."""

    def __init__(self, keys: npt.NDArray[np.uint64]) -> None:
        self.keys = keys

    def random_raw(self, count: int) -> npt.NDArray[np.uint64]:
        given, self.keys = self.keys[:count], self.keys[count:]
        return given


@st.composite
def complete_labels(draw: st.DrawFn) -> PartialLabels:
    num_images, num_classes = draw(st.integers(1, 12)), draw(st.integers(1, 6))
    size = num_images * num_classes
    values = draw(st.lists(st.sampled_from([1, -1]), min_size=size, max_size=size))
    return labels_of(np.reshape(values, (num_images, num_classes)))


def dense(labels: PartialLabels) -> npt.NDArray[np.int8]:
    return labels.rows(np.arange(labels.num_images))


class TestEverySimulator:
    @pytest.mark.parametrize("text", EVERY_KIND)
    @settings(max_examples=25, deadline=None)
    @given(complete_labels(), st.integers(0, 2**63 - 1))
    def test_what_stays_is_true_and_the_same_each_time(self, text: str, labels: PartialLabels, seed: int) -> None:
        before = labels.fingerprint()
        partial = parse(text).apply(labels, seed)
        assert partial.class_ids == labels.class_ids
        assert partial.num_images == labels.num_images
        known = dense(partial) != 0
        assert (dense(partial)[known] == dense(labels)[known]).all()
        assert parse(text).apply(labels, seed).fingerprint() == partial.fingerprint()
        assert labels.fingerprint() == before

    @pytest.mark.parametrize("text", EVERY_KIND)
    def test_the_order_in_which_cells_were_given_does_not_matter(self, text: str) -> None:
        labels = golden_input()
        rows, columns, values = labels.cells()
        order = np.random.default_rng(0).permutation(len(rows))
        shuffled = PartialLabels.from_cells(
            rows[order], columns[order], values[order], num_rows=40, class_ids=labels.class_ids
        )
        partial = parse(text).apply(labels, 3)
        assert parse(text).apply(shuffled, 3).fingerprint() == partial.fingerprint()

    @pytest.mark.parametrize("text", EVERY_KIND[1:])
    def test_another_seed_chooses_other_cells(self, text: str) -> None:
        fingerprints = {parse(text).apply(golden_input(), seed).fingerprint() for seed in range(4)}
        assert len(fingerprints) == 4

    @pytest.mark.parametrize("text", EVERY_KIND)
    def test_golden(self, text: str) -> None:
        assert parse(text).apply(golden_input(), 5).fingerprint() == GOLDEN[text]

    @pytest.mark.parametrize("text", EVERY_KIND[1:])
    def test_needs_complete_labels(self, text: str) -> None:
        partial = labels_of([[1, 0], [-1, 1]])
        with pytest.raises(PlbenchError, match=r'complete labels, but only 3 of 4 cells.*`simulate="none"`'):
            parse(text).apply(partial, 0)

    @pytest.mark.parametrize("text", EVERY_KIND)
    @pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
    def test_of_nothing_nothing_stays(self, text: str, shape: tuple[int, int]) -> None:
        assert parse(text).apply(labels_of(np.ones(shape)), 0).num_known == 0

    @pytest.mark.parametrize("text", EVERY_KIND[1:])
    def test_refuses_a_negative_seed(self, text: str) -> None:
        with pytest.raises(PlbenchError, match="seed"):
            parse(text).apply(golden_input(), -1)


class TestSmallestOfGroup:
    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, 40), st.integers(1, 5), st.sampled_from([2, 30, 62]), st.integers(0, 999))
    def test_one_sort_chooses_as_one_of_two_columns(self, size: int, groups: int, bits: int, seed: int) -> None:
        """With keys of few bits, several are equal in what is left of them beside the group, or equal outright."""
        rng = np.random.default_rng(seed)
        keys = rng.integers(0, 2**bits, size).astype(np.uint64)
        group_of_each, quotas = rng.integers(0, groups, size), rng.integers(0, 12, groups)
        fast = simulate._smallest_of_group(keys, group_of_each, quotas)
        assert (fast == simulate._smallest_of_group_plain(keys, group_of_each, quotas)).all()


class TestFixedPerClass:
    @settings(max_examples=60, deadline=None)
    @given(complete_labels(), st.integers(1, 14), st.integers(0, 999))
    def test_keeps_exactly_so_many_of_each_class(self, labels: PartialLabels, num_per_class: int, seed: int) -> None:
        kept = fixed_per_class(labels, num_per_class, seed=seed).counts()
        for kept_of_kind, all_of_kind in zip(kept, labels.counts(), strict=True):
            assert kept_of_kind.tolist() == np.minimum(all_of_kind, num_per_class).tolist()

    def test_keeps_the_smallest_keys_of_each_class_and_sign(self) -> None:
        labels, truth = golden_input(), dense(golden_input())
        keys = np.random.PCG64(9).random_raw(truth.size).reshape(truth.shape)
        expected = np.zeros_like(truth)
        for class_index in range(truth.shape[1]):
            for sign in (1, -1):
                images = [i for i in range(len(truth)) if truth[i, class_index] == sign]
                for image in sorted(images, key=lambda i: keys[i, class_index])[:5]:
                    expected[image, class_index] = sign
        assert (dense(fixed_per_class(labels, 5, seed=9)) == expected).all()

    def test_equal_keys_go_by_index(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(simulate, "_stream", lambda seed: GivenKeys(np.zeros(10, np.uint64)))
        partial = fixed_per_class(labels_of([[1, -1], [1, -1], [1, 1], [-1, 1], [-1, 1]]), 2, seed=0)
        assert dense(partial).tolist() == [[1, -1], [1, -1], [0, 1], [-1, 1], [-1, 0]]

    @pytest.mark.parametrize("num_per_class", [1, 30, 500])
    # labels from the keys' own stream have too few small keys among the absent: all keys are looked at then
    @pytest.mark.parametrize("source", [1_000_003, 3])
    def test_few_keys_looked_at_choose_as_all_of_them(self, source: int, num_per_class: int) -> None:
        labels = long_tailed(9000, source)
        fast = simulate._smallest_of_class(labels, num_per_class, 3)
        assert (fast == simulate._smallest_of_class_plain(labels, num_per_class, 3)).all()

    def test_every_cell_has_the_same_chance(self) -> None:
        labels = labels_of([[1]] * 6 + [[-1]] * 4)
        times_kept = sum(dense(fixed_per_class(labels, 2, seed=seed)) != 0 for seed in range(600)).ravel()
        assert times_kept[:6].sum() == times_kept[6:].sum() == 1200
        assert (np.abs(times_kept - ([200] * 6 + [300] * 4)) < 4 * np.sqrt(600 / 4)).all()


class TestRandomPerAnnotation:
    def test_limits_are_exact(self) -> None:
        labels = golden_input()
        assert random_per_annotation(labels, 0.0, seed=0).fingerprint() == labels.fingerprint()
        assert random_per_annotation(labels, 1.0, seed=0).num_known == 0

    def test_drops_that_share_of_every_class_and_sign(self) -> None:
        labels = long_tailed()
        kept = np.concatenate(random_per_annotation(labels, 0.3, seed=0).counts())
        expected = 0.7 * np.concatenate(labels.counts())
        assert (np.abs(kept - expected) <= 4 * np.sqrt(0.3 * expected)).all()

    def test_keeps_less_the_more_it_drops(self) -> None:
        labels = golden_input()
        masks = [dense(random_per_annotation(labels, p / 10, seed=4)) != 0 for p in range(11)]
        assert all((fewer <= more).all() for more, fewer in pairwise(masks))

    def test_thresholds_are_exact(self, monkeypatch: pytest.MonkeyPatch) -> None:
        half = 1 << 63
        keys = np.array([0, half - 1, half, (1 << 64) - 1], dtype=np.uint64)
        monkeypatch.setattr(simulate, "_stream", lambda seed: GivenKeys(keys))
        partial = random_per_annotation(labels_of([[1, 1, 1, 1]]), 0.5, seed=0)
        assert dense(partial).tolist() == [[0, 0, 1, 1]]


class TestPositivesOnly:
    @settings(max_examples=50, deadline=None)
    @given(complete_labels(), st.integers(0, 999))
    def test_single_positive_is_one_where_there_is_any(self, labels: PartialLabels, seed: int) -> None:
        kept = dense(single_positive(labels, seed=seed))
        has_positive = (dense(labels) == 1).any(axis=1)
        assert ((kept == 1).sum(axis=1) == has_positive).all()
        assert not (kept == -1).any()

    def test_single_positive_favours_no_class(self) -> None:
        labels = labels_of(np.ones((6000, 4)))
        kept, _ = single_positive(labels, seed=1).counts()
        assert (np.abs(kept - 1500) < 4 * np.sqrt(6000 * 0.25 * 0.75)).all()

    def test_positive_only_limits_and_share(self) -> None:
        labels = long_tailed()
        positives, _ = labels.counts()
        everything, no_negatives = positive_only(labels, 1.0, seed=0).counts()
        assert (everything == positives).all()
        assert not no_negatives.any()
        assert positive_only(labels, 0.0, seed=0).num_known == 0
        kept, _ = positive_only(labels, 0.25, seed=0).counts()
        assert (np.abs(kept - 0.25 * positives) <= 4 * np.sqrt(0.25 * 0.75 * positives)).all()


class TestFrequencyBiased:
    @settings(max_examples=200, deadline=None)
    @given(
        st.lists(st.integers(0, 10**6), min_size=1, max_size=30).filter(any),
        st.floats(1e-6, 1),
        st.floats(0, 4),
    )
    def test_chances_add_up_and_fall_with_frequency(
        self, positives: list[int], keep_probability: float, bias: float
    ) -> None:
        counts = np.array(positives)
        chance = simulate._annotation_chance(counts, keep_probability, bias)
        assert ((chance >= 0) & (chance <= 1)).all()
        assert (chance * counts).sum() == pytest.approx(keep_probability * counts.sum(), rel=1e-9)
        ascending = np.argsort(counts, kind="stable")
        assert (np.diff(chance[ascending]) <= 1e-12).all()
        uncapped = (chance < 1) & (counts > 0)
        scale = chance[uncapped] * counts[uncapped] ** bias
        np.testing.assert_allclose(scale, scale[:1].repeat(len(scale)), rtol=1e-6)

    @settings(max_examples=50, deadline=None)
    @given(st.permutations([0, 1, 3, 3, 50, 700, 700, 12]), st.floats(0, 1), st.floats(0, 4))
    def test_the_order_of_classes_does_not_matter(
        self, counts: list[int], keep_probability: float, bias: float
    ) -> None:
        chance = simulate._annotation_chance(np.array(counts), keep_probability, bias)
        in_order = simulate._annotation_chance(np.sort(counts), keep_probability, bias)
        assert chance[np.argsort(counts, kind="stable")].tolist() == in_order.tolist()

    @pytest.mark.parametrize("bias", [0.0, 0.5, 1.0, 2.0])
    def test_keeps_the_wanted_share_of_positives(self, bias: float) -> None:
        labels = long_tailed()
        positives, _ = labels.counts()
        kept, _ = frequency_biased(labels, 0.2, bias=bias, seed=2).counts()
        chance = simulate._annotation_chance(positives, 0.2, bias)
        assert (np.abs(kept - chance * positives) <= 4 * np.sqrt(chance * (1 - chance) * positives)).all()
        assert kept.sum() == pytest.approx(0.2 * positives.sum(), rel=0.1)

    def test_bias_0_keeps_class_frequencies(self) -> None:
        chance = simulate._annotation_chance(np.array([5, 0, 100, 1]), 0.3, 0.0)
        assert chance.tolist() == pytest.approx([0.3] * 4)

    def test_bias_1_expects_equally_many_of_each_class_up_to_the_cap(self) -> None:
        counts = np.array([10, 200, 1000, 4000])
        expected = simulate._annotation_chance(counts, 0.1, 1.0) * counts
        assert expected.tolist() == pytest.approx([10, 170.3333, 170.3333, 170.3333], rel=1e-5)

    @pytest.mark.parametrize("negatives_per_positive", [0.0, 0.5, 1.0, 3.0, 1e300])
    def test_negatives_go_with_kept_positives(self, negatives_per_positive: float) -> None:
        labels = long_tailed()
        _, all_negatives = labels.counts()
        partial = frequency_biased(labels, 0.3, bias=1.0, negatives_per_positive=negatives_per_positive, seed=0)
        positives, negatives = partial.counts()
        wanted = [
            min(round(negatives_per_positive * int(n)), int(m)) for n, m in zip(positives, all_negatives, strict=True)
        ]
        assert negatives.tolist() == wanted

    def test_limits_are_exact(self) -> None:
        labels = long_tailed()
        for bias in (0.0, 0.7, 1.0, 4.0):
            everything = frequency_biased(labels, 1.0, bias=bias, negatives_per_positive=1e9, seed=0)
            kept, negatives = everything.counts()
            assert kept.tolist() == labels.counts()[0].tolist()
            assert negatives[:5].tolist() == labels.counts()[1][:5].tolist()
            assert frequency_biased(labels, 0.0, bias=bias, seed=0).num_known == 0

    def test_no_positives_at_all(self) -> None:
        assert frequency_biased(labels_of(-np.ones((5, 3))), 0.5, seed=0).num_known == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda labels: fixed_per_class(labels, 0, seed=0),
            "num_per_class must be a whole number of at least 1, not 0",
        ),
        (lambda labels: fixed_per_class(labels, 2.5, seed=0), "whole number of at least 1, not 2.5"),
        (
            lambda labels: random_per_annotation(labels, 1.5, seed=0),
            "drop_probability .* from 0 to 1, not 1.5",
        ),
        (lambda labels: random_per_annotation(labels, float("nan"), seed=0), "drop_probability .* not nan"),
        (lambda labels: positive_only(labels, -0.1, seed=0), "keep_probability .* not -0.1"),
        (lambda labels: frequency_biased(labels, 2, seed=0), "keep_probability .* not 2"),
        (
            lambda labels: frequency_biased(labels, 0.5, bias=-1, seed=0),
            "bias must be a number from 0 to 4, not -1",
        ),
        (
            lambda labels: frequency_biased(labels, 0.5, negatives_per_positive=float("inf"), seed=0),
            "negatives_per_positive must be a number of at least 0, not inf",
        ),
    ],
)
def test_refuses_what_is_out_of_range(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(PlbenchError, match=message):
        call(golden_input())


class TestParse:
    @pytest.mark.parametrize(
        ("text", "canonical", "slug"),
        [
            ("none", "none", "complete"),
            ("fpc=300", "fpc=300", "fpc300"),
            (" fpc = 300.0 ", "fpc=300", "fpc300"),
            ("fpc=1e3", "fpc=1000", "fpc1000"),
            ("rpa=.50", "rpa=0.5", "rpa0.5"),
            ("rpa=-0", "rpa=0", "rpa0"),
            ("rpa=1", "rpa=1", "rpa1"),
            ("single-positive", "single-positive", "single-positive"),
            ("positive-only=0.5", "positive-only=0.5", "positive-only0.5"),
            (
                "frequency-biased=0.1,negatives=3,bias=0.5",
                "frequency-biased=0.1,bias=0.5,negatives=3",
                "frequency-biased0.1-bias0.5-negatives3",
            ),
            (
                "frequency-biased=0.1",
                "frequency-biased=0.1,bias=1,negatives=1",
                "frequency-biased0.1-bias1-negatives1",
            ),
        ],
    )
    def test_canonical_text_and_slug(self, text: str, canonical: str, slug: str) -> None:
        simulation = parse(text)
        assert simulation.text == canonical
        assert simulation.slug == slug
        assert parse(canonical) == simulation

    @given(st.floats(0, 1), st.floats(0, 4), st.floats(0, 1e300))
    def test_round_trip(self, keep: float, bias: float, negatives: float) -> None:
        simulation = Simulation("frequency-biased", (keep, bias, negatives))
        assert parse(simulation.text).text == simulation.text
        assert parse(simulation.text) == simulation

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "there is no simulation ''; known: cole2021, fpc,"),
            ("fcp=300", "no simulation 'fcp'; did you mean fpc?"),
            ("FPC=300", "there is no simulation 'FPC'"),
            ("fpc", "fpc needs a number, not ''"),
            ("fpc=", "fpc needs a number, not ''"),
            ("fpc=many", "fpc needs a number, not 'many'"),
            ("fpc=300.5", "num_per_class must be a whole number of at least 1, not 300.5"),
            ("fpc=0", "at least 1, not 0"),
            ("fpc=inf", "at least 1, not inf"),
            ("rpa=1.01", "'rpa=1.01': drop_probability must be a number from 0 to 1, not 1.01"),
            ("rpa=nan", "not nan"),
            ("rpa=0.5,bias=2", "rpa has no 'bias'; write rpa=DROP_PROBABILITY"),
            ("fpc=300,", "fpc has no ''"),
            ("fpc=300,fpc=400", "gives fpc more than once"),
            ("none=3", "none takes no numbers; write none"),
            ("single-positive,bias=1", "single-positive takes no numbers"),
            ("frequency-biased=0.1,bias", "bias needs a number, not ''"),
            (
                "frequency-biased=0.1,negative=3",
                "no 'negative'; write frequency-biased=KEEP_PROBABILITY,[bias=BIAS],[negatives=",
            ),
        ],
    )
    def test_errors_say_what_is_wrong_in_one_sentence(self, text: str, message: str) -> None:
        with pytest.raises(PlbenchError) as caught:
            parse(text)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_none_gives_back_partial_labels_unchanged(self) -> None:
        partial = labels_of([[1, 0], [-1, 1]])
        assert parse("none").apply(partial, 0) is partial
