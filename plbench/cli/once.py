"""Options of one value that are given twice are refused: left to itself, the parser takes the last without a word."""

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
    """A command whose options of one value may come once."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words of a command line, after a look at what comes twice.

        Raises:
            PlbenchError: if an option of one value does, or a flag in both its forms: both values.
        """
        if ctx.resilient_parsing:  # a shell asks how a line may go on
            return super().parse_args(ctx, args)
        try:
            return self._parse_once(ctx, args)
        except typer.BadParameter as error:  # typer has pydantic check values, and hands its words on
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
    """Commands of which each refuses an option of one value that is given twice."""

    def __call__(self, *args: Any, **settings: Any) -> Any:
        """Run the command line as typer does.

        Only the command that its first words name is built: typer makes a validator of each of the thousand options,
        which takes longer than most commands. For help and for what is mistyped, all of them are.
        """
        return typer.Typer.__call__(self.narrowed(args[0] if args else sys.argv[1:]), *args, **settings)

    def narrowed(self, words: Sequence[str]) -> Self:
        """Return these commands without those that are not named, or as they are where the first word names none.

        Args:
            words: of a command line, after the name of the program or of the group.
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
        """Register a command as typer does."""
        return super().command(*args, **{"cls": OnceCommand, **settings})


def _name(callback: Callable[..., Any] | None) -> str:
    return getattr(callback, "__name__", "").replace("_", "-")  # as typer names a command without a name
