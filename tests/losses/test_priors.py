"""The class prior: its mean, its agreement with the truth, and thresholds relative to it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor

from plbench.errors import PlbenchError
from plbench.losses.priors import class_average, spearman_by_depth, threshold_for_top, top_classes


def probabilities(num_images: int, num_classes: int, seed: int = 0) -> Tensor:
    return torch.rand(num_images, num_classes, generator=torch.Generator().manual_seed(seed))


class TestClassAverage:
    def test_is_the_mean_in_float64(self) -> None:
        predicted = probabilities(1000, 7)
        prior = class_average(predicted)
        assert prior.dtype == torch.float64
        np.testing.assert_allclose(prior.numpy(), predicted.numpy().astype(np.float64).mean(axis=0), rtol=1e-14)

    @settings(max_examples=30, deadline=None)
    @given(st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any))
    def test_a_stream_equals_the_whole(self, chunk_sizes: list[int]) -> None:
        predicted = probabilities(sum(chunk_sizes), 5)
        streamed = class_average(iter(predicted.split(chunk_sizes)))
        torch.testing.assert_close(streamed, class_average(predicted), rtol=1e-14, atol=0.0)

    def test_half_precision_does_not_saturate(self) -> None:
        ones = torch.ones(256, 3, dtype=torch.bfloat16)
        assert class_average(ones for _ in range(20)).tolist() == [1.0, 1.0, 1.0]

    def test_a_stream_is_never_held_as_a_whole(self) -> None:
        alive = 0
        most_alive = 0

        class Chunk(torch.Tensor):
            def __del__(self) -> None:
                nonlocal alive
                alive -= 1

        def stream():  # type: ignore[no-untyped-def]
            nonlocal alive, most_alive
            for seed in range(20):
                alive += 1
                most_alive = max(most_alive, alive)
                yield probabilities(4, 3, seed).as_subclass(Chunk)

        class_average(stream())
        assert most_alive < 10

    @pytest.mark.parametrize("nothing", [torch.zeros(0, 4), [], [torch.zeros(0, 4)]])
    def test_needs_an_image(self, nothing: Tensor | list[Tensor]) -> None:
        with pytest.raises(PlbenchError, match="at least one image"):
            class_average(nothing)


class TestSpearmanByDepth:
    @settings(max_examples=50, deadline=None)
    @given(st.integers(0, 999), st.integers(2, 30), st.integers(1, 12))
    def test_equals_scipy_over_the_top_classes(self, seed: int, num_classes: int, num_values: int) -> None:
        generator = np.random.default_rng(seed)
        estimate = generator.integers(num_values, size=num_classes) / num_values
        truth = generator.permutation(num_classes).astype(float)
        depths = range(2, num_classes + 1)
        result = spearman_by_depth(estimate, truth, depths)
        for depth, value in zip(depths, result, strict=True):
            top = np.argsort(-truth)[:depth]
            if len(set(estimate[top])) == 1:
                assert np.isnan(value)
            else:
                assert value == pytest.approx(spearmanr(estimate[top], truth[top]).statistic, abs=1e-12)

    def test_calibration_does_not_matter_and_reversal_does(self) -> None:
        truth = torch.tensor([0.5, 0.2, 0.1, 0.05])
        assert spearman_by_depth(truth**3 + 0.4, truth, [2, 3, 4, 100]).tolist() == pytest.approx([1.0] * 4)
        assert spearman_by_depth(-truth, truth, [4]).tolist() == pytest.approx([-1.0])

    def test_equally_frequent_classes_enter_by_index(self) -> None:
        truth = np.array([0.1, 0.3, 0.3, 0.3, 0.4])
        estimate = np.array([0.0, 0.2, 0.9, 0.9, 0.5])
        expected = spearmanr(estimate[[4, 1, 2]], truth[[4, 1, 2]]).statistic
        assert spearman_by_depth(estimate, truth, [3])[0] == pytest.approx(expected)

    def test_is_nan_where_undefined_and_leaves_nan_classes_out(self) -> None:
        truth = np.array([0.4, np.nan, 0.3, 0.2, 0.1])
        estimate = np.array([0.9, 0.5, np.nan, 0.8, 0.7])
        assert np.isnan(spearman_by_depth(estimate, truth, [0, 1])).all()
        assert np.isnan(spearman_by_depth(np.ones(3), np.arange(3.0), [3])).all()
        assert np.isnan(spearman_by_depth(np.arange(3.0), np.ones(3), [3])).all()
        assert spearman_by_depth(estimate, truth, [2, 3]).tolist() == pytest.approx([1.0, 1.0])

    def test_refuses_priors_that_do_not_match(self) -> None:
        with pytest.raises(PlbenchError, match=r"\(81,\) and \(80,\)"):
            spearman_by_depth(np.ones(81), np.ones(80), [2])


def test_top_classes_are_in_order_ties_by_index() -> None:
    prior = torch.tensor([0.25, 0.5, 0.25, 0.125], dtype=torch.float64)
    names = ["cat", "person", "dog", "tree"]
    ranked = [("person", 0.5), ("cat", 0.25), ("dog", 0.25), ("tree", 0.125)]
    assert top_classes(prior, names) == ranked
    assert top_classes(prior.tolist(), names, k=2) == ranked[:2]
    with pytest.raises(PlbenchError, match="4 classes does not go with 3"):
        top_classes(prior, names[:3])


class TestThresholdForTop:
    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.floats(0, 1), min_size=1, max_size=20, unique=True), st.data())
    def test_exactly_so_many_classes_are_above(self, values: list[float], data: st.DataObject) -> None:
        num_classes = data.draw(st.integers(0, len(values)))
        threshold = threshold_for_top(values, num_classes)
        assert sum(value > threshold for value in values) == num_classes

    def test_of_a_tie_all_stay_below(self) -> None:
        prior = torch.tensor([0.5, 0.2, 0.2, 0.2, 0.1])
        above = [int((prior > threshold_for_top(prior, n)).sum()) for n in range(7)]
        assert above == [0, 1, 1, 1, 4, 5, 5]

    def test_refuses_a_negative_number(self) -> None:
        with pytest.raises(PlbenchError, match="at least 0"):
            threshold_for_top([0.1], -1)
