"""Finding plugins: lazily, from any distribution or file, and never letting one break another."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from test_cli import plbench

from plbench.cli.completion import candidate_names, method_names
from plbench.errors import PluginError
from plbench.runs.elsewhere import Data, place_of
from plbench.runs.no_plugins import NO_PLUGINS
from plbench.runs.registry import Registry, source_sha256

METHOD = """
from plbench.api import Loss, Method

class Mine(Method):
    name = {name!r}
    title = "Mine"

    def loss(self, output, batch, progress):
        return Loss.of_images(output.sum(-1))
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Installs a fake distribution: its entry points by group, and a module of its own with some source."""

    def make(distribution: str, entry_points: str, source: str = "") -> None:
        folder = tmp_path / distribution
        info = folder / f"{distribution}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(entry_points)
        (folder / f"{distribution}_plugin.py").write_text(source)
        monkeypatch.syspath_prepend(folder)

    return make


def write(path: Path, source: str) -> Path:
    path.write_text(source)
    return path


def test_names_are_listed_without_importing_anything_heavy() -> None:
    code = (
        "import sys; from plbench.runs.registry import Registry; registry = Registry.discover();"
        "print(*registry.names('method'), *registry.names('dataset'));"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules;"
        "assert not [name for name in sys.modules if name.startswith(('plbench.methods', 'plbench.datasets'))]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert {"selective", "ce-ignore", "scenes", "coco"} <= set(done.stdout.split())


def test_everything_installed_can_be_used() -> None:
    registry = Registry.discover()
    for kind in ("method", "dataset"):
        assert registry.broken(kind) == {}
        assert all(registry.origin(kind, name) == "plbench" for name in registry.names(kind))
    assert registry.method("selective").name == "selective"
    assert registry.dataset("scenes").name == "scenes"


@pytest.mark.parametrize(
    ("kind", "name", "meant"),
    [("method", "selectve", "selective"), ("method", "ce_ignore", "ce-ignore"), ("dataset", "coco2016", "coco2017")],
)
def test_a_name_that_nearly_fits_is_answered(kind: str, name: str, meant: str) -> None:
    with pytest.raises(PluginError, match=rf"there is no {kind} '{name}'; did you mean {meant}\? \(known: "):
        getattr(Registry.discover(), kind)(name)


def test_a_strangers_method_is_found(install) -> None:
    install("stranger", "[plbench.methods]\nmine = stranger_plugin:Mine\n", METHOD.format(name="mine"))
    registry = Registry.discover()
    assert "mine" in registry.names("method")
    assert registry.origin("method", "mine") == "stranger"
    assert registry.method("mine").title == "Mine"


def test_two_of_one_name_are_refused_naming_both(install) -> None:
    install("stranger", "[plbench.methods]\nselective = stranger_plugin:Mine\n", METHOD.format(name="selective"))
    registry = Registry.discover()
    assert registry.names("method").count("selective") == 1
    with pytest.raises(PluginError, match=r"'selective' is provided twice, by (plbench and stranger|stranger and )"):
        registry.method("selective")
    assert registry.method("ce-ignore")  # the others are as usable as before
    assert set(registry.broken("method")) == {"selective"}


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("import no_such_module", "cannot be imported from broken_plugin:Mine: ModuleNotFoundError: .*no_such_module"),
        ("raise RuntimeError('boom')", "RuntimeError: boom; fix or uninstall broken"),
        ("", "AttributeError"),
        ("def (", "SyntaxError"),
        ("class Mine: pass", "is not a subclass of plbench.api.Method"),
        ("Mine = 3", "is not a subclass of plbench.api.Method"),
        (METHOD.format(name="other"), "calls itself 'other'; entry point and class must agree"),
        (METHOD.format(name="mine").replace("title =", "subtitle ="), 'has no title; add: title = "…" to the class'),
        (METHOD.format(name="mine").replace("name =", "nickname ="), "has no name"),
        (METHOD.format(name="mine").replace("def loss", "def gain"), "leaves loss undefined"),
    ],
)
def test_a_broken_plugin_is_listed_with_its_reason_and_breaks_nobody_else(
    install, monkeypatch: pytest.MonkeyPatch, source: str, sentence: str
) -> None:
    install("broken", "[plbench.methods]\nmine = broken_plugin:Mine\n", source)
    monkeypatch.delitem(sys.modules, "broken_plugin", raising=False)
    registry = Registry.discover()
    with pytest.raises(PluginError, match=f"method 'mine' of broken .*{sentence}|{sentence}"):
        registry.method("mine")
    assert set(registry.broken("method")) == {"mine"}
    assert registry.method("selective")


class TestPluginFiles:
    def test_its_classes_are_added(self, tmp_path: Path) -> None:
        path = write(tmp_path / "mine.py", METHOD.format(name="from-file"))
        registry = Registry.discover((path,))
        assert registry.method("from-file").title == "Mine"
        assert registry.origin("method", "from-file") == str(path)
        assert "from-file" not in Registry.discover().names("method")

    def test_what_it_imports_is_not_its_own(self, tmp_path: Path) -> None:
        source = "from plbench.methods.selective import Selective\n" + METHOD.format(name="beside")
        registry = Registry.discover((write(tmp_path / "beside.py", source),))
        assert registry.method("beside")
        assert registry.method("selective")

    def test_a_method_may_build_on_another(self, tmp_path: Path) -> None:
        source = (
            "from plbench.methods.selective import Selective\n"
            "class Child(Selective):\n    name = 'child'\n    title = 'Child'\n"
        )
        assert Registry.discover((write(tmp_path / "child.py", source),)).method("child").title == "Child"

    @pytest.mark.parametrize(
        ("source", "sentence"),
        [
            ("x = 1", "defines no subclass of plbench.api.Method or plbench.api.Dataset"),
            ("import no_such_module", "cannot be imported: ModuleNotFoundError"),
            ("def (", "cannot be imported: SyntaxError"),
            (METHOD.format(name=""), 'class Mine in .* has no name; add: name = "my-method"'),
            (METHOD.format(name="x").replace("name =", "nickname ="), "class Mine in .* has no name"),
        ],
    )
    def test_what_cannot_be_used_is_said(self, tmp_path: Path, source: str, sentence: str) -> None:
        with pytest.raises(PluginError, match=sentence):
            Registry.discover((write(tmp_path / "bad.py", source),))

    def test_a_file_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(PluginError, match=r"plugin file .*gone\.py does not exist"):
            Registry.discover((tmp_path / "gone.py",))
        with pytest.raises(PluginError, match=r"plugin file .*notes\.txt is not a Python file"):
            Registry.discover((write(tmp_path / "notes.txt", METHOD.format(name="notes")),))

    def test_a_name_that_is_taken_is_refused(self, tmp_path: Path) -> None:
        path = write(tmp_path / "again.py", METHOD.format(name="selective"))
        with pytest.raises(PluginError, match=f"provided twice, by plbench and {path}"):
            Registry.discover((path,)).method("selective")


def test_the_source_hash_follows_the_file(tmp_path: Path) -> None:
    first = Registry.discover((write(tmp_path / "one.py", METHOD.format(name="x")),)).method("x")
    same = Registry.discover((write(tmp_path / "two.py", METHOD.format(name="x")),)).method("x")
    other = Registry.discover((write(tmp_path / "three.py", METHOD.format(name="x") + "# edited\n"),)).method("x")
    assert source_sha256(first) == source_sha256(same) != source_sha256(other)
    with pytest.raises(PluginError, match="the source file of Typed cannot be read"):
        source_sha256(type("Typed", (), {"__module__": "nowhere"}))


class TestOwnOnly:
    """`--no-plugins`: code of others is not loaded, and what that leaves out is said."""

    SOURCE = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n" + METHOD.format(name="mine")

    @pytest.fixture
    def ran(self, install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A distribution with a method and a broken dataset; the file is there once its code has run."""
        points = "[plbench.methods]\nmine = outsider_plugin:Mine\nce-ignore = outsider_plugin:Mine\n"
        install("outsider", points + "[plbench.datasets]\npets = outsider_plugin:Pets\n", self.SOURCE)
        monkeypatch.delitem(sys.modules, "outsider_plugin", raising=False)
        monkeypatch.delenv(NO_PLUGINS, raising=False)
        return tmp_path / "outsider" / "ran"

    def test_others_are_listed_and_not_loaded(self, ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "mine" in Registry.discover().names("method")
        assert not Registry.discover(own_only=True).others()[0][2]
        monkeypatch.setenv(NO_PLUGINS, "1")
        registry = Registry.discover()
        assert not {"mine", "pets"} & {*registry.names("method"), *registry.names("dataset")}
        assert registry.method("ce-ignore").title  # its own, without the other of that name
        assert registry.broken("method") == registry.broken("dataset") == {} and not ran.exists()
        assert [(kind, source.name, used) for kind, source, used in registry.others()] == [
            ("method", "ce-ignore", False),
            ("method", "mine", False),
            ("dataset", "pets", False),
        ]
        with pytest.raises(PluginError, match="method 'mine' is of outsider, which PLBENCH_NO_PLUGINS=1 leaves out"):
            registry.method("mine")

    @pytest.mark.parametrize(("value", "alone"), [("1", True), ("yes", True), ("0", False), ("", False), ("No", False)])
    def test_what_the_environment_says(self, value: str, alone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(NO_PLUGINS, value)
        assert Registry.discover().is_own_only is alone

    def test_a_plugin_file_beside_it_is_refused(self, tmp_path: Path) -> None:
        path = write(tmp_path / "own.py", "raise RuntimeError('it ran')")
        with pytest.raises(PluginError, match=r"plugin file .*own\.py is third-party code, which PLBENCH_NO_PLUGINS=1"):
            Registry.discover((path,), own_only=True)

    def test_other_machines_do_the_same(self, ran: Path, make_workspace) -> None:
        workspace = replace(make_workspace(), registry=Registry.discover(own_only=True))
        place = place_of(workspace, (), device="cpu", workers=0)
        data = Data(root=ran.parent, options={})
        assert "mine" not in place.workspace(data).registry.names("method")

    @pytest.mark.parametrize("flag", [[], ["--no-plugins"]])
    def test_doctor_says_whose_they_are_and_where(
        self, ran: Path, flag: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PLBENCH_RUNS", str(tmp_path / "runs"))
        monkeypatch.setenv("PLBENCH_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv(NO_PLUGINS, "")  # and not what the command leaves behind in this process
        said = plbench(*flag, "doctor", "--json").json
        (mine,) = [row for row in said["plugins"] if row["plugin"] == "method mine"]
        assert mine == {
            "plugin": "method mine",
            "from": f"outsider 1.0, outsider_plugin:Mine in {ran.parent}",
            "used": not flag,
        }
        assert ("dataset pets" in {check["check"] for check in said["checks"]}) is not bool(flag)  # it is broken
        assert ran.exists() is not bool(flag)
        shown = plbench(*flag, "doctor").out
        assert f"dataset pets{' (left out)' if flag else ''}: outsider 1.0, outsider_plugin:Pets in" in shown
        assert "Third-party plugins" in shown

    def test_completion_runs_none_of_it(self, ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(NO_PLUGINS, "1")
        assert candidate_names("mine:") == [] and "mine" not in method_names("mi")
        monkeypatch.setenv(NO_PLUGINS, "")
        assert method_names("mi") == ["mine"]
