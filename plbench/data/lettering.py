"""Choose fonts for text in figures, and replacements for text that no installed font can display.

Class names may be in any script. matplotlib draws characters without a glyph as boxes, with a warning.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKED = ("bold", "black", "heavy", "light", "thin", "italic", "oblique", "mono", "condensed")  # tried last


def drawable(text: str, instead: str | None = None) -> str:
    """Return the text if fonts have all its characters, otherwise `instead` if they have those, otherwise escape it.

    Args:
        text: one line.
        instead: an alternative, such as an id.
    """
    for words in (text,) if instead is None else (text, instead):
        if all(_font_of(character) for character in words):
            return words
    return "".join(c if _font_of(c) else f"\\u{ord(c):04x}" for c in text)


def drawable_names(names: Sequence[str], ids: Sequence[str]) -> list[str]:
    """Return each name, or its id if no font can display it."""
    return [drawable(name, instead) for name, instead in zip(names, ids, strict=True)]


def font_runs(line: str) -> list[tuple[str, str]]:
    """Split a drawable line into as few parts as possible, each with the file of a font that has all its characters.

    If one font has them all, there is one part, so that right-to-left text is laid out as a whole.
    """
    for font in dict.fromkeys(font for character in line if (font := _font_of(character))):
        if all(_has(font, character) for character in line):
            return [(font, line)]
    runs: list[tuple[str, str]] = []
    for character in line:
        if runs and _has(runs[-1][0], character):
            runs[-1] = runs[-1][0], runs[-1][1] + character
        else:
            runs.append((_font_of(character) or _default_font(), character))
    return runs


def dress(figure: Figure) -> None:
    """Add fallback fonts to every text of a matplotlib figure as its characters require; call before saving."""
    from matplotlib.font_manager import FontProperties, fontManager
    from matplotlib.text import Text

    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    fonts = dict.fromkeys(font for text in texts for character in text.get_text() if (font := _font_of(character)))
    families = []
    for font in fonts:
        if font != _default_font():
            if font not in {entry.fname for entry in fontManager.ttflist}:  # installed after matplotlib built its list
                fontManager.addfont(font)
            families.append(FontProperties(fname=font).get_name())
    for text in texts if families else ():
        text.set_fontfamily([*text.get_fontfamily(), *families])


@cache
def _font_of(character: str) -> str | None:
    """Return the file of the first font that has a character; None if no installed font has it."""
    if character == "\n" or (character.isascii() and character.isprintable()):
        return _default_font()
    return next((font for font in chain([_default_font()], _system_fonts()) if _has(font, character)), None)


def _has(font: str, character: str) -> bool:
    return character.isprintable() and ord(character) in _characters(font)


@cache
def _characters(font: str) -> frozenset[int]:
    """Return the characters that a font can draw at any size."""
    from matplotlib.ft2font import FT2Font

    try:
        face = FT2Font(font)
        face.set_size(12.0, 72.0)
    except (RuntimeError, OSError, ValueError):  # a damaged file, or bitmaps of one size, as in many emoji fonts
        return frozenset()
    return frozenset(face.get_charmap())


@lru_cache
def _default_font() -> str:
    """Return DejaVu Sans, which is included in matplotlib and has Latin, Greek, Cyrillic, Arabic, Hebrew and more."""
    from matplotlib.font_manager import findfont

    return str(findfont("DejaVu Sans"))


@lru_cache
def _system_fonts() -> list[str]:
    """Return the files of installed fonts, plain ones first, in a reproducible order."""
    from matplotlib.font_manager import findSystemFonts

    # LastResort only has boxes
    fonts = [font for font in findSystemFonts() if "lastresort" not in Path(font).stem.lower()]
    return sorted(fonts, key=lambda font: (any(word in Path(font).stem.lower() for word in _MARKED), font))
