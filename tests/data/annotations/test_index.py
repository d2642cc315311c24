"""Annotation files are read once, whoever touches or moves them, and again when they or their reader change."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from plbench.api import DatasetOptions, IndexedDataset, PartialLabels, ProgressReport, TextColumn
from plbench.data import digests
from plbench.data.annotations import index as index_module
from plbench.data.annotations.collect import Annotations
from plbench.data.annotations.index import Index
from plbench.data.digests import file_sha256
from plbench.errors import DataError, StoreError
from plbench.files.checksums import DAMAGED


def annotations_of(text: str) -> Annotations:
    """A file's letters as images, each with one known class: capitals are present."""
    cells = ([*range(len(text))], [0] * len(text), [1 if letter.isupper() else -1 for letter in text])
    labels = PartialLabels.from_cells(*cells, num_rows=len(text), class_ids=["capital"])
    return Annotations(TextColumn.of(text), labels, notes=(f"{len(text)} letters",))


class Reading:
    """An index over two files below a folder, and how often they were read."""

    def __init__(self, folder: Path, cache: Path | None, name: str = "letters-train", meaning: str = "1") -> None:
        self.files = [folder / "one.txt", folder / "two.txt"]
        self.index = Index(cache, name, meaning, self.files)
        self.count = 0

    def get(self) -> str:
        found = self.index.get(self.read)
        assert found.labels.num_images == len(found.image_ids)
        assert [value > 0 for value in found.labels.cells()[2]] == [letter.isupper() for letter in found.image_ids]
        return "".join(found.image_ids)

    def read(self) -> Annotations:
        self.count += 1
        return annotations_of("".join(path.read_text() for path in self.files))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two files that were written long ago."""
    monkeypatch.setattr(digests, "_FRESH_NS", 0)
    folder = tmp_path / "data"
    folder.mkdir()
    for name, text in (("one.txt", "aBc"), ("two.txt", "Dé")):
        (folder / name).write_text(text)
        os.utime(folder / name, (1e9, 1e9))
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def kept(cache: Path) -> list[Path]:
    """Folders of the cache that could be taken for an index."""
    found = (cache / "index").glob("[!.]*-*")
    return sorted(path for path in found if path.is_dir() and path.suffix != DAMAGED)


def test_a_second_time_nothing_is_read(folder: Path, cache: Path) -> None:
    first, second = Reading(folder, cache), Reading(folder, cache)
    assert first.get() == second.get() == first.get() == "aBcDé"
    assert (first.count, second.count) == (1, 0)
    assert len(kept(cache)) == 1 and first.index.get(first.read).notes == ("5 letters",)


def test_the_files_are_not_even_hashed_again(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Reading(folder, cache).get()
    without_reading = SimpleNamespace(**{**vars(hashlib), "file_digest": lambda *args: pytest.fail("read again")})
    monkeypatch.setattr(digests, "hashlib", without_reading)
    assert Reading(folder, cache).get() == "aBcDé"


def test_the_first_reading_does_not_wait_for_the_hash(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, under_way = Reading(folder, cache), threading.Event()
    read = reading.read
    monkeypatch.setattr(reading, "read", lambda: under_way.set() or read())

    def hash_late(paths: Sequence[Path], cache: Path) -> list[str]:
        assert under_way.wait(10)
        return digests.file_sha256s(paths, cache)

    monkeypatch.setattr(index_module, "file_sha256s", hash_late)
    assert reading.get() == "aBcDé"


@pytest.mark.parametrize("old", [True, False])
def test_a_changed_file_is_read_again(old: bool, folder: Path, cache: Path) -> None:
    """Also one as large as before, and also one that was given its old time back."""
    for text in ("aBc", "aBC", "ABC", "xyz"):
        (folder / "one.txt").write_text(text)
        if old:
            os.utime(folder / "one.txt", (1e9, 1e9))
        reading = Reading(folder, cache)
        assert reading.get() == f"{text}Dé" and reading.count == 1
    assert len(kept(cache)) == 4


def test_a_file_changed_within_a_tick_of_the_clock_is_hashed_again(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right after it was written clocks may stand still."""
    monkeypatch.setattr(digests, "_FRESH_NS", 2 * 10**9)
    monkeypatch.setattr(digests, "signature", lambda status: b"the same")
    path, now = folder / "one.txt", time.time_ns()
    for text in ("aBc", "aBC"):
        path.write_text(text)
        os.utime(path, ns=(now, now))
        assert file_sha256(path, cache) == hashlib.sha256(text.encode()).hexdigest()


