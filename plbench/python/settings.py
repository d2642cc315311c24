"""Convert settings, given as keyword arguments or command-line options, to a request and a workspace."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from plbench.errors import PlbenchError, did_you_mean
from plbench.progress import Reporter

if TYPE_CHECKING:
    from plbench.runs.plan.resolve import Request
    from plbench.runs.workspace import Workspace
    from plbench.spec import Precision, Regime
    from plbench.training.distributed import World

RUNS = Path("runs")
WEIGHTS = ("packaged", "pretrained", "random")
MODEL_SETTINGS = (
    "backbone",
    "pooling",
    "head",
    "head_width",
    "head_lambda",
    "head_temperatures",
    "head_groups",
    "head_layers",
    "head_attention_heads",
    "image_size",
)
PLAN_SETTINGS = (
    "epochs",
    "batch_size",
    "accumulate",
    "lr",
    "weight_decay",
    "optimizer",
    "clip_grad",
    "grad_checkpointing",
    "schedule",
    "momentum",
    "nesterov",
    "horizontal_flip",
    "random_resized_crop",
    "head_lr_multiplier",
)
REQUEST_SETTINGS = ("simulate", "simulation_seed", "recipe", "regime", "precision", "seed", "selection", "embeddings")
FLAGS = ("skip_unreadable", "allow_duplicates")
OF_DATA = ("labels", "images", "negative_value")


class Where(TypedDict, total=False):
    """Locations of files and compute options; they do not affect results. None means the default.

    Attributes:
        runs: folder of runs; default: the environment's PLBENCH_RUNS, or "runs".
        data_root: the dataset's own folder.
        labels: the table of your own labels.
        images: the folder of the images that the table names.
        negative_value: which value in the table means verified absent: 0, -1 or "none".
        data_options: further options of the dataset by name.
        weights: "packaged", "pretrained" (timm's hub), "random", or a file.
        pretraining: datasets that a weight file was trained on, such as "imagenet-1k,coco", or "none".
        device: such as "cpu" or "cuda"; default: a GPU if available.
        workers: number of processes that decode images.
        decode: "pil", or "gpu".
        compile: whether to use `torch.compile`.
        save_every: seconds between two checkpoints.
        save_epochs: epochs between two checkpoints, in addition to those by time.
        track: names of trackers.
        plugins: Python files with methods or datasets.
        progress: receives progress; see `plbench.show_progress`.
    """

    runs: str | Path | None
    data_root: str | Path | None
    labels: str | Path | None
    images: str | Path | None
    negative_value: str | int | None
    data_options: Mapping[str, Any] | None
    weights: str | Path | None
    pretraining: str | None
    device: str | None
    workers: int | None
    decode: Literal["pil", "gpu"] | None
    compile: bool | None
    save_every: float | None
    save_epochs: int | None
    track: Sequence[str] | None
    plugins: Sequence[str | Path] | None
    progress: Reporter | None


class Settings(Where, total=False):
    """The options of `plbench run` by name, except method, parameters and seed.

    Options that are omitted or None take the value of the dataset's protocol or recipe.
    """

    simulate: str | None
    simulation_seed: int | None
    recipe: str | None
    regime: Regime | None
    precision: Precision | None
    embeddings: str | None
    skip_unreadable: bool | None
    allow_duplicates: bool | None
    backbone: str | None
    pooling: str | None
    head: str | None
    head_width: int | None
    head_lambda: float | None
    head_temperatures: str | None
    head_groups: int | None
    head_layers: int | None
    head_attention_heads: int | None
    image_size: int | None
    epochs: int | None
    batch_size: int | None
    accumulate: int | None
    lr: float | None
    weight_decay: float | None
    optimizer: str | None
    clip_grad: float | None
    grad_checkpointing: bool | None
    schedule: str | None
    momentum: float | None
    nesterov: bool | None
    horizontal_flip: float | None
    random_resized_crop: float | None
    head_lr_multiplier: float | None


def check_settings(given: Mapping[str, Any], known: type[Where]) -> None:
    """Reject unknown settings.

    Raises:
        PlbenchError: if a setting does not exist.
    """
    names = known.__annotations__
    for name in given:
        if name not in names:
            raise PlbenchError(f"there is no setting `{name}=`; {did_you_mean(name, names)}")


def request_of(given: Mapping[str, Any], method_params: Mapping[str, Any] | None = None) -> Request:
    """Return the request that settings describe; None and settings of `Where` are ignored.

    Args:
        given: `Settings`, with "dataset", "method", and optionally "seed" and "selection".
        method_params: of the method, by name.
    """
    from plbench.runs.plan.resolve import Request

    given = {name: value for name, value in given.items() if value is not None}
    model = {name: given[name] for name in MODEL_SETTINGS if name in given}
    if "weights" in given:
        model["weights"] = given["weights"] if given["weights"] in WEIGHTS else "file"
    return Request(
        dataset=given["dataset"],
        method=given["method"],
        method_params=dict(method_params or {}),
        model=model,
        plan={name: given[name] for name in PLAN_SETTINGS if name in given},
        **{name: given[name] for name in (*REQUEST_SETTINGS, *FLAGS) if name in given},
    )


def runs_folder(given: Mapping[str, Any]) -> Path:
    """Return the folder of runs given by the settings."""
    return Path(given.get("runs") or os.environ.get("PLBENCH_RUNS") or RUNS)


def workspace_of(given: Mapping[str, Any], world: World | None = None) -> Workspace:
    """Return the workspace: locations and compute options.

    Args:
        given: `Where`; other settings are ignored.
        world: processes of distributed training; None for a single process.

    Raises:
        PlbenchError: if a setting is invalid, or needs a device or package that is not available.
    """
    from plbench.runs.environment import choose_device
    from plbench.runs.pretraining import parse_pretraining
    from plbench.runs.registry import Registry
    from plbench.runs.store import Store
    from plbench.runs.workspace import SAVE_EVERY_SECONDS, Workspace
    from plbench.tracking.follow import check_names
    from plbench.training.distributed import ALONE, local_size

    track = check_names(given.get("track") or ())
    weights, pretraining = given.get("weights"), given.get("pretraining")
    weights_file = None if weights in (None, *WEIGHTS) else Path(weights)
    if pretraining is not None:
        pretraining = parse_pretraining(pretraining)
        if weights_file is None:
            raise PlbenchError(
                "`pretraining=` describes the weights in a file; for other weights it is known; give `weights=FILE`, "
                "or leave it out"
            )
    device, decode = choose_device(given.get("device")), str(given.get("decode") or "pil")
    workers, save_every, data_root = (given.get(name) for name in ("workers", "save_every", "data_root"))
    options = {name: given[name] for name in OF_DATA if given.get(name) is not None}
    if "negative_value" in options:
        options["negative_value"] = str(options["negative_value"])
    for name, value in (given.get("data_options") or {}).items():
        if name in options:
            raise PlbenchError(f"`options.{name}=` is given twice ({options[name]} and {value}); give it once")
        options[name] = value
    workspace = Workspace(
        store=Store.at(runs_folder(given)),
        registry=Registry.discover(tuple(map(Path, given.get("plugins") or ()))),
        reporter=given.get("progress") or Reporter(),
        device=device,
        workers=max(1, min(8, (os.cpu_count() or 1) // local_size())) if workers is None else workers,
        data_root=None if data_root is None else Path(data_root),
        data_options=options,
        weights_file=weights_file,
        pretraining=pretraining,
        track=track,
        decode=decode,
        world=world or ALONE,
        save_every=SAVE_EVERY_SECONDS if save_every is None else save_every,
        save_epochs=given.get("save_epochs"),
        compiles=bool(given.get("compile")),
    )
    if decode != "pil":
        from plbench.loading.jpegs import jpeg_decoder

        jpeg_decoder(decode, device)  # fail now if something is missing, not when the first run needs it
    return workspace
