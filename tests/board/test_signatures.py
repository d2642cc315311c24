"""What only maintainers decide about a board is signed by one of them."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plbench.board.boards import BOARD, LEDGER, BoardFolder, Event
from plbench.board.signatures import NAMESPACE, SIGNATURE, SIGNERS, check_signature, decisions, sign
from plbench.errors import PlbenchError

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="OpenSSH is not installed")

KEY = "a" * 16
ADDED = Event(event="added", key=KEY, at="2026-01-01T00:00:00Z", sha256="1" * 64)
VERIFIED = Event(event="verified", key=KEY, at="2026-01-02T00:00:00Z", by="b" * 16)
WITHDRAWN = Event(event="withdrawn", key=KEY, at="2026-01-03T00:00:00Z", why="of a rival")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("keys")
    paths = {name: folder / name for name in ("maintainer", "stranger")}
    for path in paths.values():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)], check=True)
    return paths


def signers(key: Path) -> str:
    public = key.with_suffix(".pub").read_text()
    return f'maintainer@example.org namespaces="{NAMESPACE}" {public}'


@pytest.fixture
def board(tmp_path: Path, keys: dict[str, Path]) -> Path:
    """A board with an event, signed by the maintainer whom the file beside it names."""
    path = tmp_path / "leaderboards" / "tiny"
    path.mkdir(parents=True)
    question = {"name": "tiny", "title": "Tiny", "dataset": "tiny", "protocol": "tiny/v1", "protocol_sha256": "0" * 64}
    (path / BOARD).write_text(json.dumps(question))
    BoardFolder(path).append([ADDED])
    BoardFolder(path).append([VERIFIED])
    (path.parent / SIGNERS).write_text(signers(keys["maintainer"]))
    assert sign(BoardFolder(path), keys["maintainer"]) == path / SIGNATURE
    return path


def found(path: Path, against: str | None = None) -> list[str]:
    notes: list[str] = []
    problems = [str(problem) for problem in check_signature(BoardFolder(path), against, notes.append)]
    return problems + notes


def change(path: Path, **values: Any) -> None:
    (path / BOARD).write_text(json.dumps(json.loads((path / BOARD).read_text()) | values))


def test_a_maintainers_signature_passes(board: Path) -> None:
    assert found(board) == []


@pytest.mark.parametrize(
    "act",
    [
        lambda path: BoardFolder(path).append([WITHDRAWN]),
        lambda path: change(path, version=2),
        lambda path: change(path, about="A rival was removed."),
        lambda path: change(path, max_trials=100_000),
        lambda path: (path / LEDGER).write_text((path / LEDGER).read_text().replace("b" * 16, "c" * 16)),
        lambda path: (path / SIGNATURE).unlink(),
        lambda path: (path / SIGNATURE).write_text("no signature"),
        lambda path: (path / SIGNATURE).write_text((path / SIGNATURE).read_text().replace("A", "B")),
    ],
)
def test_what_was_changed_since_is_refused(board: Path, act: Callable[[Path], None]) -> None:
    act(board)
    (sentence,) = found(board)
    assert SIGNATURE in sentence and "a maintainer signs with plbench board sign tiny" in sentence


def test_a_strangers_signature_is_refused(board: Path, keys: dict[str, Path]) -> None:
    sign(BoardFolder(board), keys["stranger"])
    (sentence,) = found(board)
    assert "of nobody who may sign" in sentence


def test_a_signature_for_something_else_is_refused(board: Path, keys: dict[str, Path]) -> None:
    """Such as that of a commit, made with the same key."""
    content = decisions(BoardFolder(board))
    command = ["ssh-keygen", "-Y", "sign", "-q", "-n", "git", "-f", str(keys["maintainer"])]
    done = subprocess.run(command, input=content, capture_output=True, check=True)
    (board / SIGNATURE).write_bytes(done.stdout)
    assert len(found(board)) == 1


def test_a_change_cannot_name_its_own_signer(board: Path, keys: dict[str, Path]) -> None:
    def git(*words: str) -> None:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *identity, "-C", str(board.parent), *words], check=True, capture_output=True)

    git("init", "-q", ".")
    git("add", "-A")
    git("commit", "-q", "-m", "signed")
    (board.parent / SIGNERS).write_text(signers(keys["stranger"]))
    BoardFolder(board).append([WITHDRAWN])
    sign(BoardFolder(board), keys["stranger"])
    assert len(found(board)) == len(found(board, "HEAD")) == 1
    git("add", "-A")
    git("commit", "-q", "-m", "a maintainer merged it")
    assert found(board) == []


def test_additions_need_no_maintainer(board: Path, keys: dict[str, Path]) -> None:
    other = board.parent / "other"
    other.mkdir()
    shutil.copy(board / BOARD, other / BOARD)
    change(other, name="other")
    BoardFolder(other).append([ADDED])
    change(other, dataset_fingerprint="2" * 64)
    assert found(other) == []
    with pytest.raises(PlbenchError, match="nothing to sign"):
        sign(BoardFolder(other), keys["maintainer"])


def test_without_maintainers_events_are_claims(board: Path) -> None:
    (board.parent / SIGNERS).unlink()
    assert found(board) == [
        "board tiny: what was verified or withdrawn there is a claim: no allowed_signers says who may"
    ]


def test_what_cannot_sign_is_said(board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PlbenchError, match="is not an SSH key file; ssh-keygen -t ed25519 makes one"):
        sign(BoardFolder(board), tmp_path / "none")
    (tmp_path / "text").write_text("text")
    with pytest.raises(PlbenchError, match="ssh-keygen cannot sign with"):
        sign(BoardFolder(board), tmp_path / "text")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PlbenchError, match="signatures need ssh-keygen"):
        sign(BoardFolder(board), tmp_path / "text")
