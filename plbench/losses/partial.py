"""Loss terms for partial labels, as pure functions of tensors.

Logits are [..., B, C] and labels int8 [B, C], or whatever broadcasts with the logits: +1 present, -1 verified
absent, 0 unknown. Every hyper-parameter is a number or a tensor that broadcasts with the logits, such as
[H, 1, 1] for H heads trained at once. Results are float32, or float64 for float64 logits, whatever the
autocast.

Per-image losses are sums over classes; what to divide by is for the caller to say. CSL is Ben-Baruch et al.,
"Multi-label Classification with Partial Annotations using Class-aware Selective Loss", CVPR 2022.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Number = float | Tensor


def partial_asymmetric_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    gamma_pos: Number,
    gamma_neg: Number,
    gamma_unann: Number,
    clip: Number = 0.0,
    unann_weight: Number | None = None,
    detach_focus: bool = True,
) -> Tensor:
    """Return partial asymmetric loss of each image: a focal term for each kind of label (CSL, eq. 3).

    With gammas of 0 it is cross-entropy, exactly. A `unann_weight` of 1 is mode Negative, of 0 mode Ignore,
    and what `selective_weight` gives is mode Selective.

    Args:
        logits: [..., B, C], finite.
        labels: [B, C] of +1, -1 and 0.
        gamma_pos: focusing exponent of present labels, at least 0.
        gamma_neg: of absent labels.
        gamma_unann: of unknown labels.
        clip: asymmetric shift m in [0, 1) of ASL (Ridnik et al. 2021): absent and unknown labels are judged
            by max(p - m, 0) in place of p.
        unann_weight: weight w_c of unknown labels, [..., B, C] or a number; 1 where left out.
        detach_focus: no gradient through the focusing factor, as CSL trains; False is the focal loss itself.

    Returns:
        [..., B], summed over classes.
    """
    logits = wide(logits)
    if detach_focus:
        loss: Tensor = _PartialAsymmetric.apply(logits, labels, gamma_pos, gamma_neg, gamma_unann, clip, unann_weight)  # type: ignore[no-untyped-call]
        return loss
    target_logit = logits * _by_label(labels, 1.0, -1.0, -1.0, logits)  # its sigmoid is that of the target
    log_hit = F.logsigmoid(target_logit)
    miss = torch.sigmoid(-target_logit)
    # a tensor is not asked: it may hold a shift for each head, and the answer would make a GPU be waited for
    if isinstance(clip, Tensor) or clip:
        shift = _by_label(labels, 0.0, clip, clip, logits)
        log_hit = torch.logaddexp(log_hit, shift.log()).clamp(max=0.0)  # log(1 - p'), without a log of 0
        miss = miss - shift
    # Below the clamp log_hit is 0, so the clamp changes no loss; it keeps the gradient of the power finite.
    gamma = _by_label(labels, gamma_pos, gamma_neg, gamma_unann, logits)
    factor = miss.clamp(min=torch.finfo(logits.dtype).tiny).pow(gamma)
    if unann_weight is not None:
        factor = factor * _by_label(labels, 1.0, 1.0, unann_weight, logits)
    return -(factor * log_hit).sum(dim=-1)


def soft_prior_weight(labels: Tensor, prior: Tensor, *, alpha: Number) -> Tensor:
    """Return weights that fall with a class's prior in place of a threshold: exp(-alpha * Pr(c)) (CSL, appendix B).

    Args:
        labels: [B, C] of +1, -1 and 0.
        prior: [C] estimated class prior.
        alpha: at least 0.

    Returns:
        [..., B, C]: the weight on unknown labels, 1 on known ones.
    """
    prior = wide(prior)
    return _by_label(labels, 1.0, 1.0, torch.exp(-alpha * prior), prior)


def binary_cross_entropy(logits: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return binary cross-entropy of each image, summed over classes.

    Args:
        logits: [..., B, C].
        targets: [..., B, C] in [0, 1], hard or soft.
        weight: [..., B, C] weight of each label; 1 where left out.

    Returns:
        [..., B].
    """
    logits = wide(logits)
    # torch's loss does not broadcast by itself
    logits, targets = torch.broadcast_tensors(logits, targets.to(logits.dtype))
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (loss if weight is None else loss * weight).sum(dim=-1)


