"""Loss terms: their limits, their gradients, and agreement with the formulas written out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plbench.losses import (
    binary_cross_entropy,
    known_count_weight,
    known_proportion_weight,
    label_smoothing_loss,
    partial,
    partial_asymmetric_loss,
    selection,
    selective_weight,
    soft_prior_weight,
    temperature_negative_loss,
)

GAMMAS = {"gamma_pos": 0.5, "gamma_neg": 3.0, "gamma_unann": 4.0}
ZERO_GAMMAS = {"gamma_pos": 0.0, "gamma_neg": 0.0, "gamma_unann": 0.0}


def draw(*shape: int, seed: int = 0, scale: float = 2.0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Logits [*shape] and labels [B, C] of which half are unknown."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(shape, generator=generator, dtype=dtype)
    labels = torch.tensor([1, -1, 0, 0])[torch.randint(4, shape[-2:], generator=generator)]
    return logits, labels.to(torch.int8)


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def loss_by_hand(
    logits: Tensor, labels: Tensor, gammas: tuple[float, float, float], clip: float, weight: Tensor
) -> list[float]:
    """Eq. 3 of CSL as it is printed, one element after another."""
    per_image = []
    for z_row, y_row, w_row in zip(logits.tolist(), labels.tolist(), weight.tolist(), strict=True):
        total = 0.0
        for z, y, w in zip(z_row, y_row, w_row, strict=True):
            p = sigmoid(z)
            shifted = max(p - clip, 0.0)
            if y == 1:
                total += -((1 - p) ** gammas[0]) * math.log(p)
            elif y == -1:
                total += -(shifted ** gammas[1]) * math.log(1 - shifted)
            else:
                total += -w * shifted ** gammas[2] * math.log(1 - shifted)
        per_image.append(total)
    return per_image


class TestPartialAsymmetricLoss:
    @pytest.mark.parametrize("clip", [0.0, 0.05, "per head"])
    def test_its_gradient_is_that_of_a_loss_whose_focus_is_detached(self, clip: float | str) -> None:
        """Automatic differentiation of eq. 3 with the focusing factor taken for a constant."""
        logits, labels = draw(3, 6, 9, dtype=torch.float64)
        logits.requires_grad_()
        generator = torch.Generator().manual_seed(1)
        weight = torch.rand(3, 6, 9, generator=generator, dtype=torch.float64)
        shift = torch.tensor([0.0, 0.05, 0.4], dtype=torch.float64).view(3, 1, 1) if isinstance(clip, str) else clip
        gammas = torch.where(labels > 0, 0.5, torch.where(labels < 0, 2.0, 4.0)).double()
        hit = torch.sigmoid(torch.where(labels > 0, logits, -logits))
        shifted = torch.where(labels > 0, hit, (hit + shift).clamp(max=1.0))
        factor = ((1 - shifted).detach() ** gammas) * torch.where(labels == 0, weight, 1.0)
        (expected,) = torch.autograd.grad(-(factor * shifted.log()).sum(), logits)
        loss = partial_asymmetric_loss(
            logits, labels, gamma_pos=0.5, gamma_neg=2.0, gamma_unann=4.0, clip=shift, unann_weight=weight
        )
        (gradient,) = torch.autograd.grad((loss * 3.0).sum(), logits)
        torch.testing.assert_close(gradient, 3.0 * expected, rtol=1e-12, atol=1e-14)

    @pytest.mark.parametrize("clip", [0.0, 0.05, 0.3])
    @pytest.mark.parametrize("gammas", [(0, 0, 0), (0, 3, 4), (1, 2, 7), (0.01, 0.5, 1.5)])
    def test_equals_the_formula_element_by_element(self, gammas: tuple[float, float, float], clip: float) -> None:
        logits, labels = draw(6, 9, dtype=torch.float64)
        weight = torch.rand(6, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        loss = partial_asymmetric_loss(
            logits,
            labels,
            gamma_pos=gammas[0],
            gamma_neg=gammas[1],
            gamma_unann=gammas[2],
            clip=clip,
            unann_weight=weight,
        )
        expected = torch.tensor(loss_by_hand(logits, labels, gammas, clip, weight), dtype=torch.float64)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("detach_focus", [True, False])
    def test_gammas_of_0_are_cross_entropy(self, detach_focus: bool) -> None:
        logits, labels = draw(8, 20, scale=10.0)
        loss = partial_asymmetric_loss(logits, labels, **ZERO_GAMMAS, detach_focus=detach_focus)
        per_cell = F.binary_cross_entropy_with_logits(logits, (labels > 0).float(), reduction="none")
        torch.testing.assert_close(loss, per_cell.sum(-1), rtol=1e-6, atol=1e-6)
        assert torch.equal(loss, -F.logsigmoid(torch.where(labels > 0, logits, -logits)).sum(-1))

    def test_a_number_as_weight_scales_unknown_labels_only(self) -> None:
        logits, labels = draw(5, 7)
        full, half, none = (
            partial_asymmetric_loss(logits, labels, **GAMMAS, unann_weight=weight) for weight in (1.0, 0.5, 0.0)
        )
        torch.testing.assert_close(half, (full + none) / 2)
        assert torch.equal(full, partial_asymmetric_loss(logits, labels, **GAMMAS))
        known_only = partial_asymmetric_loss(logits, labels, **(GAMMAS | {"gamma_unann": 0}), unann_weight=0.0)
        assert torch.equal(none, known_only)

    def test_a_zero_shift_given_as_tensor_changes_nothing(self) -> None:
        logits, labels = draw(5, 7, scale=20.0)
        plain = partial_asymmetric_loss(logits, labels, **GAMMAS)
        assert torch.equal(plain, partial_asymmetric_loss(logits, labels, **GAMMAS, clip=torch.zeros(())))

    def test_below_the_shift_negatives_cost_nothing_and_pull_at_nothing(self) -> None:
        logits = torch.tensor([[-4.0, -3.5, -2.0]], requires_grad=True)
        labels = torch.tensor([[-1, 0, -1]], dtype=torch.int8)
        for detach_focus in (True, False):
            loss = partial_asymmetric_loss(logits, labels, **GAMMAS, clip=0.05, detach_focus=detach_focus)
            (gradient,) = torch.autograd.grad(loss.sum(), logits)
            assert loss.item() > 0
            assert gradient[0, :2].tolist() == [0.0, 0.0]
            assert gradient[0, 2] > 0

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("clip", [0.0, 0.05, torch.tensor([[[0.0]], [[0.05]]])])
    @pytest.mark.parametrize("detach_focus", [True, False])
    def test_no_gradient_is_nan_at_extreme_logits(
        self, detach_focus: bool, clip: float | Tensor, dtype: torch.dtype
    ) -> None:
        extremes = [
            -200.0,
            -104.0,
            -88.0,
            -87.3,
            -20.0,
            math.log(0.05 / 0.95),
            0.0,
            20.0,
            87.3,
            88.0,
            104.0,
            200.0,
        ]
        logits = torch.tensor(extremes, dtype=dtype).repeat(2, 3, 1).requires_grad_()
        labels = torch.tensor([[1], [-1], [0]], dtype=torch.int8)
        for gamma in (0.0, 0.01, 0.5, 1.0, 4.0, 7.0):
            loss = partial_asymmetric_loss(
                logits,
                labels,
                gamma_pos=gamma,
                gamma_neg=gamma,
                gamma_unann=gamma,
                clip=clip,
                detach_focus=detach_focus,
            )
            (gradient,) = torch.autograd.grad(loss.sum(), logits)
            assert loss.isfinite().all()
            assert gradient.isfinite().all()
            assert loss.dtype == torch.float32

    @pytest.mark.parametrize("clip", [0.0, 0.05])
    def test_gradient_without_detaching(self, clip: float) -> None:
        logits, labels = draw(3, 5, dtype=torch.float64)

        def loss(z: Tensor) -> Tensor:
            return partial_asymmetric_loss(z, labels, **GAMMAS, clip=clip, detach_focus=False)

        assert torch.autograd.gradcheck(loss, logits.requires_grad_())

    @pytest.mark.parametrize("clip", [0.0, 0.05])
    def test_gradient_with_focus_and_weights_frozen(self, clip: float) -> None:
        at, labels = draw(3, 5, dtype=torch.float64)
        weight = selective_weight(at, labels, top_k=1)
        p = torch.sigmoid(at)
        shifted = (p - clip).clamp(min=0)
        focus = torch.where(labels > 0, (1 - p) ** 0.5, torch.where(labels < 0, shifted**3, shifted**4 * weight))

        def frozen_sum(z: Tensor) -> float:
            hit = torch.where(labels > 0, z.sigmoid(), 1 - (z.sigmoid() - clip).clamp(min=0))
            return float(-(focus * hit.log()).sum())

        logits = at.clone().requires_grad_()
        loss = partial_asymmetric_loss(
            logits, labels, **GAMMAS, clip=clip, unann_weight=selective_weight(logits, labels, top_k=1)
        )
        loss.sum().backward()
        numeric = torch.zeros_like(at)
        for place in range(at.numel()):
            step = torch.zeros_like(at)
            step.view(-1)[place] = 1e-6
            numeric.view(-1)[place] = (frozen_sum(at + step) - frozen_sum(at - step)) / 2e-6
        torch.testing.assert_close(logits.grad, numeric, rtol=1e-6, atol=1e-8)

    def test_detaching_changes_the_gradient_and_not_the_loss(self) -> None:
        logits, labels = draw(4, 6)
        logits.requires_grad_()
        losses = [partial_asymmetric_loss(logits, labels, **GAMMAS, detach_focus=d) for d in (True, False)]
        gradients = [torch.autograd.grad(loss.sum(), logits)[0] for loss in losses]
        assert torch.equal(*losses)
        assert not torch.allclose(*gradients)

    def test_a_stack_equals_one_at_a_time(self) -> None:
        logits, labels = draw(3, 4, 6)
        settings_of_heads = [(0.0, 0.0, 0.0, 0.0), (1.0, 3.0, 4.0, 0.05), (0.0, 2.0, 7.0, 0.0)]
        columns = [torch.tensor(column).view(3, 1, 1) for column in zip(*settings_of_heads, strict=True)]
        weight = selective_weight(logits, labels, top_k=torch.tensor([0, 2, 6]).view(3, 1, 1))
        stacked = partial_asymmetric_loss(
            logits,
            labels,
            gamma_pos=columns[0],
            gamma_neg=columns[1],
            gamma_unann=columns[2],
            clip=columns[3],
            unann_weight=weight,
        )
        for head, (pos, neg, unann, clip) in enumerate(settings_of_heads):
            alone = partial_asymmetric_loss(
                logits[head],
                labels,
                gamma_pos=pos,
                gamma_neg=neg,
                gamma_unann=unann,
                clip=clip,
                unann_weight=selective_weight(logits[head], labels, top_k=[0, 2, 6][head]),
            )
            torch.testing.assert_close(stacked[head], alone, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            (torch.float16, torch.float32),
            (torch.bfloat16, torch.float32),
            (torch.float32, torch.float32),
            (torch.float64, torch.float64),
        ],
    )
    def test_computes_in_float32_or_wider(self, given: torch.dtype, expected: torch.dtype) -> None:
        logits, labels = draw(3, 4)
        logits = logits.to(given)
        prior = torch.full((4,), 0.1, dtype=torch.float64)
        weight = soft_prior_weight(labels, prior, alpha=3.0)
        loss = partial_asymmetric_loss(logits, labels, **GAMMAS, unann_weight=weight, clip=0.05)
        assert loss.dtype == expected
        assert selective_weight(logits, labels, top_k=1).dtype == expected
        assert label_smoothing_loss(logits, labels, epsilon=0.1).dtype == expected
        assert temperature_negative_loss(logits, labels, temperature=2.0).dtype == expected
        same_in_float32 = partial_asymmetric_loss(logits.float(), labels, **GAMMAS, unann_weight=weight, clip=0.05)
        torch.testing.assert_close(loss.float(), same_in_float32)

    def test_inputs_stay_as_they_were(self) -> None:
        logits, labels = draw(3, 4)
        prior = torch.rand(4, generator=torch.Generator().manual_seed(0))
        before = [tensor.clone() for tensor in (logits, labels, prior)]
        weight = selective_weight(logits, labels, top_k=2, prior=prior, prior_threshold=0.5, scope="batch")
        weight_before = weight.clone()
        partial_asymmetric_loss(logits, labels, **GAMMAS, clip=0.05, unann_weight=weight)
        soft_prior_weight(labels, prior, alpha=1.0)
        label_smoothing_loss(logits, labels, epsilon=0.1)
        temperature_negative_loss(logits, labels, temperature=2.0)
        after = (logits, labels, prior, weight)
        assert all(torch.equal(a, b) for a, b in zip((*before, weight_before), after, strict=True))


class TestSelectiveWeight:
    def test_top_0_is_negative_mode_exactly(self) -> None:
        logits, labels = draw(6, 9)
        weight = selective_weight(logits, labels, top_k=0)
        assert torch.equal(weight, torch.ones(6, 9))
        selective = partial_asymmetric_loss(logits, labels, **GAMMAS, unann_weight=weight)
        assert torch.equal(selective, partial_asymmetric_loss(logits, labels, **GAMMAS, unann_weight=1.0))

    @pytest.mark.parametrize("num_classes", [20, 300])
    def test_long_rows_are_ranked_as_short_ones(self, num_classes: int) -> None:
        """Two ways of ranking stand behind one answer; ties go to the lower index in both."""
        logits = torch.randint(0, 8, (5, num_classes), generator=torch.Generator().manual_seed(0)).float()
        weight = selective_weight(logits, torch.zeros(5, num_classes, dtype=torch.int8), top_k=7)
        for row, kept in zip(logits.tolist(), weight.tolist(), strict=True):
            highest = sorted(range(num_classes), key=lambda place: (-row[place], place))[:7]
            assert [place for place in range(num_classes) if kept[place] == 0] == sorted(highest)

    @pytest.mark.parametrize("scope", ["sample", "batch"])
    @pytest.mark.parametrize("top_k", [9, 1000])
    def test_top_all_is_ignore_mode_exactly(self, scope: str, top_k: int) -> None:
        logits, labels = draw(6, 9)
        weight = selective_weight(logits, labels, top_k=top_k, scope=scope)
        assert torch.equal(weight, (labels != 0).float())
        selective = partial_asymmetric_loss(logits, labels, **GAMMAS, unann_weight=weight)
        assert torch.equal(selective, partial_asymmetric_loss(logits, labels, **GAMMAS, unann_weight=0.0))

    @settings(max_examples=60, deadline=None)
    @given(
        st.integers(1, 5),
        st.integers(1, 7),
        st.integers(0, 9),
        st.sampled_from(["sample", "batch"]),
        st.data(),
    )
    def test_equals_sorting_by_hand_ties_by_index(
        self, num_images: int, num_classes: int, top_k: int, scope: str, data: st.DataObject
    ) -> None:
        cells = num_images * num_classes
        few_values = st.sampled_from([-1.0, 0.0, 0.5, 2.0])
        values = data.draw(st.lists(few_values, min_size=cells, max_size=cells))
        marks = data.draw(st.lists(st.sampled_from([1, -1, 0, 0]), min_size=cells, max_size=cells))
        unknown = [place for place in range(cells) if marks[place] == 0]
        ranked = sorted(unknown, key=lambda place: (-values[place], place))
        if scope == "batch":
            ignored = set(ranked[: top_k * num_images])
        else:
            by_image = [[p for p in ranked if p // num_classes == image] for image in range(num_images)]
            ignored = {place for ranked_of_image in by_image for place in ranked_of_image[:top_k]}
        logits = torch.tensor(values).view(num_images, num_classes)
        labels = torch.tensor(marks, dtype=torch.int8).view(num_images, num_classes)
        expected = torch.tensor([0.0 if place in ignored else 1.0 for place in range(cells)])
        assert torch.equal(selective_weight(logits, labels, top_k=top_k, scope=scope).view(-1), expected)

    @pytest.mark.parametrize("scope", ["sample", "batch"])
    def test_a_stack_equals_one_at_a_time(self, scope: str) -> None:
        logits, labels = draw(4, 5, 8)
        top_k = torch.tensor([0, 1, 3, 8]).view(4, 1, 1)
        threshold = torch.tensor([0.9, 0.5, 0.1, 0.9]).view(4, 1, 1)
        prior = torch.linspace(0, 1, 8)
        stacked = selective_weight(logits, labels, top_k=top_k, prior=prior, prior_threshold=threshold, scope=scope)
        one_logit_for_all = selective_weight(logits[0], labels, top_k=top_k, scope=scope)
        assert stacked.shape == one_logit_for_all.shape == (4, 5, 8)
        for head in range(4):
            k, eta = int(top_k[head]), float(threshold[head])
            alone = selective_weight(logits[head], labels, top_k=k, prior=prior, prior_threshold=eta, scope=scope)
            assert torch.equal(stacked[head], alone)
            alone = selective_weight(logits[0], labels, top_k=k, scope=scope)
            assert torch.equal(one_logit_for_all[head], alone)

    def test_frequent_classes_are_ignored_where_unknown(self) -> None:
        logits, labels = draw(6, 4)
        prior = torch.tensor([0.5, 0.05, 0.051, 0.0], dtype=torch.float64)
        weight = selective_weight(logits, labels, prior=prior, prior_threshold=0.05)
        frequent = torch.tensor([True, False, True, False])
        assert torch.equal(weight == 0, (labels == 0) & frequent)
        both = selective_weight(logits, labels, top_k=1, prior=prior, prior_threshold=0.05)
        assert torch.equal(both, torch.minimum(weight, selective_weight(logits, labels, top_k=1)))

    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, 12), st.floats(-0.1, 1.1), st.sampled_from(["sample", "batch"]), st.integers(0, 99))
    def test_known_labels_are_never_ignored(self, top_k: int, threshold: float, scope: str, seed: int) -> None:
        logits, labels = draw(4, 6, seed=seed, scale=50.0)
        prior = torch.rand(6, generator=torch.Generator().manual_seed(seed))
        weight = selective_weight(logits, labels, top_k=top_k, prior=prior, prior_threshold=threshold, scope=scope)
        assert (weight[labels != 0] == 1).all()
        assert set(weight.unique().tolist()) <= {0.0, 1.0}

    def test_no_gradient_flows_through_the_choice(self) -> None:
        logits, labels = draw(3, 5)
        assert not selective_weight(logits.requires_grad_(), labels, top_k=2).requires_grad

    def test_refuses_what_it_does_not_know(self) -> None:
        logits, labels = draw(2, 3)
        with pytest.raises(ValueError, match="'sample' or 'batch'"):
            selective_weight(logits, labels, top_k=1, scope="epoch")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="go together"):
            selective_weight(logits, labels, prior=torch.ones(3))
        with pytest.raises(ValueError, match="go together"):
            selective_weight(logits, labels, prior_threshold=0.5)


def prior_and_ties(*shape: int, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of which many are equal and some extreme; labels with rows all unknown and all known; a prior."""
    logits, labels = draw(*shape, seed=seed, dtype=torch.float64)
    logits = logits.round(decimals=1).to(dtype)
    logits[..., 0, :3] = torch.tensor([1e4, -1e4, 1e4])[: shape[-1]].to(dtype)
    labels[0], labels[-1] = 0, 1
    return logits, labels, torch.rand(shape[-1], generator=torch.Generator().manual_seed(seed))


