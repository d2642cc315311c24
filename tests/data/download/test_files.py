"""Downloading: after any faults the bytes are those published or there is no file, and nothing is fetched twice."""

import base64
import contextlib
import hashlib
import io
import json
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections import deque, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import plbench.data.download.files
import plbench.data.download.transfer
from plbench.data.download.answers import stated_checksum
from plbench.data.download.files import download, total_bytes
from plbench.data.download.remote import RECORDS, RemoteFile, is_here, part_path, read_record, record_path
from plbench.errors import DataError, StoreError

CONTENT = random.Random(0).randbytes(300_000)
NEWER = random.Random(1).randbytes(310_000)
AS_LONG = NEWER[: len(CONTENT)]
PATIENT = "import plbench.data.download.transfer as t; t._BACKOFF = 0.001; t._HEADWAY = 1000\n"


def md5(content: bytes) -> str:
    return f"md5:{hashlib.md5(content).hexdigest()}"


@dataclass
class Fault:
    """What goes wrong with one GET.

    Attributes:
        cut: bytes of the body after which the connection is closed.
        most: bytes of a range that are sent, as the answer says.
        stall: seconds of silence in the middle of the body.
        status: answered in place of the file.
        lie: added to the Content-Length.
        becomes: what the file is from this answer on.
        ignores: request headers that the server does not heed.
        meeting: waited for before the answer.
        content: sent in place of the file's.
        headers: added, or left out where None.
    """

    cut: int | None = None
    most: int | None = None
    stall: float = 0.0
    status: int = 0
    lie: int = 0
    becomes: bytes | None = None
    ignores: tuple[str, ...] = ()
    meeting: threading.Barrier | None = None
    content: bytes | None = None
    headers: dict[str, str | None] = field(default_factory=dict)


