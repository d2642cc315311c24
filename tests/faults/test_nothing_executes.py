"""Data never run: no file that anybody may have written is unpickled, evaluated, or handed to a shell."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
SOURCES = sorted(path for part in ("plbench", "methods", "datasets") for path in (TOP / part).rglob("*.py"))

ALWAYS = {
    *("eval", "exec", "compile", "__import__"),  # the built-in ones
    *("os.system", "os.popen", "pty.spawn", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open"),
    *("cloudpickle.load", "cloudpickle.loads", "dill.load", "dill.loads", "joblib.load"),
    *("pandas.read_pickle", "pd.read_pickle", "torch.hub.load", "torch.jit.load", "torch.package.PackageImporter"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"),
    *("code.interact", "runpy.run_path", "runpy.run_module"),
}
"""Calls that run what they are given, wherever it came from."""

KNOWN = {("plbench/runs/export/formats.py", "torch.jit.load")}
"""The one exception: an export reads the file that it has just written, to compare its scores."""

NEEDS = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "np.lib.format.read_array": ("allow_pickle", False),
}
"""Calls that are harmless with this argument alone, which must be spelt out."""


def dotted(node: ast.expr) -> str:
    """The name that is called, such as "torch.load"; what is called on a value begins with a dot."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def imported(tree: ast.AST) -> dict[str, str]:
    """What names of a module stand for, from its imports: {"load": "pickle.load", "p": "pickle"}."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
        elif isinstance(node, ast.Import):
            found |= {one.asname: one.name for one in node.names if one.asname}
    return found


def faults(source: str) -> Iterator[str]:
    """What in a module runs data, with its line."""
    tree = ast.parse(source)
    names = imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any("Unpickler" in dotted(base) for base in node.bases):
            yield f"line {node.lineno}: class {node.name}"
        if not isinstance(node, ast.Call):
            continue
        first, dot, rest = (spelt := dotted(node.func)).partition(".")
        name = f"{names.get(first, first)}{dot}{rest}"
        given = {one.arg: one.value for one in node.keywords}
        shell = given.get("shell")
        if {spelt, name} & ALWAYS or (shell is not None and not is_constant(shell, False)):
            yield f"line {node.lineno}: {name}"
        for called, (argument, value) in NEEDS.items():
            if called in (spelt, name) and not ((own := given.get(argument)) is not None and is_constant(own, value)):
                yield f"line {node.lineno}: {name} without {argument}={value}"
                break


def is_constant(node: ast.expr, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def test_no_module_runs_data() -> None:
    assert len(SOURCES) > 300
    found = {str(path.relative_to(TOP)): [*faults(path.read_text(encoding="utf-8"))] for path in SOURCES}
    others = {(path, what.partition(": ")[2]) for path, every in found.items() for what in every}
    assert others == KNOWN, found


@pytest.mark.parametrize(
    "line",
    [
        "import pickle; pickle.loads(content)",
        "from pickle import load as read; read(file)",
        "import pickle as p; p.Unpickler(file)",
        "import pickle\nclass Reader(pickle.Unpickler): ...",
        "import torch; torch.load(path)",
        "import torch; torch.load(path, weights_only=False)",
        "import torch; torch.load(path, weights_only=choice)",
        "from torch import load; load(path)",
        "import numpy as np; np.load(path)",
        "import numpy; numpy.load(path, allow_pickle=True)",
        "eval(text)",
        "exec(text)",
        "import os; os.system(text)",
        "import subprocess; subprocess.run(text, shell=True)",
        "import subprocess; subprocess.Popen(text, shell=flag)",
        "import yaml; yaml.load(text, Loader)",
        "import pandas as pd; pd.read_pickle(path)",
    ],
)
def test_what_does_is_found(line: str) -> None:
    assert len([*faults(line)]) == 1


@pytest.mark.parametrize(
    "line",
    [
        "model.eval()",
        "import re; re.compile(text)",
        "import torch; torch.load(path, map_location='cpu', weights_only=True)",
        "import numpy as np; np.load(path, mmap_mode='r', allow_pickle=False)",
        "import subprocess; subprocess.run([text], shell=False)",
        "import yaml; yaml.safe_load(text)",
        "import json; json.loads(text)",
        "import pickle; pickle.UnpicklingError",
    ],
)
def test_what_does_not_passes(line: str) -> None:
    assert [*faults(line)] == []
