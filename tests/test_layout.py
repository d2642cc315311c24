"""What import-linter (`make lint`) does not see: plugins, which no part names, and what they import."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

TOP = Path(__file__).parents[1]
FOR_METHODS = {"api", "losses", "metrics", "losses_single_positive", "priors", "sample_state"}
FOR_DATASETS = {"api", "data", "files", "metrics"}


def nodes_that_run(node: ast.AST) -> Iterator[ast.AST]:
    """All below a node, but for what only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING"):
            yield child
            yield from nodes_that_run(child)


def imported(path: Path) -> set[str]:
    """What a file imports of plbench, at any time: modules and rooms by their names below it."""
    names = set()
    for node in nodes_that_run(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            paths = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            paths = [alias.name for alias in node.names]
        else:
            continue
        names |= {path.split(".")[1] for path in paths if path.startswith("plbench.")}
    return names - {"__version__"}


def test_the_folder_can_be_taken_in_at_a_glance() -> None:
    # by stem: a module and its stub are one
    assert len({path.stem for path in (TOP / "plbench").iterdir() if path.name != "__pycache__"}) <= 26


def test_nothing_names_a_plugin_but_the_papers_experiments() -> None:
    groups = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    plugins = {name for group in groups.values() for name in group}
    assert {"selective", "lvis"} <= plugins
    for path in (TOP / "plbench").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named = node.value.partition(":")[0] in plugins
                assert not named or path.is_relative_to(TOP / "plbench" / "experiments"), f"{path}:{node.lineno}"


def test_what_plugins_import() -> None:
    for folder, allowed in (("methods", FOR_METHODS), ("datasets", FOR_DATASETS)):
        for path in (TOP / folder).rglob("*.py"):
            assert imported(path) <= allowed | {folder}, path.name
