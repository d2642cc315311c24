"""Whether a board in a git checkout only grew since a commit: rows change or go only with the board's version."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from plbench.board.boards import BOARD, LEDGER, RECORDS, BoardFolder
from plbench.board.entries import FILES, read_content
from plbench.files.plain_json import parse_json
from plbench.runs.findings import Problem, printable, shown
from plbench.runs.tables import EntryError

TIMEOUT = 60  # seconds for one question to git
KEPT = ("name", "dataset", "protocol", "protocol_sha256", "ceiling_sha256", "dataset_fingerprint", "max_trials")
"""What a board asks: changed only with its version, but for what was not known before."""


def check_history(folder: BoardFolder, against: str | None, note: Callable[[str], None]) -> list[Problem]:
    """Compare a board with what it was.

    Args:
        folder: the board.
        against: a commit; None for HEAD.
        note: told, in a sentence, where there is nothing to compare with.
    """
    ref = against or "HEAD"
    commit = None if ref.startswith("-") else _git(folder.path, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
    if commit is None:
        name = folder.board.name
        note(f"board {name}: history was not checked: {folder.path} is no git checkout with commit {printable(ref)}")
        return []
    commit = commit.strip()
    old_board = _old(folder.path, commit, BOARD)
    if old_board is None:
        return []  # a new board
    version = old_board.get("version", 1)
    if isinstance(version, int) and folder.board.version < version:
        return [
            Problem("", f"{BOARD}: version", str(folder.board.version), f"at least {version}, as in {printable(ref)}")
        ]
    if folder.board.version != version:
        return []
    problems = _changed_question(folder, old_board, ref)
    problems += _changed_events(folder, _old(folder.path, commit, LEDGER) or {}, ref)
    return problems + _changed_files(folder, commit, ref)


def _changed_question(folder: BoardFolder, old: dict[str, Any], ref: str) -> list[Problem]:
    new = folder.board.model_dump(mode="json")
    return [
        Problem(
            "", f"{BOARD}: {name}", shown(new[name]), f"{shown(old[name])}, as in {printable(ref)}, or a new version"
        )
        for name in KEPT
        if old.get(name) is not None and new[name] != old[name]
    ]


def _changed_events(folder: BoardFolder, old: dict[str, Any], ref: str) -> list[Problem]:
    """Check that the events of then are the first of now."""
    before = old.get("events", [])
    after = [event.model_dump(exclude_none=True) for event in folder.ledger]
    for number, event in enumerate(before):
        found = after[number] if number < len(after) else None
        if found != event:
            key = event.get("key", "") if isinstance(event, dict) else ""
            words = f"{_told(event)}, as in {printable(ref)}: the ledger only grows"
            return [Problem(printable(str(key)), f"{LEDGER}: events.{number}", _told(found), words)]
    return []


def _told(event: Any) -> str:
    return f"{event.get('event')} {event.get('key')} at {event.get('at')}" if isinstance(event, dict) else "missing"


def _changed_files(folder: BoardFolder, commit: str, ref: str) -> list[Problem]:
    """Return files of records that are there in the commit must be there now, and the same."""
    told = _git(folder.path, "ls-tree", "-r", "-z", commit, "--", f"{RECORDS}/")
    if told is None:
        return [Problem("", RECORDS, "not comparable by git", f"a comparison with {printable(ref)}")]
    problems = []
    for line in filter(None, told.split("\0")):
        (_, _, blob), name = line.partition("\t")[0].split(), line.partition("\t")[2]
        path, parts = folder.path / name, Path(name).parts
        if (found := _blob(path, blob)) == blob or _is_packed_now(path, blob):
            continue
        key = parts[1] if len(parts) > 2 else ""
        found = "removed" if found is None else "changed"
        words = f"what it was in {printable(ref)}, or a new board version that says why"
        problems.append(Problem(printable(key), printable(parts[-1]), found, words))
    return problems


def _blob(path: Path, like: str) -> str | None:
    """Return the id that git would give a plain file; None where there is none, empty for a link.

    Computed here: `git diff` would run whatever filters the checkout's own configuration names.
    """
    if path.is_symlink() or not path.is_file():
        return "" if path.is_symlink() or path.exists() else None
    return _git_id(path.read_bytes(), like)


def _is_packed_now(path: Path, blob: str) -> bool:
    """Return whether a record's file that is gone was packed since: the same content as `NAME.xz`."""
    if path.name not in FILES or path.exists() or path.is_symlink():
        return False
    try:
        return _git_id(read_content(path.parent, path.name), blob) == blob
    except EntryError:
        return False


def _git_id(content: bytes, like: str) -> str:
    digest = hashlib.sha256 if len(like) == 64 else partial(hashlib.sha1, usedforsecurity=False)
    return digest(b"blob %d\0" % len(content) + content).hexdigest()


def _old(folder: Path, commit: str, name: str) -> dict[str, Any] | None:
    """Return a JSON file of the board as it was; None where it was not there."""
    text = _git(folder, "show", f"{commit}:./{name}")
    if text is None:
        return None
    try:
        content = parse_json(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git answers; None where there is no git, it fails, or takes too long."""
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments]
    # no fetching by the commands that a checkout names
    alone = {**os.environ, "GIT_NO_LAZY_FETCH": "1", "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT, env=alone)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None
