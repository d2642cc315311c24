"""Loss terms for partial labels, class priors, and per-sample state."""

from plbench.losses.partial import Number as Number
from plbench.losses.partial import binary_cross_entropy as binary_cross_entropy
from plbench.losses.partial import known_count_weight as known_count_weight
from plbench.losses.partial import known_proportion_weight as known_proportion_weight
from plbench.losses.partial import label_smoothing_loss as label_smoothing_loss
from plbench.losses.partial import partial_asymmetric_loss as partial_asymmetric_loss
from plbench.losses.partial import soft_prior_weight as soft_prior_weight
from plbench.losses.partial import temperature_negative_loss as temperature_negative_loss
from plbench.losses.selection import selective_weight as selective_weight
