"""Uploads to a server on this machine that plays the Hub: what arrives, what timm makes of it, and refusals."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import plbench.models.torchvision_ops  # noqa: F401  # isort: skip
import timm
import torch
import yaml
from huggingface_hub import RepoCard

from plbench.errors import PlbenchError
from plbench.runs.export import hub
from plbench.runs.export.export import load_source
from plbench.runs.export.formats import FORMATS
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
        self.answer(
            {"commitUrl": f"{self.server.url}/me/blocks/commit/{'a' * 40}", "commitOid": "a" * 40, "success": True}
        )


@pytest.fixture
def the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A server that the Hub's client takes for the Hub, with a token of its own."""
    from huggingface_hub import constants

    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
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


@pytest.fixture
def quick_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing ONNX takes seconds, and is tested elsewhere: here it is a file that gives no score."""

    def read(path: Path) -> Any:
        assert path.read_bytes() == b"onnx"
        return lambda images: wanted[-1][: len(images)]

    def write(source: Any, path: Path) -> None:
        wanted.append(source.scores.numpy())
        path.write_bytes(b"onnx")

    wanted: list[np.ndarray] = []
    own = replace(FORMATS["onnx"], write=write, read=read)
    monkeypatch.setattr(hub, "FORMATS", {**FORMATS, "onnx": own})


@pytest.mark.usefixtures("quick_onnx")
def test_what_is_uploaded_is_loaded_by_timm_and_tells_of_the_record(
    make_workspace: Callable[..., Workspace], the_hub: Hub, tmp_path: Path
) -> None:
    workspace = make_workspace()
    folder = made(workspace)
    uploaded = hub.upload_run(folder, "me/blocks", workspace, private=True)
    assert uploaded.url == f"{the_hub.url}/me/blocks" and set(uploaded.differences) == {"onnx", "timm-hub-folder"}
    assert the_hub.created["name"] == "blocks" and the_hub.created["visibility"] == "private"
    names = ("README.md", "config.json", "model.onnx", "model.safetensors", "per_class.csv", "record.json")
    assert uploaded.files == names == tuple(sorted(the_hub.files)) and the_hub.files["model.onnx"] == b"onnx"
    assert the_hub.files["per_class.csv"] == (folder / "per_class.csv").read_bytes()
    record = parse_record(the_hub.files["record.json"], Path("record.json"))

    # timm, as anybody would
    model = timm.create_model("hf-hub:me/blocks", pretrained=True, cache_dir=tmp_path / "cache").eval()
    source, _ = load_source(folder, workspace)
    with torch.inference_mode():
        scores = model(source.images).sigmoid()
    np.testing.assert_allclose(scores.numpy(), source.scores.numpy(), rtol=0, atol=1e-5)
    assert model.pretrained_cfg["label_names"] == list("abcdef")

    card = the_hub.files["README.md"].decode()
    said = RepoCard(card, ignore_metadata_errors=False).data.to_dict()
    (result,) = said["model-index"][0]["results"]
    figures = {metric["type"]: metric for metric in result["metrics"]}
    estimate = record.test.map_c
    assert said["library_name"] == "timm" and said["datasets"] == ["tiny"] and "ce-negative" in said["tags"]
    assert result["dataset"] == {"name": "tiny-fpc8/v1", "type": "tiny", "split": "test"}
    assert figures["mean_average_precision"]["value"] == estimate.value
    assert figures["mean_average_precision"]["args"] == {"interval": "95 %", "low": estimate.low, "high": estimate.high}
    for part in (
        "48 labels known to be present and 48 known to be absent",
        "simulation (`fpc=8`)",
        record.paper,
        f"| {estimate.value:.2f} | {estimate.low:.2f} to {estimate.high:.2f}",
        "hf-hub:me/blocks",
        "`a`, `b`, `c`",
    ):
        assert part in card, part
    blocks = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert len(blocks) == 2 and all(compile(block, "README.md", "exec") for block in blocks)


@pytest.mark.usefixtures("quick_onnx")
def test_what_timm_cannot_load_is_uploaded_without_its_folder(
    make_workspace: Callable[..., Workspace], the_hub: Hub, listening: Any
) -> None:
    workspace = replace(make_workspace(), reporter=listening)
    for head, files, library in (("mlp", ["model.safetensors"], "onnx"), ("csra", [], "onnx")):
        the_hub.files.clear()
        hub.upload_run(made(workspace, model={"head": head}), "me/blocks", workspace)
        assert sorted(the_hub.files) == ["README.md", "model.onnx", *files, "per_class.csv", "record.json"]
        card = the_hub.files["README.md"].decode()
        assert f"library_name: {library}" in card and "create_model" not in card
        assert ("`backbone.…`" in card) == bool(files)
    assert any(
        "timm will not load the model from the Hub: timm's models end in one" in text for text in listening.lines
    )


@pytest.mark.usefixtures("quick_onnx")
def test_a_folder_that_timm_reads_wrongly_is_not_uploaded(
    make_workspace: Callable[..., Workspace], the_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = replace(FORMATS["timm-hub-folder"], read=lambda path: lambda images: np.zeros((len(images), 6)))
    monkeypatch.setitem(hub.FORMATS, "timm-hub-folder", wrong)  # type: ignore[index]
    workspace = make_workspace()
    assert set(hub.upload_run(made(workspace), "me/blocks", workspace).differences) == {"onnx", "safetensors"}
    assert "config.json" not in the_hub.files and b"head.0.weight" in the_hub.files["model.safetensors"]


@pytest.mark.usefixtures("quick_onnx")
def test_refusals_are_one_sentence_and_come_in_time(
    make_workspace: Callable[..., Workspace], the_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make_workspace()
    folder = made(workspace)
    for name in ("blocks", "me//blocks", "me/you/blocks", "me/blocks.git"):
        with pytest.raises(PlbenchError, match="is not a name on the Hub; give USER/NAME"):
            hub.upload_run(folder, name, workspace)
    assert not the_hub.calls
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    with pytest.raises(PlbenchError, match=r"you may not write to me/blocks on .*; log in with hf auth login"):
        hub.upload_run(folder, "me/blocks", workspace)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PlbenchError, match=r"you may not write to me/blocks on .*; log in with hf auth login"):
        hub.upload_run(folder, "me/blocks", workspace)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(hub, "ANSWER_SECONDS", 0.2)
    the_hub.silent = True
    begun = time.monotonic()
    with pytest.raises(PlbenchError, match=r"did not take the upload to me/blocks: .*hf upload"):
        hub.upload_run(folder, "me/blocks", workspace)
    assert time.monotonic() - begun < 20 and not the_hub.files
