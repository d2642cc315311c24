"""Packs: the same records give the same bytes, and anything but records is refused in one sentence."""

import contextlib
import hashlib
import json
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packing import Members, compressed, packed, tarred

from plbench.board import packs
from plbench.board.boards import BOARD, LEDGER, RECORDS, BoardFolder
from plbench.board.entries import FILES, MAX_BYTES
from plbench.board.packs import MAX_PACK, pack_name, pack_records, read_packs, records_of, unpack_records
from plbench.errors import PlbenchError
from plbench.runs.tables import EntryError

KEYS = ("a" * 16, "b" * 16, "c" * 16)
RECORDED = {key: {name: f"{key} {name}\n".encode() * 50 for name in FILES} for key in KEYS}
MEMBERS: Members = {f"{key}/{name}": RECORDED[key][name] for key in KEYS for name in FILES}
FIRST = f"{KEYS[0]}/record.json"


def without(*names: str) -> Members:
    return {name: content for name, content in MEMBERS.items() if name not in names}


def special(kind: bytes, name: str = FIRST) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/proc/self/environ"
    return info


def commented() -> tarfile.TarInfo:
    info = tarfile.TarInfo(FIRST)
    info.pax_headers = {"comment": "anything"}
    return info


class TestPacking:
    def test_what_was_packed_is_unpacked(self) -> None:
        assert unpack_records(pack_records(RECORDED)) == RECORDED
        assert pack_name(RECORDED) == f"{KEYS[0]}.tar.xz"

    def test_the_same_records_give_the_same_bytes(self) -> None:
        """On every machine: nothing of the time, the user or the order is in them."""
        content = pack_records(RECORDED)
        assert content == pack_records(dict(reversed(RECORDED.items())))
        # packed by liblzma 5.4; other releases may compress otherwise, so that only the archive is compared
        assert (
            hashlib.sha256(lzma.decompress(content)).hexdigest()
            == "26efa212f91d193b674e56e1b89d4b2dd5f362bda801963bfa244886f9dfa2f5"
        )

    def test_files_of_one_kind_stand_side_by_side(self, tmp_path: Path) -> None:
        (tmp_path / "pack").write_bytes(pack_records(RECORDED))
        with tarfile.open(tmp_path / "pack", "r:xz") as archive:
            members = archive.getmembers()
        assert [member.name for member in members] == [f"{key}/{name}" for name in FILES for key in KEYS]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}

    def test_the_order_of_members_does_not_matter(self) -> None:
        assert unpack_records(packed(reversed(MEMBERS.items()))) == RECORDED

    def test_more_than_a_pack_may_hold_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(packs, "MAX_PACK", 1000)
        with pytest.raises(PlbenchError, match=r"3 records of a row have more than 1,000 bytes; add fewer at once"):
            pack_records(RECORDED)


