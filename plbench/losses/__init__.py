"""Loss terms for partial labels, class priors, and what methods remember: pure functions of tensors."""

from plbench.losses.partial import (
    Number,
    binary_cross_entropy,
    known_count_weight,
    known_proportion_weight,
    label_smoothing_loss,
    partial_asymmetric_loss,
    selective_weight,
    soft_prior_weight,
    temperature_negative_loss,
)

__all__ = [
    "Number",
    "binary_cross_entropy",
    "known_count_weight",
    "known_proportion_weight",
    "label_smoothing_loss",
    "partial_asymmetric_loss",
    "selective_weight",
    "soft_prior_weight",
    "temperature_negative_loss",
]
