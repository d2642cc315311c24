"""Published files: their URLs and paths, and records that tell whether they are complete.

Each downloaded file has a small record in `.downloaded/` below the dataset's root. An archive's record is "unpacking"
from before its first member until after its last, so that a partly unpacked folder is never considered complete.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import quote, urlsplit

from rich.filesize import decimal

from plbench.errors import DataError
from plbench.files import write_json
from plbench.files.paths import is_unsafe
from plbench.files.plain_json import parse_json

RECORDS = ".downloaded"
_CHECKSUM = re.compile(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class RemoteFile:
    """One published file.

    Attributes:
        url: http or https.
        path: relative to the dataset's root. Archives are deleted after download and unpacking.
        kind: of its content.
        split: the split it belongs to; None if all need it.
        size: bytes, if stated by its publisher.
        checksum: `md5:…` or `sha256:…` in lower-case hex, if known.
        unpack: folder for an archive's members, relative to the root (`.` for the root itself); None for other files.
        makes: files or folders, relative to the root, that exist after unpacking.

    Raises:
        DataError: if a URL, path or checksum has another form.
    """

    url: str
    path: str
    kind: Literal["annotations", "images"]
    split: str | None = None
    size: int | None = None
    checksum: str | None = None
    unpack: str | None = None
    makes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        address = urlsplit(self.url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise DataError(f"the address {self.url!r} of {self.path} is not one of http:// or https://")
        for path in (self.path, self.unpack or ".", *self.makes):
            if is_unsafe(path):
                raise DataError(f"the path {path!r} of {self.url} leaves the dataset's root; give one below it")
        if self.checksum is not None and not _CHECKSUM.fullmatch(self.checksum):
            raise DataError(f"the checksum {self.checksum!r} of {self.url} is not md5: or sha256: and lower-case hex")

    @property
    def name(self) -> str:
        """Last part of its path."""
        return PurePosixPath(self.path).name


@dataclass(frozen=True)
class FileRecord:
    """Record of a downloaded file.

    Attributes:
        size: bytes.
        checksum: verified checksum; None if none is stated.
        state: `kept`: the file is at its path; `unpacking`: an archive's members may be incomplete; `unpacked`: they
            are complete.
        by_hand: the user put it at its path, so it is not deleted.
    """

    size: int
    checksum: str | None
    state: Literal["kept", "unpacking", "unpacked"]
    by_hand: bool = False

    def describes(self, file: RemoteFile) -> bool:
        """Return whether this is the same version of the file; others may have a different size or checksum."""
        if file.size is not None and file.size != self.size:
            return False
        if file.checksum is None or self.checksum is None:
            return True
        return file.checksum == self.checksum or file.checksum.split(":")[0] != self.checksum.split(":")[0]


def record_path(file: RemoteFile, root: Path) -> Path:
    """Return the path of a file's record; quoting distinguishes `a/b` from `a_b`."""
    return root / RECORDS / f"{quote(file.path, safe='')}.json"


def read_record(file: RemoteFile, root: Path) -> FileRecord | None:
    """Return the record of a file; None if it was not downloaded, or the record cannot be read."""
    try:
        content = parse_json(record_path(file, root).read_bytes())
        found = FileRecord(int(content["size"]), content["checksum"], content["state"], content["by_hand"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    is_sum = found.checksum is None or (isinstance(found.checksum, str) and _CHECKSUM.fullmatch(found.checksum))
    return found if is_sum and found.state in ("kept", "unpacking", "unpacked") else None


def write_record(file: RemoteFile, root: Path, record: FileRecord) -> None:
    """Write a file's record atomically."""
    write_json(record_path(file, root), {"url": file.url, **vars(record)})


def part_path(file: RemoteFile, root: Path) -> Path:
    """Return the path of a file until it is complete and verified."""
    path = root / file.path
    return path.with_name(f"{path.name}.part")


def bytes_of_part(file: RemoteFile, root: Path) -> int:
    """Return the size of an unfinished file in bytes."""
    part = part_path(file, root)
    return part.stat().st_size if part.is_file() else 0


def is_kept(file: RemoteFile, root: Path) -> bool:
    """Return whether the file itself, archive or not, is at its path as downloaded."""
    record = read_record(file, root)
    path = root / file.path
    return record is not None and record.describes(file) and path.is_file() and path.stat().st_size == record.size


def is_here(file: RemoteFile, root: Path) -> bool:
    """Return whether nothing is left to do: the file is complete, or the archive completely unpacked.

    Files that the user downloaded have no record. They are complete if they have the stated size, archives if all of
    `makes` exist.
    """
    record = read_record(file, root)
    made = all((root / path).exists() for path in file.makes)
    if record is None:
        if part_path(file, root).exists():
            return False
        if file.unpack is not None:
            return bool(file.makes) and made
        path = root / file.path
        size = path.stat().st_size if path.is_file() else -1
        return size == file.size if file.size is not None else size > 0
    if file.unpack is None:
        return is_kept(file, root)
    return record.state == "unpacked" and record.describes(file) and made


def compute_checksum(path: Path, algorithm: str, pulse: Callable[[], None]) -> str:
    """Return `md5:…` or `sha256:…` of a whole file.

    Args:
        pulse: called repeatedly; its exceptions stop reading.
    """
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            pulse()  # a file of 50 GB takes minutes
            digest.update(chunk)
    return f"{algorithm}:{digest.hexdigest()}"


def size_in_words(size: int) -> str:
    """Format a number of bytes in a suitable unit.

    Examples:
        >>> size_in_words(350264821), size_in_words(13510573713), size_in_words(900)
        ('350 MB', '13.5 GB', '900 bytes')
    """
    return decimal(size, precision=1 if size >= 999.5e6 else 0)
