"""The options on what is trained on, with what model and how: one list for every command that trains."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from plbench.cli.options import (
    RUNS,
    AsJson,
    Compile,
    DataOption,
    DataRoot,
    Decode,
    Device,
    Images,
    Labels,
    NegativeValue,
    Plugins,
    Quiet,
    Runs,
    SaveEvery,
    Track,
    Workers,
    data_options,
    make_workspace,
)
from plbench.errors import PlbenchError

if TYPE_CHECKING:
    from plbench.runs.workspace import Workspace
    from plbench.training.distributed import World

Setting = Mapping[str, Any]
"""The values of these options by name; None means not given."""

_WITHOUT_EFFECT = ("runs", "quiet", "as_json", "device", "workers", "save_every", "save_epochs", "track")
_REPEATED = {"data_option": "-D", "plugin": "--plugin"}

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would run, how long and in how much memory, and stop.")
]


def _setting(
    simulate: Annotated[
        str | None,
        typer.Option(
            "--simulate",
            help="fpc=1000, rpa=0.5, single-positive, positive-only=0.5, frequency-biased=0.1 or none; without it the "
            "dataset's first protocol.",
        ),
    ] = None,
    simulation_seed: Annotated[int | None, typer.Option("--simulation-seed", min=0)] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="paper or quick; default: the dataset's first.")
    ] = None,
    regime: Annotated[
        Literal["finetune", "probe"] | None, typer.Option("--regime", help="Default: the recipe's.")
    ] = None,
    backbone: Annotated[str | None, typer.Option("--backbone", help="Any timm model.")] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", help="packaged, pretrained (timm's hub), random, or a file.")
    ] = None,
    pretraining: Annotated[
        str | None,
        typer.Option(
            "--pretraining",
            help="Data sets that the weights FILE was trained on, such as imagenet-1k,coco, or none; for the record.",
        ),
    ] = None,
    pooling: Annotated[Literal["mean", "mean+max"] | None, typer.Option("--pooling")] = None,
    head: Annotated[Literal["linear", "mlp", "bottleneck"] | None, typer.Option("--head")] = None,
    head_width: Annotated[int | None, typer.Option("--head-width")] = None,
    image_size: Annotated[int | None, typer.Option("--image-size", help="Side of the square, px.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Images per optimiser step.")] = None,
    accumulate: Annotated[int | None, typer.Option("--accumulate", help="Pieces that a batch is computed in.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Peak learning rate.")] = None,
    weight_decay: Annotated[float | None, typer.Option("--weight-decay")] = None,
    optimizer: Annotated[str | None, typer.Option("--optimizer", help="adamw or adam-coupled.")] = None,
    clip_grad: Annotated[float | None, typer.Option("--clip-grad", help="Largest global norm of the gradient.")] = None,
    grad_checkpointing: Annotated[
        bool | None,
        typer.Option("--grad-checkpointing", help="Compute activations twice in place of keeping them."),
    ] = None,
    precision: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option("--precision", help="Default: bfloat16 on a GPU, else float32."),
    ] = None,
    data_root: DataRoot = None,
    labels: Labels = None,
    images: Images = None,
    negative_value: NegativeValue = None,
    data_option: DataOption = None,
    device: Device = None,
    workers: Workers = None,
    decode: Decode = None,
    compile: Compile = False,
    save_every: SaveEvery = None,
    save_epochs: Annotated[
        int | None, typer.Option("--save-epochs", min=1, help="Also a checkpoint after every so many epochs.")
    ] = None,
    skip_unreadable: Annotated[bool, typer.Option("--skip-unreadable", help="Go on without broken images.")] = False,
    allow_duplicates: Annotated[
        bool, typer.Option("--allow-duplicates", help="Go on though test images are among the train images.")
    ] = False,
    track: Track = None,
    plugin: Plugins = None,
    runs: Runs = RUNS,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Only its signature is read."""


