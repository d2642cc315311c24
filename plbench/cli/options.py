"""Shared parts of commands: types of options, the workspace, and output."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from plbench.cli import completion
from plbench.cli.wording import in_options
from plbench.errors import PlbenchError, StoreError
from plbench.files.escaping import printable
from plbench.python.settings import OF_DATA
from plbench.python.settings import RUNS as RUNS
from plbench.runs.no_plugins import has_no_plugins
from plbench.training.launch import is_worker, write_failure

if TYPE_CHECKING:
    from plbench.runs.record import Record
    from plbench.runs.registry import Registry
    from plbench.runs.store import Store
    from plbench.runs.workspace import Workspace
    from plbench.training.distributed import World

Listing = tuple[list[dict[str, Any]], set[str] | None]
"""Rows, and the files and folders that they depend on besides plbench's own; None if these are unknown."""

Setting = Mapping[str, Any]
"""Values of options by name; None or missing if not given."""

Runs = Annotated[Path, typer.Option(envvar="PLBENCH_RUNS", help="Folder of runs.", show_default=True)]
Plugins = Annotated[list[Path] | None, typer.Option(help="A Python file with methods or datasets; may be repeated.")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder of the dataset's files.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print only JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Hide progress.")]
Method = Annotated[
    str | None, typer.Option("--method", "-m", help="Name of a method.", autocompletion=completion.method_names)
]
Dataset = Annotated[
    str | None,
    typer.Option("--dataset", "-d", help="Name of a dataset.", autocompletion=completion.dataset_names),
]
RunKey = Annotated[
    str,
    typer.Argument(
        metavar="KEY",
        help="Key of a run (its first characters are enough), or its folder.",
        autocompletion=completion.run_keys,
    ),
]
Run = Annotated[
    str,
    typer.Argument(
        help="Key of a run (its first characters are enough), or its folder.", autocompletion=completion.run_keys
    ),
]
Selection = Annotated[
    Literal["last", "validation", "best-on-test"] | None,
    typer.Option(help="How the reported epoch is chosen; default: last."),
]
NoRetrain = Annotated[
    bool | None,
    typer.Option(
        "--no-retrain",
        help="With --selection validation: test the model that was best on validation, without retraining.",
    ),
]
Param = Annotated[
    list[str] | None,
    typer.Option("--param", "-P", help="A parameter of the method, such as gamma_unann=4; may be repeated."),
]
Labels = Annotated[Path | None, typer.Option(help="CSV or Parquet file with your own labels (--dataset table).")]
Images = Annotated[Path | None, typer.Option(help="Folder of the images named in --labels.")]
NegativeValue = Annotated[
    str | None, typer.Option(help="Value that means verified absent in your labels: 0, -1 or none.")
]
DataOption = Annotated[
    list[str] | None,
    typer.Option("-D", "--data-option", help="Another option of the dataset, as name=value; may be repeated."),
]

Device = Annotated[str | None, typer.Option(help="Such as cpu or cuda; default: a GPU if available.")]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="Threads per process; default: OMP_NUM_THREADS, or the number of free cores."),
]
Workers = Annotated[int | None, typer.Option(min=0, help="Number of processes that decode images.")]
Decode = Annotated[
    Literal["pil", "gpu"] | None,
    typer.Option(help="gpu decodes JPEG files on the GPU, with slightly different pixels; default: pil."),
]
Compile = Annotated[bool, typer.Option("--compile", help="Use torch.compile, except for heads that train together.")]
SaveEvery = Annotated[float | None, typer.Option(min=0.0, help="Seconds between checkpoints; default: 20.")]
Track = Annotated[list[str] | None, typer.Option(help="Log to tensorboard, mlflow or wandb; may be repeated.")]


def echo(text: object, *, err: bool = False, nl: bool = True) -> None:
    """Print text to standard output or standard error, without control characters."""
    typer.echo(printable(str(text), keep="\n\t"), err=err, nl=nl)


def say(text: str, code: int) -> int:
    """Print one line to standard error, and return the exit code."""
    text = in_options(text)
    if is_worker():
        write_failure(f"plbench: {text}", code)
    else:
        rank = os.environ.get("RANK", "0")
        echo(f"plbench{'' if rank == '0' else f', process {rank}'}: {text}", err=True)
    return code


