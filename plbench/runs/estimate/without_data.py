"""Estimates before a dataset is available: published sizes, and the cost of the network."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pydantic import ValidationError

from plbench.data.dataset import Dataset
from plbench.data.download.remote import is_here, size_in_words
from plbench.errors import PlbenchError
from plbench.models.backbones import build_backbone
from plbench.progress import Reporter, counted, duration
from plbench.spec import ModelSpec, Regime

_TIMED_IMAGES = {"cpu": 2, "cuda": 32}
_REPEATS = 3
_LARGEST = 1024  # pixels; activations of a few such images fit in memory


def describe_without_data(
    dataset: Dataset, given: Mapping[str, Any], device: torch.device, reporter: Reporter
) -> Iterator[str]:
    """Yield lines on a missing dataset: images and classes, files to download, and the cost of training.

    Args:
        dataset: at its expected location.
        given: recipe, regime, epochs, batch_size, backbone and image_size; None or missing for the recipe's.
        device: for the computation. reporter: receives progress messages.
    """
    images = [f"{number:,} {split}" for split, number in dataset.official_num_images.items()]
    classes = dataset.official_num_classes
    published = [f"{' and '.join(images)} images"] if images else []
    published += [f"{classes:,} classes"] if classes else []
    if published:
        yield f"{dataset.title}: {', '.join(published)}, as published"
    missing = [file for file in dataset.downloads if not is_here(file, dataset.root)]
    if missing:
        sizes = [file.size for file in missing if file.size is not None]
        more = "" if len(sizes) == len(missing) else f", and {len(missing) - len(sizes)} whose sizes are not published"
        fetched = f"To fetch: {size_in_words(sum(sizes))} in {counted(len(sizes), 'file')}{more}"
        yield f"{fetched} (plbench data download {dataset.name}); unpacked, they take about as much again"
    recipe = next((one for one in dataset.recipes if one.name == given.get("recipe")), dataset.recipes[0])
    plan = recipe.plans.get(given.get("regime") or recipe.regime)
    number = dataset.official_num_images.get("train")
    if plan is not None and number is not None:
        epochs, batch_size = given.get("epochs") or plan.epochs, given.get("batch_size") or plan.batch_size
        steps = math.ceil(number / batch_size)
        regime = given.get("regime") or recipe.regime
        asked = {name: given[name] for name in ("backbone", "image_size") if given.get(name) is not None}
        took = ""
        # a network that cannot be built with these values is reported once the data is available
        with contextlib.suppress(ValidationError, PlbenchError):
            model = ModelSpec.model_validate({**recipe.model.model_dump(), **asked})
            if model.image_size <= _LARGEST:
                with reporter.patience("Measuring the network on random images"):
                    seconds = number * seconds_per_image(model, regime, device)
                what = "computing features once takes"
                if regime == "finetune":
                    what, seconds = "the network takes", epochs * seconds
                took = (
                    f"; {what} about {duration(seconds)} on {device.type} (measured on random images); reading images "
                )
                took += "and scoring add to this"
        yield (
            f"Training by recipe {recipe.name}: {epochs} epochs of {steps:,} steps of {batch_size} images, "
            f"{epochs * steps:,} steps in all{took}"
        )


def seconds_per_image(model: ModelSpec, regime: Regime, device: torch.device) -> float:
    """Return the seconds per image in the backbone with random weights: forward, and backward if it is trained.

    Args:
        model: with backbone and resolution.
        regime: "probe" for only the forward pass.
        device: for the computation, in float32.

    Raises:
        PlbenchError: if there is no such backbone.
    """
    untrained = model.model_copy(update={"weights": "random", "weights_sha256": None})
    backbone = build_backbone(untrained, None, 0).to(device)
    images = torch.randn(_TIMED_IMAGES.get(device.type, 2), 3, model.image_size, model.image_size, device=device)
    found = []
    for _ in range(_REPEATS):
        begin = time.perf_counter()
        with torch.set_grad_enabled(regime == "finetune"):
            features = backbone.train(regime == "finetune")(images)
            if regime == "finetune":
                features.mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - begin)
    return statistics.median(found) / len(images)
