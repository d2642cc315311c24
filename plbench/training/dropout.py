"""Dropout with masks that depend only on the run's seed, the step, the layer, and the image's row in the global batch.

Masks are thus the same for a batch in one or several pieces, one or several processes, and a single or stacked head.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from plbench.randomness import derive_seed

_LEVELS = 1 << 16  # values of the 16 bits that decide one element
_PER_COUNT = 16  # elements per count of Philox, which gives 256 bits
_BY_CHANNEL = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


class Dropout:
    """Random masks for the dropout layers of one model in training.

    Philox is counter-based: the numbers of a row do not require those of earlier rows.
    """

    def __init__(self, seed: int, model: nn.Module) -> None:
        """Register the model's dropout layers in order, and the seed of the run."""
        self._seed = seed
        self._numbers = {layer: number for number, layer in enumerate(_random_layers(model))}
        self._calls: Counter[int] = Counter()
        self._step, self._first_row, self._num_rows = 0, 0, 0

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Make the model's layers use these masks inside the scope, while `drawing` is active."""
        for layer in self._numbers:
            layer.forward = partial(self._masked, layer)
        try:
            yield
        finally:
            for layer in self._numbers:
                # restores the class's method, which the instance attribute hides
                del layer.forward

    @contextmanager
    def drawing(self, step: int, first_row: int, num_rows: int) -> Iterator[None]:
        """Surround forward and backward (which may recompute activations) on some rows of a step's batch.

        `first_row` is the position of the first of them in the global batch.
        """
        self._step, self._first_row, self._num_rows = step, first_row, num_rows
        self.rewind()
        try:
            yield
        finally:
            # outside a step, layers use torch's dropout (`_masked`)
            self._num_rows = 0

    def rewind(self) -> None:
        """Restart, so that recomputed activations get the same masks."""
        self._calls.clear()

    def factors(self, layer: nn.Module, shape: Sequence[int], dropped: float, values: Tensor) -> Tensor:
        """Return the factors of a layer's next call: 0, or 1 / (1 - dropped).

        Args:
            shape: of the factors. The first dimension is the number of rows, or a multiple of it, row by row.
            dropped: probability of 0.
            values: determines type and device.
        """
        number = self._numbers[layer]
        key = derive_seed(self._seed, "dropout", self._step, number, self._calls[number])
        self._calls[number] += 1
        # at least 1, since kept values are divided by it
        kept = max(1, round((1.0 - dropped) * _LEVELS))
        if len(shape) == 3:  # [rows, positions, width]: the number of positions may differ between shares
            places = [self._drawn(key, place, shape[2] * shape[0] // self._num_rows) for place in range(shape[1])]
            drawn = np.stack([place.reshape(shape[0], shape[2]) for place in places], axis=1)
        else:
            drawn = self._drawn(key, 0, math.prod(shape) // self._num_rows)
        is_kept = torch.from_numpy(drawn < kept)
        if values.device.type == "cuda":
            is_kept = is_kept.pin_memory()  # otherwise the copy would wait for all queued GPU work
        # scaled by the rounded probability, to keep the mean
        return is_kept.reshape(*shape).to(values, non_blocking=True).mul_(_LEVELS / kept)

    def _drawn(self, key: int, place: int, width: int) -> npt.NDArray[np.uint16]:
        """Return 16-bit random numbers [rows, width]."""
        counts = -(-width // _PER_COUNT)
        # positions are 2^64 counts apart, so that their rows never overlap
        bits = np.random.Philox(key=key, counter=(place << 64) + self._first_row * counts)
        # four 64-bit words per count; little-endian, so that every machine splits them into the same 16 bits
        raw = bits.random_raw(self._num_rows * counts * 4).astype("<u8", copy=False)
        return raw.view("<u2").reshape(self._num_rows, -1)[:, :width]

    # masks are sampled by numpy, which cannot be compiled
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _masked(self, layer: nn.Module, values: Tensor) -> Tensor:
        """Return a layer's output."""
        dropped = _chance(layer)
        if not layer.training or dropped == 0.0:
            return values
        # inputs other than the batch's rows have no position for the mask; with probability 1 there is nothing to scale
        if not self._num_rows or len(values) % self._num_rows or dropped >= 1.0:
            own: Tensor = type(layer).forward(layer, values)
            return own  # outside a step, such as passes with dropout in a hook
        # one factor per value, per channel of an image, or, for stochastic depth, per image
        kept_dims = values.ndim if isinstance(layer, nn.Dropout) else 2 if isinstance(layer, _BY_CHANNEL) else 1
        shape = (*values.shape[:kept_dims], *(1 for _ in values.shape[kept_dims:]))
        factors = self.factors(layer, shape, dropped, values)
        # timm's stochastic depth has an option to not scale kept values
        return values * (factors if getattr(layer, "scale_by_keep", True) else factors.sign())


def draws_alone(model: nn.Module) -> bool:
    """Return whether some layer has its own randomness in training, which differs between processes."""
    own = set(_random_layers(model))

    def draws(name: str, layer: nn.Module) -> bool:
        if name.endswith("attn_drop") and _chance(layer) > 0:
            return True  # torch's fused attention applies dropout itself
        names = ["drop_rate", "dropout", "drop_prob", "prob"]
        names += ["p"] * isinstance(layer, nn.modules.dropout._DropoutNd)
        rates = [] if layer in own else [getattr(layer, rate, 0.0) for rate in names]
        return any(isinstance(rate, float) and rate > 0 for rate in rates)

    return any(draws(name, layer) for name, layer in model.named_modules())


def has_batch_statistics(model: nn.Module) -> bool:
    """Return whether outputs for an image in training depend on the other images of its batch."""
    # by name: inplace-abn's layers share no base class with torch's
    kinds = {base.__name__.lower() for layer in model.modules() for base in type(layer).__mro__}
    return any(word in kind for kind in kinds for word in ("batchnorm", "inplaceabn"))


def _random_layers(model: nn.Module) -> list[nn.Module]:
    """Return layers that are masked row by row: dropout, and timm's stochastic depth."""
    kinds = (nn.Dropout, *_BY_CHANNEL)
    return [layer for layer in model.modules() if isinstance(layer, kinds) or type(layer).__name__ == "DropPath"]


def _chance(layer: nn.Module) -> float:
    """Return a layer's dropout probability; `drop_prob` is timm's name."""
    return float(getattr(layer, "p", None) or getattr(layer, "drop_prob", None) or 0.0)
