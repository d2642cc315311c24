"""What the commands share: their options' types, the workspace that they make of them, and how they print."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from plbench.cli.wording import in_options
from plbench.errors import PlbenchError
from plbench.training.launch import is_worker, write_failure

if TYPE_CHECKING:
    from plbench.runs.record import Record
    from plbench.runs.registry import Registry
    from plbench.runs.store import Store
    from plbench.runs.workspace import Workspace
    from plbench.training.distributed import World


Runs = Annotated[Path, typer.Option("--runs", envvar="PLBENCH_RUNS", help="Folder of runs.", show_default=True)]
Plugins = Annotated[
    list[Path] | None,
    typer.Option("--plugin", help="A Python file with methods or datasets; may be repeated."),
]
DataRoot = Annotated[Path | None, typer.Option("--data-root", help="The dataset's own folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
RUNS = Path("runs")
Method = Annotated[str | None, typer.Option("--method", "-m", help="Name of a method.")]
Dataset = Annotated[str | None, typer.Option("--dataset", "-d", help="Name of a dataset.")]
Selection = Annotated[
    Literal["last", "validation", "best-on-test"] | None,
    typer.Option("--selection", help="What chooses the epoch; default: last."),
]
Param = Annotated[
    list[str] | None,
    typer.Option("--param", "-P", help="A parameter of the method, such as gamma_unann=4."),
]
Labels = Annotated[
    Path | None, typer.Option("--labels", help="Your own labels, a CSV or Parquet file (dataset table).")
]
Images = Annotated[Path | None, typer.Option("--images", help="Folder of the images named in --labels.")]
NegativeValue = Annotated[
    str | None, typer.Option("--negative-value", help="What your own labels write for absent: 0, -1 or none.")
]
DataOption = Annotated[
    list[str] | None,
    typer.Option("-D", "--data-option", help="Another option of the dataset, as name=value; may be repeated."),
]

Device = Annotated[str | None, typer.Option("--device", help="Default: a GPU where there is one.")]
Workers = Annotated[int | None, typer.Option("--workers", min=0, help="Processes that decode images.")]
Decode = Annotated[
    Literal["pil", "gpu"] | None,
    typer.Option(
        "--decode", help="gpu decodes JPEG files where the model computes, to slightly other pixels; default: pil."
    ),
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Put models through torch.compile, but for heads that train together.")
]
SaveEvery = Annotated[
    float | None, typer.Option("--save-every", min=0.0, help="Seconds between two checkpoints; default: 20.")
]
Track = Annotated[
    list[str] | None,
    typer.Option("--track", help="Log to tensorboard, mlflow or wandb; may be repeated."),
]


def say(text: str, code: int) -> int:
    """Print one line on standard error, and return the exit code to leave with."""
    text = in_options(text)
    if is_worker():
        write_failure(f"plbench: {text}", code)
    else:
        rank = os.environ.get("RANK", "0")
        typer.echo(f"plbench{'' if rank == '0' else f', process {rank}'}: {text}", err=True)
    return code


def open_store(runs: Path) -> Store:
    """Run in a folder, and the cache."""
    from platformdirs import user_cache_path

    from plbench.runs.store import Store

    cache = os.environ.get("PLBENCH_CACHE")
    return Store(runs, Path(cache) if cache else user_cache_path("plbench"))


def open_registry(plugins: list[Path] | None) -> Registry:
    """Return what is installed, and the plugin files given."""
    from plbench.runs.registry import Registry

    return Registry.discover(tuple(plugins or ()))


def make_workspace(
    runs: Path,
    plugins: list[Path] | None,
    data_root: Path | None,
    *,
    device: str | None = None,
    workers: int | None = None,
    quiet: bool = False,
    weights_file: Path | None = None,
    data_options: Mapping[str, Any] | None = None,
    world: World | None = None,
) -> Workspace:
    """Return where things are and how to compute, from a command's options."""
    from plbench.cli.console import ConsoleReporter
    from plbench.runs.environment import choose_device
    from plbench.runs.workspace import Workspace
    from plbench.training.distributed import ALONE, local_size

    world = world or ALONE
    return Workspace(
        store=open_store(runs),
        registry=open_registry(plugins),
        reporter=ConsoleReporter(quiet=quiet or not world.is_main),
        device=choose_device(device),
        workers=max(1, min(8, (os.cpu_count() or 1) // local_size())) if workers is None else workers,
        data_root=data_root,
        data_options=data_options or {},
        weights_file=weights_file,
        world=world,
    )


def all_records(runs: Path) -> list[tuple[Path, Record]]:
    """All runs whose record agrees with its tables, oldest first; one that does not is named, and hides no other."""
    from plbench.runs.stored import read_own_run

    store = open_store(runs)
    found = []
    for folder in map(store.run_folder, store.keys()):
        try:
            found.append((folder, read_own_run(folder)))
        except PlbenchError as error:
            say(f"left out: {error}", 0)
    return sorted(found, key=lambda item: item[1].finished_at)


def emit(content: Any, as_json: bool, show: Callable[[], None]) -> None:
    """Print JSON alone on standard output, or the readable form."""
    if not as_json:
        show()
        return
    from pydantic import BaseModel

    def plain(value: Any) -> Any:
        return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)

    typer.echo(json.dumps(content, default=plain, indent=1, allow_nan=False))


def data_options(
    labels: Path | None, images: Path | None, negative_value: str | None, others: Sequence[str] | None
) -> dict[str, Any]:
    """Return options of a dataset by name, from the command's own options and from those given as name=value."""
    given: dict[str, Any] = {"labels": labels, "images": images, "negative_value": negative_value}
    given = {name: value for name, value in given.items() if value is not None}
    for text in others or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise PlbenchError(f"-D {text!r} is not of the form name=value, such as -D layout=wide")
        if name in given:
            raise PlbenchError(
                f"option {name!r} of the dataset is given twice ({given[name]} and {value}); give it once"
            )
        given[name] = value
    return given