def label_smoothing_loss(logits: Tensor, labels: Tensor, *, epsilon: Number) -> Tensor:
    """Return cross-entropy with unknown labels as negatives and smoothed targets (Kundu & Tighe 2020; LS in CSL).

    Args:
        logits: [..., B, C].
        labels: [B, C] of +1, -1 and 0.
        epsilon: in [0, 0.5]; the target is 1 - epsilon for present labels and epsilon for all others, known
            or not.

    Returns:
        [..., B], summed over classes.
    """
    like = wide(logits)
    return binary_cross_entropy(like, _by_label(labels, 1.0 - epsilon, epsilon, epsilon, like))


def temperature_negative_loss(logits: Tensor, labels: Tensor, *, temperature: Number) -> Tensor:
    """Return cross-entropy with unknown labels as softened negatives: -log(1 - sigmoid(z / T)) (as in CSL's text).

    Args:
        logits: [..., B, C].
        labels: [B, C] of +1, -1 and 0.
        temperature: T > 0 of unknown labels; known ones have 1.

    Returns:
        [..., B], summed over classes.
    """
    logits = wide(logits)
    return -F.logsigmoid(logits * _by_label(labels, 1.0, -1.0, -1.0 / temperature, logits)).sum(dim=-1)


def known_proportion_weight(
    labels: Tensor, *, alpha: Number = -4.45, beta: Number = 5.45, gamma: Number = 1.0
) -> Tensor:
    """Return weight of each image that makes up for unknown labels: g(rho) / C (Durand et al. 2019, partial BCE).

    g(rho) = alpha * rho^gamma + beta for the known share rho of an image's labels; the defaults give g(1) = 1
    and g(0.1) = 5. An image with nothing known has no loss to weigh; its weight is 0.

    Args:
        labels: [..., B, C] of +1, -1 and 0.
        alpha: slope, a number or a tensor that broadcasts with the labels, as are the others.
        beta: weight at a known share of 0.
        gamma: exponent of the known share.

    Returns:
        [..., B] in float32.
    """
    share = (labels != 0).to(torch.float32).mean(dim=-1, keepdim=True)
    alpha, beta, gamma = (v.to(share) if isinstance(v, Tensor) else v for v in (alpha, beta, gamma))
    weight = (alpha * share**gamma + beta) / labels.shape[-1]
    return torch.where(share > 0, weight, 0.0).squeeze(-1)


def known_count_weight(labels: Tensor) -> Tensor:
    """Return weight of each image by its number n of known labels: 1 + 1 / (1 + n) (CSL's released code).

    Args:
        labels: [..., B, C] of +1, -1 and 0.

    Returns:
        [..., B] in float32.
    """
    return 1.0 + 1.0 / (1.0 + (labels != 0).sum(dim=-1))


