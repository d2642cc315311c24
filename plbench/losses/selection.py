"""Selection of unknown labels to ignore: those likely present by the model or a prior (CSL, eqs. 5, 7 to 9)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plbench.losses.partial import Number, wide

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

_SHORT = 256  # row length up to which sorting is faster than finding candidates first
_BLOCK = 2**18  # logits processed at once, so that intermediate results stay in the CPU cache


def selective_weight(
    logits: Tensor,
    labels: Tensor,
    *,
    top_k: int | Tensor = 0,
    prior: Tensor | None = None,
    prior_threshold: Number | None = None,
    scope: Literal["sample", "batch"] = "sample",
) -> Tensor:
    """Return label weights: 0 for unknown labels that are likely present, 1 for all others (CSL, eqs. 5, 7 to 9).

    Unknown labels are ignored if they have the highest probabilities (O_L) or if their class has a high prior (O_P).
    Known labels are never ignored.

    Args:
        logits: [..., B, C], finite. No gradient flows back to them.
        labels: [B, C] of +1, -1 and 0.
        top_k: K >= 0 per image, int or [H, 1, 1]; if fewer labels are unknown, all of them are ignored. Ties are broken
            by lower index.
        prior: [C] estimated class prior; goes with `prior_threshold`.
        prior_threshold: eta; unknown labels of classes with a higher prior are ignored.
        scope: "sample", the paper's equation, ranks within each image; "batch", as in CSL's released code,
            ignores the K * B highest of all unknown labels of the batch.

    Returns:
        [..., B, C] of 0 and 1 in the dtype of the loss.

    Raises:
        ValueError: if `scope` is neither of the two, or only one of `prior` and `prior_threshold` is given.
    """
    if scope not in ("sample", "batch"):
        raise ValueError(f"scope is {scope!r}; it must be 'sample' or 'batch'")
    if (prior is None) != (prior_threshold is None):
        raise ValueError("prior and prior_threshold go together; give both or neither")
    if logits.device.type == "cpu":
        rows = max(1, _BLOCK // logits.shape[-1]) if logits.numel() > _BLOCK else 0
        if (
            not rows
            or scope == "batch"
            or logits.ndim != 2
            or labels.shape != logits.shape
            or isinstance(top_k, Tensor)
        ):
            return torch.from_numpy(_selective_weight_on_cpu(logits, labels, top_k, prior, prior_threshold, scope))
        weight = torch.empty(logits.shape, dtype=torch.promote_types(logits.dtype, torch.float32))
        for into, z, y in zip(weight.split(rows), logits.split(rows), labels.split(rows), strict=True):
            into.numpy()[:] = _selective_weight_on_cpu(z, y, top_k, prior, prior_threshold, scope)
        return weight
    return _selective_weight_plain(logits, labels, top_k, prior, prior_threshold, scope)


def _selective_weight_plain(
    logits: Tensor,
    labels: Tensor,
    top_k: int | Tensor,
    prior: Tensor | None,
    prior_threshold: Number | None,
    scope: str,
) -> Tensor:
    """Compute `selective_weight` in torch."""
    unknown = labels == 0
    scores = torch.where(unknown, wide(logits.detach()), -torch.inf)
    count = torch.as_tensor(top_k, dtype=torch.int64)
    if scope == "sample":
        ignored = _highest(scores, count)
    else:
        num_images = scores.shape[-2]
        pooled = scores.flatten(-2).unsqueeze(-2)  # [..., 1, B * C]: the batch as if it were one image
        ignored = _highest(pooled, count * num_images).unflatten(-1, scores.shape[-2:]).squeeze(-3)
    if prior is not None and prior_threshold is not None:
        ignored = ignored | (prior > _matching_threshold(prior, prior_threshold))
    # known labels rank last with -inf, but are among the highest if K exceeds the number of unknown ones
    return (~(ignored & unknown)).to(scores.dtype)


def _selective_weight_on_cpu(
    logits: Tensor,
    labels: Tensor,
    top_k: int | Tensor,
    prior: Tensor | None,
    prior_threshold: Number | None,
    scope: str,
) -> FloatArray:
    """Compute `selective_weight` in numpy, whose selection and comparisons take a fifth of the time."""
    logits_wide, known = wide(logits.detach()).numpy(), labels.detach().numpy() != 0
    scores = np.empty(np.broadcast_shapes(logits_wide.shape, known.shape), logits_wide.dtype)
    scores[...] = logits_wide
    np.copyto(scores, -np.inf, where=known)
    count = np.asarray(top_k, np.int64)
    if scope == "sample":
        ignored = _highest_on_cpu(scores, count)
    else:
        pooled = scores.reshape(*scores.shape[:-2], 1, -1)
        ignored = _highest_on_cpu(pooled, count * scores.shape[-2])
        ignored = ignored.reshape(*ignored.shape[:-2], *scores.shape[-2:])
    if prior is not None and prior_threshold is not None:
        ignored = ignored | (prior > _matching_threshold(prior, prior_threshold)).numpy()
    weight: FloatArray = (~ignored | known).astype(scores.dtype)
    return weight


def _matching_threshold(prior: Tensor, threshold: Number) -> Number:
    return threshold.to(prior) if isinstance(threshold, Tensor) else threshold


def _highest(scores: Tensor, count: Tensor) -> Tensor:
    """Mark the `count` (int64, scalar or [..., 1]) highest along the last dimension; ties by lower index."""
    # for K = 0, the first place is looked up as well, but nothing is marked
    place = (count - 1).clamp(0, scores.shape[-1] - 1)
    ranked = scores.topk(int(place.max()) + 1, dim=-1).values
    shape = torch.broadcast_shapes(count.shape, (*scores.shape[:-1], 1))
    threshold = ranked.expand(*shape[:-1], -1).gather(-1, place.to(scores.device).expand(shape))
    above, tied = scores > threshold, scores == threshold
    room = count.to(scores.device) - above.sum(dim=-1, keepdim=True)
    # int32: cumsum's own int64 takes twice the memory, and a row has no 2^31 labels
    return above | (tied & (tied.cumsum(dim=-1, dtype=torch.int32) <= room))


def _highest_on_cpu(scores: FloatArray, count: IntArray) -> BoolArray:
    """Compute `_highest` in numpy, except that -inf entries are marked if `count` exceeds the number of others."""
    size = scores.shape[-1]
    if not scores.size or not count.any():
        return np.zeros(np.broadcast_shapes((*count.shape[:-1], 1), scores.shape), np.bool_)
    # for K = 0, the first place is looked up as well, but nothing is marked
    place = np.clip(count - 1, 0, size - 1)
    depth = int(place.max()) + 1
    shape = np.broadcast_shapes(count.shape, (*scores.shape[:-1], 1))
    near = np.sort(_candidates(scores.reshape(-1, size), depth), axis=-1)
    near = near.reshape(*scores.shape[:-1], near.shape[-1])
    if place.ndim:
        places = np.broadcast_to(near.shape[-1] - 1 - place, shape)
        threshold = np.take_along_axis(np.broadcast_to(near, (*shape[:-1], near.shape[-1])), places, axis=-1)
    else:
        threshold = near[..., near.shape[-1] - depth, None]
    reached: BoolArray = scores >= threshold
    surplus = np.count_nonzero(near >= threshold, axis=-1, keepdims=True) - count
    # rare: only with ties, fewer unknown labels than K, or a K of 0 among others
    if np.any((surplus > 0) & (threshold > -np.inf)):
        above, tied = scores > threshold, scores == threshold
        room = count - np.count_nonzero(above, axis=-1, keepdims=True)
        reached = above | (tied & (np.cumsum(tied, axis=-1, dtype=np.int32) <= room))
    return reached


def _candidates(scores: FloatArray, depth: int) -> FloatArray:
    """Return entries [R, M] of each row [R, C] that include its `depth` highest; shorter rows are padded with -inf.

    Entries are split into groups. The `depth` groups with the highest maxima each contain an entry that reaches the
    lowest of these maxima, so entries below it are not among the highest. With 1.5 times as many groups, few others
    reach it.
    """
    size = scores.shape[-1]
    num_groups = depth + depth // 2 + 8
    if size <= _SHORT or size < 4 * num_groups:
        return scores
    in_groups = scores[:, : size - size % num_groups].reshape(len(scores), -1, num_groups)
    bound = np.partition(in_groups.max(axis=1), num_groups - depth, axis=-1)[:, num_groups - depth, None]
    is_near = scores >= bound
    num_near = np.count_nonzero(is_near, axis=-1)
    near = np.full((len(scores), max(depth, int(num_near.max()))), -np.inf, scores.dtype)
    near[np.arange(near.shape[1]) < num_near[:, None]] = scores.ravel()[np.flatnonzero(is_near)]
    return near
