"""A small table of labels with photographs, as a person may have them: for tests and the tutorial."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..fixture_images import write_image

CLASSES = ("bird", "boat", "bridge", "cat", "lamp, street", "tree")  # one with a comma: quoted in CSV
NUM_IMAGES = {"train": 60, "test": 30}
_LABELS_PER_CLASS = (0.45, 0.35, 0.3, 0.25, 0.2, 0.4)  # chance that it is in an image
_KNOWN = {"train": 0.5, "test": 0.8}  # chance that somebody looked
_NUM_REPEATED = 12


def write_fixture(root: Path) -> None:
    """Write `images/` and three tables that say the same: labels-long.csv, labels-wide.csv, labels.parquet.

    1 is present, 0 verified absent; -1, or nothing, says that nobody knows. The long CSV file is as spreadsheets
    write it, with a byte-order mark and CRLF; its rows come in no order, some twice, and two cells are said to be both.
    """
    dice = random.Random(20)
    root.mkdir(parents=True, exist_ok=True)
    values: dict[tuple[str, str], dict[str, str]] = {}  # by image and split: value by class, where there is one
    for split, number in NUM_IMAGES.items():
        for index in range(number):
            image = f"{'harbour' if index % 2 else 'garden'}/{split[:2]}{index:03d}.jpg"
            present = [c for c in range(len(CLASSES)) if dice.random() < _LABELS_PER_CLASS[c]]
            write_image(root / "images" / image, present, seed=1000 * (split == "test") + index)
            known = {c: "1" if c in present else "0" for c in range(len(CLASSES)) if dice.random() < _KNOWN[split]}
            values[image, split] = {name: known.get(c, dice.choice(("-1", ""))) for c, name in enumerate(CLASSES)}
    cells = [(image, name, value, split) for (image, split), row in values.items() for name, value in row.items()]
    with (root / "labels-wide.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "split", *CLASSES])
        writer.writerows([image, split, *row.values()] for (image, split), row in values.items())
    images, labels, texts, splits = zip(*cells, strict=True)
    numbers = pa.array([int(text) if text else None for text in texts], pa.int8())
    table = pa.table({"image": images, "label": labels, "value": numbers, "split": splits})
    pq.write_table(table, root / "labels.parquet")
    rows = cells + dice.sample([cell for cell in cells if cell[2] in ("0", "1")], _NUM_REPEATED)
    for image, label, _, split in dice.sample([cell for cell in cells if cell[2] == "-1"], 2):
        rows += [(image, label, "1", split), (image, label, "0", split)]  # said to be both: still unknown
    dice.shuffle(rows)
    with (root / "labels-long.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, lineterminator="\r\n")
        writer.writerow(["image", "label", "value", "split"])
        writer.writerows(rows)
