"""Unpack downloaded zip, tar and tar.gz archives, which are not trusted, member by member.

Members are written under a hidden name and renamed when complete, so that a killed process leaves no partial file under
a final name. Repeated unpacking leaves existing identical members alone.
"""

from __future__ import annotations

import contextlib
import filecmp
import gzip
import lzma
import shutil
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, cast

from plbench.data.download.remote import size_in_words
from plbench.errors import DataError, PlbenchError
from plbench.files import unwritable
from plbench.files.paths import is_unsafe, refuse_links

_CHUNK = 1 << 18
_MAX_HEADER = 1 << 20  # maximum bytes of a tar header, which tarfile reads into memory
_BROKEN = (  # errors of the parsers on damaged archives
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    struct.error,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
)


@dataclass(frozen=True)
class _Member:
    """A member of an archive with a valid name: `size` as stated by the archive, `open` None for a folder."""

    name: str
    path: PurePosixPath
    size: int
    open: Callable[[], IO[bytes]] | None


def unpack(archive: Path, folder: Path, report: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Unpack a zip, tar or tar.gz; existing identical files are left alone.

    A zip has a checksum of each member. A tar.gz has one at its end: if it is damaged, members that were unpacked
    before may be too, and are replaced when an intact archive is unpacked over them.

    Args:
        report: called with (bytes done, total bytes): unpacked bytes of a zip, packed bytes of a tar. Its exceptions
            stop unpacking.

    Raises:
        DataError: if the archive is damaged, or has an invalid member: a path outside the folder, a link, a device or a
            duplicate. Invalid members are not written.
        PlbenchError: if a link in the folder would redirect a member.
        StoreError: if the folder cannot be written to, or the disk is too small.
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
    with contextlib.ExitStack() as stack:
        with _explaining_damage(archive):
            file = stack.enter_context(zipfile.ZipFile(archive))
            stated = zipfile._EndRecData(file.fp)[4]  # type: ignore[attr-defined]
            # zipfile may read fewer members from a damaged list; some old tools count modulo 65,536
            if (stated - len(file.infolist())) % 0x10000:
                raise zipfile.BadZipFile(f"{len(file.infolist()):,} of its members can be read")
        members = list(_zip_members(file, archive))  # all are checked before the first is written
        total, done = sum(member.size for member in members), 0
        places = [(folder / member.path, member.size) for member in members]
        missing = (size for path, size in places if not path.is_file() or path.stat().st_size != size)
        _check_space(folder, sum(missing), archive)

        def advance(size: int) -> None:
            nonlocal done
            done += size
            report(done, total)

        for member in members:
            _write_member(member, folder, archive, advance)


def _zip_members(file: zipfile.ZipFile, archive: Path) -> Iterator[_Member]:
    names = _Names(archive)
    for info in file.infolist():
        name = info.orig_filename  # zipfile cuts `filename` at a NUL
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _bad_member(archive, name, "the type of a link or device")
        if info.flag_bits & 1:
            raise _bad_member(archive, name, "a password")
        is_folder = name.endswith("/")
        path = names.check(name, is_folder=is_folder)
        yield _Member(name, path, 0 if is_folder else info.file_size, None if is_folder else partial(file.open, info))


class _StrictHeader(tarfile.TarInfo):
    """A tar header that raises an error if damaged; after the first member, tarfile treats that as the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _StrictHeader:
        try:
            info = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"cut short: {error}") from error
        if info.type in b"LKxgX" and info.size > _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {info.size:,} bytes")
        return info


def _unpack_tar(archive: Path, folder: Path, report: Callable[[int, int], None], *, is_gzip: bool) -> None:
    names, total = _Names(archive), archive.stat().st_size
    with contextlib.ExitStack() as stack:
        packed = stack.enter_context(archive.open("rb"))
        source = cast("IO[bytes]", stack.enter_context(gzip.GzipFile(fileobj=packed)) if is_gzip else packed)
        with _explaining_damage(archive):  # "|": forward only, since seeking back in a gzip starts over
            file = stack.enter_context(tarfile.open(None, "r|", source, bufsize=_CHUNK, tarinfo=_StrictHeader))
        while True:
            with _explaining_damage(archive):
                info = file.next()
            if info is None:
                break
            if not (info.isdir() or info.isreg()) or info.issparse():
                raise _bad_member(archive, info.name, "the type of a link, device, pipe or sparse file")
            if info.size < 0:
                raise _bad_member(archive, info.name, "a negative size")
            content = None if info.isdir() else cast("Callable[[], IO[bytes]]", partial(file.extractfile, info))
            member = _Member(info.name, names.check(info.name, is_folder=info.isdir()), info.size, content)
            _check_space(folder, member.size, archive)
            _write_member(member, folder, archive, lambda _: report(min(packed.tell(), total), total))
        with _explaining_damage(archive):
            while source.read(_CHUNK):  # read to the end, where gzip has its checksum
                pass


class _Names:
    """Names in an archive, to detect duplicates."""

    def __init__(self, archive: Path) -> None:
        self._archive = archive
        self._files: set[PurePosixPath] = set()
        self._folders = {PurePosixPath()}

    def check(self, name: str, *, is_folder: bool) -> PurePosixPath:
        """Return the path of a member in the folder; DataError if it may leave it, is unprintable or a duplicate."""
        if is_unsafe(name) or any(unicodedata.category(letter) == "Cc" for letter in name):
            raise _bad_member(self._archive, name, "a path that leaves the folder, or with control characters")
        path = PurePosixPath(name)
        folders = {path, *path.parents} if is_folder else {*path.parents}
        if folders & self._files or (not is_folder and (path in self._files or path in self._folders)):
            raise _bad_member(self._archive, name, "a name that the archive uses twice")
        self._folders |= folders
        if not is_folder:
            self._files.add(path)
        return path


def _bad_member(archive: Path, name: str, what: str) -> DataError:
    return DataError(
        f"{archive} has a member {name!r} with {what}, so it is not unpacked further; get the archive from its "
        "publisher again"
    )


def _write_member(member: _Member, folder: Path, archive: Path, advance: Callable[[int], None]) -> None:
    """Write one member under a hidden name, then rename it, unless an identical file exists."""
    path = folder / member.path
    # one name per archive and folder, so that leftovers of a killed process are overwritten
    hidden = path.with_name(f".{archive.name}.unpacking")
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
        # an identical file keeps its mtime, which keys its cached checksum
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
            if size > member.size:  # zip bombs understate their size
                raise _bad_member(archive, member.name, f"more than the {member.size:,} bytes that it states")
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
    except PlbenchError:  # our own error, which is also a ValueError
        raise
    except _BROKEN as error:
        raise DataError(
            f"{archive} is damaged or cut short ({error or type(error).__name__}); delete it, and run the same "
            "command again to download it again"
        ) from error
