"""Options of one value that are given twice are refused: left to itself, the parser takes the last without a word."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand

from plbench.errors import PlbenchError

Command = TypeVar("Command", bound=Callable[..., Any])

_ADVICE = {"labels": "put both tables into one file, with a column split that says train or test in each row"}


class OnceCommand(TyperCommand):
    """A command whose options of one value may come once."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words of a command line, after a look at what comes twice.

        Raises:
            PlbenchError: if an option of one value does, or a flag in both its forms: both values.
        """
        collecting = copy.copy(self)
        collecting.params = [_collecting(param) for param in self.params]
        found, _, _ = collecting.make_parser(ctx).parse_args(list(args))
        for param in self.params:
            if not _is_single(param):
                continue
            values = list(found.get(param.name) or ())
            if len(values) > 1 and not (_is_flag(param) and len(set(values)) == 1):
                shown = " and ".join(map(str, values))
                advice = _ADVICE.get(str(param.name), "give it once")
                raise PlbenchError(f"{param.opts[0]} is given {_times(len(values))} ({shown}); {advice}")
        return super().parse_args(ctx, args)


class CommandGroup(typer.Typer):
    """Commands of which each refuses an option of one value that is given twice."""

    def command(self, *args: Any, **settings: Any) -> Callable[[Command], Command]:
        """Register a command as typer does."""
        return super().command(*args, **{"cls": OnceCommand, **settings})


def _is_single(param: Any) -> bool:
    return param.param_type_name == "option" and not param.multiple and not getattr(param, "count", False)


def _is_flag(param: Any) -> bool:
    return bool(getattr(param, "is_flag", False))


def _collecting(param: Any) -> Any:
    """Return a copy of a parameter that gathers every value it is given."""
    if not _is_single(param):
        return param
    twin = copy.copy(param)
    twin.multiple = True
    return twin


def _times(number: int) -> str:
    return "twice" if number == 2 else f"{number} times"