class Site:
    """A server on 127.0.0.1, its files, the faults of the answers to come, and what it was asked."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, deque[Fault]] = {}
        self.always: dict[str, Fault] = {}
        self.asked: list[tuple[str, str, str]] = []
        self.validators: list[str] = []
        self.bytes_per_second: float = 0.0
        self.name = "tests"
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def file(self, path: str = "data.bin", content: bytes = CONTENT, **attributes: Any) -> RemoteFile:
        """Publishes a file."""
        self.files[f"/{path}"] = content
        return RemoteFile(f"http://127.0.0.1:{self.server.server_port}/{path}", path, "images", **attributes)

    def goes_wrong(self, *faults: Fault, path: str = "data.bin") -> None:
        """The answers to the next GETs."""
        self.faults.setdefault(f"/{path}", deque()).extend(faults)

    def ranges(self, path: str = "data.bin") -> list[str]:
        """The Range of each GET so far."""
        return [asked for method, name, asked in self.asked if method == "GET" and name == f"/{path}"]

    def _handler(site: "Site") -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def version_string(self) -> str:
                return site.name

            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                site.asked.append(("HEAD", self.path, ""))
                self.answer(Fault(cut=0))

            def do_GET(self) -> None:
                site.asked.append(("GET", self.path, self.headers.get("Range", "")))
                site.validators.append(self.headers.get("If-Range", ""))
                queue = site.faults.get(self.path)
                fault = queue.popleft() if queue else site.always.get(self.path, Fault())
                with contextlib.suppress(OSError):  # the client has gone
                    self.answer(fault)

            def answer(self, fault: Fault) -> None:
                if fault.meeting is not None:
                    fault.meeting.wait(10)
                if fault.becomes is not None:
                    site.files[self.path] = fault.becomes
                content = site.files.get(self.path)
                if content is None or fault.status:
                    self.respond(fault.status or 404, {"Content-Length": "5"} | fault.headers)
                    self.wfile.write(b"sorry")
                    return
                etag = f'"{hashlib.sha1(content).hexdigest()}"'
                content = fault.content or content
                start = self.start_of_range(etag, fault)
                if start is not None and start >= len(content):
                    self.respond(416, {"Content-Range": f"bytes */{len(content)}", "ETag": etag} | fault.headers)
                    return
                body = content[start or 0 :][: fault.most]
                headers: dict[str, str | None] = {"ETag": etag, "Content-Length": str(len(body) + fault.lie)}
                if start is not None:
                    headers["Content-Range"] = f"bytes {start}-{start + len(body) - 1}/{len(content)}"
                self.respond(200 if start is None else 206, headers | fault.headers)
                self.send_body(body[: fault.cut], fault)

            def start_of_range(self, etag: str, fault: Fault) -> int | None:
                if "Range" in fault.ignores or "Range" not in self.headers:
                    return None
                if "If-Range" not in fault.ignores and self.headers.get("If-Range", etag) != etag:
                    return None
                return int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))

            def respond(self, status: int, headers: dict[str, str | None]) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    if value is not None:
                        self.send_header(name, value)
                self.end_headers()

            def send_body(self, body: bytes, fault: Fault) -> None:
                for start in range(0, len(body), 8192):
                    self.wfile.write(body[start : start + 8192])
                    if site.bytes_per_second:
                        time.sleep(8192 / site.bytes_per_second)
                    if fault.stall and start >= len(body) // 2:
                        time.sleep(fault.stall)

        return Handler


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.server.shutdown()
    site.server.server_close()


@pytest.fixture(autouse=True, scope="module")
def impatience() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plbench.data.download.transfer, "_BACKOFF", 0.001)
        patch.setattr(plbench.data.download.transfer, "_HEADWAY", 1000)
        patch.setattr(plbench.data.download.transfer, "_TIMEOUT", (5.0, 5.0))
        patch.setattr(plbench.data.download.files, "_GLANCE", 0.01)
        yield


class Ear:
    """What a download reports and notes."""

    def __init__(self) -> None:
        self.reports: list[tuple[int, int]] = []
        self.notes: list[str] = []

    def fetch(self, root: Path, *files: RemoteFile, parallel: int = 4) -> None:
        download(files, root, lambda done, total: self.reports.append((done, total)), parallel=parallel, note=self.note)

    def note(self, text: str) -> None:
        self.notes.append(text)


def fetch(root: Path, *files: RemoteFile, parallel: int = 4) -> Ear:
    ear = Ear()
    ear.fetch(root, *files, parallel=parallel)
    return ear


def zipped(tree: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in tree.items():
            file.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def partly(root: Path, site: Site, file: RemoteFile, cut: int) -> None:
    """Leaves the first bytes of a file, as a download that was killed does."""
    site.goes_wrong(Fault(cut=cut), Fault(status=404), path=file.path)
    with pytest.raises(DataError):
        fetch(root, file)
    assert part_path(file, root).stat().st_size == cut


class TestWhole:
    def test_a_file_is_kept_and_not_asked_for_again(self, site: Site, tmp_path: Path) -> None:
        file = site.file("deep/data.bin", size=len(CONTENT), checksum=md5(CONTENT))
        assert not is_here(file, tmp_path)
        assert total_bytes([file], tmp_path) == len(CONTENT)
        ear = fetch(tmp_path, file)
        assert (tmp_path / "deep/data.bin").read_bytes() == CONTENT
        assert ear.reports[-1] == (len(CONTENT), len(CONTENT))
        assert is_here(file, tmp_path)
        assert total_bytes([file], tmp_path) == 0
        asked = len(site.asked)
        fetch(tmp_path, file)
        assert len(site.asked) == asked
        assert [path.name for path in (tmp_path / "deep").iterdir()] == ["data.bin"]

    def test_an_unstated_size_is_asked_for(self, site: Site, tmp_path: Path) -> None:
        file = site.file()
        assert total_bytes([file, site.file("other.bin", b"12345")], tmp_path) == len(CONTENT) + 5
        assert total_bytes([file, RemoteFile(f"{file.url}.gz", "absent", "images")], tmp_path) is None
        assert fetch(tmp_path, file).reports[-1] == (len(CONTENT), len(CONTENT))

    def test_several_come_at_once_and_one_asked_for_twice_comes_once(self, site: Site, tmp_path: Path) -> None:
        files = [site.file(f"{index}.bin") for index in range(4)]
        meeting = threading.Barrier(4)  # no answer before all were asked for
        site.always = {f"/{index}.bin": Fault(meeting=meeting) for index in range(4)}
        fetch(tmp_path, *files, *files, parallel=4)
        assert [site.ranges(f"{index}.bin") for index in range(4)] == [[""]] * 4

    def test_two_files_for_one_path_are_refused(self, site: Site, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"are both to be kept as data\.bin"):
            fetch(tmp_path, site.file(), RemoteFile("http://127.0.0.1/other", "data.bin", "images"))

    def test_a_redirect_is_followed_to_http_only(self, site: Site, tmp_path: Path) -> None:
        site.file()
        file = site.file("old.bin", b"")
        site.goes_wrong(Fault(status=302, headers={"Location": "/data.bin"}), path="old.bin")
        fetch(tmp_path, file)
        assert (tmp_path / "old.bin").read_bytes() == CONTENT
        site.always["/evil.bin"] = Fault(status=302, headers={"Location": "file:///etc/passwd"})
        with pytest.raises(DataError, match=r"evil\.bin leads nowhere: .*; fetch it by other means"):
            fetch(tmp_path, site.file("evil.bin"))

    @pytest.mark.parametrize(
        "wrong",
        [
            {"url": "ftp://host/x"},
            {"url": "file:///etc/passwd"},
            {"path": "../x"},
            {"path": "/x"},
            {"unpack": "a/../.."},
            {"makes": ("/etc",)},
            {"checksum": "md5:abc"},
        ],
    )
    def test_a_wrong_description_is_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(DataError):
            RemoteFile(**{"url": "http://host/x", "path": "x", "kind": "images"} | wrong)


faults = st.one_of(
    st.builds(Fault, cut=st.integers(0, len(CONTENT)), ignores=st.sampled_from([(), ("Range",), ("If-Range",)])),
    st.builds(Fault, cut=st.integers(0, len(CONTENT)), becomes=st.sampled_from([CONTENT, NEWER, AS_LONG])),
    st.builds(Fault, status=st.sampled_from([500, 503, 429, 404, 416])),
    st.builds(Fault, lie=st.sampled_from([-1000, 1, 5000])),
    st.builds(Fault, cut=st.integers(0, len(CONTENT)), headers=st.just({"ETag": None})),
    st.builds(Fault, headers=st.just({"Content-Length": None})),
)


class TestFaults:
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(series=st.lists(faults, max_size=8), is_stated=st.booleans())
    def test_after_any_of_them_the_bytes_are_right_or_there_is_no_file(
        self, site: Site, tmp_path_factory: pytest.TempPathFactory, series: list[Fault], is_stated: bool
    ) -> None:
        root = tmp_path_factory.mktemp("root")
        newest = ([CONTENT] + [fault.becomes for fault in series if fault.becomes])[-1]
        site.faults.clear()
        stated = {"size": len(newest), "checksum": md5(newest)} if is_stated else {}
        file = site.file(**stated)
        lies = any(fault.lie or "Content-Length" in fault.headers for fault in series)
        site.goes_wrong(*series)
        for _ in range(20):
            try:
                fetch(root, file)
            except DataError:
                assert not (root / file.path).exists()
            else:
                break
        got = (root / file.path).read_bytes()
        if is_stated or not lies:  # a length that is too short by all accounts cannot be told from a right one
            assert got in (CONTENT, NEWER, AS_LONG)
            assert not is_stated or got == newest
        assert not part_path(file, root).exists()

    def test_a_cut_connection_is_resumed_where_it_stood(self, site: Site, tmp_path: Path) -> None:
        site.goes_wrong(Fault(cut=100_000), Fault(status=500), Fault(cut=50_000))
        fetch(tmp_path, site.file())
        assert (tmp_path / "data.bin").read_bytes() == CONTENT
        assert site.ranges() == ["", "bytes=100000-", "bytes=100000-", "bytes=150000-"]
        assert site.validators == ["", *[f'"{hashlib.sha1(CONTENT).hexdigest()}"'] * 3]

    def test_a_server_may_send_less_than_was_asked_for(self, site: Site, tmp_path: Path) -> None:
        site.goes_wrong(Fault(cut=100_000), Fault(most=70_000), Fault(most=80_000))
        fetch(tmp_path, site.file())
        assert (tmp_path / "data.bin").read_bytes() == CONTENT
        assert site.ranges() == ["", "bytes=100000-", "bytes=170000-", "bytes=250000-"]

    def test_silence_is_a_cut(self, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        site.goes_wrong(Fault(stall=60))
        monkeypatch.setattr(plbench.data.download.transfer, "_TIMEOUT", (5.0, 0.3))
        fetch(tmp_path, site.file())
        assert (tmp_path / "data.bin").read_bytes() == CONTENT
        assert site.ranges()[1].startswith("bytes=")

    @pytest.mark.parametrize("newer", [NEWER, AS_LONG])
    @pytest.mark.parametrize("ignores", [(), ("If-Range",), ("Range",)])
    def test_a_file_that_changes_is_never_spliced(
        self, site: Site, tmp_path: Path, ignores: tuple[str, ...], newer: bytes
    ) -> None:
        site.goes_wrong(Fault(cut=100_000), Fault(becomes=newer, ignores=ignores))
        fetch(tmp_path, site.file())
        assert (tmp_path / "data.bin").read_bytes() == newer

    def test_without_a_validator_a_later_piece_is_not_trusted(self, site: Site, tmp_path: Path) -> None:
        site.goes_wrong(Fault(cut=100_000, headers={"ETag": None}))
        fetch(tmp_path, site.file())
        assert site.ranges() == ["", ""]
        site.goes_wrong(Fault(cut=100_000, headers={"ETag": None}), path="sure.bin")
        fetch(tmp_path, site.file("sure.bin", checksum=md5(CONTENT)))
        assert site.ranges("sure.bin") == ["", "bytes=100000-"]

    @pytest.mark.parametrize("status", [403, 404, 410])
    def test_a_refusal_is_said_at_once(self, site: Site, tmp_path: Path, status: int) -> None:
        site.always["/data.bin"] = Fault(status=status)
        file = site.file()
        with pytest.raises(DataError) as caught:
            fetch(tmp_path, file)
        for words in (f"{file.url} answered {status}", str(tmp_path / "data.bin"), "fetch it by other means"):
            assert words in str(caught.value)
        assert len(site.ranges()) == 1

    def test_a_server_that_keeps_failing_is_given_up_and_the_rest_kept(self, site: Site, tmp_path: Path) -> None:
        site.goes_wrong(Fault(cut=100_000))
        site.always["/data.bin"] = Fault(status=503)
        file = site.file()
        with pytest.raises(DataError, match=r"6 tries in a row .*answered 503.*100 kB are kept in .*data\.bin\.part"):
            fetch(tmp_path, file)
        assert len(site.ranges()) == plbench.data.download.transfer._TRIES
        site.always.clear()
        fetch(tmp_path, file)
        assert (tmp_path / "data.bin").read_bytes() == CONTENT
        assert site.ranges()[-1] == "bytes=100000-"

    def test_a_server_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"could not be fetched, 6 tries in a row ending with: .*refused"):
            fetch(tmp_path, RemoteFile("http://127.0.0.1:9/x", "x", "images"))

    @pytest.mark.parametrize("lie", [-1000, 1000])
    def test_a_lie_about_the_size_is_found(self, site: Site, tmp_path: Path, lie: int) -> None:
        site.always["/data.bin"] = Fault(lie=lie)
        with pytest.raises(DataError, match=r"has 30?[0-9],000 bytes where its publisher states 300,000|29"):
            fetch(tmp_path, site.file(size=len(CONTENT)))
        with pytest.raises(DataError, match=r"came twice with checksum|6 tries in a row"):
            fetch(tmp_path, site.file(checksum=md5(CONTENT)))
        assert not (tmp_path / "data.bin").exists()

    def test_a_body_that_is_longer_than_stated_is_found(self, site: Site, tmp_path: Path) -> None:
        site.always["/data.bin"] = Fault(headers={"Content-Length": None})
        with pytest.raises(DataError, match="the server sent more than 299,999 bytes"):
            fetch(tmp_path, site.file(size=len(CONTENT) - 1))
        assert not (tmp_path / "data.bin").exists()

    def test_a_complete_part_is_finished_by_416(self, site: Site, tmp_path: Path) -> None:
        file = site.file()
        partly(tmp_path, site, file, 200_000)
        part_path(file, tmp_path).write_bytes(CONTENT)
        fetch(tmp_path, file)
        assert (tmp_path / "data.bin").read_bytes() == CONTENT
        assert site.ranges()[-1] == "bytes=300000-"

    def test_a_part_that_is_too_long_starts_again(self, site: Site, tmp_path: Path) -> None:
        file = site.file()
        partly(tmp_path, site, file, 200_000)
        part_path(file, tmp_path).write_bytes(CONTENT + b"!")
        fetch(tmp_path, file)
        assert (tmp_path / "data.bin").read_bytes() == CONTENT

    def test_a_body_that_the_server_packs_is_refused_and_one_that_is_packed_is_not(
        self, site: Site, tmp_path: Path
    ) -> None:
        site.always = dict.fromkeys(("/data.bin", "/data.gz"), Fault(headers={"Content-Encoding": "gzip"}))
        with pytest.raises(DataError, match="comes compressed by the server"):
            fetch(tmp_path, site.file())
        fetch(tmp_path, site.file("data.gz"))
        assert (tmp_path / "data.gz").read_bytes() == CONTENT

    def test_a_web_page_is_not_the_file(self, site: Site, tmp_path: Path) -> None:
        site.always["/data.bin"] = Fault(content=b"<html>Sign in</html>", headers={"Content-Type": "text/html"})
        with pytest.raises(DataError, match="answered with a web page in place of the file"):
            fetch(tmp_path, site.file())


class TestChecksums:
    def test_a_wrong_one_is_fetched_again_once(self, site: Site, tmp_path: Path) -> None:
        file = site.file(checksum=f"sha256:{hashlib.sha256(CONTENT).hexdigest()}")
        site.goes_wrong(Fault(content=NEWER))
        ear = fetch(tmp_path, file)
        assert (tmp_path / "data.bin").read_bytes() == CONTENT
        assert any("fetching it again" in note for note in ear.notes)
        record = read_record(file, tmp_path)
        assert record is not None
        assert record.checksum == file.checksum

    @pytest.mark.parametrize(
        "headers",
        [
            {"x-goog-hash": f"crc32c=AAAAAA==,md5={base64.b64encode(hashlib.md5(CONTENT).digest()).decode()}"},
            {"Content-MD5": base64.b64encode(hashlib.md5(CONTENT).digest()).decode()},
            {"ETag": f'"{hashlib.md5(CONTENT).hexdigest()}"'},
            None,
        ],
    )
    def test_a_wrong_one_is_said_with_what_was_found(
        self, site: Site, tmp_path: Path, headers: dict[str, str | None] | None
    ) -> None:
        site.always["/data.bin"] = Fault(content=AS_LONG, headers=headers or {})
        site.name = "AmazonS3" if headers and "ETag" in headers else "tests"
        file = site.file(checksum=None if headers else md5(CONTENT))
        with pytest.raises(DataError) as caught:
            fetch(tmp_path, file)
        assert f"{md5(AS_LONG)} instead of {md5(CONTENT)}" in str(caught.value)
        assert not [path for path in tmp_path.iterdir() if path.is_file()]
        assert len(site.ranges()) == 2

    def test_hashes_of_something_else_are_not_believed(self) -> None:
        digest = hashlib.md5(b"x").hexdigest()
        encoded = base64.b64encode(hashlib.md5(b"x").digest()).decode()
        assert stated_checksum("https://b.s3.amazonaws.com/x", {"ETag": f'"{digest}"'}) == f"md5:{digest}"
        assert stated_checksum("https://host/x", {"ETag": f'"{digest}"'}) is None
        assert stated_checksum("https://b.s3.amazonaws.com/x", {"ETag": f'"{digest}-7"'}) is None
        encrypted = {"ETag": f'"{digest}"', "x-amz-server-side-encryption": "aws:kms"}
        assert stated_checksum("https://b.s3.amazonaws.com/x", encrypted) is None
        compressed = {"x-goog-hash": f"md5={encoded}", "x-goog-stored-content-encoding": "gzip"}
        assert stated_checksum("https://storage.googleapis.com/x", compressed) is None
        assert stated_checksum("https://host/x", {"Content-MD5": "nonsense"}) is None


class TestStopping:
    def test_one_that_fails_stops_the_others_and_keeps_what_they_have(self, site: Site, tmp_path: Path) -> None:
        slow, absent = site.file("slow.bin"), RemoteFile(site.file("x").url + "/absent", "absent.bin", "images")
        site.always["/slow.bin"] = Fault(stall=60)
        start = time.monotonic()
        with pytest.raises(DataError, match="answered 404"):
            fetch(tmp_path, slow, absent, *[site.file(f"{index}.bin") for index in range(9)], parallel=2)
        assert time.monotonic() - start < 4
        assert not (tmp_path / "slow.bin").exists()
        assert not (tmp_path / "8.bin").exists()

    @pytest.mark.parametrize("is_stalled", [False, True])
    def test_ctrl_c_ends_it_soon_and_keeps_what_there_is(self, site: Site, tmp_path: Path, is_stalled: bool) -> None:
        site.bytes_per_second = 400_000
        site.always["/data.bin"] = Fault(stall=60 if is_stalled else 0)
        file = site.file()
        process = subprocess.Popen([sys.executable, "-c", child(file, tmp_path, timeout=60)], stderr=subprocess.PIPE)
        part = part_path(file, tmp_path)
        wait_for(lambda: part.exists() and part.stat().st_size > 130_000)
        time.sleep(0.05)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert b"KeyboardInterrupt" in errors
        assert time.monotonic() - start < 10
        assert CONTENT.startswith(part.read_bytes())
        site.bytes_per_second = 0.0
        site.always.clear()
        fetch(tmp_path, file)
        assert (tmp_path / "data.bin").read_bytes() == CONTENT
        assert site.ranges()[-1].startswith("bytes=")

    def test_a_killed_download_goes_on_and_ends_the_same(self, site: Site, tmp_path: Path) -> None:
        site.bytes_per_second = 3_000_000
        content = random.Random(2).randbytes(1_000_000)
        tree = {f"images/{index}": content[index * 50_000 : (index + 1) * 50_000] for index in range(20)}
        plain = site.file("plain.bin", content)
        packed = site.file("packed.zip", zipped(tree), unpack=".", makes=("images",))
        draw = random.Random(3)
        for num_kills in range(100):
            process = subprocess.Popen([sys.executable, "-c", child(plain, tmp_path, packed)], stdout=subprocess.PIPE)
            assert process.stdout is not None
            process.stdout.readline()
            try:
                code = process.wait(timeout=0.02 + 0.1 * draw.random() if num_kills < 4 else 30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            else:
                assert code == 0
                break
            finally:
                process.stdout.close()
            assert not (tmp_path / "plain.bin").exists() or (tmp_path / "plain.bin").read_bytes() == content
        assert num_kills >= 3, "it was too fast to be killed"
        assert (tmp_path / "plain.bin").read_bytes() == content
        assert {f"images/{path.name}": path.read_bytes() for path in (tmp_path / "images").iterdir()} == tree
        assert sorted(path.name for path in tmp_path.iterdir()) == [RECORDS, "images", "plain.bin"]
        assert sorted(path.name for path in (tmp_path / RECORDS).iterdir()) == [
            "lock",
            "packed.zip.json",
            "plain.bin.json",
        ]


def child(file: RemoteFile, root: Path, *more: RemoteFile, timeout: float = 5.0) -> str:
    """The code of a process that downloads."""
    return (
        f"{PATIENT}t._TIMEOUT = (5.0, {timeout})\n"
        "from pathlib import Path\nfrom plbench.data.download.files import download\n"
        "from plbench.data.download.remote import RemoteFile\n"
        "print('ready', flush=True)\n"
        f"download({[file, *more]!r}, Path({str(root)!r}), lambda done, total: None, note=lambda text: None)"
    )


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


class TestDisk:
    def test_one_that_fills_up_keeps_the_part(self, site: Site, tmp_path: Path) -> None:
        file = site.file()
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (160_000, most))  # stands in for a full disk
        try:
            with pytest.raises(StoreError, match=r"could not write .*\.part: File too large"):
                fetch(tmp_path, file)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        kept = part_path(file, tmp_path).stat().st_size
        assert kept > 150_000
        fetch(tmp_path, file)
        assert (tmp_path / "data.bin").read_bytes() == CONTENT
        assert site.ranges()[-1] == f"bytes={kept}-"

    def test_one_that_is_too_small_is_said_before_the_first_byte(
        self, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = namedtuple("usage", "free")(500_000)
        monkeypatch.setattr(plbench.data.download.files.shutil, "disk_usage", lambda folder: usage)
        with pytest.raises(DataError, match=r"at least 600 kB in .*, where 500 kB are free; free some space"):
            fetch(tmp_path, site.file(unpack="."))
        assert not site.ranges()

    def test_a_root_that_cannot_be_written_to(self, site: Site, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(StoreError, match="could not write"):
            fetch(tmp_path / "file" / "root", site.file())

    def test_a_second_process_waits_and_finds_it_done(self, site: Site, tmp_path: Path) -> None:
        file = site.file()
        (tmp_path / RECORDS).mkdir()
        held = threading.Event()

        def other() -> None:
            with FileLock(tmp_path / RECORDS / "lock"):
                held.set()
                time.sleep(0.2)
                (tmp_path / "data.bin").write_bytes(CONTENT)

        threading.Thread(target=other).start()
        held.wait(5)
        ear = fetch(tmp_path, file)
        assert ear.notes == [f"another process is downloading into {tmp_path}; waiting for it"]
        assert not site.ranges()


TREE = {"a/1.jpg": CONTENT[:1000], "a/2.jpg": CONTENT[1000:9000]}


class TestArchives:
    def test_one_is_unpacked_recorded_and_deleted(self, site: Site, tmp_path: Path) -> None:
        file = site.file("a.zip", zipped(TREE), unpack="images", makes=("images/a",))
        ear = fetch(tmp_path, file)
        assert ear.notes == [f"unpacking a.zip (9 kB) into {tmp_path / 'images'}"]
        assert sorted(path.name for path in (tmp_path / "images/a").iterdir()) == ["1.jpg", "2.jpg"]
        assert is_here(file, tmp_path)
        assert not (tmp_path / "a.zip").exists()

    def test_one_that_is_half_unpacked_is_not_here(
        self, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = site.file("a.zip", zipped(TREE), unpack=".", makes=("a",))

        def die(archive: Path, folder: Path, report: object) -> None:
            (folder / "a").mkdir()
            (folder / "a/1.jpg").write_bytes(TREE["a/1.jpg"])
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(plbench.data.download.files, "unpack", die)
            fetch(tmp_path, file)
        assert not is_here(file, tmp_path)
        assert total_bytes([file], tmp_path) == 0
        fetch(tmp_path, file)
        assert is_here(file, tmp_path)
        assert len(site.ranges("a.zip")) == 1
        assert (tmp_path / "a/2.jpg").read_bytes() == TREE["a/2.jpg"]

    def test_one_that_a_person_unpacked_is_here(self, site: Site, tmp_path: Path) -> None:
        file = site.file("a.zip", zipped(TREE), unpack=".", makes=("a", "b"))
        (tmp_path / "a").mkdir()
        assert not is_here(file, tmp_path)
        (tmp_path / "b").mkdir()
        assert is_here(file, tmp_path)
        part_path(file, tmp_path).write_bytes(b"half")
        assert not is_here(file, tmp_path)

    def test_one_that_a_person_fetched_is_verified_unpacked_and_left(self, site: Site, tmp_path: Path) -> None:
        content = zipped(TREE)
        file = site.file("a.zip", content, unpack=".", makes=("a",), size=len(content), checksum=md5(content))
        (tmp_path / "a.zip").write_bytes(content[:-1] + b"?")
        with pytest.raises(DataError, match=r"a\.zip has checksum .* instead of .*delete it"):
            fetch(tmp_path, file)
        (tmp_path / "a.zip").write_bytes(content[:-1])
        with pytest.raises(DataError, match=r"a\.zip has [0-9,]+ bytes instead of"):
            fetch(tmp_path, file)
        (tmp_path / "a.zip").write_bytes(content)
        fetch(tmp_path, file)
        assert (tmp_path / "a.zip").read_bytes() == content
        assert is_here(file, tmp_path)
        assert not site.ranges("a.zip")

    def test_a_new_version_replaces_the_old_members(self, site: Site, tmp_path: Path) -> None:
        fetch(tmp_path, site.file("a.zip", zipped(TREE), unpack=".", makes=("a",)))
        newer = {name: content[::-1] for name, content in TREE.items()}
        file = site.file("a.zip", zipped(newer), unpack=".", makes=("a",), checksum=md5(zipped(newer)))
        record = record_path(file, tmp_path)
        record.write_text(json.dumps(json.loads(record.read_text()) | {"checksum": md5(b"old")}))
        assert not is_here(file, tmp_path)
        fetch(tmp_path, file)
        assert (tmp_path / "a/1.jpg").read_bytes() == newer["a/1.jpg"]

    def test_one_that_makes_something_else_is_said(self, site: Site, tmp_path: Path) -> None:
        file = site.file("a.zip", zipped(TREE), unpack=".", makes=("train2014",))
        with pytest.raises(DataError, match="train2014 not among its members"):
            fetch(tmp_path, file)
        assert not is_here(file, tmp_path)

    def test_a_kept_file_of_another_size_is_not_here(self, site: Site, tmp_path: Path) -> None:
        file = site.file()
        fetch(tmp_path, file)
        (tmp_path / "data.bin").write_bytes(b"edited")
        assert not is_here(file, tmp_path)
        fetch(tmp_path, file)
        assert (tmp_path / "data.bin").read_bytes() == CONTENT
