"""Hold a loss's detached values constant, so that finite differences estimate its intended gradient.

A method may detach values such as a focusing factor, a pseudo-label or a rank. Automatic differentiation treats them as
constants, so finite differences must do the same; otherwise they estimate the derivative of a different function. The
loss is therefore computed once while all values that leave differentiation are recorded, and then repeatedly at
neighbouring parameters with the recorded values substituted.

A value leaves differentiation if it carries no gradient although one of its inputs does: results of `detach`, `data`
and `item`, everything under `torch.no_grad`, and comparisons, ranks and indices. Values computed from these are then
constant, too. A `torch.autograd.Function` that omits terms from its backward pass cannot be observed from outside. It
must define a static method `plain` with the same arguments that computes the same with ordinary operations and
`detach`; finite differences use `plain`, and the function's own gradient must match.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

_PLAIN_KINDS = (bool, int, float, complex, list)
_WRITING = frozenset({"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__iand__", "__ior__"})


class PathChanged(Exception):
    """The computation called different functions than when it was recorded."""


class Constants(TorchFunctionMode):
    """Records the values that leave differentiation in one computation, and substitutes them in later ones.

    Attributes:
        is_narrowed: whether a float64 value with a gradient was cast to float32.
    """

    def __init__(self) -> None:
        super().__init__()
        self._notes: list[tuple[str, list[Any]]] = []
        self._next: int | None = None  # None while recording
        self._in_function = False  # a custom function, differentiable as a whole
        self.is_narrowed = False

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Record the values of the first computation."""
        self._notes, self._next = [], None
        with self, self._custom_functions():
            yield

    @contextlib.contextmanager
    def putting_back(self) -> Iterator[None]:
        """Substitute the recorded values in a later computation.

        Raises:
            PathChanged: if it calls different functions than the first.
        """
        self._next = 0
        with self, self._custom_functions():
            yield
        if self._next != len(self._notes):
            raise PathChanged

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Handle a call of any torch function; calls made in here are not intercepted again."""
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        given = [value for value in tensors if value.requires_grad]
        if self._in_function or not given or isinstance(result, torch.Size):
            return result
        name = getattr(function, "__name__", str(function))
        writes = name in _WRITING or (name.endswith("_") and not name.endswith("__"))
        if writes and isinstance(args[0], Tensor) and not args[0].requires_grad:  # its content is as recorded
            noted = self._kept(name, [args[0]])[0]
            if noted is not args[0]:
                args[0].copy_(noted)
            return result
        parts, shape = tree_flatten(result)
        is_wide = any(value.dtype == torch.float64 for value in given)
        self.is_narrowed |= is_wide and any(isinstance(p, Tensor) and p.dtype == torch.float32 for p in parts)
        places = [
            place
            for place, part in enumerate(parts)
            if isinstance(part, _PLAIN_KINDS) or (isinstance(part, Tensor) and not part.requires_grad)
        ]
        if not places:
            return result
        for place, value in zip(places, self._kept(name, [parts[place] for place in places]), strict=True):
            parts[place] = value
        return tree_unflatten(parts, shape)

    def _kept(self, name: str, values: list[Any]) -> list[Any]:
        """Record values and return them, or return copies of those recorded."""
        if self._next is None:
            self._notes.append((name, [_copied(value) for value in values]))
            return values
        if self._next >= len(self._notes):
            raise PathChanged
        noted_name, noted = self._notes[self._next]
        if noted_name != name or len(noted) != len(values):
            raise PathChanged
        self._next += 1
        return [_copied(value) for value in noted]

    @contextlib.contextmanager
    def _custom_functions(self) -> Iterator[None]:
        """Replace a `torch.autograd.Function` by its `plain` if it has one; otherwise treat it as a whole."""
        original: Any = torch.autograd.Function.__dict__["apply"]

        def apply(kind: Any, *args: Any, **kwargs: Any) -> Any:
            if (plain := getattr(kind, "plain", None)) is not None:
                return plain(*args, **kwargs)
            before, self._in_function = self._in_function, True
            try:
                return original.__get__(None, kind)(*args, **kwargs)
            finally:
                self._in_function = before

        torch.autograd.Function.apply = classmethod(apply)  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            torch.autograd.Function.apply = original  # type: ignore[method-assign]


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
