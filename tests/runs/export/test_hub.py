"""Uploads to a server on this machine that plays the Hub: what arrives, what timm makes of it, and refusals."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import plbench.models.torchvision_ops  # noqa: F401  # isort: skip
import timm
import yaml

from plbench.errors import PlbenchError
from plbench.runs.export import hub
from plbench.runs.export.export import load_source
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.record import parse_record
from plbench.runs.run import run
from plbench.runs.workspace import Workspace

pytestmark = [pytest.mark.usefixtures("quick_records"), pytest.mark.timeout(120)]
TOKEN = "hf_of_the_test"


class Hub(ThreadingHTTPServer):
    """The Hub's API, as far as an upload and a download need it. Files above 10 kB go through LFS.

    Attributes:
        files: content by name, as committed. blobs: LFS objects by sha256. calls: method and path of each request.
        silent: whether requests wait for an answer that does not come.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.daemon_threads = True
        self.files: dict[str, bytes] = {}
        self.blobs: dict[str, bytes] = {}
        self.calls: list[str] = []
        self.created: dict[str, Any] = {}
        self.released = threading.Event()
        self.silent = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, content: Any = None, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content or {}).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_call(self) -> None:
        hub_, path = self.server, self.path.partition("?")[0]
        hub_.calls.append(f"{self.command} {path}")
        body = self.body()
        if hub_.silent:
            hub_.released.wait(30)
        elif path.startswith("/blobs/"):
            hub_.blobs[path.rpartition("/")[2]] = body
            self.answer()
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer({"error": "Invalid credentials"}, 401)
        elif path == "/api/whoami-v2":
            self.answer({"type": "user", "name": "me", "orgs": []})
        elif path == "/api/repos/create":
            hub_.created = json.loads(body)
            self.answer({"url": f"{hub_.url}/me/blocks"})
        elif path == "/api/validate-yaml":
            yaml.safe_load(json.loads(body)["content"].split("---")[1])
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "lfs" if f["size"] > 10_000 else "regular"} for f in files]
            self.answer({"files": [{**mode, "shouldIgnore": False} for mode in modes]})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            told = [{**o, "actions": {"upload": {"href": f"{hub_.url}/blobs/{o['oid']}"}}} for o in objects]
            self.answer({"transfer": "basic", "objects": told})
        elif "/commit/" in path:
            self.commit([json.loads(line) for line in body.splitlines()])
        elif "/resolve/main/" in path:
            content = hub_.files.get(path.rpartition("/")[2])
            etag = hashlib.sha256(content or b"").hexdigest()
            if content is None:
                self.answer(status=404, X_Error_Code="EntryNotFound", X_Repo_Commit="a" * 40)
            else:
                self.answer(content, ETag=f'"{etag}"', X_Repo_Commit="a" * 40)
        else:
            self.answer({"error": f"no {path}"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = handle_call

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = self.server.blobs[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                self.server.files[value["path"]] = content
        self.answer({"commitUrl": f"{self.server.url}/me/blocks/commit/{'a' * 40}", "commitOid": "a" * 40, "success": True})


@pytest.fixture
def the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A server that the Hub's client takes for the Hub, with a token of its own."""
    from huggingface_hub import constants

    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # a protocol of its own, by another server
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()
    thread.join(5)


def made(workspace: Workspace, **asked: Any) -> Path:
    record = run(plan_run(Request("tiny", "ce-negative", plan={"epochs": 1}, **asked), workspace), workspace)
    return workspace.store.run_folder(record.key)


def test_explore(make_workspace: Callable[..., Workspace], the_hub: Hub, tmp_path: Path, capsys) -> None:
    workspace = make_workspace()
    folder = made(workspace)
    try:
        uploaded = hub.upload_run(folder, "me/blocks", workspace, private=True)
    finally:
        with capsys.disabled():
            print(the_hub.calls, the_hub.created)
    with capsys.disabled():
        print(uploaded)
        print(the_hub.files["README.md"].decode())
    model = timm.create_model("hf-hub:me/blocks", pretrained=True, cache_dir=tmp_path / "cache").eval()
    with capsys.disabled():
        print(the_hub.calls)
