"""Export formats: how a model is written, and how the target program reads it back."""

from __future__ import annotations

import importlib
import io
import json
import logging
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plbench.errors import PlbenchError
from plbench.files import write_json, write_text
from plbench.runs.export.card import model_card
from plbench.runs.export.network import Network, description, fixed_graph, plain_parts
from plbench.runs.trained import TrainedModel

INPUT, OUTPUT = "images", "scores"
ABOUT = "plbench.json"
"""Name of the description in a TorchScript file."""

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
"""Files of a folder for timm and the Hub."""

_MOST_ONNX_BYTES = 2**31 - 2**20  # limit of protobuf for one message, minus some room for the graph

Reader = Callable[[Tensor], np.ndarray]
"""Function from images [B, 3, S, S] to scores [B, C]."""


@dataclass(frozen=True)
class Source:
    """A model to export, with images and scores for comparison.

    Attributes:
        images: [B, 3, S, S], prepared as in training. scores: [B, C] float32, their scores.
    """

    model: TrainedModel
    network: Network
    images: Tensor
    scores: Tensor

    @property
    def about(self) -> dict[str, Any]:
        """Information for users."""
        return description(self.model)

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.model.record.spec.method.name


@dataclass(frozen=True)
class Format:
    """An export format.

    Attributes:
        suffix: of the file's name; "" for a folder.
        reader: name of the program that reads it.
        packages: required in addition to those of plbench.
        write: writes to a new path. Raises PlbenchError if the format does not support the model.
        read: reads from that path.
    """

    suffix: str
    reader: str
    write: Callable[[Source, Path], None]
    read: Callable[[Path], Reader]
    packages: tuple[str, ...] = ()

    def check_packages(self) -> None:
        """Check requirements before starting.

        Raises:
            PlbenchError: if a package is not installed.
        """
        for package in self.packages:
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise PlbenchError(
                    f"{self.reader} needs the package {package}, which is not installed: pip install 'plbench[export]'"
                ) from error


def difference(read: Reader, source: Source) -> float:
    """Return the largest difference of a score, for all pictures in one batch and for the first one alone."""
    wanted = source.scores.numpy()
    return max(float(np.abs(read(source.images[:n]) - wanted[:n]).max()) for n in (len(wanted), 1))


# ---- ONNX


def write_onnx(source: Source, path: Path) -> None:
    """Write one ONNX file: the network, with its description as metadata, each value as JSON."""
    num_bytes = sum(tensor.nbytes for tensor in source.network.state_dict().values())
    if num_bytes > _MOST_ONNX_BYTES:
        raise PlbenchError(
            f"the model has {num_bytes / 2**30:.1f} GiB of weights, and one ONNX file holds 2; export it with "
            '`to="torchscript"`'
        )
    content = _onnx_model(source)
    for node in [*content.graph.node, *(node for function in content.functions for node in function.node)]:
        node.ClearField("metadata_props")  # contains paths of source files on this machine
        node.ClearField("doc_string")
    ends = [*content.graph.input, *content.graph.output, *content.graph.value_info]
    symbol = content.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for dim in (dim for value in ends for dim in value.type.tensor_type.shape.dim):
        if dim.dim_param == symbol:
            dim.dim_param = "batch"
    for name, value in source.about.items():
        content.metadata_props.add(key=name, value=json.dumps(value))
    path.write_bytes(content.SerializeToString())


def _onnx_model(source: Source) -> Any:
    """Return the network as a `ModelProto`."""
    graph = fixed_graph(source.network, source.images.shape[-1], source.method)
    log = logging.getLogger("torch.onnx")
    level, failure = log.level, None
    log.setLevel(logging.ERROR)  # it logs its own progress
    try:
        for optimize in (True, False):  # onnxscript's optimiser fails on `chunk`; onnxruntime has its own
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about torch's own internals
                try:
                    program: Any = torch.onnx.export(
                        graph,
                        dynamo=True,
                        input_names=[INPUT],
                        output_names=[OUTPUT],
                        optimize=optimize,
                        verbose=False,
                    )
                    return program.model_proto
                except Exception as error:  # the exporter raises many types
                    failure = error
    finally:
        log.setLevel(level)
    reason = (str(failure).strip().splitlines() or [type(failure).__name__])[0].rstrip(".")
    raise PlbenchError(
        f"torch cannot write the network of method {source.method!r} as ONNX ({reason}); export it with "
        '`to="torchscript"`'
    ) from failure


def read_onnx(path: Path) -> Reader:
    """Return onnxruntime's reader of the file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run([OUTPUT], {INPUT: images.numpy()})[0])


# ---- TorchScript


def write_torchscript(source: Source, path: Path) -> None:
    """Write a traced and frozen module, with the description as JSON in the extra file `ABOUT`."""
    fixed_graph(source.network, source.images.shape[-1], source.method)  # a trace would not notice if there is none
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        # torch.jit is deprecated; the risks that traces warn about were just ruled out
        warnings.simplefilter("ignore")
        traced = torch.jit.freeze(torch.jit.trace(source.network, source.images[:2], check_trace=False))
        torch.jit.save(traced, buffer, _extra_files={ABOUT: json.dumps(source.about)})
    with zipfile.ZipFile(buffer) as whole, zipfile.ZipFile(path, "w") as kept:
        for entry in whole.infolist():
            if not entry.filename.endswith(".debug_pkl"):  # contains paths of source files on this machine
                kept.writestr(entry, whole.read(entry))


def read_torchscript(path: Path) -> Reader:
    """Return torch.jit's reader of the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = torch.jit.load(path, map_location="cpu")
    return _module_reader(module)


