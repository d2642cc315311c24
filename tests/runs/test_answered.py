"""A command whose run is done is answered from a note, and never with another run than resolving it would give."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from plbench.cli import main
from plbench.data import digests
from plbench.data.digests import signature, watching
from plbench.datasets.ucm17 import Ucm17
from plbench.runs import answered
from plbench.runs.plan.resolve import Request, plan_run
from plbench.runs.store import Store
from plbench.runs.workspace import Workspace

run_module = sys.modules["plbench.cli.run"]

ARGUMENTS = [
    *("run", "-m", "ce-negative", "-d", "table", "--labels", "fix/labels-long.csv", "--images", "fix/images"),
    *("--negative-value", "-1", "--recipe", "quick", "--backbone", "test_resnet", "--weights", "random"),
    *("--image-size", "32", "--epochs", "1", "--workers", "0"),
]


@dataclass(frozen=True)
class Said:
    """What a command printed, and whether it was resolved."""

    code: int
    out: str
    err: str
    resolved: bool

    @property
    def key(self) -> str:
        return re.findall(r"runs/(\w{16})/record.json", self.out)[0]

    @property
    def notes(self) -> list[str]:
        return [line.partition("Note: ")[2] for line in self.err.splitlines() if "Note: " in line]


def plbench(*arguments: object) -> Said:
    """Runs a command in this process."""
    out, err, resolved = io.StringIO(), io.StringIO(), []
    slow = run_module.workspace_among_others

    def watched(setting: Any) -> Any:
        resolved.append(setting)
        return slow(setting)

    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        patch.object(sys, "argv", ["plbench", *map(str, arguments)]),
        patch.object(run_module, "workspace_among_others", watched),
    ):
        try:
            main()
        except SystemExit as leave:
            return Said(int(leave.code or 0), out.getvalue(), err.getvalue(), bool(resolved))
    return Said(0, out.getvalue(), err.getvalue(), bool(resolved))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the tests of this file run: a table with images, and a cache."""
    root = tmp_path_factory.mktemp("answered")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(root)
        patched.setenv("PLBENCH_CACHE", str(root / "cache"))
        patched.delenv("PLBENCH_RUNS", raising=False)
        patched.setattr(digests, "_FRESH_NS", 0)  # else the tests would wait for their files to settle
        assert plbench("data", "make-fixture", "table", "fix").code == 0
        yield root


@pytest.fixture
def done(folder: Path) -> Said:
    """The run, done and noted: what it printed when it was resolved, with that said before it is answered."""
    shutil.rmtree(folder / "cache" / "answered", ignore_errors=True)
    plbench(*ARGUMENTS)
    shutil.rmtree(folder / "cache" / "answered")
    said = plbench(*ARGUMENTS)
    assert said.resolved and "finished already" in said.out
    return said


def note(folder: Path) -> Path:
    (path,) = (folder / "cache" / "answered").iterdir()
    return path


def test_the_answer_is_what_resolving_prints(done: Said) -> None:
    answer = plbench(*ARGUMENTS)
    assert not answer.resolved
    assert answer.out == done.out and answer.notes == done.notes and len(done.notes) > 2
    as_json = plbench(*ARGUMENTS, "--json", "--quiet")
    assert not as_json.resolved and not as_json.err
    assert json.loads(as_json.out) == json.loads(Path("runs", done.key, "record.json").read_text())


def test_the_first_run_is_noted(folder: Path) -> None:
    first = plbench(*ARGUMENTS, "--seed", 7)
    answer = plbench(*ARGUMENTS, "--seed", 7)
    assert first.resolved and "finished already" not in first.out
    assert not answer.resolved and "finished already" in answer.out and answer.key == first.key


SLOW = ("torch", "timm", "sklearn", "pandas", "matplotlib", "scipy.special", "scipy.stats", "plbench.methods.selective")


