"""Convert untrusted names to paths that never leave their folder, nor lead through links."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from plbench.errors import DataError, PlbenchError

UNSAFE = r"^$|^/|^[A-Za-z]:|\\|(^|/)\.\.(/|$)|[\x00-\x1f\x7f]"
"""Matches names that are not paths below a folder: empty, absolute, with a drive, `..`, a backslash or a control
character. Valid for Python's `re` and for Arrow."""

_UNSAFE = re.compile(UNSAFE)


def is_unsafe(name: str) -> bool:
    """Return whether an untrusted name is not a path below a folder.

    Examples:
        >>> is_unsafe("dogs/0001.jpg"), is_unsafe("../dogs/0001.jpg"), is_unsafe("C:dogs"), is_unsafe("/etc/passwd")
        (False, True, True, True)
    """
    return _UNSAFE.search(name) is not None


def below(folder: Path, name: str, source: object) -> Path:
    """Convert an untrusted name to a path below a folder; DataError if it could lead outside.

    Args:
        source: description for the message, such as "image", or a file and line.
    """
    if is_unsafe(name):
        raise DataError(
            f"{source} {name!r:.80} leads out of its folder {folder}; expected a path below it: no leading /, no .., "
            "no backslash, no drive letter, no control character"
        )
    return folder / name


def in_home(path: str | Path) -> Path:
    """Expand `~` in a path, which shells only do at the start of a word.

    Raises:
        PlbenchError: if the home folder is unknown.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise PlbenchError(f"{path}: no home folder is known; give the path as it is, or set HOME") from error


def refuse_links(folder: Path, path: Path) -> None:
    """Reject a path below a folder that is a link or leads through one; it need not exist.

    The folder and its parents may be links, since the user named them.

    Raises:
        PlbenchError: with the link.
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
    """Read a regular file below a folder that the user named: not a link or device, and not too large.

    Raises:
        PlbenchError: if it is a link or leads through one, is not a regular file, or is larger. OSError: if it cannot
            be read.
    """
    refuse_links(folder, path)
    # a pipe would block forever; a link may appear between check and opening
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise PlbenchError(f"{path} is not a plain file; put one there, or remove it")
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise PlbenchError(f"{path} has more than {most_bytes:,} bytes, the most that plbench reads of it")
    return content
