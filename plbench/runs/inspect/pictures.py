"""Contact sheets: images of a dataset with their labels, for a person to look at."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from plbench.data.dataset import LabelledSplit
from plbench.data.lettering import drawable_names, font_runs
from plbench.errors import PlbenchError
from plbench.files import write_atomically
from plbench.randomness import derive_seed, generator

_SIDE = 176  # of an image on the sheet, px
_MARGIN = 8
_FONT_SIZE = 12
_LINE = 15
_MAX_LINES = 6
_MAX_ABSENT = 2  # lines


def contact_sheet(split: LabelledSplit, path: Path, num_images: int) -> None:
    """Write a PNG of images drawn at random (the same ones each time), each above what is known of it.

    Names of what is present in black; in grey, where there is room, of what is verified absent.

    Raises:
        PlbenchError: if the path's name does not end in .png. DataError: if an image cannot be read.
        StoreError: if the file cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise PlbenchError(f"`out={path}`: a contact sheet is a PNG file; give a name that ends in .png")
    import torch

    order = torch.randperm(len(split.images), generator=generator(derive_seed(0, "contact-sheet")))
    rows = sorted(order[:num_images].tolist())
    columns = min(len(rows), max(1, math.ceil(math.sqrt(len(rows) * 1.5))))
    width, height = _SIDE + _MARGIN, _SIDE + _MARGIN + _LINE * _MAX_LINES
    lines = math.ceil(len(rows) / columns)
    sheet = Image.new("RGB", (columns * width + _MARGIN, lines * height + _MARGIN), "white")
    draw, names = ImageDraw.Draw(sheet), drawable_names(split.labels.class_names, split.labels.class_ids)
    for place, row in enumerate(rows):
        left, top = _MARGIN + place % columns * width, _MARGIN + place // columns * height
        image = split.images.load(row)
        image.thumbnail((_SIDE, _SIDE))
        if image.width < _SIDE and image.height < _SIDE:
            image = ImageOps.contain(image, (_SIDE, _SIDE), Image.Resampling.NEAREST)
        sheet.paste(image, (left, top))
        labels = split.labels.rows([row])[0]
        present = ", ".join(names[c] for c in np.flatnonzero(labels > 0)) or "(nothing known to be present)"
        absent = ", ".join(names[c] for c in np.flatnonzero(labels < 0))
        captions = [(line, "black") for line in _wrapped(present, _MAX_LINES)]
        room = min(_MAX_LINES - len(captions), _MAX_ABSENT)
        captions += [(line, "#777777") for line in _wrapped(f"not {absent}", room)] if absent else []
        for line, (text, colour) in enumerate(captions, 1):
            x = float(left)
            for font, part in _parts(text):
                draw.text((x, top + _SIDE + _LINE * line - 1), part, fill=colour, font=font, anchor="ls")
                x += font.getlength(part)
    write_atomically(path, lambda file: sheet.save(file, format="PNG"))


def _wrapped(text: str, most: int) -> list[str]:
    """Cut text into lines no wider than an image: between words, but Chinese, Thai and long words anywhere."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".lstrip()
        if _width(joined) <= _SIDE:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if _width(lines[-1] + character) > _SIDE:
                lines.append("")
            lines[-1] += character
    return lines if len(lines) <= most else [*lines[: max(0, most - 1)], "…"][:most]


def _width(text: str) -> float:
    return sum(font.getlength(part) for font, part in _parts(text))


def _parts(text: str) -> list[tuple[ImageFont.FreeTypeFont, str]]:
    if text.isascii():
        return [(_font(None), text)]
    return [(_font(font), part) for font, part in font_runs(text)]


@lru_cache
def _font(file: str | None) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(_FONT_SIZE) if file is None else ImageFont.truetype(file, _FONT_SIZE)
    assert isinstance(font, ImageFont.FreeTypeFont)  # FreeType is in every wheel of Pillow
    return font
