"""The class prior: an estimate of each class's frequency, and its agreement with the true frequencies.

Sections and figures are those of Ben-Baruch et al., CVPR 2022 (CSL).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plbench.errors import PlbenchError


def class_average(probabilities: Tensor | Iterable[Tensor]) -> Tensor:
    """Return the estimated class prior: the mean predicted probability of each class (CSL, eq. 10).

    Args:
        probabilities: [N, C] in [0, 1], from a model in eval mode over the training split; or a stream of its [b, C]
            chunks, of which only one is held at a time.

    Returns:
        [C] float64 in [0, 1], on the device of the probabilities.

    Raises:
        PlbenchError: if N is 0.
    """
    chunks = [probabilities] if isinstance(probabilities, Tensor) else probabilities
    total: Tensor | None = None
    num_images = 0
    for chunk in chunks:
        # a half-precision sum would stop growing long before the end of a split
        chunk_sum = chunk.detach().sum(dim=0, dtype=torch.float64)
        total = chunk_sum if total is None else total + chunk_sum
        num_images += chunk.shape[0]
    if total is None or num_images == 0:
        raise PlbenchError("a class prior needs the predictions of at least one image, but there are none")
    return total / num_images


def spearman_by_depth(
    estimate: Tensor | npt.ArrayLike, truth: Tensor | npt.ArrayLike, depths: Sequence[int]
) -> npt.NDArray[np.float64]:
    """Return Spearman's correlation of the estimated with the true prior over the k most frequent classes (fig. 7).

    Classes with NaN in either are ignored.

    Args:
        estimate: [C]; only its ranks matter, so it need not be calibrated.
        truth: [C]; determines the most frequent classes, ties by index.
        depths: values of k; larger ones than the number of classes use all classes.

    Returns:
        [len(depths)] in [-1, 1]; NaN if undefined: fewer than two classes, or all estimates or all true values equal.

    Raises:
        PlbenchError: if estimate and truth are not vectors of one length.
    """
    estimated, true = np.asarray(estimate, np.float64), np.asarray(truth, np.float64)
    if estimated.ndim != 1 or estimated.shape != true.shape:
        raise PlbenchError(f"priors of shapes {estimated.shape} and {true.shape} do not match class by class")
    defined = ~(np.isnan(estimated) | np.isnan(true))
    estimated, true = estimated[defined], true[defined]
    order = np.argsort(-true, kind="stable")
    return np.array([_spearman(estimated[order[:k]], true[order[:k]]) for k in depths], dtype=np.float64)


def top_classes(prior: Tensor | npt.ArrayLike, names: Sequence[str], k: int = 20) -> list[tuple[str, float]]:
    """Return the classes with the highest prior and their values, highest first; ties by index (fig. 5).

    Args:
        prior: [C].
        names: [C] display names.
        k: number of classes; all if there are fewer.

    Raises:
        PlbenchError: if there are not as many names as classes.
    """
    values = np.asarray(prior, np.float64)
    if len(values) != len(names):
        raise PlbenchError(f"a prior of {len(values)} classes does not go with {len(names)} class names")
    return [(names[index], float(values[index])) for index in np.argsort(-values, kind="stable")[:k]]


def threshold_for_top(prior: Tensor | npt.ArrayLike, num_classes: int) -> float:
    """Return the threshold eta that exactly the `num_classes` most probable classes exceed: eta as a quantile.

    It is the prior of the next class in order. If that class is tied with earlier ones, none of the tied classes
    exceeds the threshold, so there may be fewer than `num_classes`, never more.

    Args:
        prior: [C] in [0, 1], without NaN.
        num_classes: number of classes above the threshold; at least 0.

    Returns:
        A threshold in [0, 1], or -1 if all classes are to be above.

    Raises:
        PlbenchError: if `num_classes` is negative.
    """
    if num_classes < 0:
        raise PlbenchError(f"{num_classes} classes cannot be above a threshold; ask for at least 0")
    descending = -np.sort(-np.asarray(prior, np.float64))
    return float(descending[num_classes]) if num_classes < len(descending) else -1.0


def _spearman(estimate: npt.NDArray[np.float64], truth: npt.NDArray[np.float64]) -> float:
    """Return the Spearman correlation of two [k] vectors; NaN if undefined."""
    if len(truth) < 2 or np.ptp(estimate) == 0 or np.ptp(truth) == 0:
        return float("nan")
    from scipy import stats  # half a second to import, for diagnostics alone

    return float(stats.spearmanr(estimate, truth).statistic)