SHAPES = [(5, 1), (64, 80), (3, 4, 7), (6, 300), (4, 2500), (3, 6, 300)]


class TestOnCpu:
    """What computes by numpy on a processor, beside the plain operations of torch: bit-identical."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("scope", ["sample", "batch"])
    def test_weights_are_the_plain_ones(self, shape: tuple[int, ...], dtype: torch.dtype, scope: str) -> None:
        logits, labels, prior = prior_and_ties(*shape, dtype=dtype, seed=len(shape))
        stacked = [torch.tensor([[[0]], [[2]], [[shape[-1]]]])] if len(shape) == 3 else []
        for top_k in [0, 1, min(5, shape[-1]), shape[-1], *stacked]:
            for limit in [None, 0.5]:
                given = (logits, labels, top_k, None if limit is None else prior, limit, scope)
                fast, plain = selection._selective_weight_on_cpu(*given), selection._selective_weight_plain(*given)
                assert torch.equal(torch.from_numpy(fast), plain) and fast.dtype == plain.numpy().dtype

    @pytest.mark.parametrize("num_known", [0, 2400, 2499])
    def test_long_rows_with_few_unknown_labels(self, num_known: int) -> None:
        logits, labels = draw(4, 2500)[0], torch.zeros(4, 2500, dtype=torch.int8)
        labels[:2, :num_known] = -1
        fast = selection._selective_weight_on_cpu(logits, labels, 200, None, None, "sample")
        plain = selection._selective_weight_plain(logits, labels, 200, None, None, "sample")
        assert torch.equal(torch.from_numpy(fast), plain)

    def test_weights_of_a_large_batch_come_in_blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        logits, labels, prior = prior_and_ties(64, 80, dtype=torch.bfloat16, seed=1)
        whole = selective_weight(logits, labels, top_k=5, prior=prior, prior_threshold=0.7)
        monkeypatch.setattr(selection, "_BLOCK", 500)
        assert torch.equal(selective_weight(logits, labels, top_k=5, prior=prior, prior_threshold=0.7), whole)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_values_by_label_are_the_plain_ones(self, dtype: torch.dtype) -> None:
        logits, labels = draw(3, 5, 7, dtype=dtype)
        per_head, each = torch.rand(3, 1, 1), torch.rand(5, 7)
        for values in [
            (1, -1, -1),
            (0.3, 0.1, 0.7),
            (0, 0, 0),
            (1, 1, each),
            (0.0, per_head, per_head),
            (2, per_head, 1),
        ]:
            assert torch.equal(
                partial._by_label_on_cpu(labels, *values, logits), partial._by_label(labels, *values, logits)
            )

    @pytest.mark.parametrize("clip", [0.0, 0.05])
    def test_loss_and_gradient_are_those_of_torch_alone(self, clip: float, monkeypatch: pytest.MonkeyPatch) -> None:
        logits, labels, prior = prior_and_ties(64, 80, dtype=torch.float32, seed=0)

        def results() -> list[Tensor]:
            leaf = logits.clone().requires_grad_()
            weight = selective_weight(leaf, labels, top_k=5, prior=prior, prior_threshold=0.7)
            loss = partial_asymmetric_loss(leaf, labels, **GAMMAS, clip=clip, unann_weight=weight)
            loss.sum().backward()
            assert leaf.grad is not None
            return [weight, loss.detach(), leaf.grad]

        fast = results()
        monkeypatch.setattr(
            selection, "_selective_weight_on_cpu", lambda *given: selection._selective_weight_plain(*given).numpy()
        )
        monkeypatch.setattr(partial, "_by_label_on_cpu", partial._by_label)
        assert all(torch.equal(one, other) for one, other in zip(fast, results(), strict=True))


def test_soft_prior_weight_is_on_unknown_labels_only() -> None:
    _, labels = draw(5, 3)
    prior = torch.tensor([0.0, 0.1, 0.5])
    weight = soft_prior_weight(labels, prior, alpha=4.0)
    expected = torch.where(labels == 0, torch.exp(-4.0 * prior), 1.0)
    torch.testing.assert_close(weight, expected)
    assert torch.equal(soft_prior_weight(labels, prior, alpha=0.0), torch.ones(5, 3))
    stacked = soft_prior_weight(labels, prior, alpha=torch.tensor([0.0, 4.0]).view(2, 1, 1))
    torch.testing.assert_close(stacked, torch.stack([torch.ones(5, 3), expected]))


def test_binary_cross_entropy_takes_soft_targets_and_weights() -> None:
    logits, _ = draw(2, 4, 6)
    targets = torch.rand(4, 6, generator=torch.Generator().manual_seed(2))
    weight = torch.rand(4, 6, generator=torch.Generator().manual_seed(3))
    p = torch.sigmoid(logits.double())
    by_hand = -(weight * (targets * p.log() + (1 - targets) * (1 - p).log())).sum(-1)
    torch.testing.assert_close(binary_cross_entropy(logits, targets, weight), by_hand.float())
    extreme = torch.tensor([[-200.0, 200.0]], requires_grad=True)
    loss = binary_cross_entropy(extreme, torch.tensor([[1, 0]]))
    (gradient,) = torch.autograd.grad(loss.sum(), extreme)
    assert loss.tolist() == [400.0]
    assert gradient.tolist() == [[-1.0, 1.0]]


def test_label_smoothing_counts_unknown_labels_as_negatives() -> None:
    logits, labels = draw(4, 6)
    targets = torch.where(labels > 0, 0.9, 0.1)
    loss = label_smoothing_loss(logits, labels, epsilon=0.1)
    torch.testing.assert_close(loss, binary_cross_entropy(logits, targets))
    negative = partial_asymmetric_loss(logits, labels, **ZERO_GAMMAS)
    torch.testing.assert_close(label_smoothing_loss(logits, labels, epsilon=0.0), negative)
    stacked = label_smoothing_loss(logits, labels, epsilon=torch.tensor([0.0, 0.1]).view(2, 1, 1))
    torch.testing.assert_close(stacked, torch.stack([negative, loss]))


def test_temperature_softens_unknown_labels_only() -> None:
    logits, labels = draw(4, 6, dtype=torch.float64)
    p, cooled = torch.sigmoid(logits), torch.sigmoid(logits / 2)
    by_hand = -torch.where(labels > 0, p.log(), torch.where(labels < 0, (1 - p).log(), (1 - cooled).log()))
    loss = temperature_negative_loss(logits, labels, temperature=2.0)
    torch.testing.assert_close(loss, by_hand.sum(-1))
    negative = partial_asymmetric_loss(logits, labels, **ZERO_GAMMAS)
    assert torch.equal(temperature_negative_loss(logits, labels, temperature=1.0), negative)
    stacked = temperature_negative_loss(logits, labels, temperature=torch.tensor([1.0, 2.0]).view(2, 1, 1))
    torch.testing.assert_close(stacked, torch.stack([negative, loss]))


def test_image_weights_by_what_is_known() -> None:
    labels = torch.zeros(3, 10, dtype=torch.int8)
    labels[1, 4] = -1
    labels[2] = 1
    torch.testing.assert_close(known_proportion_weight(labels), torch.tensor([0.0, 0.5005, 0.1]))
    torch.testing.assert_close(
        known_proportion_weight(labels, alpha=1.0, beta=0.0, gamma=-1.0), torch.tensor([0.0, 1.0, 0.1])
    )
    stacked = known_proportion_weight(labels, gamma=torch.tensor([1.0, 2.0]).view(2, 1, 1))
    assert stacked.shape == (2, 3)
    torch.testing.assert_close(stacked[0], known_proportion_weight(labels))
    torch.testing.assert_close(known_count_weight(labels), torch.tensor([2.0, 1.5, 1 + 1 / 11]))
