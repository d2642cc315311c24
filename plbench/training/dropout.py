"""Dropout whose masks follow from the run's seed, the step, the layer and the image's row in the global batch alone.

So a batch is masked alike in one piece or several, in one process or eight, in a head alone or in a stack.
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
_PER_COUNT = 16  # elements that one count of Philox decides: 256 bits
_BY_CHANNEL = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


class Dropout:
    """What the dropout layers of one model draw while it trains.

    Philox is counter-based: the numbers of a row are found without drawing those of the rows before it.
    """

    def __init__(self, seed: int, model: nn.Module) -> None:
        """Take the model's dropout layers in order, and the seed of the run."""
        self._seed = seed
        self._numbers = {layer: number for number, layer in enumerate(_random_layers(model))}
        self._calls: Counter[int] = Counter()
        self._step, self._first_row, self._num_rows = 0, 0, 0

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Let the model's layers draw from here inside the scope, where `drawing` is under way."""
        for layer in self._numbers:
            layer.forward = partial(self._masked, layer)
        try:
            yield
        finally:
            for layer in self._numbers:
                # brings the class's own forward back, which the instance's attribute hid
                del layer.forward

    @contextmanager
    def drawing(self, step: int, first_row: int, num_rows: int) -> Iterator[None]:
        """Enter the forward pass, and backward where it computes activations again, of some rows of a step's batch.

        `first_row` is the place of the first of them in the global batch.
        """
        self._step, self._first_row, self._num_rows = step, first_row, num_rows
        self.rewind()
        try:
            yield
        finally:
            # outside a step the layers draw as torch's do (`_masked`)
            self._num_rows = 0

    def rewind(self) -> None:
        """Start over, so that activations that are computed again are masked as they were."""
        self._calls.clear()

    def factors(self, layer: nn.Module, shape: Sequence[int], dropped: float, values: Tensor) -> Tensor:
        """Return what a layer multiplies values by in its next call: 0, or 1 / (1 - dropped).

        Args:
            shape: of the factors. The first dimension is that of the rows, or a multiple of it, row by row.
            dropped: chance of 0.
            values: gives type and device.
        """
        number = self._numbers[layer]
        key = derive_seed(self._seed, "dropout", self._step, number, self._calls[number])
        self._calls[number] += 1
        # at least 1, as kept values are divided by it
        kept = max(1, round((1.0 - dropped) * _LEVELS))
        if len(shape) == 3:  # [rows, places, width]: a sequence's length may be that of the longest one in a share
            places = [self._drawn(key, place, shape[2] * shape[0] // self._num_rows) for place in range(shape[1])]
            drawn = np.stack([place.reshape(shape[0], shape[2]) for place in places], axis=1)
        else:
            drawn = self._drawn(key, 0, math.prod(shape) // self._num_rows)
        is_kept = torch.from_numpy(drawn < kept)
        if values.device.type == "cuda":
            is_kept = is_kept.pin_memory()  # else the copy would wait for all that the GPU has still to do
        # by the chance as it was rounded, not as it was asked for: the mean has to stay
        return is_kept.reshape(*shape).to(values, non_blocking=True).mul_(_LEVELS / kept)

    def _drawn(self, key: int, place: int, width: int) -> npt.NDArray[np.uint16]:
        """Return [rows, width] numbers of 16 bits."""
        counts = -(-width // _PER_COUNT)
        # places lie 2^64 counts apart, so that the rows of one never reach into the next
        bits = np.random.Philox(key=key, counter=(place << 64) + self._first_row * counts)
        # four words of 64 bits a count; little-endian, so that every machine cuts them into the same 16 bits
        raw = bits.random_raw(self._num_rows * counts * 4).astype("<u8", copy=False)
        return raw.view("<u2").reshape(self._num_rows, -1)[:, :width]

    # numpy draws the masks, which no compiled graph can hold
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _masked(self, layer: nn.Module, values: Tensor) -> Tensor:
        """Return a layer's output."""
        dropped = _chance(layer)
        if not layer.training or dropped == 0.0:
            return values
        # what is not rows of the batch has no place to draw by; with a chance of 1 there is nothing to scale up
        if not self._num_rows or len(values) % self._num_rows or dropped >= 1.0:
            own: Tensor = type(layer).forward(layer, values)
            return own  # outside a step, such as passes with dropout in a hook
        # one factor a value, a channel of an image, or, in stochastic depth, an image
        kept_dims = values.ndim if isinstance(layer, nn.Dropout) else 2 if isinstance(layer, _BY_CHANNEL) else 1
        shape = (*values.shape[:kept_dims], *(1 for _ in values.shape[kept_dims:]))
        factors = self.factors(layer, shape, dropped, values)
        # timm's stochastic depth may be told not to scale what is kept
        return values * (factors if getattr(layer, "scale_by_keep", True) else factors.sign())


def draws_alone(model: nn.Module) -> bool:
    """Return whether something in a model draws by itself when it trains, so that each process draws its own."""
    own = set(_random_layers(model))

    def draws(name: str, layer: nn.Module) -> bool:
        if name.endswith("attn_drop") and _chance(layer) > 0:
            return True  # torch's fused attention asks for the chance alone
        names = ["drop_rate", "dropout", "drop_prob", "prob"]
        names += ["p"] * isinstance(layer, nn.modules.dropout._DropoutNd)
        rates = [] if layer in own else [getattr(layer, rate, 0.0) for rate in names]
        return any(isinstance(rate, float) and rate > 0 for rate in rates)

    return any(draws(name, layer) for name, layer in model.named_modules())


def has_batch_statistics(model: nn.Module) -> bool:
    """Return whether what a model makes of an image while it trains depends on the others of its batch."""
    # by name: the layers of inplace-abn have no base class in common with torch's
    kinds = {base.__name__.lower() for layer in model.modules() for base in type(layer).__mro__}
    return any(word in kind for kind in kinds for word in ("batchnorm", "inplaceabn"))


def _random_layers(model: nn.Module) -> list[nn.Module]:
    """Return layers that are masked row by row: dropout, and timm's stochastic depth."""
    kinds = (nn.Dropout, *_BY_CHANNEL)
    return [layer for layer in model.modules() if isinstance(layer, kinds) or type(layer).__name__ == "DropPath"]


def _chance(layer: nn.Module) -> float:
    """Return chance of 0 in a dropout layer; `drop_prob` is timm's name."""
    return float(getattr(layer, "p", None) or getattr(layer, "drop_prob", None) or 0.0)
