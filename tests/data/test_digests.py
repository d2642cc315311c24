"""What files hold is found out once and remembered, and found out again when anything about a file changes."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plbench.data import digests
from plbench.data.digests import file_sha256, file_sha256s, files_sha256
from plbench.errors import DataError, StoreError
from plbench.files.checksums import DAMAGED


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Nine files, as if they were written long ago."""
    monkeypatch.setattr(digests, "_FRESH_NS", 0)
    folder = tmp_path / "files"
    folder.mkdir()
    paths = [folder / f"{number}.bmp" for number in range(9)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 100)
    return paths


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read."""
    names: list[str] = []
    digest = hashlib.file_digest

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(hashlib, name)

        def file_digest(self, file: Any, algorithm: str) -> Any:
            names.append(Path(file.name).name)
            return digest(file, algorithm)

    monkeypatch.setattr(digests, "hashlib", Watched())
    return names


def found(paths: list[Path], cache: Path | None) -> list[str]:
    return [row.tobytes().hex() for row in files_sha256(len(paths), lambda row: str(paths[row]), cache)]


def expected(paths: list[Path]) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def test_many_files_at_once_are_what_each_is_by_itself(files: list[Path], tmp_path: Path) -> None:
    assert file_sha256s(files, tmp_path / "cache") == [file_sha256(path) for path in files] == expected(files)
    files[4].unlink()
    with pytest.raises(DataError, match=r"4\.bmp cannot be read: No such file"):
        file_sha256s(files, tmp_path / "cache")


def test_each_file_is_read_once(files: list[Path], tmp_path: Path, read: list[str]) -> None:
    cache = tmp_path / "cache"
    assert found(files, cache) == found(files, cache) == expected(files)
    assert sorted(read) == [path.name for path in files]
    assert found(files[:3], None) == expected(files[:3]) and len(read) == 12  # without a cache nothing is kept


def swap(one: Path, other: Path) -> None:
    """In place: two files of one size change contents, and get their times back."""
    times = [(path.stat().st_atime_ns, path.stat().st_mtime_ns) for path in (one, other)]
    contents = one.read_bytes(), other.read_bytes()
    for path, content, time in zip((one, other), contents[::-1], times, strict=True):
        with path.open("r+b") as file:
            file.write(content)
        os.utime(path, ns=time)


def exchange(one: Path, other: Path) -> None:
    """By renaming: each keeps its inode, its size and its time."""
    one.rename(one.with_suffix(".x"))
    other.rename(one)
    one.with_suffix(".x").rename(other)


def flip(one: Path, other: Path) -> None:
    status = one.stat()
    content = bytearray(one.read_bytes())
    content[50] ^= 1
    one.write_bytes(content)
    os.utime(one, ns=(status.st_atime_ns, status.st_mtime_ns))


def grow(one: Path, other: Path) -> None:
    other.write_bytes(other.read_bytes() + b"\0")


@pytest.mark.parametrize("change", [swap, exchange, flip, grow])
def test_a_changed_file_is_read_again(change: Any, files: list[Path], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    before = found(files, cache)
    change(files[2], files[5])
    assert found(files, cache) == expected(files) != before


def test_a_file_that_changed_a_moment_ago_is_not_remembered(
    files: list[Path], tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "_FRESH_NS", 10**12)
    for _ in range(2):
        found(files, tmp_path / "cache")
    assert len(read) == 18


def test_an_absent_file_is_zeros_or_a_sentence(files: list[Path], tmp_path: Path) -> None:
    files[4].unlink()
    sha256s = files_sha256(len(files), lambda row: str(files[row]), tmp_path / "cache")
    assert np.flatnonzero(~sha256s.any(axis=1)).tolist() == [4]
    with pytest.raises(DataError, match=r"4\.bmp cannot be read: No such file"):
        file_sha256(files[4], tmp_path / "cache")


def test_a_digest_that_was_changed_in_the_memory_is_not_believed(
    files: list[Path], tmp_path: Path, read: list[str]
) -> None:
    cache = tmp_path / "cache"
    found(files, cache)
    with sqlite3.connect(cache / "digests-1.sqlite") as memory:
        memory.execute("UPDATE digests SET sha256 = zeroblob(32)")
    assert found(files, cache) == expected(files) and len(read) == 18


@pytest.mark.parametrize("content", [b"no database at all, but long enough to be one" * 100, b"SQLite format 3\0" * 64])
def test_a_damaged_memory_is_set_aside(files: list[Path], tmp_path: Path, content: bytes) -> None:
    cache = tmp_path / "cache"
    found(files, cache)
    path = cache / "digests-1.sqlite"
    path.write_bytes(content)
    assert found(files, cache) == found(files, cache) == expected(files)
    assert path.with_name(path.name + DAMAGED).read_bytes() == content


def test_a_memory_of_a_format_that_does_not_exist_is_set_aside(files: list[Path], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    found(files, cache)
    path = cache / "digests-1.sqlite"
    content = bytearray(path.read_bytes())
    content[47] ^= 0x80  # of which SQLite says "unsupported file format", as an operational error
    path.write_bytes(content)
    assert found(files, cache) == found(files, cache) == expected(files)
    assert path.with_name(path.name + DAMAGED).read_bytes() == content


def test_a_memory_that_cannot_be_made_is_named(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(StoreError, match=r"could not write .*digests"):
        found(files, tmp_path / "cache")


def test_several_processes_and_one_that_is_killed(files: list[Path], tmp_path: Path) -> None:
    cache, fork = tmp_path / "cache", multiprocessing.get_context("fork")

    def work(dies: bool) -> None:
        for _ in range(20):
            assert found(files, cache) == expected(files)
            (cache / "digests-1.sqlite").exists()
            if dies:
                os.kill(os.getpid(), signal.SIGKILL)

    processes = [fork.Process(target=work, args=(number == 1,)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, -signal.SIGKILL, 0, 0]
    assert found(files, cache) == expected(files)
