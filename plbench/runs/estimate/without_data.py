"""What is known of a training before its dataset is here: sizes, as they were published."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from plbench.data.dataset import Dataset
from plbench.data.download.remote import is_here, size_in_words
from plbench.progress import counted


def describe_without_data(dataset: Dataset, given: Mapping[str, Any]) -> list[str]:
    """Return lines on a dataset that is not here: images and classes, what is to be fetched, steps of a training.

    Args:
        dataset: where it would be.
        given: recipe, regime, epochs and batch_size, as far as they are given; None, or no entry, for the recipe's.
    """
    lines = []
    images = [f"{number:,} {split}" for split, number in dataset.official_num_images.items()]
    classes = dataset.official_num_classes
    published = [f"{' and '.join(images)} images"] if images else []
    published += [f"{classes:,} classes"] if classes else []
    if published:
        lines.append(f"{dataset.title}: {', '.join(published)}, as published")
    missing = [file for file in dataset.downloads if not is_here(file, dataset.root)]
    if missing:
        sizes = [file.size for file in missing if file.size is not None]
        more = "" if len(sizes) == len(missing) else f", and {len(missing) - len(sizes)} whose sizes are not published"
        fetched = f"To fetch: {size_in_words(sum(sizes))} in {counted(len(sizes), 'file')}{more}"
        lines.append(f"{fetched} (plbench data download {dataset.name}); unpacked, they take about as much again")
    recipe = next((one for one in dataset.recipes if one.name == given.get("recipe")), dataset.recipes[0])
    plan = recipe.plans.get(given.get("regime") or recipe.regime)
    number = dataset.official_num_images.get("train")
    if plan is not None and number is not None:
        epochs, batch_size = given.get("epochs") or plan.epochs, given.get("batch_size") or plan.batch_size
        steps = math.ceil(number / batch_size)
        lines.append(
            f"A training by recipe {recipe.name}: {epochs} epochs of {steps:,} steps of {batch_size} images, "
            f"{epochs * steps:,} steps in all; how long they take is measured once the dataset is here"
        )
    return lines
