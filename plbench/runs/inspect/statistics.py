"""Statistics of the known labels of a dataset, by split and by class, as numbers and as a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from plbench.data.labels import PartialLabels
from plbench.data.lettering import drawable_names, dress
from plbench.data.simulation import parse
from plbench.errors import PlbenchError
from plbench.files import write_atomically
from plbench.runs.plan.label_check import notes_on_names
from plbench.runs.protocol import ProtocolData, choose_protocol, custom, is_official
from plbench.runs.workspace import Workspace, open_dataset

_MAX_POSITIVES = 20  # last bin of the histogram: this many positives or more per image
_NAMED = 60  # maximum number of class names below the figure
_FORMATS = (".png", ".svg", ".pdf")


def dataset_stats(name: str, simulate: str | None, workspace: Workspace, seed: int = 0) -> dict[str, Any]:
    """Return statistics of known labels in train under a protocol, and in test: by split, class and image.

    Args:
        name: of the dataset.
        simulate: how labels are hidden; None for the dataset's own protocol.
        workspace: locations.
        seed: of the run whose labels are counted.

    Raises:
        DataError: if files are missing or malformed. PlbenchError: if the simulation does not exist.
    """
    if simulate is not None:
        parse(simulate)  # before files are read or drawn
    dataset = open_dataset(name, workspace)
    protocol = choose_protocol(dataset, simulate, None)
    if not is_official(dataset, protocol):
        protocol = custom(protocol)
    protocol_data = ProtocolData(dataset, protocol, seed=seed)
    splits = {"train": protocol_data.train().labels, "test": protocol_data.whole(protocol.test_split).labels}
    labels = splits["train"]
    classes: list[dict[str, Any]] = [
        {"class": class_name, "id": class_id}
        for class_id, class_name in zip(labels.class_ids, labels.class_names, strict=True)
    ]
    for split, own in splits.items():
        for sign, counts in zip(("positives", "negatives"), own.counts(), strict=True):
            for row, count in zip(classes, counts.tolist(), strict=True):
                row[f"{split}_{sign}"] = count
    # number of images with 0, 1, 2, … known positives; the last bin includes all with more
    in_images: dict[str, list[int]] = {}
    for split, own in splits.items():
        before = np.concatenate([[0], np.cumsum(own.matrix.data > 0)])
        number = np.diff(before[own.matrix.indptr])
        in_images[split] = np.bincount(np.minimum(number, _MAX_POSITIVES), minlength=1).tolist()
    noted = {"train": (), **dataset.notes()}
    noted["train"] = (*noted["train"], *notes_on_names(labels))
    return {
        "dataset": name,
        "protocol": protocol.name,
        "label_seed": None if protocol.simulation == "none" else protocol_data.seed,
        "splits": [_of_split(split, labels) for split, labels in splits.items()],
        "positives_in_an_image": in_images,
        "notes": {split: said for split in noted if (said := [*noted[split]])},
        "classes": sorted(classes, key=lambda row: -row["train_positives"]),
    }


def _of_split(split: str, labels: PartialLabels) -> dict[str, Any]:
    positives, negatives = labels.counts()
    number = max(1, labels.num_images)
    return {
        "split": split,
        "images": labels.num_images,
        "classes": labels.num_classes,
        "known": labels.num_known,
        "positives": int(positives.sum()),
        "negatives": int(negatives.sum()),
        "density_percent": round(100 * labels.density, 4),
        "positives_per_image": round(float(positives.sum()) / number, 4),
        "negatives_per_image": round(float(negatives.sum()) / number, 4),
        "images_without_labels": int(np.count_nonzero(np.diff(labels.matrix.indptr) == 0)),
        "classes_without_positives": int((positives == 0).sum()),
        "classes_scorable": int(((positives > 0) & (negatives > 0)).sum()),
    }


def picture_format(path: Path) -> str:
    """Return the format of a figure by its suffix: png, svg or pdf.

    Raises:
        PlbenchError: if it is none of them.
    """
    if path.suffix.lower() not in _FORMATS:
        raise PlbenchError(f"`out={path}`: give a name that ends in {', '.join(_FORMATS)}")
    return path.suffix.lower().removeprefix(".")


def draw_stats(stats: dict[str, Any], path: Path) -> None:
    """Plot known labels by class, most frequent first, and positives per image.

    Raises:
        PlbenchError: if the name does not end in .png, .svg or .pdf. StoreError: if it cannot be written.
    """
    written = picture_format(path)
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    by_class, by_image = figure.subplots(1, 2)
    for sign, colour in (("positives", "#0072b2"), ("negatives", "#d55e00")):  # colour-blind safe
        counts = [row[f"train_{sign}"] for row in stats["classes"]]
        ranks = np.arange(1, len(counts) + 1)
        size = 7 if len(counts) <= _NAMED else 3
        by_class.plot(ranks, np.maximum(counts, 0.5), ".", markersize=size, color=colour, label=f"known {sign}")
    by_class.set(yscale="log", xlabel="classes, by known positives in train", ylabel="images")
    if len(stats["classes"]) <= _NAMED:
        names = drawable_names([row["class"] for row in stats["classes"]], [row["id"] for row in stats["classes"]])
        by_class.set_xticks(ranks, [name.replace("$", r"\$") for name in names], rotation=60, ha="right", fontsize=7)
    by_class.legend()
    by_class.set_title(f"{stats['dataset']} under {stats['protocol']}: {stats['splits'][0]['known']:,} known labels")
    for split, offset, colour in (("train", -0.2, "#0072b2"), ("test", 0.2, "#999999")):
        in_image = np.array(stats["positives_in_an_image"][split])
        shares = 100 * in_image / in_image.sum()
        by_image.bar(np.arange(len(shares)) + offset, shares, 0.4, color=colour, label=split)
    by_image.set(xlabel=f"known positives in an image ({_MAX_POSITIVES}: or more)", ylabel="% of images")
    by_image.set_title(f"train: {stats['splits'][0]['density_percent']} % of all (image, class) pairs are known")
    by_image.legend()
    dress(figure)
    write_atomically(path, lambda file: figure.savefig(file, format=written, dpi=130))
