"""Which published files are fetched, what a person is asked before, and the whole of it against a local server."""

from __future__ import annotations

import functools
import hashlib
import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from test_cli import plbench

from plbench.api import RemoteFile
from plbench.data.download import files as downloading
from plbench.datasets.openimages import OpenImagesV6
from plbench.errors import DataError, PlbenchError
from plbench.runs.inspect import download as fetch_module
from plbench.runs.inspect.download import ASK_ABOVE, Fetched, choose, fetch
from plbench.runs.workspace import Workspace

ADDRESS = "https://published.test/"
FILES = (
    RemoteFile(ADDRESS + "train.csv", "train.csv", "annotations", "train", size=10),
    RemoteFile(ADDRESS + "test.csv", "test.csv", "annotations", "test", size=10),
    RemoteFile(ADDRESS + "classes.txt", "classes.txt", "annotations", size=5),
    RemoteFile(ADDRESS + "train.tar", "train.tar", "images", "train", unpack=".", makes=("train",)),
    RemoteFile(ADDRESS + "test.tar", "test.tar", "images", "test", unpack=".", makes=("test",)),
)


@pytest.fixture
def published(tiny_dataset: type[Any]) -> type[Any]:
    """A dataset that is published in five files."""

    class Published(tiny_dataset):  # type: ignore[misc]
        name = "published"
        needs_files = True
        downloads = FILES

    return Published


@pytest.mark.parametrize(
    ("annotations_only", "splits", "expected"),
    [
        (False, (), ["train.csv", "test.csv", "classes.txt", "train.tar", "test.tar"]),
        (True, (), ["train.csv", "test.csv", "classes.txt"]),
        (False, ("test",), ["test.csv", "classes.txt", "test.tar"]),
        (True, ("train",), ["train.csv", "classes.txt"]),
        (False, ("test", "train"), ["train.csv", "test.csv", "classes.txt", "train.tar", "test.tar"]),
    ],
)
def test_files_are_chosen_by_split_and_kind(
    annotations_only: bool, splits: tuple[str, ...], expected: list[str], published: type[Any], tmp_path: Path
) -> None:
    chosen = choose(published(tmp_path), annotations_only=annotations_only, splits=splits)
    assert [file.path for file in chosen] == expected


def test_openimages_test_alone_takes_no_train_image(tmp_path: Path) -> None:
    chosen = choose(OpenImagesV6(tmp_path), annotations_only=False, splits=("test",))
    assert [file.name for file in chosen] == [
        "test-annotations-human-imagelabels.csv",
        "oidv6-classes-trainable.txt",
        "oidv6-class-descriptions.csv",
        "test.tar.gz",
    ]


def test_a_split_that_there_is_not(published: type[Any], tmp_path: Path) -> None:
    with pytest.raises(PlbenchError, match=r"belongs to split 'tests' alone; did you mean test\? \(known: test, train"):
        choose(published(tmp_path), annotations_only=False, splits=("tests",))
    published.downloads = tuple(replace(file, split=None) for file in FILES)
    with pytest.raises(PlbenchError, match="split 'test' alone; all splits need all of its files"):
        choose(published(tmp_path), annotations_only=False, splits=("test",))


def test_a_dataset_without_files_says_how_to_get_it(published: type[Any], tmp_path: Path) -> None:
    published.downloads = ()
    with pytest.raises(PlbenchError, match="'published' has no files to download; the tests draw it"):
        choose(published(tmp_path), annotations_only=False, splits=())
    published.needs_files = False
    with pytest.raises(PlbenchError, match="it makes its own files when it is first used"):
        choose(published(tmp_path), annotations_only=False, splits=())


