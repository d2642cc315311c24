"""Whether a board in a git checkout only grew since a commit: rows change or go only with the board's version.

Question and ledger are compared. The ledger has the hash of each record, and the record those of its tables, so that
nothing of a row can change without a line of the ledger.
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

TIMEOUT = 60  # seconds for one question to git
SOURCE = "plbench/__init__.py"
"""A repository that has it is one of plbench, whose commits records name."""

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

KEPT = ("name", "dataset", "protocol", "protocol_sha256", "ceiling_sha256", "dataset_fingerprint", "max_trials")
"""What a board asks: changed only with its version, but for what was not known before."""


def check_history(folder: BoardFolder, against: str | None, note: Callable[[str], None]) -> list[Problem]:
    """Compare a board with what it was in a commit, by default HEAD; `note` is told if there is none."""
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
    # the events of then are the first of now
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
    """Return keys of the records that a board had in a commit; none where there is no such commit or board."""
    events = (_old(folder.path, ref, LEDGER) or {}).get("events", [])
    return {str(event.get("key")) for event in events if isinstance(event, dict)}


def check_commits(folder: BoardFolder, commits: Mapping[str, Any], note: Callable[[str], None]) -> list[Problem]:
    """Check that the repository has the commits that records name, where the boards lie in one of plbench's.

    Args:
        folder: the board.
        commits: of each record, by its key, as it says; none where it was made by an installed wheel.
        note: told, in a sentence, why nothing was checked.
    """
    wanted = sorted({commit for commit in commits.values() if isinstance(commit, str) and _COMMIT.fullmatch(commit)})
    if not wanted or _git(folder.path, "rev-parse", "--git-dir") is None:
        return []  # that this is no checkout is said where the history is compared
    name = folder.board.name
    if _git(folder.path, "cat-file", "-e", f"HEAD:{SOURCE}") is None:
        note(f"board {name}: commits of records were not checked: this is no repository of plbench")
        return []
    if (_git(folder.path, "rev-parse", "--is-shallow-repository") or "").strip() != "false":
        note(f"board {name}: commits of records were not checked: the checkout is shallow; git fetch --unshallow")
        return []
    answers = _git(folder.path, "cat-file", "--batch-check", given="\n".join(wanted)) or ""
    known = {line.split()[0] for line in answers.splitlines() if line.split()[1:2] == ["commit"]}
    if not known:  # of rewritten history, or none of it
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
    """Return a JSON file of the board as it was; None where it was not there."""
    text = file_at(folder, commit, name)
    try:
        content = None if text is None else parse_json(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict | None) else {}


def file_at(folder: Path, ref: str, name: str) -> str | None:
    """Return a text file as it is in a commit; None where it, the commit or the checkout is not there."""
    if ref.startswith("-"):
        return None
    return _git(folder, "show", f"{ref}:./{name}")


def _git(folder: Path, *arguments: str, given: str = "") -> str | None:
    """Return what git answers to what it is given; None where there is no git, it fails, or takes too long."""
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments]
    # no fetching by the commands that a checkout names
    alone = {**os.environ, "GIT_NO_LAZY_FETCH": "1", "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(command, input=given.encode(), capture_output=True, timeout=TIMEOUT, env=alone)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None
