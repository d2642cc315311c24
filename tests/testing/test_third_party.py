"""A stranger's distribution, with a method and a dataset: built, installed in a venv of its own, checked and run.

The venv reaches what is installed here through a .pth file, so that it takes seconds and no network.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PYPROJECT = """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "strangers-plugins"
version = "1.0"
dependencies = ["plbench"]

[project.entry-points."plbench.methods"]
half-negative = "strangers_plugins.half_negative:HalfNegative"

[project.entry-points."plbench.datasets"]
dots = "strangers_plugins.dots:Dots"

[tool.setuptools]
packages = ["strangers_plugins"]
"""
DOTS = '''
import numpy as np
from PIL import Image

from plbench.api import BenchmarkProtocol, Dataset, ImageFiles, LabelledSplit, ModelSpec, PartialLabels, Plan, Recipe

SIZES = {"train": 40, "test": 24}
CLASSES = ("red", "green", "blue")


def present(split):
    return np.random.default_rng(len(split)).random((SIZES[split], len(CLASSES))) < 0.5


class Dots(Dataset):
    """A channel of an image is bright where its colour is present."""

    name = "dots"
    title = "Dots"
    licence = "CC0"
    protocols = (
        BenchmarkProtocol(name="dots-rpa0.5/v1", dataset="dots", simulation="rpa=0.5", validation_share=0.3),
    )
    recipes = (
        Recipe(
            name="quick",
            title="random tiny ResNet",
            regime="probe",
            model=ModelSpec(backbone="test_resnet", weights="random", image_size=32),
            plans={kind: Plan(epochs=3, batch_size=16, lr=1e-2, ema_horizon=0.5) for kind in ("probe", "finetune")},
            sources={"all": "ours"},
        ),
    )
    needs_files = False

    def fetch_hint(self):
        return "it is drawn"

    def prepare(self, report):
        for split, number in SIZES.items():
            folder = self.root / split
            folder.mkdir(parents=True, exist_ok=True)
            for row, colours in enumerate(present(split)):
                pixels = np.random.default_rng((row, number)).integers(0, 60, (16, 16, 3), np.uint8)
                pixels[..., colours] += np.uint8(180)
                Image.fromarray(pixels).save(folder / f"{row}.png")

    def fingerprint(self):
        return self.split("train").labels.fingerprint()

    def split(self, name):
        if name not in SIZES:
            from plbench.api import DataError

            raise DataError(f"dataset 'dots' has splits train and test, not {name!r}")
        ids = tuple(f"{name}-{row}" for row in range(SIZES[name]))
        files = tuple(f"{name}/{row}.png" for row in range(SIZES[name]))
        labels = PartialLabels.from_dense(np.where(present(name), 1, -1), CLASSES)
        return LabelledSplit(ImageFiles(self.root, files, ids), labels)
'''

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stranger")


@pytest.fixture(scope="module")
def command(place: Path) -> Run:
    """Runs `python -m …` of the stranger's venv, in which the distribution is installed."""
    source = place / "distribution"
    (source / "strangers_plugins").mkdir(parents=True)
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "strangers_plugins" / "__init__.py").write_text("")
    (source / "strangers_plugins" / "dots.py").write_text(DOTS)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PLBENCH"))}
    environment |= {"PLBENCH_CACHE": str(place / "cache"), "PLBENCH_RUNS": str(place / "runs"), "OMP_NUM_THREADS": "1"}

    def run(*words: str, python: Path = place / "venv" / "bin" / "python") -> subprocess.CompletedProcess[str]:
        done = subprocess.run([python, "-m", *words], cwd=place, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
        return done

    here = Path(sys.executable)
    written = run("plbench", "methods", "new", "half-negative", python=here)
    assert "Next: plbench methods check half-negative" in written.stdout
    (place / "half_negative.py").rename(source / "strangers_plugins" / "half_negative.py")
    run("venv", "--without-pip", str(place / "venv"), python=here)
    site = next((place / "venv" / "lib").glob("python*/site-packages"))
    installed = Path(sysconfig.get_paths()["purelib"])
    # after the venv's own folder, with .pth files of its own: plbench may be installed in editable form
    (site / "here.pth").write_text(f"import site; site.addsitedir({str(installed)!r})\n")
    run("pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", str(source))
    return run


def test_it_is_installed_there_and_not_here(command: Run, place: Path) -> None:
    code = place / "where.py"
    code.write_text(
        "import strangers_plugins, importlib.metadata as m; "
        "print(strangers_plugins.__file__, m.version('strangers-plugins'))"
    )
    assert str(place / "venv") in command("where").stdout
    here = subprocess.run([sys.executable, "-c", "import strangers_plugins"], capture_output=True)
    assert here.returncode != 0


def test_both_are_listed_beside_the_built_in_ones(command: Run) -> None:
    methods = {row["name"]: row for row in json.loads(command("plbench", "methods", "list", "--json").stdout)}
    assert methods["half-negative"]["from"] == "strangers-plugins" and methods["selective"]["from"] == "plbench"
    datasets = {row["name"] for row in json.loads(command("plbench", "data", "list", "--json").stdout)}
    assert {"dots", "scenes"} <= datasets


def test_both_do_what_they_must(command: Run) -> None:
    checked = json.loads(command("plbench", "methods", "check", "half-negative", "-q", "--json").stdout)
    assert len(checked) > 10 and all(row["passed"] in (True, None) for row in checked)
    checked = json.loads(command("plbench", "data", "check", "dots", "-q", "--json").stdout)
    assert len(checked) > 10 and all(row["passed"] in (True, None) for row in checked)


def test_the_method_runs_on_the_dataset(command: Run, place: Path) -> None:
    words = ("plbench", "run", "--method", "half-negative", "--dataset", "dots", "-P", "weight=0.25", "-q", "--json")
    record = json.loads(command(*words).stdout)
    assert record["status"] == "done" and record["spec"]["protocol"]["name"] in ("dots-rpa0.5/v1", "custom/dots-rpa0.5")
    assert record["spec"]["method"]["params"] == {"weight": 0.25}
    assert record["metrics"]["test"]["num_classes_scored"] == 3
    assert (place / "runs" / record["key"] / "record.json").is_file()


def test_what_methods_new_packages_can_be_installed_and_passes_its_own_test(command: Run, place: Path) -> None:
    written = command("plbench", "methods", "new", "other-method", "--package").stdout
    assert "Next: pip install -e ./plbench-other-method" in written
    command(
        "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", str(place / "plbench-other-method")
    )
    tested = command("pytest", "-q", "-p", "no:cacheprovider", str(place / "plbench-other-method" / "tests"))
    assert "1 passed" in tested.stdout
