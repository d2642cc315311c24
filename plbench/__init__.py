"""plbench: a benchmark suite for multi-label image classification with partial labels.

As on the command line, there are `run`, `compare`, `tune`, `advise` and `label_issues`. `load` returns a finished run,
`runs` lists all. Methods and datasets are written against `plbench.api`. Types are declared in `__init__.pyi`.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

__all__ = [
    "Comparison",
    "LabelIssues",
    "Result",
    "Study",
    "advise",
    "compare",
    "label_issues",
    "load",
    "run",
    "runs",
    "show_progress",
    "tune",
]

_HOMES = {
    **dict.fromkeys(("Comparison", "compare"), "plbench.python.comparisons"),
    **dict.fromkeys(("Result", "load", "run"), "plbench.python.results"),
    **dict.fromkeys(("Study", "advise", "tune"), "plbench.python.studies"),
    **dict.fromkeys(("LabelIssues", "label_issues"), "plbench.python.labels"),
    "show_progress": "plbench.cli.console",
}


def __getattr__(name: str) -> Any:
    """Import names lazily: torch and pandas take seconds to import, and `plbench --help` needs neither."""
    if name == "runs":
        return import_module("plbench.runs")  # a callable module
    if name not in _HOMES:
        raise AttributeError(f"module 'plbench' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
