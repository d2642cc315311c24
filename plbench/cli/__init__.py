"""The command line: parse, call one function, print. Slow imports are inside commands."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import os
import re
import shlex
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import Annotated

import typer

from plbench import __version__
from plbench.cli.advise import advise
from plbench.cli.board import board_app
from plbench.cli.compare import compare
from plbench.cli.completion import join_words
from plbench.cli.data import data_app
from plbench.cli.export import export
from plbench.cli.inspect import doctor, methods_app, runs_app
from plbench.cli.once import CommandGroup
from plbench.cli.options import echo, say
from plbench.cli.predict import predict
from plbench.cli.pseudo_label import pseudo_label
from plbench.cli.run import run
from plbench.cli.show import show
from plbench.cli.study import study
from plbench.cli.sweep import sweep_app
from plbench.cli.tune import tune
from plbench.errors import PlbenchError, UnwritableError
from plbench.runs.no_plugins import NO_PLUGINS
from plbench.training.interruption import Stopped
from plbench.training.launch import is_worker, write_failure

_START = """\
plbench {version}: which way of training copes best with labels that are only partly known?

Start with one of these:

  plbench run --method selective --dataset scenes
      Train one method on a small built-in dataset: about a minute, no download.

  plbench compare --dataset scenes --methods paper
      Compare the methods of a paper on it: which one is best, and how certain is that?

  plbench advise --labels labels.csv --images photos
      For your own labels and images: which methods should you try?

  plbench --help                  all commands; plbench COMMAND --help explains one
  plbench --install-completion    complete methods, datasets and runs with the Tab key

Documentation: docs/ in the repository; make docs builds it as a site."""

app = CommandGroup(
    help="The benchmark suite for learning from images whose labels are only partly known.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(run)
app.command()(tune)
app.command()(compare)
app.command()(predict)
app.command()(export)
app.command("pseudo-label")(pseudo_label)
app.command()(show)
app.command()(study)
app.command()(advise)
app.command()(doctor)
app.add_typer(sweep_app, name="sweep")
app.add_typer(methods_app, name="methods")
app.add_typer(data_app, name="data")
app.add_typer(runs_app, name="runs")
app.add_typer(board_app, name="board")


def main() -> None:
    """Run the command line; errors that the user can fix are printed as one sentence, with exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for encodings that lack some characters
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
        _name_bus_errors()
    join_words()
    try:
        with plain_warnings():
            app(prog_name="plbench")  # ends with SystemExit: 0, or 2 for invalid options
    except PlbenchError as error:
        options = "--runs DIR, --out, --data-root or PLBENCH_CACHE=DIR"
        place = f" with {options}" if isinstance(error, UnwritableError) else ""
        sys.exit(say(f"error: {' '.join(str(error).splitlines())}{place}", 2))
    except (SystemExit, KeyboardInterrupt) as leave:
        if isinstance(leave, SystemExit) and leave.code != 130:  # raised by typer on Ctrl-C
            raise
        cause: BaseException | None = leave
        while cause is not None and not isinstance(cause, Stopped):
            cause = cause.__cause__ or cause.__context__
        code = 128 + (signal.SIGINT if cause is None else cause.number)
        command = shlex.join(["plbench", *sys.argv[1:]])
        sys.exit(code if is_worker() else say(f"stopped; to continue: {command}", code))
    except Exception as error:
        if isinstance(error, OSError) and error.strerror is not None:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                what = error.filename or "a file or a process"
                sys.exit(say(f"error: {what}: {error.strerror}; allow this program more of them (ulimit -n 1024)", 2))
            where = error.filename or ("a file or the output" if error.errno == errno.ENOSPC else None)
            if where is not None:
                sys.exit(
                    say(f"error: {where}: {error.strerror}; free some space, allow writing, or choose another place", 2)
                )
        if is_worker():  # only the launcher prints, and only the first failure
            write_failure(traceback.format_exc(), 1)
            os._exit(1)  # without another traceback
        raise


def _bus_error(number: int) -> None:
    text = "a file was cut short while it was in use, or a disk or /dev/shm is full; run the same command again"
    os.write(2, f"plbench: error: {text}\n".encode())
    os._exit(2)  # an exception here would be raised by the same access again


if sys.platform != "win32":
    _ON_BUS_ERROR = ctypes.CFUNCTYPE(None, ctypes.c_int)(_bus_error)  # kept alive, since C holds no reference


def _name_bus_errors() -> None:
    """End the program with a message on SIGBUS, which accessing a missing page of a memory-mapped file raises."""
    if sys.platform != "win32":
        libc = ctypes.CDLL(None)
        # Python's own handlers run between instructions, and the failing one would never end
        libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, type(_ON_BUS_ERROR)], ctypes.c_void_p
        libc.signal(signal.SIGBUS, _ON_BUS_ERROR)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Show each warning as one plain line inside the scope; of those that differ only in numbers, only the first."""
    seen: set[tuple[str, str]] = set()

    def show(message: Warning | str, category: type[Warning], *place: object, **options: object) -> None:
        text = " ".join(str(message).split())
        kind = (category.__name__, re.sub(r"\d+", "", text))
        # only the first of several processes shows warnings
        if kind not in seen and os.environ.get("RANK", "0") == "0":
            library = category.__module__.partition(".")[0]
            echo(f"plbench: note: {text} ({library}: {category.__name__})", err=True)
        seen.add(kind)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    no_plugins: Annotated[
        bool,
        typer.Option(
            "--no-plugins",
            help="Load only plbench's own methods and datasets; goes before the command, or set PLBENCH_NO_PLUGINS=1. "
            "plbench doctor lists the installed plugins.",
        ),
    ] = False,
) -> None:
    """The benchmark suite for learning from images whose labels are only partly known."""  # noqa: D401
    if no_plugins:
        os.environ[NO_PLUGINS] = "1"
    if version:
        echo(f"plbench {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        echo(_START.format(version=__version__))
