"""Contact sheets: rows of small images with a few lines of text below each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from plbench.data.lettering import drawable, font_runs
from plbench.errors import PlbenchError
from plbench.files import write_atomically

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".pdf": "PDF"}
"""Pillow's format by suffix."""

BLACK, GREY, RED = "black", "#777777", "#b00020"

_SIDE = 176  # of an image on the sheet, in pixels
_MARGIN = 8
_FONT_SIZE = 12
_LINE = 15
_TITLE = 26  # height of a section's title in pixels
_TITLE_SIZE = 15

Line = tuple[str, str]
"""A line of text no wider than an image, and its colour."""


@dataclass(frozen=True)
class Tile:
    """An image, loaded when it is drawn, and the lines below it."""

    load: Callable[[], Image.Image]
    lines: Sequence[Line]


@dataclass(frozen=True)
class Section:
    """Tiles below an optional title."""

    tiles: Sequence[Tile]
    title: str = ""


def check_sheet_name(path: Path, option: str = "contact_sheet") -> None:
    """Reject an unknown suffix before hours of work.

    Args:
        path: of the file to write.
        option: its name, for the message.

    Raises:
        PlbenchError: if the suffix is unknown.
    """
    if path.suffix.lower() not in FORMATS:
        raise PlbenchError(f"`{option}={path}`: its name must end in one of {', '.join(FORMATS)}")


def draw_sheet(sections: Sequence[Section], path: Path, num_lines: int) -> None:
    """Write sections of tiles below one another, with one image in memory at a time.

    Args:
        sections: those without tiles are left out.
        path: of a .png, .jpg or .pdf file.
        num_lines: maximum number of lines below an image.

    Raises:
        DataError: if an image cannot be read. StoreError: if the file cannot be written.
    """
    sections = [section for section in sections if section.tiles]
    most = max((len(section.tiles) for section in sections), default=1)
    columns = min(most, max(1, math.ceil(math.sqrt(most * 1.5))))
    width, height = _SIDE + _MARGIN, _SIDE + _MARGIN + _LINE * num_lines
    heights = [
        (_TITLE if section.title else 0) + math.ceil(len(section.tiles) / columns) * height for section in sections
    ]
    sheet = Image.new("RGB", (columns * width + _MARGIN, sum(heights) + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for section, above in zip(sections, (sum(heights[:number]) for number in range(len(heights))), strict=True):
        top = above + _MARGIN
        if section.title:
            _write(draw, drawable(section.title), (_MARGIN, top + _TITLE_SIZE), BLACK, _TITLE_SIZE)
            top += _TITLE
        for place, tile in enumerate(section.tiles):
            x, y = _MARGIN + place % columns * width, top + place // columns * height
            image = tile.load()
            image.thumbnail((_SIDE, _SIDE))
            if image.width < _SIDE and image.height < _SIDE:
                image = ImageOps.contain(image, (_SIDE, _SIDE), Image.Resampling.NEAREST)
            sheet.paste(image, (x, y))
            for line, (text, colour) in enumerate(tile.lines[:num_lines], 1):
                _write(draw, text, (x, y + _SIDE + _LINE * line - 1), colour)
    write_atomically(path, lambda file: sheet.save(file, format=FORMATS[path.suffix.lower()]))


def wrapped(text: str, most: int) -> list[str]:
    """Wrap drawable text to the width of an image: between words; Chinese, Thai and long words are split anywhere."""
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


def fitted(text: str, end: str = "", *, keeps_end: bool = False) -> str:
    """Shorten text with "…", so that it fits the width of an image together with `end`.

    Args:
        text: drawable.
        end: appended, and never shortened, such as a score.
        keeps_end: shorten at the start, as for paths.
    """
    if _width(text + end) <= _SIDE:
        return text + end
    cuts = ((f"…{text[at:]}" if keeps_end else f"{text[: len(text) - at]}…") + end for at in range(1, len(text) + 1))
    return next((cut for cut in cuts if _width(cut) <= _SIDE), end)


def _write(
    draw: ImageDraw.ImageDraw, text: str, place: tuple[float, float], colour: str, size: int = _FONT_SIZE
) -> None:
    x, y = place
    for font, part in _parts(text, size):
        draw.text((x, y), part, fill=colour, font=font, anchor="ls")
        x += font.getlength(part)


def _width(text: str) -> float:
    return sum(font.getlength(part) for font, part in _parts(text))


def _parts(text: str, size: int = _FONT_SIZE) -> list[tuple[ImageFont.FreeTypeFont, str]]:
    if text.isascii():
        return [(_font(None, size), text)]
    return [(_font(font, size), part) for font, part in font_runs(text)]


@lru_cache
def _font(file: str | None, size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size) if file is None else ImageFont.truetype(file, size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow's wheels include FreeType
    return font
