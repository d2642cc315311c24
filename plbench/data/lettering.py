"""Find fonts for text in pictures, and other words for what no font on this machine can write.

Class names come in any script. A character without a glyph would be drawn as a box, and matplotlib would warn of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKED = ("bold", "black", "heavy", "light", "thin", "italic", "oblique", "mono", "condensed")  # tried last
_found: dict[str, str | None] = {}  # file of a font by character; None where no font has it


def drawable(text: str, instead: str | None = None) -> str:
    """Return the text if fonts have all its characters, else `instead` if they have those, else escape what they lack.

    Args:
        text: one line.
        instead: another name of the same, such as an id.
    """
    _look_up([text] if instead is None else [text, instead])
    for words in (text,) if instead is None else (text, instead):
        if all(_font_of(character) is not None for character in words):
            return words
    return "".join(c if _font_of(c) is not None else f"\\u{ord(c):04x}" for c in text)


def drawable_names(names: Sequence[str], ids: Sequence[str]) -> list[str]:
    """Return each name, or the id of those that no font can write; fonts are gone through once for all."""
    _look_up([*names, *ids])
    return [drawable(name, instead) for name, instead in zip(names, ids, strict=True)]


def font_runs(line: str) -> list[tuple[str, str]]:
    """Cut a drawable line into as few parts as possible, each with the file of a font that has all its characters.

    Where one font has them all there is one part, so that text from right to left is laid out as a whole.
    """
    _look_up([line])
    fonts = list(dict.fromkeys(font for character in line if (font := _font_of(character)) is not None))
    for font in fonts:
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
    """Give every text of a matplotlib figure the fonts that `drawable` found, beside its own; call before saving."""
    from matplotlib.font_manager import FontProperties, fontManager
    from matplotlib.text import Text

    more = [font for font in dict.fromkeys(_found.values()) if font not in (None, _default_font())]
    if not more:
        return
    families = []
    for font in more:
        assert font is not None
        if font not in {entry.fname for entry in fontManager.ttflist}:  # installed since matplotlib made its list
            fontManager.addfont(font)
        families.append(FontProperties(fname=font).get_name())
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_fontfamily([*text.get_fontfamily(), *families])


def _font_of(character: str) -> str | None:
    return _default_font() if _is_plain(character) else _found[character]


def _is_plain(text: str) -> bool:
    return text.isascii() and text.replace("\n", "").isprintable()


def _look_up(texts: Iterable[str]) -> None:
    """Find a font for each character, going through the fonts of the machine once for all that are new."""
    missing = {character for text in texts if not _is_plain(text) for character in text if not _is_plain(character)}
    missing -= _found.keys()
    if not missing:
        return
    used = [font for font in _found.values() if font is not None]
    for font in chain(dict.fromkeys([_default_font(), *used]), _system_fonts()):
        has = _held(font, missing)
        _found.update(dict.fromkeys(has, font))
        missing -= has
        if not missing:
            break
    _found.update(dict.fromkeys(missing))


def _held(font: str, characters: set[str]) -> set[str]:
    """Return the characters that a font can draw at any size."""
    from matplotlib.ft2font import FT2Font

    try:
        face = FT2Font(font)
        face.set_size(12.0, 72.0)
    except (RuntimeError, OSError, ValueError):  # a damaged file; or bitmaps of one size, as of many emoji
        return set()
    return {character for character in characters if character.isprintable() and face.get_char_index(ord(character))}


@lru_cache(maxsize=4096)
def _has(font: str, character: str) -> bool:
    return bool(_held(font, {character}))


@lru_cache
def _default_font() -> str:
    """Return DejaVu Sans, which comes with matplotlib.

    Latin, Greek, Cyrillic, Arabic, Hebrew, combining marks and more.
    """
    from matplotlib.font_manager import findfont

    return str(findfont("DejaVu Sans"))


def _system_fonts() -> list[str]:
    """Return files of the machine's fonts, plain ones first, in the same order each time."""
    from matplotlib.font_manager import findSystemFonts

    fonts = [
        font for font in findSystemFonts() if "lastresort" not in Path(font).stem.lower()
    ]  # whose glyphs are boxes
    return sorted(fonts, key=lambda font: (any(word in Path(font).stem.lower() for word in _MARKED), font))