class Desk:
    """What was asked and what was fetched, with a size and an answer given."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.size: int | None = 100
        self.answer = True
        self.questions: list[str] = []
        self.fetched: list[str] = []

    def confirm(self, question: str) -> bool:
        self.questions.append(question)
        return self.answer

    def fetch(self, **options: Any) -> Fetched:
        options = {"annotations_only": False, "splits": (), "parallel": 2, "confirm": self.confirm, **options}
        return fetch("published", self.workspace, **options)


@pytest.fixture
def desk(
    published: type[Any],
    make_workspace: Callable[..., Workspace],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Desk:
    desk = Desk(replace(make_workspace(published), data_root=tmp_path / "data"))

    def pretend(files: list[RemoteFile], root: Path, report: Any, *, parallel: int, note: Any) -> None:
        assert root == tmp_path / "data" and parallel == 2
        desk.fetched += [file.path for file in files]

    monkeypatch.setattr(downloading, "total_bytes", lambda files, root: desk.size)
    monkeypatch.setattr(downloading, "download", pretend)
    return desk


@pytest.mark.parametrize(
    ("size", "asked"),
    [
        (0, False),
        (ASK_ABOVE, False),
        (ASK_ABOVE + 1, True),
        (561 * 10**9, True),
        (None, True),
    ],
)
@pytest.mark.parametrize("answer", [True, False])
def test_it_asks_before_it_fills_a_disk(size: int | None, asked: bool, answer: bool, desk: Desk) -> None:
    desk.size, desk.answer = size, answer
    if asked and not answer:
        with pytest.raises(
            PlbenchError, match="nothing was downloaded; `annotations_only=True` or `split=NAME` fetch less"
        ):
            desk.fetch()
        assert desk.fetched == []
    else:
        done = desk.fetch()
        assert desk.fetched == [file.path for file in FILES] == list(done.fetched) and done.present == ()
    assert len(desk.questions) == asked
    for question in desk.questions:
        assert str(desk.workspace.data_root) in question
        assert ("the servers do not tell" if size is None else f"{size / 1e9:.1f} GB") in question


def test_the_limit_is_half_a_terabyte() -> None:
    assert ASK_ABOVE == 500 * 10**9


def test_what_is_here_is_not_fetched(desk: Desk) -> None:
    assert desk.workspace.data_root is not None
    for name, size in (("train.csv", 10), ("classes.txt", 4)):  # the second is not whole
        (desk.workspace.data_root / name).parent.mkdir(exist_ok=True)
        (desk.workspace.data_root / name).write_bytes(b"x" * size)
    (desk.workspace.data_root / "test").mkdir()
    done = desk.fetch()
    assert done.present == ("train.csv", "test.tar")
    assert done.fetched == ("test.csv", "classes.txt", "train.tar") == tuple(desk.fetched)


def test_with_everything_here_there_is_nothing_to_do(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    assert desk.workspace.data_root is not None
    desk.workspace.data_root.mkdir()
    for file in FILES[:3]:
        (desk.workspace.data_root / file.path).write_bytes(b"x" * (file.size or 0))
    monkeypatch.setattr(downloading, "total_bytes", lambda files, root: pytest.fail("asked a server"))
    done = desk.fetch(annotations_only=True)
    assert done.fetched == () and done.present == ("train.csv", "test.csv", "classes.txt")
    assert desk.questions == desk.fetched == []


PLUGIN = """
import sys
from plbench.api import RemoteFile
from plbench.datasets.openimages import OpenImagesV6

ADDRESS = {address!r}

def of(name, **about):
    return RemoteFile(ADDRESS + name, name, **about)

class Local(OpenImagesV6):
    "OpenImages V6 on this machine."
    name = "local"
    protocols = tuple(p.model_copy(update={{"name": "local/v1", "dataset": "local"}}) for p in OpenImagesV6.protocols)
    downloads = (
        of(OpenImagesV6.class_list, kind="annotations", checksum={checksum!r}),
        of(OpenImagesV6.descriptions, kind="annotations"),
        of(OpenImagesV6.label_files["train"], kind="annotations", split="train"),
        of(OpenImagesV6.label_files["test"], kind="annotations", split="test"),
        of("train.tar.gz", kind="images", split="train", unpack=".", makes=("train",)),
        of("test.tar", kind="images", split="test"),
    )
