"""From the image names in a person's own table to files in a folder."""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from plbench.api import DataError, TextColumn
from plbench.data.spelling import file_look, first_alike, list_by_look, look
from plbench.files.paths import UNSAFE

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_SUFFIX = r"(?i)\.(jpe?g|png|webp|bmp|gif|tiff?)$"
_UNUSUAL = r"(^|/)\.?(/|$)"  # "./a.jpg", "a//b.jpg", "a/"

Where = Callable[[str], str]
"""Where in the table an image is first named, such as "line 17"."""


def check_names(names: TextColumn, table: Path, where: Where) -> None:
    """Refuse names that are no paths below a folder, and two that look the same.

    Raises:
        DataError: naming the first, or both.
    """
    if alike := first_alike(names.array):
        one, other = alike
        raise DataError(
            f"{table}: images {one!r:.80} ({where(one)}) and {other!r:.80} ({where(other)}) look the same and are "
            f"written with other characters ({one!a:.80}, {other!a:.80}); write both the same way"
        )
    unsafe = pc.match_substring_regex(names.array, UNSAFE)
    if (at := pc.index(unsafe, True).as_py()) < 0:
        return
    name = names[at]
    reason = "is empty" if not name else f"{name!r:.80} is no path below the folder of images"
    raise DataError(
        f"{table}, {where(name)}: the image {reason}; expected one such as dogs/0001.jpg: no leading /, no .., no "
        "backslash, no control character (if images lie elsewhere, give a folder above all of them with `images=DIR`)"
    )


def find_files(names: TextColumn, folder: Path, where: Where) -> TextColumn:
    """Return the file of each image, relative to the folder: the name itself, or the one file that it is the stem of.

    Args:
        names: as the table has them; one with a usual suffix is not looked up, so that millions take no time.
        folder: of the images.
        where: for messages.

    Raises:
        DataError: if a name without a suffix has no file, or more than one.
    """
    whole = pc.match_substring_regex(names.array, _SUFFIX)
    plain = pc.and_(whole, pc.invert(pc.match_substring_regex(names.array, _UNUSUAL)))
    if pc.all(plain).as_py():
        return names
    listings = _Listings(folder)
    paths, absent = [], []
    for name, has_suffix in zip(names, whole.to_pylist(), strict=True):
        path = posixpath.normpath(name)
        found = [path] if has_suffix else listings.files(path)
        if len(found) > 1:
            raise DataError(
                f"image {name!r:.80} of the table ({where(name)}) could be {' or '.join(found)} in {folder}; write the "
                "suffix too"
            )
        paths += found or [path]
        absent += [] if found else [name]
    if absent:
        raise DataError(
            f"image {absent[0]!r:.80} of the table ({where(absent[0])}) is not in {folder}, neither as it stands nor "
            f"with {SUFFIXES[0]}, {SUFFIXES[1]} or another usual suffix ({len(absent):,} such images in all); give the "
            "folder that they are in with `images=DIR`"
        )
    return TextColumn.of(paths)


def check_different(names: Iterable[TextColumn], paths: Iterable[TextColumn], where: Where) -> None:
    """Refuse two names of one file, in whatever splits.

    Raises:
        DataError: naming both.
    """
    all_names = pa.chunked_array([column.array for column in names], pa.large_string())
    all_paths = pa.chunked_array([column.array for column in paths], pa.large_string())
    counted = pc.value_counts(all_paths)
    if len(counted) == len(all_paths):
        return
    path = counted.field(0).filter(pc.greater(counted.field(1), 1))[0]
    one, other = all_names.filter(pc.equal(all_paths, path)).to_pylist()[:2]
    raise DataError(
        f"images {one!r:.80} ({where(one)}) and {other!r:.80} ({where(other)}) of the table are the same file, "
        f"{path.as_py()}; write it one way"
    )


class _Listings:
    """The files of each folder by what their names look like, listed when first asked for."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._by_stem: dict[str, dict[str, list[str]]] = {}

    def files(self, path: str) -> list[str]:
        """Return the file at a path, or those with a usual suffix of which it is the stem."""
        if (self._root / path).is_file():
            return [path]
        asked, name = posixpath.split(path)
        folder, names = list_by_look(self._root, asked)
        if asked not in self._by_stem:
            by_stem = self._by_stem[asked] = defaultdict(list)
            for key, files in names.items():
                stem, suffix = posixpath.splitext(key)
                if suffix in SUFFIXES:
                    by_stem[stem] += files
        found = names.get(file_look(name)) or self._by_stem[asked].get(look(name), [])
        return [posixpath.join(folder, file) for file in found]