def test_a_touched_file_is_the_same(folder: Path, cache: Path) -> None:
    Reading(folder, cache).get()
    for when in (2e9, time.time(), 1.5e9):
        os.utime(folder / "two.txt", (when, when))
        reading = Reading(folder, cache)
        assert reading.get() == "aBcDé" and reading.count == 0


def test_a_moved_folder_is_the_same(folder: Path, cache: Path) -> None:
    Reading(folder, cache).get()
    moved = folder.rename(folder.parent / "elsewhere")
    reading = Reading(moved, cache)
    assert reading.get() == "aBcDé" and reading.count == 0
    assert len(kept(cache)) == 1


def test_what_decides_the_meaning_decides_the_key(folder: Path, cache: Path) -> None:
    others = [("letters-train", "1"), ("letters-train", "2"), ("letters-test", "1"), ("letters-train-more", "1")]
    readings = [Reading(folder, cache, *other) for other in others]
    for reading in readings:
        reading.get()
    assert [reading.count for reading in readings] == [1] * 4
    assert len(kept(cache)) == len({reading.index.key() for reading in readings}) == 4
    swapped = Index(cache, "letters-train", "1", readings[0].files[::-1])
    assert swapped.key() != readings[0].index.key()


def test_without_a_cache_nothing_is_kept(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    reading = Reading(folder, None)
    assert reading.get() == reading.get() == "aBcDé" and reading.count == 2
    assert sorted(tmp_path.rglob("*")) == before


def damage_file(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def replace_by_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGES = {
    "empty labels": damage_file("values.npy", b""),
    "cut off ids": damage_file("image_ids.arrow", b"ARROW1"),
    "no words": lambda folder: (folder / "said.json").unlink(),
    "foreign words": damage_file("said.json", b"[]"),
    "nothing in it": replace_by_a_file,
    "another sign": damage_file("values.npy", b""),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_index_is_made_anew(name: str, folder: Path, cache: Path) -> None:
    Reading(folder, cache).get()
    (damaged,) = kept(cache)
    DAMAGES[name](damaged)
    reading, again = Reading(folder, cache), Reading(folder, cache)
    assert reading.get() == again.get() == "aBcDé"
    assert (reading.count, again.count) == (1, 0) and kept(cache) == [damaged]


def test_a_missing_file_is_named(folder: Path, cache: Path) -> None:
    (folder / "two.txt").unlink()
    index = Reading(folder, cache).index
    with pytest.raises(DataError, match=r"two\.txt cannot be read: No such file"):
        index.get(lambda: annotations_of("abc"))
    assert kept(cache) == []


def test_a_failed_reading_leaves_nothing(folder: Path, cache: Path) -> None:
    def fail() -> Annotations:
        raise DataError("line 7 is wrong")

    with pytest.raises(DataError, match="line 7"):
        Reading(folder, cache).index.get(fail)
    assert kept(cache) == []
    assert Reading(folder, cache).get() == "aBcDé"


def test_a_cache_that_cannot_be_written_is_named(folder: Path, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(StoreError, match="could not write"):
        Reading(folder, cache).get()


def test_a_failed_write_leaves_nothing(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill_the_disk(self: Annotations, folder: Path) -> None:
        (folder / "values.npy").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Annotations, "write", fill_the_disk)
        with pytest.raises(StoreError, match="No space left on device"):
            Reading(folder, cache).get()
    assert kept(cache) == [] and not list((cache / "index").glob(".letters*"))
    assert Reading(folder, cache).get() == "aBcDé"


def test_others_may_read_a_shared_cache(folder: Path, cache: Path) -> None:
    Reading(folder, cache).get()
    (made,) = kept(cache)
    assert stat.S_IMODE(made.stat().st_mode) == 0o755


def test_who_comes_second_takes_what_the_first_has_made(folder: Path, cache: Path) -> None:
    """Nothing is replaced under its reader."""
    first, second = Reading(folder, cache), Reading(folder, cache)
    inodes: list[int] = []

    def read_meanwhile() -> Annotations:
        assert first.get() == "aBcDé"
        inodes.append((kept(cache)[0] / "values.npy").stat().st_ino)
        return second.read()

    assert "".join(second.index.get(read_meanwhile).image_ids) == "aBcDé"
    (made,) = kept(cache)
    assert [(made / "values.npy").stat().st_ino] == inodes


def _build(folder: Path, cache: Path, barrier: Any, results: Any) -> None:
    """Tells what it found, and which file that was; it is slow to act on a missing index, as on a busy machine."""
    reading, look = Reading(folder, cache), Index._open

    def look_and_dawdle(index: Index, key: str) -> Annotations | None:
        found = look(index, key)
        if found is None:
            time.sleep(0.1)
        return found

    Index._open = look_and_dawdle  # type: ignore[method-assign]

    def read() -> Annotations:
        barrier.wait(20)  # all have found nothing
        return reading.read()

    found = reading.index.get(read)
    results.put(("".join(found.image_ids), (kept(cache)[0] / "said.json").stat().st_ino))


@pytest.mark.parametrize("damaged", [False, True])
def test_processes_that_build_at_once_leave_one_good_index(damaged: bool, folder: Path, cache: Path) -> None:
    if damaged:
        Reading(folder, cache).get()
        (kept(cache)[0] / "said.json").write_text("")
    fork = multiprocessing.get_context("fork")
    barrier, results = fork.Barrier(4), fork.Queue()
    processes = [fork.Process(target=_build, args=(folder, cache, barrier, results)) for _ in range(4)]
    for process in processes:
        process.start()
    found = [results.get(timeout=30) for _ in processes]
    for process in processes:
        process.join(30)
    assert len(set(found)) == 1 and found[0][0] == "aBcDé"  # a good one is not replaced under its readers
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(kept(cache)) == 1 and not list((cache / "index").glob(".letters*"))
    reading = Reading(folder, cache)
    assert reading.get() == "aBcDé" and reading.count == 0


_KILLED = """
import os, signal, sys
from pathlib import Path
from plbench.data.text_column import TextColumn
from test_index import Reading
save = TextColumn.save
def die_after(self, path):
    save(self, path)
    if path.name == "image_ids.arrow":
        os.kill(os.getpid(), signal.SIGKILL)
TextColumn.save = die_after
Reading(Path(sys.argv[1]), Path(sys.argv[2])).get()
"""


def test_a_killed_build_is_not_mistaken_for_an_index(folder: Path, cache: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    died = subprocess.run([sys.executable, "-c", _KILLED, folder, cache], env=environment, check=False)
    assert died.returncode == -signal.SIGKILL
    assert kept(cache) == []
    reading, again = Reading(folder, cache), Reading(folder, cache)
    assert reading.get() == again.get() == "aBcDé" and (reading.count, again.count) == (1, 0)


class Letters(IndexedDataset):
    """Splits of letters; `skip` leaves some out, `where` only says where a file lies."""

    name = "letters"
    title = "Letters"
    licence = "CC0"
    protocols = ()
    recipes = ()
    readings = 0

    class Options(DatasetOptions):
        skip: str = ""
        where: Path = Path("here")

    def fetch_hint(self) -> str:
        return "write it"

    def annotation_files(self, split: str) -> list[Path]:
        return [self.root / "one.txt", self.root / "two.txt"]

    def read(self, split: str, report: ProgressReport) -> Annotations:
        type(self).readings += 1
        text = "".join(path.read_text() for path in self.annotation_files(split))
        return annotations_of(text.translate(dict.fromkeys(map(ord, self.options.skip))))


def test_version_and_options_of_a_dataset_decide_what_is_read_again(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Letters, "readings", 0)

    def ids(**options: Any) -> str:
        return "".join(Letters(folder, cache=cache, options=Letters.Options(**options)).annotations("train").image_ids)

    assert [ids(), ids(), ids(skip="")] == ["aBcDé"] * 3 and Letters.readings == 1
    assert ids(where=Path("/anywhere")) == "aBcDé" and Letters.readings == 1  # a place means nothing
    assert ids(skip="a") == ids(skip="a") == "BcDé" and Letters.readings == 2
    monkeypatch.setattr(Letters, "reader_version", "2")
    assert ids() == ids() == "aBcDé" and Letters.readings == 3
    assert Letters.Options(skip="a").meaning() == {"skip": "a"}