def with_options(shared: Callable[..., None]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that appends the options of `shared` to a command; it gets their values as first argument."""
    options = inspect.signature(shared, eval_str=True).parameters

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

        @functools.wraps(command)
        def wrapped(**values: Any) -> None:
            setting = {name: values.pop(name) for name in options}
            command(setting, **values)

        every = [*own, *options.values()]
        wrapped.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {option.name: option.annotation for option in every}  # typer reads these
        return wrapped

    return decorate


def open_store(runs: Path) -> Store:
    """Return the store of a folder of runs, with its cache."""
    from plbench.runs.store import Store

    return Store.at(runs)


def open_registry(plugins: list[Path] | None) -> Registry:
    """Return the registry of installed plugins and the given plugin files."""
    from plbench.runs.registry import Registry

    return Registry.discover(tuple(plugins or ()))


def make_workspace(given: Setting, world: World | None = None) -> Workspace:
    """Return the workspace given by a command's options.

    Raises:
        PlbenchError: if an option is invalid, or needs a device or package that is not available.
    """
    from plbench.cli.console import ConsoleReporter
    from plbench.python.settings import workspace_of

    progress = ConsoleReporter(quiet=bool(given.get("quiet")) or not (world is None or world.is_main))
    own = {"plugins": given.get("plugin"), "data_options": data_options(given), "progress": progress}
    return workspace_of({**given, **own}, world)


def all_records(runs: Path) -> list[tuple[Path, Record]]:
    """Return runs whose record matches its tables, oldest first; report others, without hiding any."""
    from plbench.runs.stored import read_own_run

    store = open_store(runs)
    found = []
    for folder in map(store.run_folder, store.keys()):
        try:
            found.append((folder, read_own_run(folder)))
        except PlbenchError as error:
            say(f"left out: {error}", 0)
    return sorted(found, key=lambda item: item[1].finished_at)


def listed(what: str, options: Setting, runs: Path, make: Callable[[], Listing]) -> list[dict[str, Any]]:
    """Return the rows of a command that lists plugins, cached while nothing that they depend on changes.

    Args:
        what: name of the list.
        options: of the command that affect the list, by name.
        runs: folder of runs, next to which the cache is.
        make: imports all plugins, which takes seconds.
    """
    from plbench.runs import answered

    store, identity = open_store(runs), None
    with contextlib.suppress(OSError):  # a folder that cannot be read is reported by its plugin
        identity = answered.command_sha256({"list": what, **options})
    found = None if identity is None else answered.recall_rows(store, identity)
    if found is not None:
        return found
    rows, files = make()
    if identity is not None and files is not None:
        with contextlib.suppress(StoreError):  # on a full disk, only caching fails
            answered.remember_rows(store, identity, rows, files)
    return rows


def emit(content: Any, as_json: bool, show: Callable[[], None]) -> None:
    """Print only JSON to standard output, or the readable form."""
    if not as_json:
        show()
        return
    from pydantic import BaseModel

    def plain(value: Any) -> Any:
        return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)

    typer.echo(json.dumps(content, default=plain, indent=1, allow_nan=False))


def parse_assignments(
    texts: Sequence[str] | None, option: str = "-P", example: str = "gamma_unann=4", given: Setting | None = None
) -> dict[str, Any]:
    """Parse "name=value" texts to a dictionary, in addition to `given`.

    Raises:
        PlbenchError: if one has no "=", or a name is repeated.
    """
    values = dict(given or {})
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise PlbenchError(f"{option} {text!r} is not of the form name=value, such as {option} {example}")
        if name in values:
            raise PlbenchError(f"{option} {name} is given twice ({values[name]} and {value}); give it once")
        values[name] = value
    return values


def data_options(given: Setting) -> dict[str, Any]:
    """Return a dataset's options given as name=value, by name."""
    own = {name: given[name] for name in OF_DATA if given.get(name) is not None}
    values = parse_assignments(given.get("data_option"), "-D", "layout=wide", own)
    return {name: value for name, value in values.items() if name not in own}


def typed(**options: Any) -> list[str]:
    """Return options as words of a command line; None and False are left out, lists repeat their option.

    Examples:
        >>> typed(seed=0, dry_run=True, quiet=False, param=["a=1", "b=2"], runs=None)
        ['--seed', '0', '--dry-run', '-P', 'a=1', '-P', 'b=2']
    """
    words = []
    for name, value in options.items():
        option = {"param": "-P", "data_option": "-D"}.get(name) or f"--{name.replace('_', '-')}"
        for entry in value if isinstance(value, (list, tuple)) else [value]:
            words += [] if entry is None or entry is False else [option] if entry is True else [option, str(entry)]
    return words


def command(*words: str, runs: Path = RUNS, plugin: Sequence[Path] | None = None) -> str:
    """Return a plbench command line, with the locations of plugins and runs."""
    first = ["--no-plugins"] if has_no_plugins() else []
    return shlex.join(["plbench", *first, *words, *typed(plugin=plugin, runs=None if runs == RUNS else runs)])
