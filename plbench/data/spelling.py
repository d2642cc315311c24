"""Texts that look the same and are written otherwise: white space, invisible letters, composed and decomposed ones."""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

_AROUND = r"^[\s\p{Z}\p{Cf}]+|[\s\p{Z}\p{Cf}]+$"


def trim(text: str) -> str:
    """Return a text without white space and invisible letters (Unicode's Cf, such as a byte-order mark) around it."""
    start, stop = 0, len(text)
    while start < stop and _is_blank(text[start]):
        start += 1
    while stop > start and _is_blank(text[stop - 1]):
        stop -= 1
    return text[start:stop]


def _is_blank(letter: str) -> bool:
    return letter.isspace() or unicodedata.category(letter) == "Cf"


def trim_column(texts: pa.Array) -> pa.Array:
    """Return Arrow strings [N] as `trim` leaves them."""
    texts = pc.utf8_trim_whitespace(texts)
    if pc.all(pc.string_is_ascii(texts)).as_py() is not False:
        return texts  # nearly always: a regular expression over millions takes seconds
    return pc.replace_substring_regex(texts, pattern=_AROUND, replacement="")


def look(text: str) -> str:
    """Return a key that texts share which look the same: NFKC, no invisible letters, one space for any white space."""
    if not text.isascii():
        shown = "".join(letter for letter in text if letter.isspace() or unicodedata.category(letter) != "Cf")
        text = unicodedata.normalize("NFKC", shown)
    return " ".join(text.split())


def first_alike(texts: pa.Array) -> tuple[str, str] | None:
    """Return the first two of some distinct Arrow strings that look the same; None where none do."""
    odd = texts.filter(pc.invert(pc.string_is_ascii(texts)))
    if not len(odd):
        return None
    seen: dict[str, str] = {}
    for text in [*odd.to_pylist(), *texts.filter(pc.string_is_ascii(texts)).to_pylist()]:
        if (other := seen.setdefault(look(text), text)) != text:
            return min(other, text), max(other, text)
    return None


def file_look(name: str) -> str:
    """Return a key that names of one file share: they look the same, and the letter case of the suffix is ignored."""
    stem, suffix = posixpath.splitext(look(name))
    return stem + suffix.lower()


def find_alike(root: Path, relative: str) -> str | None:
    """Find a file below a folder whose path looks like one that is not there.

    macOS writes accents as letters of their own (NFD), most programs do not (NFC); cameras write .JPG.

    Args:
        root: the folder.
        relative: a path below it, with slashes.

    Returns:
        The path as it is on the disk; None if there is no such file, or more than one.
    """
    folder, name = posixpath.split(relative)
    found, names = list_by_look(root, folder)
    alike = names.get(file_look(name), ())
    return posixpath.join(found, alike[0]) if len(alike) == 1 else None


def list_by_look(root: Path, folder: str) -> tuple[str, Mapping[str, Sequence[str]]]:
    """List a folder below another by what names look like.

    Returns:
        The folder's path as it is on the disk, and the names in it by `file_look`; none if there is no such folder.
    """
    path = root / folder
    if folder and not path.is_dir():
        alike = find_alike(root, folder)
        if alike is None:
            return folder, {}
        folder, path = alike, root / alike
    try:
        return folder, _by_look(str(path), path.stat().st_mtime_ns)
    except OSError:
        return folder, {}


@lru_cache(maxsize=256)
def _by_look(folder: str, changed: int) -> dict[str, list[str]]:
    """List a folder. One that has changed since, by its time in ns, is listed anew."""
    names: dict[str, list[str]] = defaultdict(list)
    for name in sorted(os.listdir(folder)):
        names[file_look(name)].append(name)
    return dict(names)
