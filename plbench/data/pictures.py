"""Contact sheets: images of a dataset with their labels, for a person to look at."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from plbench.api import LabelledSplit
from plbench.errors import PlbenchError
from plbench.randomness import derive_seed, generator
from plbench.store import write_atomically

_SIDE = 176  # of an image on the sheet, px
_MARGIN = 8
_FONT_SIZE = 12
_LINE = 15
_MAX_LINES = 6
_MOST_ABSENT = 2  # lines


def contact_sheet(split: LabelledSplit, path: Path, num_images: int) -> None:
    """Writes a PNG of images drawn at random (the same ones each time), each above what is known of it.

    Names of what is present in black; in grey, where there is room, of what is verified absent.

    Raises:
        PlbenchError: if the path's name does not end in .png. DataError: if an image cannot be read.
        StoreError: if the file cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise PlbenchError(f"--out {path}: a contact sheet is a PNG file; give a name that ends in .png")
    rows = _choose(len(split.images), num_images)
    columns = min(len(rows), max(1, math.ceil(math.sqrt(len(rows) * 1.5))))
    width, height = _SIDE + _MARGIN, _SIDE + _MARGIN + _LINE * _MAX_LINES
    lines = math.ceil(len(rows) / columns)
    sheet = Image.new("RGB", (columns * width + _MARGIN, lines * height + _MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_SIZE)
    for place, row in enumerate(rows):
        left, top = _MARGIN + place % columns * width, _MARGIN + place // columns * height
        image = split.images.load(row)
        image.thumbnail((_SIDE, _SIDE))
        if image.width < _SIDE and image.height < _SIDE:
            image = ImageOps.contain(image, (_SIDE, _SIDE), Image.Resampling.NEAREST)
        sheet.paste(image, (left, top))
        present, absent = _captions(split, row)
        below = top + _SIDE + 2
        draw.text((left, below), "\n".join(present), fill="black", font=font, spacing=2)
        draw.text((left, below + _LINE * len(present)), "\n".join(absent), fill="#777777", font=font, spacing=2)
    write_atomically(path, lambda file: sheet.save(file, format="PNG"))


def _choose(num_rows: int, wanted: int) -> list[int]:
    import torch

    order = torch.randperm(num_rows, generator=generator(derive_seed(0, "contact-sheet")))
    return sorted(order[:wanted].tolist())


def _captions(split: LabelledSplit, row: int) -> tuple[list[str], list[str]]:
    """Lines on what is known to be present, and, in the room that they leave, on what is known to be absent."""
    labels = split.labels.rows([row])[0]
    names = split.labels.class_names
    present = ", ".join(names[c] for c in np.flatnonzero(labels > 0)) or "(nothing known to be present)"
    absent = ", ".join(names[c] for c in np.flatnonzero(labels < 0))
    first = _wrapped(present, _MAX_LINES)
    return first, _wrapped(f"not {absent}", min(_MAX_LINES - len(first), _MOST_ABSENT)) if absent else []


def _wrapped(text: str, most: int) -> list[str]:
    lines = textwrap.wrap(text, width=28)
    return lines if len(lines) <= most else [*lines[: max(0, most - 1)], "…"][:most]