def apart(*arguments: str) -> tuple[str, set[str]]:
    """Runs a command in a process of its own: what it printed, and which slow modules it imported."""
    code = (
        "import sys, plbench.data.digests as digests; digests._FRESH_NS = 0; from plbench.cli import main\n"
        f"sys.argv = {['plbench', *arguments]!r}\n"
        "try: main()\nexcept SystemExit: pass\n"
        f"print(*(name for name in {SLOW} if name in sys.modules), file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    return ran.stdout, set(ran.stderr.splitlines()[-1].split())


def test_answering_imports_no_torch(done: Said) -> None:
    apart(*ARGUMENTS)  # its path of imports is another than this process's: a command of its own
    assert apart(*ARGUMENTS) == (done.out, set())


@pytest.mark.parametrize("command", ["runs list", "runs show {key}"])
def test_what_reads_records_imports_no_torch(done: Said, command: str) -> None:
    said, slow = apart(*command.format(key=done.key).split())
    assert len(said.splitlines()) > 1 and not slow


class TestListsOfPlugins:
    @pytest.mark.parametrize("kind", ["methods", "data", "study"])
    def test_they_are_noted_once(self, folder: Path, kind: str) -> None:
        shutil.rmtree(folder / "cache" / "answered", ignore_errors=True)
        asked, slow = apart(kind, "list", "--json")
        assert "torch" in slow
        assert apart(kind, "list", "--json") == (asked, set())
        assert plbench(kind, "list", "--json").out == asked  # another path of imports, so that plugins are asked

    def test_a_dataset_that_comes_is_seen(self, folder: Path, tmp_path: Path) -> None:
        def states() -> dict[str, str]:
            listed = plbench("data", "list", "--data-root", tmp_path / "ucm", "--json").out
            return {row["name"]: row["state"] for row in json.loads(listed)}

        assert states()["ucm17"] == states()["ucm17"] == "missing"
        assert plbench("data", "make-fixture", "ucm17", tmp_path / "ucm").code == 0
        assert states()["ucm17"] == "here"
        (damaged := tmp_path / "ucm" / "prepared.json").write_text("{")
        assert states()["ucm17"] == "not usable"
        damaged.unlink()
        assert states()["ucm17"] == "here"

    def test_a_plugin_file_is_asked_each_time(self, folder: Path, tmp_path: Path) -> None:
        with contextlib.chdir(tmp_path):
            assert plbench("methods", "new", "my-own").code == 0
            (file,) = tmp_path.glob("*.py")
        rows = json.loads(plbench("methods", "list", "--json", "--plugin", file).out)
        assert "my-own" in {row["name"] for row in rows}
        assert "my-own" not in {row["name"] for row in json.loads(plbench("methods", "list", "--json").out)}

    def test_files_of_a_stranger_are_watched(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store, file = Store.at(Path("runs")), folder / "stranger.py"
        file.write_text("")
        answered.remember_rows(store, "0" * 64, [{"name": "a"}], {str(file), str(folder / "not-there")})
        assert answered.recall_rows(store, "0" * 64) == [{"name": "a"}]
        assert answered.recall_rows(store, "1" * 64) is None
        file.write_text("# changed")
        assert answered.recall_rows(store, "0" * 64) is None
        module = types.ModuleType("stranger")
        module.__file__ = str(file)
        monkeypatch.setitem(sys.modules, "stranger", module)
        own = type("Own", (Ucm17,), {"__module__": "stranger"})
        assert answered.files_of_strangers([Ucm17, own]) == {str(file)}


@pytest.mark.parametrize("options", [["--force"], ["--dry-run"], ["--profile"], ["--track", "tensorboard"]])
def test_what_does_more_than_read_is_resolved(done: Said, options: list[str]) -> None:
    said = plbench(*ARGUMENTS, *options)
    assert said.code == 0 and said.resolved


def test_one_of_several_processes_is_not_answered(done: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    assert plbench(*ARGUMENTS).resolved


@pytest.mark.parametrize("options", [["--lr", "0.02"], ["--seed", "1"], ["-P", "clip=0.05"], ["--runs", "others"]])
def test_another_option_is_another_command(done: Said, options: list[str]) -> None:
    assert plbench(*ARGUMENTS, *options).resolved


def test_an_environment_that_is_read_counts(done: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert plbench(*ARGUMENTS).resolved


def test_labels_edited_in_place_are_another_run(done: Said) -> None:
    path = Path("fix/labels-long.csv")
    content, times = path.read_bytes(), path.stat()
    edited = re.sub(rb"(te\d+[^,]*,[^,]*),1\b", rb"\1,0", content, count=1)
    assert len(edited) == len(content) and edited != content
    try:
        path.write_bytes(edited)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # size, inode and time of change are as they were
        said = plbench(*ARGUMENTS)
    finally:
        path.write_bytes(content)
    assert said.resolved and said.key != done.key
    assert plbench(*ARGUMENTS).key == done.key


def test_an_image_changed_is_another_run(done: Said) -> None:
    image = next(Path("fix/images").rglob("*.jpg"))
    content = image.read_bytes()
    try:
        image.write_bytes(content + b"\0")
        said = plbench(*ARGUMENTS)
    finally:
        image.write_bytes(content)
    assert said.resolved and said.key != done.key


def test_a_file_that_appears_may_be_meant_by_a_name(done: Said) -> None:
    new = next(Path("fix/images").rglob("*.jpg")).parent / "another.txt"
    new.touch()
    try:
        said = plbench(*ARGUMENTS)
    finally:
        new.unlink()
    assert said.resolved and said.key == done.key


def test_a_record_that_was_changed_is_refused_as_ever(done: Said) -> None:
    path = Path("runs", done.key, "record.json")
    content = path.read_text()
    try:
        path.write_text(re.sub(r'("map_c": \{\s*"value": )[\d.]+', r"\g<1>99.0", content, count=1))
        said = plbench(*ARGUMENTS)
    finally:
        path.write_text(content)
    assert said.resolved and said.code == 2 and "does not agree with the tables" in said.err


def test_a_record_of_another_run_is_refused_as_ever(done: Said) -> None:
    other = plbench(*ARGUMENTS, "--seed", 3)
    folder, aside = Path("runs", done.key), Path("aside")
    folder.rename(aside)
    try:
        shutil.copytree(Path("runs", other.key), folder)
        said = plbench(*ARGUMENTS)
    finally:
        shutil.rmtree(folder)
        aside.rename(folder)
    assert said.resolved and said.code == 2 and f"is of run {other.key}" in said.err


def test_a_run_that_is_gone_is_made_again(done: Said) -> None:
    shutil.rmtree(Path("runs", done.key))
    said = plbench(*ARGUMENTS)
    assert said.resolved and said.key == done.key and "finished already" not in said.out


def _cut(path: Path, other: str) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _emptied(path: Path, other: str) -> None:
    path.write_text("[]")


def _of_another_run(path: Path, other: str) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "key": other}))


def _of_another_command(path: Path, other: str) -> None:
    (theirs,) = (p for p in path.parent.iterdir() if json.loads(p.read_text())["key"] == other)
    shutil.copy(theirs, path)


@pytest.mark.parametrize("damage", [_cut, _emptied, _of_another_run, _of_another_command])
def test_a_damaged_note_is_no_answer(folder: Path, done: Said, damage: Callable[[Path, str], None]) -> None:
    path, other = note(folder), plbench(*ARGUMENTS, "--seed", 3)
    damage(path, other.key)
    said = plbench(*ARGUMENTS)
    assert said.resolved and said.key == done.key != other.key
    assert not plbench(*ARGUMENTS).resolved  # it was noted anew


def test_code_counts_by_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy_methods").mkdir()
    source = tmp_path / "toy_methods" / "__init__.py"
    source.write_text("a = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(answered, "_PACKAGES", ("toy_methods",))
    monkeypatch.setattr(digests, "_FRESH_NS", 0)
    first = answered.command_sha256({})
    assert first == answered.command_sha256({}) != answered.command_sha256({"seed": 1})
    source.write_text("a = 2\n")
    assert answered.command_sha256({}) not in (None, first)
    monkeypatch.setattr(digests, "_FRESH_NS", 2 * 10**9)
    assert answered.command_sha256({}) is None  # it may change again without a trace


def test_installed_packages_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(digests, "_FRESH_NS", 0)
    found = [answered.command_sha256({})]
    for name in ("torch_plugin-1.0.dist-info", "torch_plugin-1.1.dist-info"):
        (tmp_path / name).mkdir()
        found.append(answered.command_sha256({}))
    assert len(set(found)) == 3 and None not in found


def test_plugins_are_never_noted(make_workspace: Callable[..., Workspace]) -> None:
    workspace = make_workspace()
    with watching() as watched:
        plan = plan_run(Request("tiny", "ce-negative"), workspace)
    assert answered.basis(plan, workspace, watched) is None


def test_a_dataset_that_makes_its_files_is_known_by_them(
    make_workspace: Callable[..., Workspace], tiny_dataset: type[Any]
) -> None:
    built_in = type("BuiltIn", (tiny_dataset,), {"name": "built-in", "__module__": "plbench.datasets.built_in"})
    workspace = make_workspace(built_in)
    with watching() as watched:
        plan = plan_run(Request("built-in", "ce-negative"), workspace)
    basis = answered.basis(plan, workspace, watched)
    root = plan.protocol_data.dataset.root
    assert basis is not None and {str(root), str(root / "train"), str(root / "train" / "0.png")} <= set(basis["files"])


def test_watching_tells_what_was_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_FRESH_NS", 0)
    steady, changing, absent = (str(tmp_path / name) for name in ("steady", "changing", "absent"))
    Path(steady).write_text("1")
    Path(changing).write_text("1")
    with watching() as watched:
        digests.files_sha256(3, [steady, changing, absent].__getitem__, tmp_path)
        Path(changing).write_text("22")
        digests.files_sha256(2, [steady, changing].__getitem__, tmp_path)
    digests.files_sha256(1, lambda row: str(tmp_path / "later"), tmp_path)
    assert watched == {steady: signature(os.stat(steady)), changing: b"", absent: b""}


@pytest.mark.parametrize(("option", "method"), [("--simulate", "ce-negative"), ("--embeddings", "zero-shot")])
def test_another_file_under_the_same_name_is_another_question(folder: Path, option: str, method: str) -> None:
    root = folder / method
    dataset = Ucm17(root)
    dataset.make_fixture()
    splits = {name: dataset.split(name) for name in ("train", "test")}
    labels = splits["train"].labels
    ids = [f"{name}/{image}" for name, split in splits.items() for image in split.images.ids]

    def write(seed: int) -> None:
        rng = np.random.default_rng(seed)
        np.save("mine.npy", np.where(rng.random((labels.num_images, labels.num_classes)) < 0.7, 1, -1))
        np.savez(
            "mine.npz",
            class_ids=np.array(labels.class_ids),
            class_embeddings=rng.standard_normal((labels.num_classes, 4)),
            image_ids=np.array(ids),
            image_embeddings=rng.standard_normal((len(ids), 4)),
            logit_scale=np.float32(10),
        )

    given = {"--simulate": "labels-file=mine.npy", "--embeddings": "mine.npz"}[option]
    short = ("--weights", "random", "--epochs", "1", "--image-size", "32", "--workers", "0")
    command = ("run", "-m", method, "-d", "ucm17", "--data-root", root, option, given, *short)
    write(1)
    first = plbench(*command)
    assert first.code == 0, first.err
    plbench(*command)
    assert not plbench(*command).resolved
    write(2)
    other = plbench(*command)
    assert other.resolved and other.key != first.key
