"""Expand a grid to the plans of its runs: each dataset is opened once, and runs that do not fit are left out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plbench.comparison.candidates import Candidate, Skipped, choose_candidates
from plbench.errors import PlbenchError
from plbench.runs.plan.resolve import Request, resolve_setting
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.protocol import ProtocolData
from plbench.runs.registry import Registry
from plbench.runs.workspace import Workspace
from plbench.sweeps.grid import MODEL_FIELDS, PLAN_FIELDS, REQUEST_FIELDS, Cell, Grid

_WEIGHTS = ("packaged", "pretrained", "random")


@dataclass(frozen=True)
class GridRun:
    """A run of a grid, and its cell."""

    cell: Cell
    plan: ResolvedRun


@dataclass(frozen=True)
class Expansion:
    """The runs of a grid.

    Attributes:
        runs: each key once.
        left_out: cells that do not fit, each reason once.
        num_excluded: number of cells that match an exclusion.
        workspace: the given one, with the weights file named in the grid.
    """

    runs: tuple[GridRun, ...]
    left_out: tuple[Skipped, ...]
    num_excluded: int
    workspace: Workspace

    @property
    def plans(self) -> list[ResolvedRun]:
        """All runs, in the grid's order."""
        return [run.plan for run in self.runs]

    @property
    def columns(self) -> list[str]:
        """Columns of a table of the runs: the method, and everything that differs between them."""
        params = [name for run in self.runs for name in run.cell.params]  # the first run may have none
        names = dict.fromkeys(["method", *params, *(name for run in self.runs for name in run.cell.values)])
        differs = {name: len({repr(run.cell.values.get(name)) for run in self.runs}) > 1 for name in names}
        return [name for name in names if name == "method" or differs[name]]


def expand(grid: Grid, workspace: Workspace) -> Expansion:
    """Return the plans of all runs of a grid; nothing is trained.

    Runs that do not fit are left out (if the method needs something that the setting lacks, or the dataset has no such
    recipe). A value in the grid that fits no run at all is an error.

    Raises:
        PlbenchError: for such a value, or one that does not exist.
    """
    methods, left_out = _methods(grid, workspace.registry)
    files = [value for value in grid.model.get("weights", []) if value not in _WEIGHTS]
    if len(files) > 1:
        raise PlbenchError(f"model.weights: {files[0]!r} and {files[1]!r} are two files; a sweep can have at most one")
    if files:
        workspace = replace(workspace, weights_file=Path(str(files[0])))
    cells = [
        Cell(entry.name, setting, candidate, params, seed)
        for entry in grid.datasets
        for setting in grid.settings()
        for candidate, params in methods
        for seed in grid.seeds
    ]
    wanted = [cell for cell in cells if not grid.leaves_out(cell)]
    runs: dict[str, GridRun] = {}
    why_not: dict[Skipped, None] = {}  # each reason once
    fits: set[tuple[str, str]] = set()
    reasons: dict[tuple[str, str], str] = {}
    opened: list[ProtocolData] = []
    number = 0
    with workspace.reporter.task("Planning") as report:
        for entry in grid.datasets:
            root = workspace.data_root if entry.root is None else Path(entry.root).expanduser()
            place = replace(workspace, data_root=root, data_options=entry.options)
            of_dataset = [cell for cell in wanted if cell.dataset == entry.name]
            for _, members in itertools.groupby(of_dataset, lambda cell: repr(cell.setting)):
                for cell, who, found in _plan(list(members), place, opened):
                    number += 1
                    if isinstance(found, PlbenchError):
                        why_not[Skipped(who, str(found))] = None
                        for value in _named(cell):
                            reasons.setdefault(value, str(found))
                    else:
                        runs.setdefault(found.spec.key, GridRun(cell, found))
                        fits.update(_named(cell))
                report(number, len(wanted))
    if not wanted:
        raise PlbenchError("exclude: no run of the grid is left; remove one of the exclusions")
    first = next(iter(why_not)).why if why_not else ""
    if not runs and all(entry.why == first for entry in why_not):
        raise PlbenchError(first)
    for named, why in reasons.items():
        if named not in fits:  # most likely a typo
            raise PlbenchError(f"no run with {' = '.join(named)} is possible: {why}; remove it, or fix it")
    if not runs:
        raise PlbenchError(f"no run of the grid is possible: {first}")
    if grid.embeddings and all(run.plan.spec.embeddings is None for run in runs.values()):
        raise PlbenchError("embeddings: no run of the grid uses them; remove them")
    return Expansion(tuple(runs.values()), (*left_out, *why_not), len(cells) - len(wanted), workspace)


def _methods(grid: Grid, registry: Registry) -> tuple[list[tuple[Candidate, dict[str, Any]]], list[Skipped]]:
    """Return each candidate with each combination of its parameters in the grid."""
    found: dict[str, tuple[Candidate, dict[str, Any]]] = {}
    left_out: list[Skipped] = []
    for entry in grid.methods:
        candidates, broken = choose_candidates([entry.name], registry)
        left_out += [one for one in broken if one not in left_out]
        if entry.params and len(candidates) != 1:
            raise PlbenchError(
                f"methods: {entry.name!r} stands for {len(candidates)} methods and variants, which do not share "
                "parameters; give params to one method"
            )
        for candidate, values in itertools.product(candidates, itertools.product(*entry.params.values())):
            params = dict(zip(entry.params, values, strict=True))
            same = f"{candidate.words} {params!r}"
            if same not in found or candidate.named:
                found[same] = (candidate, params)
    return list(found.values()), left_out


def _named(cell: Cell) -> list[tuple[str, str]]:
    """Return the values that the grid names for a cell; not methods from a group."""
    given = {name: value for name, value in cell.values.items() if name != "seed"}
    if not cell.candidate.named:
        del given["method"]
    return [(name, repr(value)) for name, value in given.items()]


def _plan(
    cells: Sequence[Cell], workspace: Workspace, opened: list[ProtocolData]
) -> Iterator[tuple[Cell, str, ResolvedRun | PlbenchError]]:
    """Yield each cell of one dataset and setting, its description, and its run or why it has none."""
    first = cells[0]
    try:
        setting = resolve_setting(_request(first.dataset, first.setting), workspace, opened)
    except PlbenchError as error:
        who = ", ".join(str(value) for value in (first.dataset, *first.setting.values()))
        yield from ((cell, who, error) for cell in cells)
        return
    opened.append(setting.protocol_data)
    for cell in cells:
        params = [f"{name}={value}" for name, value in cell.params.items()]
        where = [cell.dataset, *([cell.setting["simulation"]] if "simulation" in cell.setting else [])]
        who = f"{' '.join([cell.candidate.words, *params])} on {', '.join(where)}"
        values = {**cell.candidate.params, **cell.params}
        try:
            yield cell, who, setting.run(cell.candidate.method, values, cell.seed, workspace.registry)
        except PlbenchError as error:
            yield cell, who, error


def _request(dataset: str, setting: Mapping[str, Any]) -> Request:
    given = dict(setting)
    if given.get("weights", "random") not in _WEIGHTS:
        given["weights"] = "file"
    return Request(
        dataset,
        "",
        simulate=given.get("simulation"),
        model={name: given[name] for name in ("backbone", *MODEL_FIELDS) if name in given},
        plan={name: given[name] for name in PLAN_FIELDS if name in given},
        **{name: given[name] for name in REQUEST_FIELDS if name in given},
    )