WHOLE = pack_records(RECORDED)
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "cut short"),
    "no archive": (lambda: b"no archive" * 9, "cannot be unpacked"),
    "cut short": (lambda: WHOLE[:-40], "cut short"),
    "something after the end": (lambda: WHOLE + b"x", "something after its end"),
    "two streams": (lambda: WHOLE + WHOLE, "something after its end"),
    "a bomb": (lambda: compressed(bytes(MAX_PACK + 1)), f"unpacks to more than {MAX_PACK:,} bytes"),
    "more memory than there may be": (
        lambda: compressed(b"x", preset=None, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 28}]),
        "cannot be unpacked",
    ),
    "an empty archive": (lambda: packed([]), "has no records"),
    "no tar": (lambda: compressed(b"x" * 4096), "no archive of records"),
    "a damaged header": (
        lambda: compressed(tarred(MEMBERS.items()).replace(KEYS[1].encode(), b"B" * 16, 1)),
        "is damaged",
    ),
    "something after the archive": (lambda: compressed(tarred(MEMBERS.items()) + b"x"), "something after its end"),
    "a foreign member": (lambda: packed([*MEMBERS.items(), (f"{KEYS[0]}/cells.npz", b"")]), "cells.npz is no plain"),
    "a key that is none": (lambda: packed([("A" * 16 + "/record.json", b"")]), "is no plain file of a record"),
    "a path that leads out": (lambda: packed([(f"../{KEYS[0]}/record.json", b"")]), "is no plain file of a record"),
    "an absolute path": (lambda: packed([(f"/{KEYS[0]}/record.json", b"")]), "is no plain file of a record"),
    "a path in a file": (lambda: packed([(f"{KEYS[0]}/record.json/x", b"")]), "is no plain file of a record"),
    "a name with a control character": (lambda: packed([("\x1b[2J", b"")]), r"\x1b[2J is no plain file"),
    "a symbolic link": (lambda: packed([(special(tarfile.SYMTYPE), b""), *without(FIRST).items()]), "is no plain file"),
    "a hard link": (lambda: packed([(special(tarfile.LNKTYPE), b""), *without(FIRST).items()]), "is no plain file"),
    "a folder": (lambda: packed([(special(tarfile.DIRTYPE, KEYS[0]), b""), *MEMBERS.items()]), "is no plain file"),
    "a device": (lambda: packed([(special(tarfile.CHRTYPE), b""), *without(FIRST).items()]), "is no plain file"),
    "a pipe": (lambda: packed([(special(tarfile.FIFOTYPE), b""), *without(FIRST).items()]), "is no plain file"),
    "a header of another kind": (
        lambda: compressed(tarred([(commented(), RECORDED[KEYS[0]]["record.json"])], format=tarfile.PAX_FORMAT)),
        "is no plain file",
    ),
    "a member twice": (lambda: packed([*MEMBERS.items(), (FIRST, b"")]), f"{FIRST} is there twice"),
    "a table too few": (lambda: packed(without(f"{KEYS[1]}/per_class.csv").items()), "per_class.csv is missing"),
    **{
        f"a large {name}": (
            lambda name=name: packed((MEMBERS | {f"{KEYS[0]}/{name}": bytes(MAX_BYTES[name] + 1)}).items()),
            f"{KEYS[0]}/{name} has {MAX_BYTES[name] + 1:,} bytes; expected at most {MAX_BYTES[name]:,}",
        )
        for name in FILES
    },
}


@pytest.fixture
def board(tmp_path: Path) -> BoardFolder:
    """A board of three records, which is enough for what is read of packs."""
    path = tmp_path / "tiny"
    (path / RECORDS).mkdir(parents=True)
    question = {"name": "tiny", "title": "Tiny", "dataset": "tiny", "protocol": "t/v1", "protocol_sha256": "0" * 64}
    (path / BOARD).write_text(json.dumps(question))
    events = [{"event": "added", "key": key, "at": "2026-01-01T00:00:00Z", "sha256": "0" * 64} for key in KEYS]
    (path / LEDGER).write_text(json.dumps({"events": events}))
    put(path, RECORDED)
    return BoardFolder(path)


def put(path: Path, records: dict[str, Any], name: str | None = None) -> Path:
    file = path / RECORDS / (name or pack_name(records))
    file.write_bytes(pack_records(records))
    return file


def sentences(board: BoardFolder) -> list[str]:
    return [str(problem) for problem in read_packs(board).problems]


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_pack_is_refused_in_one_sentence(board: BoardFolder, name: str) -> None:
    make, words = REFUSED[name]
    file = board.path / RECORDS / f"{KEYS[0]}.tar.xz"
    file.write_bytes(make())
    (sentence,) = sentences(board)
    assert f"record {KEYS[0]}: {RECORDS}/{file.name} is a file " in sentence and words in sentence
    assert sentence.isprintable() and len(sentence) < 1000
    with pytest.raises(EntryError, match=file.name):
        records_of(board)


