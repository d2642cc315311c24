"""Loss terms for partial labels, as pure functions of tensors.

Logits are [..., B, C] and labels int8 [B, C], or whatever broadcasts with the logits: +1 present, -1 verified
absent, 0 unknown. Every hyper-parameter is a number or a tensor that broadcasts with the logits, such as
[H, 1, 1] for H heads trained at once. Results are float32, or float64 for float64 logits, whatever the
autocast.

Per-image losses are sums over classes; the caller chooses the normalisation. CSL is Ben-Baruch et al.,
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
    """Return the partial asymmetric loss of each image, with a focal term per kind of label (CSL, eq. 3).

    With all gammas 0 it equals cross-entropy. `unann_weight` 1 is mode Negative, 0 is mode Ignore, and the result of
    `selective_weight` is mode Selective.

    Args:
        logits: [..., B, C], finite.
        labels: [B, C] of +1, -1 and 0.
        gamma_pos: focusing exponent of present labels, at least 0.
        gamma_neg: of absent labels.
        gamma_unann: of unknown labels.
        clip: asymmetric shift m in [0, 1) of ASL (Ridnik et al. 2021): for absent and unknown labels, max(p - m, 0)
            replaces p.
        unann_weight: weight w_c of unknown labels, [..., B, C] or a number; default 1.
        detach_focus: no gradient through the focusing factor, as in CSL; False is the plain focal loss.

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
    # tensors (one shift per head) are not compared with 0, which would synchronize with the GPU
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
    """Return weights that decrease with the class prior, instead of a threshold: exp(-alpha * Pr(c)) (CSL, appendix B).

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
    """Return the binary cross-entropy of each image, summed over classes.

    Args:
        logits: [..., B, C].
        targets: [..., B, C] in [0, 1], hard or soft.
        weight: [..., B, C] weight of each label; default 1.

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
    """Return a weight per image that compensates for unknown labels: g(rho) / C (Durand et al. 2019, partial BCE).

    g(rho) = alpha * rho^gamma + beta for the known share rho of an image's labels; the defaults give g(1) = 1 and
    g(0.1) = 5. Images without known labels have weight 0.

    Args:
        labels: [..., B, C] of +1, -1 and 0.
        alpha: slope; like the others, a number or a tensor that broadcasts with the labels.
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
    """Return a weight per image from its number n of known labels: 1 + 1 / (1 + n) (CSL's released code).

    Args:
        labels: [..., B, C] of +1, -1 and 0.

    Returns:
        [..., B] in float32.
    """
    return 1.0 + 1.0 / (1.0 + (labels != 0).sum(dim=-1))


class _PartialAsymmetric(torch.autograd.Function):
    """The partial asymmetric loss with a detached focusing factor and an explicit gradient.

    With t the target's logit: dL/dt = -factor * (1 - sigmoid(t)), times sigmoid(t) / (sigmoid(t) + m) for a shift m,
    unless it reduces the loss to 0. Computing it with the loss saves autograd's passes over tensors of the logits'
    size.
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
        # for stacked heads, torch is as fast
        choose = _by_label_on_cpu if logits.device.type == "cpu" and logits.ndim == 2 else _by_label
        sign = choose(labels, 1.0, -1.0, -1.0, logits)
        target_logit = logits * sign  # its sigmoid is that of the target
        log_hit = F.logsigmoid(target_logit)
        hit = torch.sigmoid(target_logit) if isinstance(clip, Tensor) or clip else None
        slope = target_logit.neg_().sigmoid_()  # of log_hit; also the distance from the target
        miss = slope
        if hit is not None:
            shift = choose(labels, 0.0, clip, clip, logits)
            log_hit = torch.logaddexp(log_hit, shift.log())  # log(1 - p'), without a log of 0
            # without a shift the slope is unchanged; this avoids 0 / 0 if `hit` is 0
            share = torch.where(shift > 0, hit / (hit + shift), 1.0)
            # before the clamp, which hides losses that the shift reduced to 0
            slope = torch.where(log_hit <= 0, slope * share, 0.0)
            log_hit = log_hit.clamp_(max=0.0)
            miss = miss - shift
        factor: Tensor | None = None
        gammas = (gamma_pos, gamma_neg, gamma_unann)
        if any(isinstance(gamma, Tensor) or gamma != 0 for gamma in gammas):  # otherwise every power is 1
            # clamping to 0 is fine, since no gradient flows through the power
            factor = miss.clamp(min=0.0).pow_(choose(labels, *gammas, logits))
        if unann_weight is not None:
            weight = choose(labels, 1.0, 1.0, unann_weight, logits)
            factor = weight if factor is None else factor.mul_(weight)
        if factor is not None:
            log_hit, slope = log_hit.mul_(factor), slope.mul_(factor)
        ctx.save_for_backward(slope.mul_(sign).neg_())
        return -log_hit.sum(dim=-1)

    @staticmethod
    # the saved slope has no graph, so a second derivative would be silently wrong
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
        """Return the same with ordinary operations and a detached focusing factor.

        `plbench.testing.constants` finds it by name and checks the gradient against it.
        """
        miss = torch.sigmoid(logits * _by_label(labels, -1.0, 1.0, 1.0, logits))
        miss = (miss - _by_label(labels, 0.0, clip, clip, logits)).clamp(min=0.0)
        factor = miss.detach().pow(_by_label(labels, gamma_pos, gamma_neg, gamma_unann, logits))
        if unann_weight is not None:
            factor = factor * _by_label(labels, 1.0, 1.0, unann_weight, logits)
        return -(factor * torch.log1p(-miss)).sum(dim=-1)


def wide(values: Tensor) -> Tensor:
    """Widen half precision to float32, since its sums of log-sigmoids give NaN; float64 is kept."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def matching(value: Number, like: Tensor) -> Tensor:
    """Return a hyper-parameter in the dtype and on the device of `like`, so that stacked heads keep their dtype.

    Args:
        value: a number, or [H, 1, 1] of H stacked heads.
        like: any shape.

    Returns:
        A scalar tensor, or [H, 1, 1].
    """
    return value.to(like) if isinstance(value, Tensor) else like.new_full((), value)


def _by_label(labels: Tensor, present: Number, absent: Number, unknown: Number, like: Tensor) -> Tensor:
    """Return the value for each label, in the dtype and on the device of `like`."""
    if_present, if_absent, if_unknown = (matching(value, like) for value in (present, absent, unknown))
    if absent is unknown:
        return torch.where(labels > 0, if_present, if_absent)
    return torch.where(labels > 0, if_present, torch.where(labels < 0, if_absent, if_unknown))


def _by_label_on_cpu(labels: Tensor, present: Number, absent: Number, unknown: Number, like: Tensor) -> Tensor:
    """Do the same as `_by_label`, without a gradient: overwriting few entries in numpy is faster than torch.where."""
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
