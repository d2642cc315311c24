"""Maintainers' signatures on decisions about a board, so that nobody else can submit them.

Maintainers decide on a board's text and version, and on which records are verified or withdrawn; anybody can add
records. Signatures are OpenSSH's (`ssh-keygen -Y`, namespace `plbench-board`), and `allowed_signers` next to the boards
lists who may sign (ssh-keygen(1)). Without that file nothing is signed, and such events are mere claims.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from plbench.board.boards import BoardFolder
from plbench.board.history import file_at
from plbench.errors import PlbenchError
from plbench.files import write_text
from plbench.files.paths import read_plain, refuse_links
from plbench.runs.findings import Problem, printable

SIGNATURE, SIGNERS = "maintainer.sig", "allowed_signers"
NAMESPACE = "plbench-board"
_MAX_BYTES = 1 << 16
_TIMEOUT = 60  # seconds


def decisions(folder: BoardFolder) -> bytes | None:
    """Return the maintainers' decisions on a board as they are signed; None if there are none yet.

    They are canonical JSON of the setting, without the data's fingerprint, which is set by the first record, and of all
    events except additions. A board of version 1 with only additions has no decisions.
    """
    events = [event.model_dump(exclude_none=True) for event in folder.ledger if event.event != "added"]
    if folder.board.version == 1 and not events:
        return None
    board = folder.board.model_dump(mode="json", exclude={"dataset_fingerprint"})
    return json.dumps({"board": board, "events": events}, sort_keys=True, separators=(",", ":")).encode()


def sign(folder: BoardFolder, key: Path) -> Path:
    """Sign the current decisions on a board.

    Args:
        folder: the board.
        key: file of an SSH key; a public one if the private key is in an agent or on a token.

    Returns:
        The signature's file.

    Raises:
        PlbenchError: if there are no decisions, or ssh-keygen is missing or cannot sign with this key.
    """
    content = decisions(folder)
    if content is None:
        raise PlbenchError(f"board {folder.board.name}: there is nothing to sign before a second version, or an event")
    if not key.is_file():
        raise PlbenchError(f"{key} is not an SSH key file; ssh-keygen -t ed25519 makes one")
    path = folder.path / SIGNATURE
    refuse_links(folder.path.parent, path)
    done = _ssh_keygen("sign", "-q", "-n", NAMESPACE, "-f", str(key.absolute()), given=content)
    if done.returncode:
        raise PlbenchError(f"ssh-keygen cannot sign with {key}: {_last_line(done.stderr)}")
    with folder.changing() as staging:
        write_text(path, done.stdout.decode("ascii"), staging)
    return path


def check_signature(folder: BoardFolder, against: str | None, note: Callable[[str], None]) -> list[Problem]:
    """Check that decisions on a board are signed by an allowed signer, if any are listed.

    Args:
        folder: the board.
        against: git commit whose `allowed_signers` applies, so that no change can add its own signer; None for HEAD.
        note: receives a message if no maintainers are listed, although there are decisions.
    """
    content, name = decisions(folder), folder.board.name
    if content is None:
        return []
    signers = file_at(folder.path.parent, against or "HEAD", SIGNERS)
    if signers is None and (folder.path.parent / SIGNERS).exists():
        signers = _read(folder.path.parent, folder.path.parent / SIGNERS)
    if signers is None:
        if b'"events":[]' not in content:
            note(f"board {name}: what was verified or withdrawn there is a claim: no {SIGNERS} says who may")
        return []
    words = f"a signature of somebody in {SIGNERS}; a maintainer signs with plbench board sign {name}"
    if not (folder.path / SIGNATURE).exists():
        return [Problem("", SIGNATURE, "missing", words)]
    signature = _read(folder.path.parent, folder.path / SIGNATURE)
    with tempfile.TemporaryDirectory() as place:
        paths = {"-f": Path(place, "signers"), "-s": Path(place, "signature")}
        for path, text in zip(paths.values(), (signers, signature), strict=True):
            path.write_text(text, encoding="utf-8")
        files = [word for option, path in paths.items() for word in (option, str(path))]
        found = _ssh_keygen("find-principals", *files)
        who = found.stdout.decode("utf-8", "replace").partition("\n")[0]
        if found.returncode or not who:
            return [Problem("", SIGNATURE, "of nobody who may sign", words)]
        done = _ssh_keygen("verify", *files, "-I", who, "-n", NAMESPACE, given=content)
    if done.returncode:
        return [Problem("", SIGNATURE, f"not of what is there: {_last_line(done.stderr + done.stdout)}", words)]
    return []


def _read(root: Path, path: Path) -> str:
    return read_plain(root, path, _MAX_BYTES).decode("utf-8", "replace")


def _ssh_keygen(action: str, *arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = ["ssh-keygen", "-Y", action, *arguments]
    try:
        return subprocess.run(command, input=given, capture_output=True, timeout=_TIMEOUT, check=False)
    except FileNotFoundError as error:
        raise PlbenchError("signatures need ssh-keygen, which comes with OpenSSH; install it") from error
    except subprocess.TimeoutExpired as error:
        raise PlbenchError(f"ssh-keygen did not answer within {_TIMEOUT} s: unlock the key with ssh-add") from error


def _last_line(output: bytes) -> str:
    lines = output.decode("utf-8", "replace").strip().splitlines()
    return printable(lines[-1]) if lines else "it does not say why"
