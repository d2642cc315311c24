"""What lies on disk: whole or not there, found by the start of a name, held by one process at a time."""

import errno
import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

from plbench.errors import StoreError
from plbench.files import locked, write_atomically, write_json, write_text
from plbench.runs.store import RECORD, Store

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs", tmp_path / "cache")


def with_record(store: Store, *keys: str) -> Store:
    for key in keys:
        write_json(store.run_folder(key) / RECORD, {})
    return store


def refuse(sentence: str) -> None:
    """Does not wait for a run that another process holds."""
    raise StoreError(sentence)


class TestWriting:
    def test_folders_are_made_and_content_is_replaced(self, tmp_path: Path) -> None:
        path = tmp_path / "a" / "b" / "text"
        write_text(path, "ä\n")
        write_text(path, "second")
        assert path.read_text(encoding="utf-8") == "second"
        assert [p.name for p in path.parent.iterdir()] == ["text"]
        assert path.stat().st_mode & 0o777 == 0o644

    @pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("bad write")])
    def test_a_failed_write_leaves_what_was_there(self, tmp_path: Path, failure: Exception) -> None:
        def write(file: IO[bytes]) -> None:
            file.write(b"half")
            raise failure

        path = tmp_path / "file"
        write_text(path, "first")
        with pytest.raises(StoreError, match=f"could not write {path}: .*; free some space, or choose another place"):
            write_atomically(path, write)
        assert path.read_text() == "first"
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize("failure", [KeyboardInterrupt(), ZeroDivisionError()])
    def test_what_is_not_the_disks_fault_passes_and_leaves_nothing(
        self, tmp_path: Path, failure: BaseException
    ) -> None:
        def write(file: IO[bytes]) -> None:
            raise failure

        with pytest.raises(type(failure)):
            write_atomically(tmp_path / "file", write)
        assert not list(tmp_path.iterdir())

    def test_a_place_that_cannot_be_written_to_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(StoreError, match=r"could not write .*; free some space, or choose another place$"):
            write_text(tmp_path / "file" / "below", "")

    def test_json_is_readable_sorted_and_without_nan(self, tmp_path: Path) -> None:
        write_json(tmp_path / "x.json", {"b": 1, "a": [1.5]})
        assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1.5], "b": 1}
        assert (tmp_path / "x.json").read_text().index('"a"') < (tmp_path / "x.json").read_text().index('"b"')
        with pytest.raises(ValueError, match="Out of range float values"):
            write_json(tmp_path / "x.json", float("nan"))


class TestFinding:
    def test_keys_are_those_of_runs_with_a_record(self, store: Store) -> None:
        assert store.keys() == []
        with_record(store, "bb", "aa")
        store.run_folder("cc").mkdir()
        assert store.keys() == ["aa", "bb"]

    def test_a_run_is_found_by_key_start_or_path(self, store: Store) -> None:
        with_record(store, "abc1", "abd2")
        folder = store.run_folder("abc1")
        for text in ("abc1", "abc", str(folder), str(folder / RECORD)):
            assert store.find(text) == folder

    @pytest.mark.parametrize(
        ("text", "sentence"), [("ab", "'ab' is the start of 2 runs"), ("x", "there is no run 'x'")]
    )
    def test_what_is_not_one_run_is_said(self, store: Store, text: str, sentence: str) -> None:
        with_record(store, "abc1", "abd2")
        with pytest.raises(StoreError, match=sentence):
            store.find(text)

    def test_removing_takes_the_whole_folder(self, store: Store) -> None:
        with_record(store, "abc")
        (store.run_folder("abc") / "artifacts").mkdir()
        store.remove("abc")
        store.remove("never-there")
        assert not store.run_folder("abc").exists()


class TestLocks:
    def in_another_process(self, work: Callable[[], Any]) -> Any:
        """What `work` returns or raises, as text, in a forked process."""
        queue = FORK.SimpleQueue()

        def body() -> None:
            try:
                queue.put(repr(work()))
            except StoreError as error:
                queue.put(str(error))

        process = FORK.Process(target=body)
        process.start()
        process.join(30)
        assert process.exitcode == 0
        return queue.get()

    def test_a_run_is_held_by_one_process(self, store: Store) -> None:
        def take() -> None:
            with store.lock("abc", refuse):
                pass

        with store.lock("abc", refuse):
            assert self.in_another_process(take).startswith("Run abc is in progress in another process")
        assert self.in_another_process(take) == "None"
        assert not list(store.runs.iterdir()), "the lock's file is gone"

    def test_a_lock_of_a_process_that_died_is_free(self, store: Store) -> None:
        def die() -> None:
            with store.lock("abc", refuse):
                os._exit(0)

        process = FORK.Process(target=die)
        process.start()
        process.join(30)
        with store.lock("abc", refuse):
            pass

    def test_a_lock_is_let_go_after_an_error(self, store: Store) -> None:
        with pytest.raises(ZeroDivisionError), store.lock("abc", refuse):
            raise ZeroDivisionError
        with store.lock("abc", refuse):
            pass

    def test_a_cached_thing_is_waited_for(self, store: Store) -> None:
        def make(name: str) -> int:
            with locked(store.cache / "things" / "x") as path:
                made = not path.is_file()
                if made:
                    write_text(path, name)
                return int(made)

        queue = FORK.SimpleQueue()
        processes = [FORK.Process(target=lambda n=n: queue.put(make(str(n)))) for n in range(4)]
        for process in processes:
            process.start()
        made = [queue.get() for _ in processes]
        for process in processes:
            process.join(30)
        assert sum(made) == 1

    def test_a_store_that_cannot_be_written_to_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        store = Store(tmp_path / "file" / "runs", tmp_path / "file" / "cache")
        with pytest.raises(StoreError, match=r"could not write"), store.lock("abc", refuse):
            pass
        with pytest.raises(StoreError, match=r"could not write"), locked(store.cache / "abc"):
            pass
