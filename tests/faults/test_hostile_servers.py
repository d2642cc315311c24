"""A server may lie, never end or never hurry: what comes of it is a sentence, soon, and no full disk."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from plbench.data.download import transfer
from plbench.data.download.files import download
from plbench.data.download.remote import RemoteFile
from plbench.errors import DataError

Serve = Callable[[Callable[[BaseHTTPRequestHandler], None]], RemoteFile]
PIECE = bytes(1 << 16)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Starts a server on 127.0.0.1 whose answers a function writes, and gives the file that it has."""
    monkeypatch.setattr(transfer, "_BACKOFF", 0.001)
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Callable[[BaseHTTPRequestHandler], None]) -> RemoteFile:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.send_error(405)

            def do_GET(self) -> None:
                with contextlib.suppress(OSError):  # the client has gone
                    answer(self)
                self.close_connection = True

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return RemoteFile(f"http://127.0.0.1:{server.server_port}/data.bin", "data.bin", "images")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def fetch(file: RemoteFile, root: Path) -> None:
    download([file], root, lambda done, total: None, note=lambda text: None)


def begin(to: BaseHTTPRequestHandler, **headers: str) -> None:
    to.send_response(200)
    for name, value in headers.items():
        to.send_header(name.replace("_", "-"), value)
    to.end_headers()


def endless(to: BaseHTTPRequestHandler) -> None:
    begin(to, Transfer_Encoding="chunked")
    while True:
        to.wfile.write(f"{len(PIECE):x}\r\n".encode() + PIECE + b"\r\n")


def endless_without_a_length(to: BaseHTTPRequestHandler) -> None:
    begin(to, Connection="close")
    while True:
        to.wfile.write(PIECE)


@pytest.mark.parametrize("answer", [endless, endless_without_a_length])
def test_a_body_without_an_end(
    answer: Callable[[BaseHTTPRequestHandler], None], serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_MOST_UNSTATED", 3_000_000)
    with pytest.raises(DataError, match=r"does not say how long it is, and sent more than 3 MB.*put it at"):
        fetch(serve(answer), tmp_path)
    assert not list(tmp_path.glob("data*"))


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_at_a_byte_a_time(chunked: bool, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(to: BaseHTTPRequestHandler) -> None:
        begin(to, **({"Transfer_Encoding": "chunked"} if chunked else {"Content_Length": "1000000"}))
        while True:
            to.wfile.write(b"1\r\nx\r\n" if chunked else b"x")
            time.sleep(0.02)

    monkeypatch.setattr(transfer, "_WINDOW", 0.1)
    start = time.monotonic()
    with pytest.raises(DataError, match=r"6 tries in a row ending with: only \d+ bytes came in 0 s; check the network"):
        fetch(serve(answer), tmp_path)
    assert time.monotonic() - start < 30


def test_a_slow_body_that_is_fast_enough_arrives(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(to: BaseHTTPRequestHandler) -> None:
        begin(to, Content_Length=str(8 * len(PIECE)))
        for _ in range(8):
            to.wfile.write(PIECE)
            time.sleep(0.05)

    monkeypatch.setattr(transfer, "_WINDOW", 0.1)
    fetch(serve(answer), tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == 8 * PIECE


@pytest.mark.parametrize(
    ("url", "location", "is_refused"),
    [
        ("https://host/a", "http://host/a", True),
        ("https://host/a", "//other/b", False),
        ("https://host/a", "/b", False),
        ("https://host/a", "HTTPS://other/b", False),
        ("https://host/a", "ftp://host/a", True),
        ("http://host/a", "https://host/a", False),
        ("http://host/a", "http://host/b", False),
    ],
)
def test_https_stays_https(url: str, location: str, is_refused: bool) -> None:
    answer = requests.Response()
    answer.url, answer.status_code = url, 302
    answer.headers["Location"] = location
    with transfer._Session() as session:
        expected = pytest.raises(requests.exceptions.InvalidURL, match="from https to")
        with expected if is_refused else contextlib.nullcontext():
            assert session.get_redirect_target(answer) == location
    assert requests.exceptions.InvalidURL in transfer._MALFORMED  # a sentence, and no second try