def _module_reader(module: nn.Module | torch.jit.ScriptModule, *, gives_logits: bool = False) -> Reader:
    def read(images: Tensor) -> np.ndarray:
        with torch.inference_mode():
            output: Tensor = module(images)
        return (output.sigmoid() if gives_logits else output).numpy()

    return read


# ---- safetensors, for loading with timm and torch


def write_safetensors(source: Source, path: Path) -> None:
    """Write weights as `backbone.…`, with timm's names, and `head.…`, and their description as metadata."""
    from safetensors.torch import save

    parts = plain_parts(source.model, source.images, source.scores)
    tensors = {f"backbone.{name}": value for name, value in parts.backbone.net.state_dict().items()}
    tensors |= {f"head.{name}": value for name, value in nn.Sequential(*parts.layers).state_dict().items()}
    own = {
        "backbone": parts.architecture,
        "global_pool": parts.backbone.global_pool,
        "head": ["linear" if isinstance(layer, nn.Linear) else "relu" for layer in parts.layers],
    }
    metadata = {name: json.dumps(value) for name, value in {**own, **source.about}.items()}
    path.write_bytes(save({name: value.contiguous() for name, value in tensors.items()}, metadata))


def read_safetensors(path: Path) -> Reader:
    """Return a reader with timm and torch, built only from the file's metadata."""
    import timm
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        about = {name: json.loads(value) for name, value in file.metadata().items()}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dictionary)
    backbone = timm.create_model(about["backbone"], num_classes=0, global_pool=about["global_pool"])
    layers: list[nn.Module] = []
    for place in range(len(about["head"])):
        weight = tensors.get(f"head.{place}.weight")
        layers.append(nn.ReLU() if weight is None else nn.Linear(weight.shape[1], weight.shape[0]))
    model = nn.Sequential()
    model.add_module("backbone", backbone)
    model.add_module("head", nn.Sequential(*layers))
    model.load_state_dict(tensors)
    return _module_reader(model.eval(), gives_logits=True)


# ---- a folder that timm loads, from disk or the Hub


def write_timm_folder(source: Source, path: Path) -> None:
    """Write `config.json` in timm's format, the weights of timm's own model, and a model card."""
    import timm
    from safetensors.torch import save

    parts = plain_parts(source.model, source.images, source.scores)
    last = parts.layers[0]
    if len(parts.layers) > 1 or not isinstance(last, nn.Linear):
        raise PlbenchError(
            f"timm's models end in one linear layer, and the head of this run is "
            f'{source.model.record.spec.model.head!r}; train with `head="linear"`, or export it with '
            '`to="safetensors"` or `to="onnx"`'
        )
    num_classes, about, size = last.out_features, source.about, source.images.shape[-1]
    arguments: dict[str, Any] = {"global_pool": parts.backbone.global_pool}
    net: Any = timm.create_model(parts.architecture, num_classes=num_classes, **arguments).eval()
    classifier = net.get_classifier()
    fits = getattr(classifier, "bias", None) is not None and classifier.weight.numel() == last.weight.numel()
    if fits:
        net.load_state_dict(parts.backbone.net.state_dict(), strict=False)
        with torch.no_grad():
            classifier.weight.copy_(last.weight.view_as(classifier.weight))  # the classifier may be a 1x1 convolution
            classifier.bias.copy_(last.bias)
        fits = difference(_module_reader(net, gives_logits=True), source) <= source.network.tolerance
    if not fits:
        raise PlbenchError(
            f"timm's {parts.architecture} does not end in one linear layer on the features that this run has its head "
            'on; export it with `to="safetensors"` or `to="onnx"`'
        )
    settings = {name: net.pretrained_cfg.get(name) for name in ("first_conv", "classifier", "fixed_input_size")}
    config = {
        "architecture": parts.architecture,
        "num_classes": num_classes,
        "num_features": net.num_features,
        "label_names": about["class_names"],
        "model_args": arguments,
        "pretrained_cfg": {
            **{name: value for name, value in settings.items() if value is not None},
            "custom_load": False,
            "input_size": [3, size, size],
            "interpolation": about["interpolation"],
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": about["mean"],
            "std": about["std"],
            "num_classes": num_classes,
        },
        "plbench": about,
    }
    path.mkdir()
    (path / WEIGHTS).write_bytes(save({name: value.contiguous() for name, value in net.state_dict().items()}))
    write_json(path / CONFIG, config)
    write_text(path / CARD, model_card(source.model, about, {WEIGHTS, CONFIG}))


def read_timm_folder(path: Path) -> Reader:
    """Return timm's reader of the folder."""
    import timm

    return _module_reader(timm.create_model(f"local-dir:{path}", pretrained=True).eval(), gives_logits=True)


FORMATS: Mapping[str, Format] = {
    "onnx": Format(".onnx", "onnxruntime", write_onnx, read_onnx, ("onnx", "onnxscript", "onnxruntime")),
    "torchscript": Format(".pt", "torch.jit", write_torchscript, read_torchscript),
    "safetensors": Format(".safetensors", "safetensors and timm", write_safetensors, read_safetensors),
    "timm-hub-folder": Format("", "timm", write_timm_folder, read_timm_folder),
}
