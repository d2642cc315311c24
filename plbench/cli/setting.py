"""Options on data, model and training, shared by every command that trains."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from plbench.cli import options as opt
from plbench.cli.options import make_workspace, typed, with_options
from plbench.errors import MissingDataError, PlbenchError

if TYPE_CHECKING:
    from plbench.runs.workspace import Workspace

_WITHOUT_EFFECT = ("runs", "quiet", "as_json", "device", "workers", "save_every", "save_epochs", "track")

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what would run, with estimated time and memory, and stop.")
]


def _setting(
    simulate: Annotated[
        str | None,
        typer.Option(
            help="How labels are hidden: fpc=1000, rpa=0.5, single-positive, positive-only=0.5, "
            "frequency-biased=0.1, unlabelled=0.9, "
            "size-biased=0.5, place-biased=0.5, single-positive-size=1, single-positive-place=1, cole2021, "
            "mlr-pl=0.1, labels-file=PATH or none; default: the dataset's first protocol."
        ),
    ] = None,
    simulation_seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the simulation; default: the run's.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Backbone and training plan: quick, paper, or others (plbench data show DATASET); default: "
            "the dataset's first."
        ),
    ] = None,
    regime: Annotated[
        Literal["finetune", "probe"] | None,
        typer.Option(help="Train the whole network, or a head on cached features; default: the recipe's."),
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="Name of a timm model; default: the recipe's.")] = None,
    weights: Annotated[str | None, typer.Option(help="packaged, pretrained (timm's hub), random, or a file.")] = None,
    pretraining: Annotated[
        str | None,
        typer.Option(
            help="Datasets that a weights file was trained on, such as imagenet-1k,coco, or none; for the record."
        ),
    ] = None,
    pooling: Annotated[
        Literal["mean", "mean+max", "none"] | None,
        typer.Option(help="How the feature map is pooled; none for heads that use the whole map."),
    ] = None,
    head: Annotated[
        Literal["linear", "mlp", "bottleneck", "csra", "ml-decoder", "query2label"] | None,
        typer.Option(help="Type of the head; the last three use the whole feature map."),
    ] = None,
    head_width: Annotated[
        int | None, typer.Option(help="Hidden units of mlp and bottleneck; width of the queries of a decoder.")
    ] = None,
    head_lambda: Annotated[float | None, typer.Option(help="csra: weight of the attention; default: 0.1.")] = None,
    head_temperatures: Annotated[
        str | None,
        typer.Option(help="csra: temperature of each attention head, such as 1,2,4,max; default: 1."),
    ] = None,
    head_groups: Annotated[
        int | None, typer.Option(help="ml-decoder: number of queries; default: 100, at most one per class.")
    ] = None,
    head_layers: Annotated[
        int | None, typer.Option(help="Layers of a decoder; default: 1 (ml-decoder), 2 (query2label).")
    ] = None,
    head_attention_heads: Annotated[
        int | None, typer.Option(help="Attention heads of a decoder; default: 8 (ml-decoder), 4 (query2label).")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the square input image in pixels.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per optimiser step, over all processes.")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Number of pieces in which each batch is computed.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay of the optimiser.")] = None,
    schedule: Annotated[
        str | None,
        typer.Option(help="Learning-rate schedule: one-cycle, constant, cosine, or step=10,15,factor=0.1."),
    ] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw, adam, adam-coupled or sgd.")] = None,
    momentum: Annotated[float | None, typer.Option(help="Momentum of sgd; default: 0.9.")] = None,
    nesterov: Annotated[bool | None, typer.Option("--nesterov", help="Use Nesterov momentum with sgd.")] = None,
    head_lr_multiplier: Annotated[
        float | None, typer.Option(help="Learning rate of the head divided by that of the backbone.")
    ] = None,
    horizontal_flip: Annotated[float | None, typer.Option(help="Probability that a training image is flipped.")] = None,
    random_resized_crop: Annotated[
        float | None, typer.Option(help="Crop training images to at least this share of their area; 1: no crop.")
    ] = None,
    clip_grad: Annotated[float | None, typer.Option(help="Maximum global norm of the gradient.")] = None,
    grad_checkpointing: Annotated[
        bool | None, typer.Option("--grad-checkpointing", help="Recompute activations to save memory.")
    ] = None,
    precision: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Default: bfloat16 on a GPU, otherwise float32."),
    ] = None,
    data_root: opt.DataRoot = None,
    labels: opt.Labels = None,
    images: opt.Images = None,
    negative_value: opt.NegativeValue = None,
    data_option: opt.DataOption = None,
    device: opt.Device = None,
    threads: opt.Threads = None,
    workers: opt.Workers = None,
    decode: opt.Decode = None,
    compile: opt.Compile = False,
    save_every: opt.SaveEvery = None,
    save_epochs: Annotated[int | None, typer.Option(min=1, help="Also save a checkpoint every N epochs.")] = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out images that cannot be read.")
    ] = False,
    allow_duplicates: Annotated[
        bool, typer.Option("--allow-duplicates", help="Run even if test images are also in train.")
    ] = False,
    embeddings: Annotated[
        str | None,
        typer.Option(help="File of a vision-language model's embeddings (plbench data embeddings)."),
    ] = None,
    track: opt.Track = None,
    plugin: opt.Plugins = None,
    runs: opt.Runs = opt.RUNS,
    quiet: opt.Quiet = False,
    as_json: opt.AsJson = False,
) -> None:
    """Declare common options; only the signature is used."""


with_setting = with_options(_setting)
"""Decorator that appends these options to a command, which gets their values as first argument, `setting`."""


def words_of(setting: opt.Setting) -> list[str]:
    """Return the given options as words of a command line, without those that do not affect results."""
    return typed(**{name: value for name, value in setting.items() if name not in _WITHOUT_EFFECT})


@contextlib.contextmanager
def workspace_among_others(setting: opt.Setting) -> Iterator[Workspace]:
    """Create the workspace as in `workspace_for`, possibly as one of several processes that train together.

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
        yield _with_threads(make_workspace(setting, world), setting)


@contextlib.contextmanager
def estimating_what_is_missing(
    workspace: Workspace, method: str, params: Mapping[str, Any], given: Mapping[str, Any]
) -> Iterator[None]:
    """Show an estimate before the error if data or weights of runs are missing, since they may not be worth getting.

    Args:
        method, params: of one of the runs.
        given: options of all of them.
    """
    from plbench.runs.estimate.estimate import describe
    from plbench.runs.estimate.without_data import describe_without_data
    from plbench.runs.plan.resolve import MissingWeightsError

    try:
        yield
    except MissingDataError as error:
        for line in describe_without_data(error.dataset, given, workspace.device, workspace.reporter):
            workspace.reporter.line(line)
        raise
    except MissingWeightsError as error:
        with contextlib.suppress(PlbenchError):  # the missing weights are the error to report
            plan = error.setting.run(method, params, 0, workspace.registry)
            workspace.reporter.line(describe(plan, workspace))
        raise


def workspace_for(setting: opt.Setting) -> Workspace:
    """Return the workspace given by these options.

    Raises:
        PlbenchError: if this is one of several processes, which only `plbench run` supports; or as `make_workspace`.
    """
    from plbench.training.distributed import is_launched

    if is_launched():
        raise PlbenchError("only plbench run trains over several processes; start this command by itself")
    return _with_threads(make_workspace(setting), setting)


def _with_threads(workspace: Workspace, setting: opt.Setting) -> Workspace:
    from plbench.training.threads import settle_threads

    chose = settle_threads(setting.get("threads"), workspace.reporter.line)
    return replace(workspace, chose_threads=chose)
