"""Unpacking what was downloaded: zip, tar and tar.gz from strangers, member by member.

Nothing that an archive says is trusted. A member goes to a hidden name and is renamed once whole, so that a killed
unpacking leaves no half file under a final name; done again, it leaves the members alone whose bytes are there already.
"""

from __future__ import annotations

import contextlib
import filecmp
import gzip
import io
import lzma
import re
import shutil
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, cast

from plbench.data.download.remote import size_in_words
from plbench.errors import DataError
from plbench.files import unwritable
from plbench.files.paths import refuse_links

_CHUNK = 1 << 18
_MAX_HEADER = 1 << 20  # bytes of one tar header; tarfile reads it whole into memory
_MAX_PADDING = 1 << 26  # bytes of zeros behind a tar's end
_HIDDEN = ".unpacking"
_DRIVE = re.compile(r"[A-Za-z]:")
_BROKEN = (  # what the parsers raise on damaged archives
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    struct.error,
    NotImplementedError,
    RuntimeError,
    UnicodeError,
    OverflowError,
)


@dataclass(frozen=True)
class _Member:
    """One entry of an archive.

    Attributes:
        parts: of its name, checked.
        size: bytes unpacked, as the archive says.
        open: what reads them; None for a folder.
    """

    name: str
    parts: tuple[str, ...]
    size: int
    open: Callable[[], IO[bytes]] | None


@dataclass
class _Names:
    """The names that an archive has used, to find those that it uses twice."""

    archive: Path
    files: set[tuple[str, ...]] = field(default_factory=set)
    folders: set[tuple[str, ...]] = field(default_factory=set)

    def check(self, name: str, *, is_folder: bool) -> tuple[str, ...]:
        """Return the parts of a member's name.

        Raises:
            DataError: if it may leave the folder, cannot be shown, or is taken.
        """
        if not name or any(unicodedata.category(letter) == "Cc" for letter in name):
            raise bad_member(self.archive, name, "an empty name, or one with control characters")
        if name.startswith("/") or "\\" in name or _DRIVE.match(name):
            raise bad_member(self.archive, name, "an absolute path, or one with backslashes")
        parts = PurePosixPath(name).parts
        if ".." in parts:
            raise bad_member(self.archive, name, "a path that leaves the folder")
        if parts and parts[-1].endswith(_HIDDEN):
            raise bad_member(self.archive, name, "a name that unpacking itself uses")
        parents = {parts[:depth] for depth in range(1, len(parts))}
        if is_folder:
            parents.add(parts)
        elif not parts or parts in self.files or parts in self.folders:
            raise bad_member(self.archive, name, "a name that the archive uses twice")
        else:
            self.files.add(parts)
        if parents & self.files:
            raise bad_member(self.archive, name, "a file's name as a folder's")
        self.folders |= parents
        return parts


def bad_member(archive: Path, name: str, what: str) -> DataError:
    """Return the sentence for a member that is not unpacked."""
    return DataError(
        f"{archive} has a member {name!r} with {what}, so it is not unpacked further; get the archive from its "
        "publisher again"
    )


