"""From names in files to paths: what a file says never leads out of the folder it speaks of, nor through a link."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from plbench.errors import DataError, PlbenchError

UNSAFE = r"^$|^/|^[A-Za-z]:|\\|(^|/)\.\.(/|$)|[\x00-\x1f\x7f]"
"""Matches names that are no paths below a folder: empty, absolute, of a drive, with `..`, a backslash or a control
character. For Python's `re` and for Arrow alike."""

_UNSAFE = re.compile(UNSAFE)


def is_unsafe(name: str) -> bool:
    """Return whether a name from a file is no path below a folder.

    Examples:
        >>> is_unsafe("dogs/0001.jpg"), is_unsafe("../dogs/0001.jpg"), is_unsafe("C:dogs"), is_unsafe("/etc/passwd")
        (False, True, True, True)
    """
    return _UNSAFE.search(name) is not None


def below(folder: Path, name: str, source: object) -> Path:
    """Turn a name that a file gives into a path below a folder; DataError if it could lead out of it.

    Args:
        source: what is named, for the message, such as "image" or a file and a line of it.
    """
    if is_unsafe(name):
        raise DataError(
            f"{source} {name!r:.80} leads out of its folder {folder}; expected a path below it: no leading /, no .., "
            "no backslash, no drive letter, no control character"
        )
    return folder / name


def in_home(path: str | Path) -> Path:
    """Return a path whose `~` is the home folder that it stands for: shells replace it at the start of a word alone.

    Raises:
        PlbenchError: if it is not known which folder that is.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise PlbenchError(f"{path}: no home folder is known; give the path as it is, or set HOME") from error


def refuse_links(folder: Path, path: Path) -> None:
    """Refuse a path below a folder that is a link or leads through one; what does not exist yet is none.

    The folder itself may be a link, as may its parents: a person named it.

    Raises:
        PlbenchError: naming the link.
    """
    place = folder
    for part in path.relative_to(folder).parts:
        place = place / part
        if place.is_symlink():
            raise PlbenchError(
                f"{place} is a link to {os.readlink(place)!r:.80}; plbench neither follows nor writes through links "
                f"in {folder}: put a plain file or folder there"
            )


def read_plain(folder: Path, path: Path, most_bytes: int) -> bytes:
    """Read a plain file below a folder that a person named: no link, no device, not too large.

    Raises:
        PlbenchError: if it is a link or leads through one, is no plain file, or is larger. OSError: if it cannot be
            read.
    """
    refuse_links(folder, path)
    # a pipe would wait for ever; between the look and the opening a link may have come
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise PlbenchError(f"{path} is not a plain file; put one there, or remove it")
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise PlbenchError(f"{path} has more than {most_bytes:,} bytes, the most that plbench reads of it")
    return content