@settings(max_examples=200, deadline=None)
@given(place=st.integers(0, len(WHOLE)), noise=st.binary(min_size=1, max_size=8), inside=st.booleans())
def test_noise_is_read_or_refused(place: int, noise: bytes, inside: bool) -> None:
    """Nothing raises anything else, and what is read has the names of records."""
    whole = lzma.decompress(WHOLE) if inside else WHOLE
    content = whole[:place] + noise + whole[place + len(noise) :]
    with contextlib.suppress(EntryError):
        found = unpack_records(compressed(content) if inside else content)
        assert all(sorted(files) == sorted(FILES) for files in found.values())


class TestBoard:
    def test_several_packs_are_read_as_one(self, board: BoardFolder) -> None:
        (board.path / RECORDS / f"{KEYS[0]}.tar.xz").unlink()
        put(board.path, {KEYS[1]: RECORDED[KEYS[1]]})
        put(board.path, {key: RECORDED[key] for key in (KEYS[0], KEYS[2])})
        assert sentences(board) == [] and records_of(board) == RECORDED
        assert [path.name for path in read_packs(board).paths] == [f"{KEYS[0]}.tar.xz", f"{KEYS[1]}.tar.xz"]

    def test_a_record_in_two_packs(self, board: BoardFolder) -> None:
        put(board.path, {KEYS[1]: RECORDED[KEYS[1]]})
        (sentence,) = sentences(board)
        assert f"record {KEYS[1]}: records/{KEYS[1]}.tar.xz is another pack with this record" in sentence

    def test_a_record_that_the_ledger_does_not_name(self, board: BoardFolder) -> None:
        more = {"d" * 16: RECORDED[KEYS[0]]}
        alone = put(board.path, more)
        (sentence,) = sentences(board)
        assert f"record {'d' * 16}: records/{alone.name} is on disk, but not added" in sentence
        assert records_of(board) == RECORDED  # no page shows it
        alone.unlink()
        put(board.path, RECORDED | more)
        assert "is on disk, but not added" in sentences(board)[0]
        with pytest.raises(EntryError, match="on disk, but not added"):  # a pack is taken whole or not at all
            records_of(board)

    def test_a_record_that_is_missing(self, board: BoardFolder) -> None:
        put(board.path, {key: RECORDED[key] for key in KEYS[:2]})
        (sentence,) = sentences(board)
        assert sentence.startswith(f"record {KEYS[2]}: records is without it")
        with pytest.raises(EntryError, match="without it"):
            records_of(board)

    def test_a_pack_of_another_name(self, board: BoardFolder) -> None:
        (board.path / RECORDS / f"{KEYS[0]}.tar.xz").rename(board.path / RECORDS / f"{KEYS[1]}.tar.xz")
        (sentence,) = sentences(board)
        assert f"is a pack of {KEYS[0]}.tar.xz; expected named after its smallest key" in sentence

    @pytest.mark.parametrize("name", [KEYS[0], "readme.txt", ".hidden", "A" * 16 + ".tar.xz", f"{KEYS[0]}.tar.gz"])
    def test_a_foreign_file(self, board: BoardFolder, name: str) -> None:
        (board.path / RECORDS / name).write_bytes(b"")
        (sentence,) = sentences(board)
        assert f"records/{name} is no file of plbench; expected only packs" in sentence

    @pytest.mark.parametrize("act", ["link", "folder", "large"])
    def test_only_plain_files_are_read(self, board: BoardFolder, act: str, monkeypatch: pytest.MonkeyPatch) -> None:
        path = board.path / RECORDS / f"{KEYS[0]}.tar.xz"
        kept = path.rename(board.path / "kept")
        {
            "link": lambda: path.symlink_to(kept),
            "folder": path.mkdir,
            "large": lambda: kept.rename(path) and monkeypatch.setattr(packs, "MAX_PACK", 100),
        }[act]()
        (sentence,) = sentences(board)
        assert "is a file that cannot be read: " in sentence and path.name in sentence