def unpack(archive: Path, folder: Path, report: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Unpack a zip, tar or tar.gz; what lies in the folder already and is equal is left as it is.

    A zip has a checksum of each member. A tar.gz has one, at its end: when it is damaged, members unpacked before may
    be too, and are replaced when a sound one is unpacked over them.

    Args:
        report: called with (bytes done, bytes in all): unpacked ones of a zip, packed ones of a tar. What it raises
            ends the unpacking.

    Raises:
        DataError: if the archive is damaged, or has a member that is refused: a path that leaves the folder, a link,
            a device, a duplicate. Of that member nothing is written. PlbenchError: if a link in the folder would lead
            a member elsewhere. StoreError: if the folder cannot be written to
            or the disk is too small.
    """
    with _explaining_damage(archive), archive.open("rb") as file:
        start = file.read(512)
    if start.startswith(b"PK"):
        _unpack_zip(archive, folder, report)
    elif start.startswith(b"\x1f\x8b") or start[257:262] == b"ustar":
        _unpack_tar(archive, folder, report, is_gzip=start.startswith(b"\x1f\x8b"))
    else:
        raise DataError(f"{archive} is neither zip, tar nor tar.gz; delete it, and get it from its publisher again")


def _unpack_zip(archive: Path, folder: Path, report: Callable[[int, int], None]) -> None:
    with _explaining_damage(archive):
        file = zipfile.ZipFile(archive)
        _check_number(file, archive)
    with file:
        members = _zip_members(file, archive)
        total, done = sum(member.size for member in members), 0
        places = [(folder.joinpath(*member.parts), member.size) for member in members]
        missing = (size for path, size in places if not path.is_file() or path.stat().st_size != size)
        _check_space(folder, sum(missing), archive)

        def advance(size: int) -> None:
            nonlocal done
            done += size
            report(done, total)

        for member in members:
            _write_member(member, folder, archive, advance)


def _check_number(file: zipfile.ZipFile, archive: Path) -> None:
    """Raise an error if a damaged list of members was read as a shorter one, which zipfile does not notice."""
    with archive.open("rb") as raw:
        end = raw.seek(-22 - len(file.comment), io.SEEK_END)
        (stated,) = struct.unpack("<10xH10x", raw.read(22))
        if stated == 0xFFFF:  # 65,535 or more: the number stands in a record before the end's
            raw.seek(end - 76)
            signature, number = struct.unpack("<4s28xQ36x", raw.read(76))
            stated = number & 0xFFFF if signature == b"PK\6\6" else stated
    if stated != len(file.infolist()) & 0xFFFF:  # some old tools count modulo 65,536
        raise zipfile.BadZipFile(f"{len(file.infolist()):,} of its members can be read")


def _zip_members(file: zipfile.ZipFile, archive: Path) -> list[_Member]:
    """All entries, checked before the first is written."""
    names = _Names(archive)
    members = []
    for info in file.infolist():
        name = info.orig_filename  # zipfile itself cuts the other one at a NUL
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise bad_member(archive, name, "the type of a link or device")
        if info.flag_bits & 1:
            raise bad_member(archive, name, "a password")
        parts = names.check(name, is_folder=info.is_dir())
        content = None if info.is_dir() else partial(file.open, info)
        members.append(_Member(name, parts, info.file_size if content else 0, content))
    return members


def _unpack_tar(archive: Path, folder: Path, report: Callable[[int, int], None], *, is_gzip: bool) -> None:
    names = _Names(archive)
    total = archive.stat().st_size
    with contextlib.ExitStack() as stack:
        packed = stack.enter_context(archive.open("rb"))
        source = stack.enter_context(gzip.GzipFile(fileobj=packed)) if is_gzip else packed
        stream = _ForwardOnly(cast("IO[bytes]", source))
        with _explaining_damage(archive):
            file = stack.enter_context(tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r:"))
        while True:
            with _explaining_damage(archive):
                info = file.next()
            if info is None:
                break
            member = _tar_member(file, info, names)
            _check_space(folder, member.size, archive)
            _write_member(member, folder, archive, lambda _: report(min(packed.tell(), total), total))
        with _explaining_damage(archive):
            stream.check_end()


def _tar_member(file: tarfile.TarFile, info: tarfile.TarInfo, names: _Names) -> _Member:
    if not (info.isdir() or info.isreg()) or info.issparse():
        raise bad_member(names.archive, info.name, "the type of a link, device, pipe or sparse file")
    if info.size < 0:
        raise bad_member(names.archive, info.name, "a negative size")
    parts = names.check(info.name, is_folder=info.isdir())
    content = None if info.isdir() else (lambda: cast("IO[bytes]", file.extractfile(info)))
    return _Member(info.name, parts, info.size, content)


class _ForwardOnly:
    """The file that tarfile reads: only onwards, since to step back in a gzip is to decompress it again from zero.

    It remembers the last block, by which alone one can tell a tar's end from a tar cut between two members.
    """

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self._position = 0
        self._last = b""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        self._last = self._source.read(size)
        self._position += len(self._last)
        return self._last

    def tell(self) -> int:
        return self._position

    def seekable(self) -> bool:
        return True

    def seek(self, position: int, whence: int = 0) -> int:
        if whence != 0 or position < self._position:
            raise tarfile.ReadError("members out of order")
        while self._position < position:
            skipped = len(self._source.read(min(_CHUNK, position - self._position)))
            if not skipped:
                raise EOFError("cut short")
            self._position += skipped
        return position

    def check_end(self) -> None:
        """Raise an error unless the tar ended by its end mark, and the rest, with gzip's own checksum, is sound."""
        if self._last != bytes(tarfile.BLOCKSIZE):
            raise EOFError("cut short")
        rest = 0
        while chunk := self._source.read(_CHUNK):
            rest += len(chunk)
            if rest > _MAX_PADDING or chunk.strip(b"\0"):
                raise tarfile.ReadError("data behind its end")


def _write_member(member: _Member, folder: Path, archive: Path, advance: Callable[[int], None]) -> None:
    """Write one member under a hidden name, then rename it, unless the very same bytes lie there already."""
    path = folder.joinpath(*member.parts)
    # one name per archive and folder, so that what a killed unpacking left is overwritten by the next
    hidden = path.with_name(f".{archive.name}{_HIDDEN}")
    refuse_links(folder, path)
    _make_folder(path if member.open is None else path.parent)
    if member.open is None:
        return
    refuse_links(folder, hidden)
    try:
        with hidden.open("wb") as file:
            for chunk in _read_member(member, archive):
                file.write(chunk)
                advance(len(chunk))
        # what is equal keeps its time, by which its checksum is remembered
        if not (path.is_file() and filecmp.cmp(hidden, path, shallow=False)):
            hidden.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            hidden.unlink(missing_ok=True)


def _read_member(member: _Member, archive: Path) -> Iterator[bytes]:
    assert member.open is not None
    size = 0
    with _explaining_damage(archive), member.open() as source:
        while chunk := source.read(_CHUNK):
            size += len(chunk)
            if size > member.size:  # a bomb says that it is small
                raise bad_member(archive, member.name, f"more than the {member.size:,} bytes that it states")
            yield chunk
        if size != member.size:
            raise EOFError("cut short")


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


def _check_space(folder: Path, needed: int, archive: Path) -> None:
    _make_folder(folder)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{archive} needs {size_in_words(needed)} more in {folder}, where {size_in_words(free)} are free; free "
            "some space and run the same command again: what is unpacked stays"
        )


@contextlib.contextmanager
def _explaining_damage(archive: Path) -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        raise DataError(
            f"{archive} is damaged or cut short ({error or type(error).__name__}); delete it, and run the same "
            "command again to get it anew"
        ) from error