class _PartialAsymmetric(torch.autograd.Function):
    """The partial asymmetric loss without a gradient through its focusing factor, whose gradient is then plain.

    With t the target's logit: dL/dt = -factor * (1 - sigmoid(t)), times sigmoid(t) / (sigmoid(t) + m) where there is a
    shift m that does not bring the loss to 0. It is computed along with the loss, which saves automatic
    differentiation's passes over tensors of the logits' size.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor,
        gamma_pos: Number,
        gamma_neg: Number,
        gamma_unann: Number,
        clip: Number,
        unann_weight: Number | None,
    ) -> Tensor:
        # of stacked heads torch chooses as fast
        choose = _by_label_on_cpu if logits.device.type == "cpu" and logits.ndim == 2 else _by_label
        sign = choose(labels, 1.0, -1.0, -1.0, logits)
        target_logit = logits * sign  # its sigmoid is that of the target
        log_hit = F.logsigmoid(target_logit)
        hit = torch.sigmoid(target_logit) if isinstance(clip, Tensor) or clip else None
        slope = target_logit.neg_().sigmoid_()  # of log_hit; also what the target is missed by
        miss = slope
        if hit is not None:
            shift = choose(labels, 0.0, clip, clip, logits)
            log_hit = torch.logaddexp(log_hit, shift.log())  # log(1 - p'), without a log of 0
            # without a shift the slope stays as it is, also where `hit` has become 0 and this would be 0 / 0
            share = torch.where(shift > 0, hit / (hit + shift), 1.0)
            # before the clamp, after which what the shift has brought to 0 cannot be told from the rest
            slope = torch.where(log_hit <= 0, slope * share, 0.0)
            log_hit = log_hit.clamp_(max=0.0)
            miss = miss - shift
        factor: Tensor | None = None
        gammas = (gamma_pos, gamma_neg, gamma_unann)
        if any(isinstance(gamma, Tensor) or gamma != 0 for gamma in gammas):  # else every power is 1
            # 0 will do here, since no gradient goes through the power
            factor = miss.clamp(min=0.0).pow_(choose(labels, *gammas, logits))
        if unann_weight is not None:
            weight = choose(labels, 1.0, 1.0, unann_weight, logits)
            factor = weight if factor is None else factor.mul_(weight)
        if factor is not None:
            log_hit, slope = log_hit.mul_(factor), slope.mul_(factor)
        ctx.save_for_backward(slope.mul_(sign).neg_())
        return -log_hit.sum(dim=-1)

    @staticmethod
    # the saved slope has no graph, so that a second derivative would be wrong without a word
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return slope * gradients[0].unsqueeze(-1), None, None, None, None, None, None

    @staticmethod
    def plain(
        logits: Tensor,
        labels: Tensor,
        gamma_pos: Number,
        gamma_neg: Number,
        gamma_unann: Number,
        clip: Number,
        unann_weight: Number | None,
    ) -> Tensor:
        """Return the same in ordinary operations, with a detached focusing factor.

        `plbench.testing.constants` finds it by its name and checks the gradient against it.
        """
        miss = torch.sigmoid(logits * _by_label(labels, -1.0, 1.0, 1.0, logits))
        miss = (miss - _by_label(labels, 0.0, clip, clip, logits)).clamp(min=0.0)
        factor = miss.detach().pow(_by_label(labels, gamma_pos, gamma_neg, gamma_unann, logits))
        if unann_weight is not None:
            factor = factor * _by_label(labels, 1.0, 1.0, unann_weight, logits)
        return -(factor * torch.log1p(-miss)).sum(dim=-1)


def wide(values: Tensor) -> Tensor:
    """Widen to float32, or float64 where it is that: half-precision sums of log-sigmoids give NaN."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def matching(value: Number, like: Tensor) -> Tensor:
    """Return a hyper-parameter in the dtype and on the device of `like`, so that stacked heads are not widened.

    Args:
        value: a number, or [H, 1, 1] of H stacked heads.
        like: any shape.

    Returns:
        A scalar tensor, or [H, 1, 1].
    """
    return value.to(like) if isinstance(value, Tensor) else like.new_full((), value)


def _by_label(labels: Tensor, present: Number, absent: Number, unknown: Number, like: Tensor) -> Tensor:
    """Return the value that goes with each label, in the dtype and on the device of `like`."""
    if_present, if_absent, if_unknown = (matching(value, like) for value in (present, absent, unknown))
    if absent is unknown:
        return torch.where(labels > 0, if_present, if_absent)
    return torch.where(labels > 0, if_present, torch.where(labels < 0, if_absent, if_unknown))


def _by_label_on_cpu(labels: Tensor, present: Number, absent: Number, unknown: Number, like: Tensor) -> Tensor:
    """Return what `_by_label` does, without a gradient: numpy overwrites few entries sooner than torch chooses all."""
    given, dtype = labels.detach().numpy(), like.detach().numpy().dtype
    values = [
        value.detach().to(like).numpy() if isinstance(value, Tensor) else dtype.type(value)
        for value in (present, absent, unknown)
    ]
    result = np.empty(np.broadcast_shapes(given.shape, *(value.shape for value in values)), dtype)
    result[...] = values[2]
    # the same number or tensor: tensors are not compared
    if present is absent:
        np.copyto(result, values[0], where=given != 0)
    else:
        np.copyto(result, values[0], where=given > 0)
        if absent is not unknown:
            np.copyto(result, values[1], where=given < 0)
    return torch.from_numpy(result)
