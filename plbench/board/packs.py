"""Packs: records that were added together for one row, in one file that is read with limits.

A pack is `records/<smallest key>.tar.xz`. Its members are the `FILES` of each record, `<key>/<name>`; tables with the
same name may be joined into one file (`plbench.board.class_tables`, `plbench.board.replicates`). Records of one row are
similar: together they take half the space.
"""

from __future__ import annotations

import io
import lzma
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from plbench.board.boards import RECORDS, BoardFolder
from plbench.board.class_tables import COLUMNS, as_columns, from_columns
from plbench.board.entries import FILES, MAX_BYTES, Contents
from plbench.board.replicates import DIFFERENCES, as_differences, from_differences
from plbench.errors import PlbenchError
from plbench.files.paths import read_plain
from plbench.runs.findings import Problem, printable
from plbench.runs.tables import PER_CLASS, REPLICATES, EntryError

SUFFIX = ".tar.xz"

MAX_PACK = 64 << 20
"""Maximum size in bytes of a pack, compressed and unpacked."""

_MAX_MEMORY = 128 << 20  # for unpacking; the best preset needs 65 MiB
_FILTER = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 2, "pb": 0}  # for text: not aligned
_KEY = re.compile(r"[0-9a-f]{16}")
_JOINED = {COLUMNS: (PER_CLASS, as_columns, from_columns), DIFFERENCES: (REPLICATES, as_differences, from_differences)}
_MEMBER = re.compile(rf"({_KEY.pattern})/({'|'.join(map(re.escape, FILES))})|{'|'.join(map(re.escape, _JOINED))}")


def pack_name(keys: Mapping[str, object]) -> str:
    """Return the name of the file for records with these keys."""
    return f"{min(keys)}{SUFFIX}"


def pack_records(records: Mapping[str, Contents]) -> bytes:
    """Return a pack; equal records give identical bytes.

    Args:
        records: by key: the content of each file, by name.

    Raises:
        PlbenchError: if they exceed the size of a pack.
    """
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        # similar files next to each other, for better compression
        members = {f"{key}/{name}": records[key][name] for name in FILES for key in sorted(records)}
        for joined, (file, join, _) in _JOINED.items():
            content = join([records[key][file] for key in sorted(records)])
            if content is not None:
                members = {name: content for name, content in members.items() if not name.endswith(f"/{file}")}
                members[joined] = content
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    if out.tell() > MAX_PACK:
        raise PlbenchError(f"{len(records)} records of a row have more than {MAX_PACK:,} bytes; add fewer at once")
    return compress(out.getvalue())


def compress(archive: bytes) -> bytes:
    """Compress an archive with settings for text."""
    return lzma.compress(archive, filters=[_FILTER])


def unpack_records(content: bytes) -> dict[str, Contents]:
    """Return the records of a pack by key, in any order.

    Raises:
        EntryError: if it is damaged, unpacks to more than the limit, or contains anything but regular files of records.
            The field is the member's name, or empty.
    """
    unpacked = _decompress(content)
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as archive:
            for member in archive:
                name = printable(member.name)
                found = _MEMBER.fullmatch(member.name)
                if found is None or member.type != tarfile.REGTYPE or member.pax_headers:
                    raise EntryError(name, "is no plain file of a record")
                if member.name in members:
                    raise EntryError(name, "is there twice")
                most = MAX_BYTES.get(found[2], MAX_PACK)
                if member.size > most:
                    raise EntryError(name, f"has {member.size:,} bytes; expected at most {most:,}")
                reader = archive.extractfile(member)
                assert reader is not None  # a regular file
                members[member.name] = reader.read()
            # tarfile treats a damaged header like the blank one at the end
            if unpacked[archive.offset :].strip(b"\0"):
                raise EntryError("", "is damaged, or has something after its end")
    except EntryError:
        raise
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        raise EntryError("", f"is no archive of records: {printable(str(error))}") from error
    records = _by_key(members)
    if missing := [f"{key}/{name}" for key in records for name in FILES if name not in records[key]]:
        raise EntryError(missing[0], "is missing")
    if not records:
        raise EntryError("", "has no records")
    return records