def with_setting(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command these options after its own; it gets their values as its first argument, `setting`."""
    shared = inspect.signature(_setting, eval_str=True).parameters
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

    @functools.wraps(command)
    def wrapped(**values: Any) -> None:
        setting = {name: values.pop(name) for name in shared}
        command(setting, **values)

    options = [*own, *shared.values()]
    wrapped.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {option.name: option.annotation for option in options}  # what typer reads
    return wrapped


def words_of(setting: Setting) -> list[str]:
    """Return the options that were given, to be typed again, but for those that change no figure."""
    words = []
    for option, value in setting.items():
        if option in _WITHOUT_EFFECT or value in (None, False, []):
            continue
        if option in _REPEATED:
            words += [word for entry in value for word in (_REPEATED[option], str(entry))]
        else:
            words += ["--" + option.replace("_", "-"), *([] if value is True else [str(value)])]
    return words


@contextlib.contextmanager
def workspace_among_others(setting: Setting) -> Iterator[Workspace]:
    """Do as `workspace_for`, in a process that may be one of several which train together.

    Raises:
        PlbenchError: if the others cannot be reached, or run another version.
    """
    import torch

    from plbench import __version__
    from plbench.runs.environment import choose_device, source_sha256
    from plbench.training.distributed import joined

    with joined(choose_device(setting["device"])) as world:
        if world.size > 1:
            world.check_same({"plbench": __version__, "its source": source_sha256(), "torch": torch.__version__})
        yield workspace_for(setting, world)


@contextlib.contextmanager
def estimating_without_weights(workspace: Workspace, method: str, params: Mapping[str, Any]) -> Iterator[None]:
    """Where only the weights of runs are missing, say what one would take before the error: it may not be worth it."""
    from plbench.runs.estimate.estimate import describe
    from plbench.runs.plan.resolve import MissingWeightsError

    try:
        yield
    except MissingWeightsError as error:
        with contextlib.suppress(PlbenchError):  # it is the weights that are to be told of
            plan = error.setting.run(method, params, 0, workspace.registry)
            workspace.reporter.line(describe(plan, workspace))
        raise


def workspace_for(setting: Setting, world: World | None = None) -> Workspace:
    """Return where things are and how to compute, as these options say.

    Raises:
        PlbenchError: if this is one of several processes and they have not joined: only `plbench run` does that.
    """
    from plbench.runs.pretraining import parse_pretraining
    from plbench.tracking.follow import check_names
    from plbench.training.distributed import is_launched

    if world is None and is_launched():
        raise PlbenchError("only plbench run trains over several processes; start this command by itself")
    weights, track = setting["weights"], check_names(setting["track"] or ())
    weights_file = None if weights in (None, "packaged", "pretrained", "random") else Path(weights)
    pretraining = None if setting["pretraining"] is None else parse_pretraining(setting["pretraining"])
    if pretraining is not None and weights_file is None:
        raise PlbenchError(
            "--pretraining says what the weights in a file have seen; of others it is known: give --weights FILE, or "
            "leave it out"
        )
    workspace = make_workspace(
        setting["runs"],
        setting["plugin"],
        setting["data_root"],
        device=setting["device"],
        workers=setting["workers"],
        quiet=setting["quiet"],
        weights_file=weights_file,
        data_options=data_options(
            setting["labels"], setting["images"], setting["negative_value"], setting["data_option"]
        ),
        world=world,
    )
    decode = str(setting["decode"] or "pil")
    if decode != "pil":
        from plbench.loading.jpegs import jpeg_decoder

        jpeg_decoder(decode, workspace.device)  # says what is missing now, and not when the first run needs it
    if setting["save_every"] is not None:
        workspace = replace(workspace, save_every=setting["save_every"])
    workspace = replace(workspace, save_epochs=setting["save_epochs"])
    compiles = bool(setting["compile"])
    return replace(workspace, track=track, decode=decode, compiles=compiles, pretraining=pretraining)
