"""Check that a board in a git checkout only grew since a commit, unless its version was increased.

Setting and ledger are compared. The ledger contains the hash of each record, and the record those of its tables, so
that rows cannot change without an entry in the ledger.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from plbench.board.boards import BOARD, LEDGER, BoardFolder
from plbench.files.plain_json import parse_json
from plbench.runs.findings import Problem, printable, shown

TIMEOUT = 60  # seconds per git command
SOURCE = "plbench/__init__.py"
"""File that identifies a repository of plbench, which contains the commits named in records."""

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

KEPT = ("name", "dataset", "protocol", "protocol_sha256", "ceiling_sha256", "dataset_fingerprint", "max_trials")
"""Fields that change only with the board's version, unless they were unset before."""


def check_history(folder: BoardFolder, against: str | None, note: Callable[[str], None]) -> list[Problem]:
    """Compare a board with its state in a commit, by default HEAD; `note` receives a message if there is none."""
    ref = printable(against or "HEAD")
    commit = None if ref.startswith("-") else _git(folder.path, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
    if commit is None:
        name = folder.board.name
        note(f"board {name}: history was not checked: {folder.path} is no git checkout with commit {ref}")
        return []
    old = _old(folder.path, commit.strip(), BOARD)
    if old is None:
        return []  # a new board
    new, version = folder.board.model_dump(mode="json"), old.get("version", 1)
    if isinstance(version, int) and new["version"] < version:
        return [Problem("", f"{BOARD}: version", str(new["version"]), f"at least {version}, as in {ref}")]
    if new["version"] != version:
        return []
    problems = [
        Problem("", f"{BOARD}: {name}", shown(new[name]), f"{shown(old[name])}, as in {ref}, or a new version")
        for name in KEPT
        if old.get(name) is not None and new[name] != old[name]
    ]
    # the old events must be a prefix of the current ones
    before = (_old(folder.path, commit.strip(), LEDGER) or {}).get("events", [])
    after = [event.model_dump(exclude_none=True) for event in folder.ledger]
    for number, event in enumerate(before):
        found = after[number] if number < len(after) else None
        if found != event:
            key = event.get("key", "") if isinstance(event, dict) else ""
            words = f"{_told(event)}, as in {ref}: the ledger only grows"
            problems.append(Problem(printable(str(key)), f"{LEDGER}: events.{number}", _told(found), words))
            break
    return problems


def keys_at(folder: BoardFolder, ref: str) -> set[str]:
    """Return the keys of a board's records in a commit; empty if there is no such commit or board."""
    events = (_old(folder.path, ref, LEDGER) or {}).get("events", [])
    return {str(event.get("key")) for event in events if isinstance(event, dict)}


def check_commits(folder: BoardFolder, commits: Mapping[str, Any], note: Callable[[str], None]) -> list[Problem]:
    """Check that the commits named in records exist, if the boards are in a repository of plbench.

    Args:
        folder: the board.
        commits: stated by each record, by key; none if it was made with an installed wheel.
        note: receives a message if nothing was checked.
    """
    wanted = sorted({commit for commit in commits.values() if isinstance(commit, str) and _COMMIT.fullmatch(commit)})
    if not wanted or _git(folder.path, "rev-parse", "--git-dir") is None:
        return []  # a missing checkout is reported where the history is compared
    name = folder.board.name
    if _git(folder.path, "cat-file", "-e", f"HEAD:{SOURCE}") is None:
        note(f"board {name}: commits of records were not checked: this is no repository of plbench")
        return []
    if (_git(folder.path, "rev-parse", "--is-shallow-repository") or "").strip() != "false":
        note(f"board {name}: commits of records were not checked: the checkout is shallow; git fetch --unshallow")
        return []
    answers = _git(folder.path, "cat-file", "--batch-check", given="\n".join(wanted)) or ""
    known = {line.split()[0] for line in answers.splitlines() if line.split()[1:2] == ["commit"]}
    if not known:  # rewritten or missing history
        note(f"board {name}: commits of records were not checked: this repository has none of them")
        return []
    words = "a commit of this repository; fetch the branch that has it"
    return [
        Problem(key, "environment.git_commit", commit, words)
        for key, commit in commits.items()
        if commit in wanted and commit not in known
    ]


def _told(event: Any) -> str:
    if not isinstance(event, dict):
        return "missing"
    hashed = f" with sha256 {event['sha256']}" if event.get("sha256") else ""
    return printable(f"{event.get('event')} {event.get('key')} at {event.get('at')}{hashed}")


def _old(folder: Path, commit: str, name: str) -> dict[str, Any] | None:
    """Return a JSON file of the board in the commit; None if it did not exist."""
    text = file_at(folder, commit, name)
    try:
        content = None if text is None else parse_json(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict | None) else {}


def file_at(folder: Path, ref: str, name: str) -> str | None:
    """Return a text file in a commit; None if it, the commit or the checkout does not exist."""
    if ref.startswith("-"):
        return None
    return _git(folder, "show", f"{ref}:./{name}")


def _git(folder: Path, *arguments: str, given: str = "") -> str | None:
    """Return git's output; None if git is missing, fails, or times out."""
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments]
    # no fetching with commands configured in a checkout
    alone = {**os.environ, "GIT_NO_LAZY_FETCH": "1", "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(command, input=given.encode(), capture_output=True, timeout=TIMEOUT, env=alone)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None
