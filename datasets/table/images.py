"""From the image names in a person's own table to files in a folder."""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from plbench.api import DataError, TextColumn
from plbench.data.images import SUFFIXES
from plbench.data.spelling import file_look, first_alike, list_by_look, look
from plbench.files.paths import UNSAFE

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
    listing = cache(partial(_list_by_stem, folder))
    paths: list[str] = []
    absent: list[str] = []
    for name, has_suffix in zip(names, whole.to_pylist(), strict=True):
        path = posixpath.normpath(name)
        found: Sequence[str] = [path]
        if not has_suffix and not (folder / path).is_file():
            asked, last = posixpath.split(path)
            there, by_name, by_stem = listing(asked)
            found = [posixpath.join(there, file) for file in by_name.get(file_look(last)) or by_stem[look(last)]]
        if len(found) > 1:
            raise DataError(
                f"image {name!r:.80} of the table ({where(name)}) could be {' or '.join(found[:4])} in {folder}; write "
                "the suffix too"
            )
        paths += found or [path]
        absent += [] if found else [name]
    if absent:
        raise DataError(
            f"image {absent[0]!r:.80} of the table ({where(absent[0])}) is not in {folder}, neither under this name "
            f"nor with {SUFFIXES[0]}, {SUFFIXES[1]} or another usual suffix ({len(absent):,} such images in all); give "
            "the folder that they are in with `images=DIR`"
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


def _list_by_stem(root: Path, asked: str) -> tuple[str, Mapping[str, Sequence[str]], Mapping[str, Sequence[str]]]:
    """List a folder as `list_by_look` does, and files with a usual suffix by what their stems look like, too."""
    folder, names = list_by_look(root, asked)
    by_stem: dict[str, list[str]] = defaultdict(list)
    for key, files in names.items():
        stem, suffix = posixpath.splitext(key)
        if suffix in SUFFIXES:
            by_stem[stem] += files
    return folder, names, by_stem
