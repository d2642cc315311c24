"""Cells of submissions: archives on the web, listed by hash and URL in a file next to the records.

A line of `cells.sha256` has the format of `sha256sum`, with the archive's https URL instead of its name. Archives are
stored under their hash, so that mirrors can be used.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from plbench.board.boards import BoardFolder
from plbench.data.download.archives import unpack
from plbench.data.download.files import download
from plbench.data.download.remote import RemoteFile, size_in_words
from plbench.data.download.transfer import remote_size
from plbench.errors import PlbenchError
from plbench.files.paths import read_plain
from plbench.progress import ProgressReport

LIST = "cells.sha256"
ARCHIVES = "archives"
MAX_ARCHIVE = 2 << 30
"""Maximum bytes of an archive; GitHub accepts no larger file in a release."""

_LINE = re.compile(r"([0-9a-f]{64}) [ *](https://[A-Za-z0-9.-]+(?::\d{1,5})?/[!-~]+)")
_MAX_LIST = 1 << 20  # bytes


def read_archives(folder: BoardFolder) -> dict[str, str]:
    """Return the URLs of a board's archives of cells, by sha256.

    Raises:
        PlbenchError: if the list cannot be read, with the line.
    """
    path = folder.path / LIST
    try:
        lines = read_plain(folder.path.parent, path, _MAX_LIST).decode("ascii", "replace").splitlines()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise PlbenchError(f"{path} cannot be read: {error.strerror}") from error
    found = {}
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise PlbenchError(
                f"{path}, line {number}: {line!r:.140} is not a sha256, two blanks and the https address of an archive"
            )
        found[match[1]] = match[2]
    return found


def fetch(
    folder: BoardFolder, to: Path, report: ProgressReport, *, kept: str | None = None, note: Callable[[str], None]
) -> list[Path]:
    """Download a board's archives of cells, and unpack each into a separate folder.

    Existing archives with the right hash are not downloaded again.

    Args:
        folder: the board.
        to: target; archives go to `archives` there, and their contents to a folder with the board's name.
        report: called with bytes fetched and total bytes.
        kept: URL of a mirror of archives by hash, tried first.
        note: receives messages.

    Returns:
        The archives.

    Raises:
        PlbenchError: if one is unavailable, has a wrong hash, is too large, or is damaged. StoreError: if the folder
            cannot be written to.
    """
    archives = read_archives(folder)
    download([_published(hashed, url, to, kept) for hashed, url in archives.items()], to, report, note=note)
    for hashed in archives:
        unpack(to / ARCHIVES / hashed, to / folder.board.name / hashed[:16])
    return [to / ARCHIVES / hashed for hashed in archives]


def _published(hashed: str, url: str, to: Path, kept: str | None) -> RemoteFile:
    """Return the URL of an archive with its stated size, which the download must not exceed."""
    place, checksum = f"{ARCHIVES}/{hashed}", f"sha256:{hashed}"
    if (to / place).exists():
        return RemoteFile(url, place, "annotations", checksum=checksum)
    for address in (url,) if kept is None else (f"{kept.rstrip('/')}/{hashed}", url):
        size = remote_size(address)
        if size is not None and size > MAX_ARCHIVE:
            raise PlbenchError(
                f"{address} has {size_in_words(size)}, more than the {size_in_words(MAX_ARCHIVE)} that an archive of "
                "cells may have; bring several"
            )
        if size is not None:
            return RemoteFile(address, place, "annotations", size=size, checksum=checksum)
    raise PlbenchError(
        f"{url} does not answer with an archive of cells and its size; name another address of the one with sha256 "
        f"{hashed} in {LIST}"
    )
