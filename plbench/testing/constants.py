"""Holding still what a loss takes for constant, so that finite differences say what its gradient ought to be.

A method may detach: a focusing factor, a pseudo-label, a rank. Automatic differentiation then treats the value as a
constant, and so must a difference of two losses, or it measures the derivative of another function. So the loss is
computed once while every value that leaves differentiation is noted, and then again and again at neighbouring
parameters while each of those values is put back as it was.

What leaves differentiation is any result that carries no gradient though something it was made of does: `detach`,
`data` and `item`, everything under `torch.no_grad`, and comparisons, ranks and indices. What is then computed from it
is constant by itself. One thing is not seen from outside: a `torch.autograd.Function` that leaves a part out of its own
backward pass. It says what it computes in ordinary operations, with `detach` where no gradient is to flow, as a static
method `plain` of the same arguments; differences are taken of that, and the gradient of the function itself must match.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

_PLAIN_KINDS = (bool, int, float, complex, list)
_WRITING = frozenset({"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__iand__", "__ior__"})


class PathChanged(Exception):
    """The same computation called other functions than before."""


class Constants(TorchFunctionMode):
    """Notes what leaves differentiation in one computation, and puts it back in later ones.

    Attributes:
        is_narrowed: whether a float64 value with a gradient became float32 on the way.
    """

    def __init__(self) -> None:
        """Nothing is noted."""
        super().__init__()
        self._notes: list[tuple[str, list[Any]]] = []
        self._next: int | None = None  # None while noting
        self._suspended = False
        self.is_narrowed = False

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Note the values of the first computation."""
        self._notes, self._next = [], None
        with self, _functions_as(self._applied):
            yield

    @contextlib.contextmanager
    def putting_back(self) -> Iterator[None]:
        """Put them back in a later one.

        Raises:
            PathChanged: if it does other things than the first.
        """
        self._next = 0
        with self, _functions_as(self._applied):
            yield
        if self._next != len(self._notes):
            raise PathChanged

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Handle a call of any function of torch."""
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if self._suspended:
            return result
        given = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        if not any(value.requires_grad for value in given):
            return result
        name = getattr(function, "__name__", str(function))
        writes = name in _WRITING or (name.endswith("_") and not name.endswith("__"))
        if writes and isinstance(args[0], Tensor) and not args[0].requires_grad:
            self._write(name, args[0])
            return result
        return self._constant_parts(name, result, given)

    def _constant_parts(self, name: str, result: Any, given: list[Tensor]) -> Any:
        """Return the result, with the parts of it that carry no gradient as they were when they were noted."""
        if isinstance(result, torch.Size):
            return result
        parts, shape = tree_flatten(result)
        places = [
            place
            for place, part in enumerate(parts)
            if isinstance(part, _PLAIN_KINDS) or (isinstance(part, Tensor) and not part.requires_grad)
        ]
        self.is_narrowed |= any(
            isinstance(part, Tensor) and part.dtype == torch.float32 and value.dtype == torch.float64
            for part in parts
            for value in given
            if value.requires_grad
        )
        if not places:
            return result
        noted = self._kept(name, [parts[place] for place in places])
        for place, value in zip(places, noted, strict=True):
            parts[place] = value
        return tree_unflatten(parts, shape)

    def _write(self, name: str, target: Tensor) -> None:
        """Restore a tensor without gradient that was written to, from one with: its content is as it was noted."""
        noted = self._kept(name, [target])[0]
        if noted is not target:
            with self._suspension(), torch.no_grad():
                target.copy_(noted)

    def _kept(self, name: str, values: list[Any]) -> list[Any]:
        """Note values and return them, or return those that were noted, in tensors of their own."""
        with self._suspension(), torch.no_grad():
            if self._next is None:
                self._notes.append((name, [_copied(value) for value in values]))
                return values
            if self._next >= len(self._notes) or self._notes[self._next][0] != name:
                raise PathChanged
            noted = self._notes[self._next][1]
            self._next += 1
            if len(noted) != len(values):
                raise PathChanged
            return [_copied(value) for value in noted]

    @contextlib.contextmanager
    def _suspension(self) -> Iterator[None]:
        before, self._suspended = self._suspended, True
        try:
            yield
        finally:
            self._suspended = before

    def _applied(self, kind: Any, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return a custom function in ordinary operations where it names them, else differentiable as a whole."""
        if (plain := getattr(kind, "plain", None)) is not None:
            return plain(*args, **kwargs)
        with self._suspension():
            return original(*args, **kwargs)


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


@contextlib.contextmanager
def _functions_as(applied: Callable[..., Any]) -> Iterator[None]:
    """Hand every use of a `torch.autograd.Function` to `applied(kind, original, *args)` while the scope lasts."""
    original: Any = torch.autograd.Function.__dict__["apply"]

    def apply(kind: Any, *args: Any, **kwargs: Any) -> Any:
        return applied(kind, original.__get__(None, kind), *args, **kwargs)

    torch.autograd.Function.apply = classmethod(apply)  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        torch.autograd.Function.apply = original  # type: ignore[method-assign]
