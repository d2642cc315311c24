"""Whether a board in a git checkout only grew since a commit: rows change or go only with the board's version."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plbench.board.boards import BOARD, LEDGER, RECORDS, BoardFolder
from plbench.findings import Refusal, printable, shown

TIMEOUT = 60  # seconds for one question to git
KEPT = ("name", "dataset", "protocol", "protocol_sha256", "ceiling_sha256", "dataset_fingerprint", "max_trials")
"""What a board asks: changed only with its version, but for what was not known before."""


def check_history(folder: BoardFolder, against: str | None, note: Callable[[str], None]) -> list[Refusal]:
    """Compares a board with what it was.

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
            Refusal("", f"{BOARD}: version", str(folder.board.version), f"at least {version}, as in {printable(ref)}")
        ]
    if folder.board.version != version:
        return []
    refusals = _changed_question(folder, old_board, ref)
    refusals += _changed_events(folder, _old(folder.path, commit, LEDGER) or {}, ref)
    return refusals + _changed_files(folder, commit, ref)


def _changed_question(folder: BoardFolder, old: dict[str, Any], ref: str) -> list[Refusal]:
    new = folder.board.model_dump(mode="json")
    return [
        Refusal(
            "", f"{BOARD}: {name}", shown(new[name]), f"{shown(old[name])}, as in {printable(ref)}, or a new version"
        )
        for name in KEPT
        if old.get(name) is not None and new[name] != old[name]
    ]


def _changed_events(folder: BoardFolder, old: dict[str, Any], ref: str) -> list[Refusal]:
    """Events of then must be the first of now."""
    before = old.get("events", [])
    after = [event.model_dump(exclude_none=True) for event in folder.ledger]
    for number, event in enumerate(before):
        found = after[number] if number < len(after) else None
        if found != event:
            key = event.get("key", "") if isinstance(event, dict) else ""
            words = f"{_told(event)}, as in {printable(ref)}: the ledger only grows"
            return [Refusal(printable(str(key)), f"{LEDGER}: events.{number}", _told(found), words)]
    return []


def _told(event: Any) -> str:
    return f"{event.get('event')} {event.get('key')} at {event.get('at')}" if isinstance(event, dict) else "missing"


def _changed_files(folder: BoardFolder, commit: str, ref: str) -> list[Refusal]:
    """Files of records that are there in the commit must be there now, and the same."""
    options = ("--name-status", "-z", "--no-renames", "--no-ext-diff", "--no-textconv", "--diff-filter=a", "--relative")
    told = _git(folder.path, "diff", *options, commit, "--", RECORDS)
    if told is None:
        return [Refusal("", RECORDS, "not comparable by git", f"a comparison with {printable(ref)}")]
    fields = told.split("\0")
    refusals = []
    for status, name in zip(fields[::2], fields[1::2], strict=False):
        parts = Path(name).parts
        key = parts[1] if len(parts) > 2 else ""
        found = "removed" if status == "D" else "changed"
        words = f"what it was in {printable(ref)}, or a new board version that says why"
        refusals.append(Refusal(printable(key), printable(parts[-1]), found, words))
    return refusals


def _old(folder: Path, commit: str, name: str) -> dict[str, Any] | None:
    """A JSON file of the board as it was; None where it was not there."""
    text = _git(folder, "show", f"{commit}:./{name}")
    if text is None:
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _git(folder: Path, *arguments: str) -> str | None:
    """What git answers; None where there is no git, it fails, or takes too long."""
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None
