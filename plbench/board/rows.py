"""A board's rows: records that differ in seed only, ranked where they may be, with what a reader asks of each.

Rows are ranked within one regime, model and way of choosing values (default, tuned or by hand). The best row leads;
rows whose paired difference to it is not significant (Holm over the section, 5 %) share its rank; the best of the
others leads the next rank. With fewer than three seeds a row is provisional and has no rank, nor have the ceiling and
withdrawn rows.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plbench.board.boards import BoardFolder
from plbench.board.entries import Entry, read_whole_entry
from plbench.board.published import Quotation
from plbench.comparison.compare import Drawn, Figure, model_words, row_labels, same_but_seed
from plbench.evaluation.intervals import holm

FEWEST_SEEDS = 3
SIGNIFICANT = 0.05
_DIGITS = 4  # of what is written out, in percent: far below any interval

Values = dict[str, Any]


@dataclass
class _Row:
    """A row on its way into a table."""

    drawn: Drawn
    entries: Sequence[Entry]
    is_ceiling: bool
    why_withdrawn: str | None
    rank: int | None = None
    to_best: Values | None = None

    @property
    def is_ranked(self) -> bool:
        return not (self.is_ceiling or self.is_provisional or self.why_withdrawn is not None)

    @property
    def is_provisional(self) -> bool:
        return len(self.entries) < FEWEST_SEEDS

    @property
    def value(self) -> float:
        return float(self.drawn.points["map_c"].mean())


def board_values(folder: BoardFolder, quotations: Sequence[Quotation] = ()) -> Values:
    """All that the tables and the page of a board show, as plain JSON values. The same records, the same values.

    Args:
        folder: the board.
        quotations: rows from papers.

    Raises:
        PlbenchError: if an accepted record cannot be read.
    """
    board = folder.board
    entries = [read_whole_entry(folder.record_folder(key)) for key in sorted(folder.added)]
    sections: dict[tuple[str, ...], list[Entry]] = defaultdict(list)
    for entry in entries:
        sections[_section_key(entry)].append(entry)
    example = next((entry for entry in entries if entry.key not in folder.withdrawn), None)
    groups = list(example.record.test.groups) if example is not None else []
    return {
        "name": board.name,
        "title": board.title,
        "about": board.about,
        "dataset": board.dataset,
        "protocol": board.protocol,
        "protocol_sha256": board.protocol_sha256,
        "version": board.version,
        "groups": groups,
        "classes": [] if example is None else _classes(example),
        "sections": [_section(key, members, folder) for key, members in sorted(sections.items())],
        "published": [_quoted(quotation) for quotation in quotations],
    }


def _quoted(quotation: Quotation) -> Values:
    figures = dict(quotation.figures)
    headline = {name: figures.pop(name, None) for name in ("map_c", "map_o")}
    return {**quotation.model_dump(mode="json"), **headline, "figures": figures}


def _section_key(entry: Entry) -> tuple[str, ...]:
    """What rows must have in common to be ranked. How the ceiling was chosen does not part it from the others."""
    spec = entry.record.spec
    return spec.regime, spec.model.backbone, spec.model.model_dump_json(), entry.record.configuration


def _section(key: tuple[str, ...], members: Sequence[Entry], folder: BoardFolder) -> Values:
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in members:
        groups[f"{entry.key in folder.withdrawn} {same_but_seed(entry.record.spec)}"].append(entry)
    labels = row_labels([group[0].record for group in groups.values()])
    rows = [_make(group, label, folder) for group, label in zip(groups.values(), labels, strict=True)]
    rows.sort(key=lambda row: (not row.is_ceiling, row.why_withdrawn is not None, -row.value, row.drawn.label))
    ranked = [row for row in rows if row.is_ranked]
    _rank(ranked)
    spec, configuration = members[0].record.spec, key[-1]
    return {
        "id": f"{folder.board.name}-{spec.regime}-{spec.model.backbone}-{configuration}".replace("_", "-"),
        "title": f"{spec.regime}, {model_words(spec)}, {configuration} values",
        "regime": spec.regime,
        "backbone": spec.model.backbone,
        "model": model_words(spec),
        "configuration": configuration,
        "ranked": bool(ranked),
        "rows": [_values(row, folder) for row in rows],
    }


def _make(group: Sequence[Entry], label: str, folder: BoardFolder) -> _Row:
    entries = sorted(group, key=lambda entry: entry.record.spec.seed)
    return _Row(
        drawn=Drawn(label, [(entry.record, entry.replicates) for entry in entries]),
        entries=entries,
        is_ceiling=entries[0].record.spec.protocol.sha256() == folder.board.ceiling_sha256,
        why_withdrawn=folder.withdrawn.get(entries[0].key),
    )


def _rank(rows: Sequence[_Row]) -> None:
    """Gives each row its rank and its difference to the best; `rows` come best first."""
    left, rank = list(rows), 1
    while left:
        leader, others = left[0], left[1:]
        gaps = [row.drawn.minus(leader.drawn) for row in others]
        p_values: Iterable[float] = holm([gap.p_value for gap in gaps]) if gaps else ()
        leader.rank = rank
        tied, below = 1, []
        for row, gap, p_value in zip(others, gaps, p_values, strict=True):
            if rank == 1:
                interval = {"difference": gap.difference, "low": gap.low, "high": gap.high, "p": float(p_value)}
                row.to_best = {name: _rounded(value) for name, value in interval.items()}
            if p_value < SIGNIFICANT:
                below.append(row)
            else:
                row.rank, tied = rank, tied + 1
        left, rank = below, rank + tied


def _values(row: _Row, folder: BoardFolder) -> Values:
    first = row.entries[0].record
    test, spec = first.test, first.spec
    hours = [entry.record.cost.seconds["total"] / 3600 for entry in row.entries if entry.record.cost is not None]
    speeds = [entry.record.cost.images_per_second for entry in row.entries if entry.record.cost is not None]
    keys = [entry.key for entry in row.entries]
    return {
        "id": keys[0],
        "method": spec.method.name,
        "title": first.title,
        "label": f"{first.title}, complete labels" if row.is_ceiling else row.drawn.label,
        "paper": first.paper,
        "source_file": first.source_file,
        "tier": "verified" if folder.verified & set(keys) else "self-reported",
        "provisional": row.is_provisional,
        "ceiling": row.is_ceiling,
        "withdrawn": row.why_withdrawn,
        "seeds": [entry.record.spec.seed for entry in row.entries],
        "keys": keys,
        "rank": row.rank,
        "figures": {name: _figure(row.drawn.figure(name)) for name in row.drawn.points},
        "num_classes_scored": test.num_classes_scored,
        "num_classes": test.num_classes,
        "to_best": row.to_best,
        "cost": {
            "hours": _rounded(float(np.mean(hours))) if hours else None,
            "device": first.environment.get("device"),
            "images_per_second": round(float(np.median(speeds))) if speeds else None,
        },
        "params": spec.method.params,
        "plan": spec.plan.model_dump(mode="json"),
        "environment": _environment(first.environment),
        "commit": first.environment.get("git_commit"),
        "ap": _mean_ap(row.entries),
    }


def _environment(environment: Mapping[str, Any]) -> Values:
    wanted = ("plbench", "python", "system", "packages", "device", "cuda", "cpu_cores")
    return {name: environment[name] for name in wanted if name in environment}


def _classes(entry: Entry) -> list[Values]:
    return [
        {
            "id": row.class_id,
            "name": row.class_name,
            "positives": row.positives,
            "negatives": row.negatives,
            "groups": list(row.groups),
        }
        for row in entry.per_class
    ]


def _mean_ap(entries: Sequence[Entry]) -> list[float | None]:
    """AP of each class, percent, mean over seeds; None where it is not defined."""
    table = np.array([[np.nan if row.ap is None else row.ap for row in entry.per_class] for entry in entries])
    return [_rounded(float(value)) for value in table.mean(axis=0)]


def _figure(figure: Figure) -> dict[str, float | None]:
    return {"mean": _rounded(figure.mean), "low": _rounded(figure.low), "high": _rounded(figure.high)}


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, _DIGITS)