"""


class Quiet(SimpleHTTPRequestHandler):
    """Says nothing, and counts."""

    asked: list[str]

    def log_message(self, format: str, *args: Any) -> None: ...

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, list[str]]]:
    """A server on 127.0.0.1 with the small V6 on it: its address, its folder, and what was asked for."""
    folder = tmp_path_factory.mktemp("site")
    OpenImagesV6(folder).make_fixture()
    with tarfile.open(folder / "train.tar.gz", "w:gz") as tar:
        tar.add(folder / "train", "train")
    asked: list[str] = []
    handler = type("Handler", (Quiet,), {"asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
    thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.05), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", folder, asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@pytest.fixture
def download(site: tuple[str, Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs `plbench data COMMAND local` on a folder of its own."""
    address, folder, _ = site
    checksum = f"sha256:{hashlib.sha256((folder / OpenImagesV6.class_list).read_bytes()).hexdigest()}"
    (tmp_path / "local.py").write_text(PLUGIN.format(address=address, checksum=checksum))
    monkeypatch.setenv("PLBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))

    def run(command: str, *options: object) -> Any:
        where = ["--plugin", tmp_path / "local.py", "--data-root", tmp_path / "data", "--quiet"]
        return plbench("data", command, "local", *where, *options)

    return run


def test_the_command_fetches_unpacks_and_is_done(
    download: Callable[..., Any], site: tuple[str, Path, list[str]], tmp_path: Path
) -> None:
    _, folder, asked = site
    asked.clear()
    done = download("download", "--annotations-only", "--split", "test", "--json").json
    files = ["oidv6-classes-trainable.txt", "oidv6-class-descriptions.csv", "test-annotations-human-imagelabels.csv"]
    assert done["fetched"] == files and done["present"] == [] and done["folder"] == str(tmp_path / "data")
    assert sorted(asked) == sorted(f"/{name}" for name in files)
    rest = download("download", "--json").json
    assert rest["present"] == files and len(rest["fetched"]) == 3
    assert len(asked) == len(set(asked)) == 6
    said = download("download")
    assert (
        said.code == 0 and f"{tmp_path / 'data'}: 0 files downloaded, 6 already present" in said.out and len(asked) == 6
    )
    ours, theirs = OpenImagesV6(tmp_path / "data"), OpenImagesV6(folder)
    assert ours.missing() == [] and not (tmp_path / "data" / "train.tar.gz").exists()
    for split in ("train", "test"):
        assert ours.split(split).images.fingerprint() == theirs.split(split).images.fingerprint()
        assert ours.split(split).labels.fingerprint() == theirs.split(split).labels.fingerprint()


def test_a_no_at_the_prompt_fetches_nothing_and_yes_does_not_ask(
    download: Callable[..., Any], site: tuple[str, Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_module, "ASK_ABOVE", 100)
    site[2].clear()
    said = download("download", "--annotations-only")
    assert said.code == 2 and "nothing was downloaded" in said.err and "Fetch " in said.err
    assert site[2] == [] and not list(tmp_path.glob("data/*"))
    assert len(download("download", "--annotations-only", "--yes", "--json").json["fetched"]) == 4


def test_a_file_that_is_not_what_was_published_is_one_sentence(
    download: Callable[..., Any], site: tuple[str, Path, list[str]], tmp_path: Path
) -> None:
    plugin = tmp_path / "local.py"
    plugin.write_text(PLUGIN.format(address=site[0], checksum=f"sha256:{'0' * 64}"))
    said = download("download", "--annotations-only")
    assert said.code == 2 and said.err.count("\n") == 1
    assert OpenImagesV6.class_list in said.err and f"instead of sha256:{'0' * 64}" in said.err
    assert not (tmp_path / "data" / OpenImagesV6.class_list).exists()


def test_mistakes_are_one_sentence(download: Callable[..., Any]) -> None:
    for options, says in (
        (["--split", "trian"], "did you mean train?"),
        (["--parallel", "0"], "--parallel"),
    ):
        said = download("download", *options)
        assert said.code == 2 and says in said.err
    with pytest.raises(DataError, match="not one of http:// or https://"):
        RemoteFile("ftp://somewhere/a", "a", "images")
