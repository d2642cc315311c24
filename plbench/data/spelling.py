"""Texts that look the same but differ in whitespace, invisible characters or Unicode composition."""

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
    """Strip whitespace and invisible characters (Unicode's Cf, such as a byte-order mark) from both ends of a text."""
    start, stop = 0, len(text)
    while start < stop and _is_blank(text[start]):
        start += 1
    while stop > start and _is_blank(text[stop - 1]):
        stop -= 1
    return text[start:stop]


def _is_blank(letter: str) -> bool:
    return letter.isspace() or unicodedata.category(letter) == "Cf"


def trim_column(texts: pa.Array) -> pa.Array:
    """Apply `trim` to Arrow strings [N]."""
    texts = pc.utf8_trim_whitespace(texts)
    if pc.all(pc.string_is_ascii(texts)).as_py() is not False:
        return texts  # the usual case: a regular expression over millions takes seconds
    return pc.replace_substring_regex(texts, pattern=_AROUND, replacement="")


def look(text: str) -> str:
    """Return a key shared by texts that look the same: NFKC, no invisible characters, whitespace collapsed."""
    if not text.isascii():
        shown = "".join(letter for letter in text if letter.isspace() or unicodedata.category(letter) != "Cf")
        text = unicodedata.normalize("NFKC", shown)
    return " ".join(text.split())


def first_alike(texts: pa.Array) -> tuple[str, str] | None:
    """Return the first two of some distinct Arrow strings that look the same; None if there are none."""
    odd = texts.filter(pc.invert(pc.string_is_ascii(texts)))
    if not len(odd):
        return None
    seen: dict[str, str] = {}
    for text in [*odd.to_pylist(), *texts.filter(pc.string_is_ascii(texts)).to_pylist()]:
        if (other := seen.setdefault(look(text), text)) != text:
            return min(other, text), max(other, text)
    return None


def file_look(name: str) -> str:
    """Return a key shared by file names that look the same, ignoring the case of the suffix."""
    stem, suffix = posixpath.splitext(look(name))
    return stem + suffix.lower()


def find_alike(root: Path, relative: str) -> str | None:
    """Find a file below a folder whose path looks like one that does not exist.

    macOS decomposes accents (NFD), most programs do not (NFC); cameras write .JPG.

    Args:
        root: the folder.
        relative: a path below it, with slashes.

    Returns:
        The path on disk; None if there is no such file, or more than one.
    """
    folder, name = posixpath.split(relative)
    found, names = list_by_look(root, folder)
    alike = names.get(file_look(name), ())
    return posixpath.join(found, alike[0]) if len(alike) == 1 else None


def list_by_look(root: Path, folder: str) -> tuple[str, Mapping[str, Sequence[str]]]:
    """List a folder below another, with names grouped by look.

    Returns:
        The folder's path on disk, and its names by `file_look`; none if there is no such folder.
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
    """List a folder; cached until its mtime in ns changes."""
    names: dict[str, list[str]] = defaultdict(list)
    for name in sorted(os.listdir(folder)):
        names[file_look(name)].append(name)
    return dict(names)
