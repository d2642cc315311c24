"""Packs as anybody may write them."""

import io
import lzma
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from plbench.board.boards import open_boards
from plbench.board.entries import Contents
from plbench.board.packs import records_of

Members = dict[str, bytes]


def tarred(members: Iterable[tuple[str | tarfile.TarInfo, bytes]], *, format: int = tarfile.USTAR_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for member, content in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            if info.isreg():
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def compressed(content: bytes, **options: Any) -> bytes:
    compressor = lzma.LZMACompressor(**({"preset": 0} | options))
    return compressor.compress(content) + compressor.flush()


def packed(members: Iterable[tuple[str | tarfile.TarInfo, bytes]]) -> bytes:
    return compressed(tarred(members))


def members_of(path: Path) -> Members:
    with tarfile.open(path, "r:xz") as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]


def contents_of(root: Path, key: str) -> Contents:
    """Files of a record on the only board below a folder."""
    (board,) = open_boards(root)
    return records_of(board)[key]


def pack_of(root: Path, key: str) -> Path:
    return next(path for path in root.glob("*/records/*") if any(name.startswith(key) for name in members_of(path)))


def change_member(root: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """Changes one file of a record, `key/file`, where it is packed."""
    path = pack_of(root, name.partition("/")[0])
    members = members_of(path)
    path.write_bytes(packed((members | {name: change(members[name])}).items()))