def _by_key(members: dict[str, bytes]) -> dict[str, Contents]:
    joined = {name: members.pop(name) for name in _JOINED if name in members}
    records: dict[str, Contents] = {}
    for name, content in members.items():
        key, file = name.split("/")
        records.setdefault(key, {})[file] = content
    for name, content in joined.items():
        file, _, split = _JOINED[name]
        keys = sorted(records)
        for key, table in zip(keys, split(content, len(keys)) if keys else (), strict=True):
            if file in records[key]:
                raise EntryError(f"{key}/{file}", f"is there twice, {name} has it too")
            records[key][file] = table
    return records


def _decompress(content: bytes) -> bytes:
    reader = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MAX_MEMORY)
    try:
        unpacked = reader.decompress(content, max_length=MAX_PACK + 1)
    except (lzma.LZMAError, MemoryError) as error:
        raise EntryError("", f"cannot be unpacked: {error}") from error
    if len(unpacked) > MAX_PACK:
        raise EntryError("", f"unpacks to more than {MAX_PACK:,} bytes")
    if not reader.eof or reader.unused_data:
        raise EntryError("", "is cut short" if not reader.eof else "has something after its end")
    return unpacked


@dataclass(frozen=True)
class Packs:
    """The records folder of a board.

    Attributes:
        records: those in the ledger, by key. paths: of their packs.
        problems: unexpected and missing files.
    """

    records: dict[str, Contents]
    paths: list[Path]
    problems: list[Problem]


def read_packs(folder: BoardFolder) -> Packs:
    """Read each pack of a board once; packs with anything that does not match the ledger are rejected as a whole."""
    records: dict[str, Contents] = {}
    paths: list[Path] = []
    refused: list[Problem] = []
    strangers: list[Problem] = []
    named: set[str] = set()  # in packs that were rejected, so not missing
    all_known = True
    place = folder.path / RECORDS
    for path in sorted(place.iterdir()) if place.is_dir() else ():
        stem, where = path.name.removesuffix(SUFFIX), f"{RECORDS}/{printable(path.name)}"
        if path.suffixes[-2:] != [".tar", ".xz"] or not _KEY.fullmatch(stem):
            strangers.append(Problem("", where, "no file of plbench", f"only packs, KEY{SUFFIX}"))
            continue
        try:
            found = unpack_records(read_plain(folder.path.parent, path, MAX_PACK))
        except EntryError as error:
            what = f"a file whose member {error.field} {error.found}" if error.field else f"a file that {error.found}"
            refused.append(Problem(stem, where, what, f"a pack of plain files, {', '.join(FILES)} of each record"))
            all_known = False
            continue
        except (PlbenchError, OSError) as error:
            refused.append(Problem(stem, where, f"a file that cannot be read: {printable(str(error))}", "a plain file"))
            all_known = False
            continue
        unknown = sorted(found.keys() - folder.added.keys())
        twice = sorted(found.keys() & records.keys())
        if path.name != pack_name(found):
            refused.append(Problem(stem, where, f"a pack of {pack_name(found)}", "named after its smallest key"))
        elif unknown and folder.is_unnoted(path):
            continue  # of a process that is running or was killed; the next one removes it
        elif unknown:
            words = "records that the ledger names; add them again, or delete it"
            strangers.append(Problem(unknown[0], where, "on disk, but not added", words))
        elif twice:
            refused.append(Problem(twice[0], where, "another pack with this record", "each record in one pack"))
        else:
            records |= found
            paths.append(path)
            continue
        named |= found.keys()
    if all_known:  # otherwise missing records may be in an unreadable pack
        missing = [key for key in folder.added if key not in records and key not in named]
        words = "a pack that holds it, as the ledger names it"
        refused += [Problem(key, RECORDS, "without it", words) for key in missing]
    return Packs(records, paths, refused + strangers)


def records_of(folder: BoardFolder) -> dict[str, Contents]:
    """Return the files of every record in the ledger, by key.

    Raises:
        EntryError: if a record is missing, or its pack was rejected.
    """
    packs = read_packs(folder)
    if folder.added.keys() - packs.records.keys():
        raise EntryError(str(folder.path), str(packs.problems[0]))
    return packs.records
