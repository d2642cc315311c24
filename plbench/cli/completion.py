"""Shell completion: names of methods, variants, datasets, boards and studies, keys of runs; without slow imports."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from plbench.runs.registry import Kind

_MOST_TOLD = 40  # maximum number of runs whose records are read for descriptions

_SHELL, _WORDS, _PLACE = "_PLBENCH_COMPLETE", "COMP_WORDS", "COMP_CWORD"
_HEAD = "_PLBENCH_COMPLETE_HEAD"


def method_names(incomplete: str) -> list[str]:
    """Return methods whose names have this prefix."""
    return _names("method", incomplete)


def dataset_names(incomplete: str) -> list[str]:
    """Return datasets whose names have this prefix."""
    return _names("dataset", incomplete)


def candidate_names(incomplete: str) -> list[str]:
    """Return completions of `--methods`: a method after the last comma, and variants after a colon."""
    head = os.environ.get(_HEAD, "")
    before, comma, last = f"{head}{incomplete}".rpartition(",")
    method, colon, _ = last.partition(":")
    found = [f"{method}:{name}" for name in _variants(method)] if colon else ["all", *_names("method", last)]
    return [f"{before}{comma}{name}".removeprefix(head) for name in found if name.startswith(last)]


def run_keys(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return keys of runs with this prefix, with descriptions if there are few."""
    folder = Path(ctx.params.get("runs") or os.environ.get("PLBENCH_RUNS") or "runs")
    paths = sorted(folder.glob(f"{_literal(incomplete)}*/record.json"))
    return [(path.parent.name, _said(path) if len(paths) <= _MOST_TOLD else "") for path in paths]


def board_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return boards whose names have this prefix."""
    folder = Path(ctx.params.get("boards") or os.environ.get("PLBENCH_BOARDS") or "leaderboards")
    return sorted(path.parent.name for path in folder.glob(f"{_literal(incomplete)}*/board.json"))


def study_names(incomplete: str) -> list[str]:
    """Return studies whose names have this prefix."""
    from plbench.experiments import NAMES

    return [name for name in ("list", *NAMES) if name.startswith(incomplete)]


def join_words() -> None:
    """Join the words that bash splits at colons.

    `selective:lik` arrives as three words. Here it becomes one, `lik`, and the rest is kept for `candidate_names`.
    """
    os.environ.pop(_HEAD, None)
    if os.environ.get(_SHELL) != "complete_bash":
        return
    words, place = os.environ.get(_WORDS, "").split("\n"), int(os.environ.get(_PLACE, "0"))
    last, head = "".join(words[place : place + 1]), ""
    if last == ":":
        place, last = place + 1, ""
    while place > 1 and words[place - 1] == ":":
        place, head = place - 2, f"{words[place - 2]}:{head}"
    os.environ[_WORDS], os.environ[_PLACE] = "\n".join([*words[:place], last]), str(place)
    os.environ[_HEAD] = head


def _names(kind: Kind, incomplete: str) -> list[str]:
    from plbench.runs.registry import Registry

    return [name for name in Registry.discover().names(kind) if name.startswith(incomplete)]


def _variants(method: str) -> list[str]:
    """Return the variants declared in a method's file, without running it."""
    import ast  # not at the top, since every command imports this module
    import importlib.util

    from plbench.runs.registry import Registry

    for source in Registry.discover().sources["method"].get(method, []):
        point = source.entry_point
        assert point is not None  # no plugin file was given
        spec = importlib.util.find_spec(point.module)
        if spec is None or spec.origin is None:
            continue
        tree = ast.parse(Path(spec.origin).read_bytes())
        own = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == point.attr), None)
        for node in [] if own is None else own.body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if any(isinstance(target, ast.Name) and target.id == "variants" for target in targets):
                keys = getattr(getattr(node, "value", None), "keys", [])
                return [str(key.value) for key in keys if isinstance(key, ast.Constant)]
    return []


def _said(path: Path) -> str:
    try:
        record = json.loads(path.read_bytes())
        spec, test = record["spec"], record["metrics"].get("test")
        figure = "" if test is None else f", mAP(C) {test['map_c']['value']:.2f}"
        return f"{spec['method']['name']} on {spec['protocol']['name']}, seed {spec['seed']}{figure}"
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ""


def _literal(text: str) -> str:
    return re.sub(r"[*?[\]/]", "", text)
