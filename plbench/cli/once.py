"""Reject repeated single-value options, of which the parser would silently use the last."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar

import typer
from typer.core import TyperCommand, TyperOption

from plbench.errors import PlbenchError, plain_words

Command = TypeVar("Command", bound=Callable[..., Any])

_ADVICE = {"labels": "put both tables into one file, with a column split that says train or test in each row"}


class OnceCommand(TyperCommand):
    """A command that rejects repeated single-value options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse a command line, after checking for repeated options.

        Raises:
            PlbenchError: if a single-value option, or a flag in both forms, is repeated, with both values.
        """
        if ctx.resilient_parsing:  # called for shell completion
            return super().parse_args(ctx, args)
        try:
            return self._parse_once(ctx, args)
        except typer.BadParameter as error:  # typer passes on pydantic's messages on values
            error.message = plain_words(error.message)
            raise

    def _parse_once(self, ctx: Any, args: list[str]) -> list[str]:
        collecting = copy.copy(self)
        collecting.params = [copy.copy(param) for param in self.params]
        single: list[Any] = [p for p in collecting.params if isinstance(p, TyperOption) and not (p.multiple or p.count)]
        for param in single:
            param.multiple = True
        found, _, _ = collecting.make_parser(ctx).parse_args(list(args))
        for param in single:
            values = list(found.get(param.name) or ())
            if len(values) > 1 and not (param.is_flag and len(set(values)) == 1):
                times = "twice" if len(values) == 2 else f"{len(values)} times"
                shown = " and ".join(map(str, values))
                advice = _ADVICE.get(str(param.name), "give it once")
                raise PlbenchError(f"{param.opts[0]} is given {times} ({shown}); {advice}")
        return super().parse_args(ctx, args)


class CommandGroup(typer.Typer):
    """A group of commands that reject repeated single-value options."""

    def __call__(self, *args: Any, **settings: Any) -> Any:
        """Run the command line like typer.

        Only the command named by the first words is built, since typer builds a validator for each of a thousand
        options, which takes longer than most commands. For help and mistyped commands, all are built.
        """
        return typer.Typer.__call__(self.narrowed(args[0] if args else sys.argv[1:]), *args, **settings)

    def narrowed(self, words: Sequence[str]) -> Self:
        """Return only the named command; all commands if the first word names none.

        Args:
            words: of a command line, after the name of the program or group.
        """
        word = words[0] if words else ""
        commands = [own for own in self.registered_commands if word in (own.name, _name(own.callback))]
        groups = [copy.copy(own) for own in self.registered_groups if own.name == word]
        if len(commands) + len(groups) != 1:
            return self
        for own in groups:
            if isinstance(own.typer_instance, CommandGroup):
                own.typer_instance = own.typer_instance.narrowed(words[1:])
        narrow = copy.copy(self)
        narrow.registered_commands, narrow.registered_groups = commands, groups
        return narrow

    def command(self, *args: Any, **settings: Any) -> Callable[[Command], Command]:
        """Register a command like typer."""
        return super().command(*args, **{"cls": OnceCommand, **settings})


def _name(callback: Callable[..., Any] | None) -> str:
    return getattr(callback, "__name__", "").replace("_", "-")  # typer's name of a command without one
