"""Rows of the paper's tables beside what was run here: figures, and whether theirs lies in our interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from plbench.experiments.shared.execute import record_samples
from plbench.experiments.shared.experiment import Context, Findings, Point, Row
from plbench.experiments.shared.paper_tables import PaperTable, tables_of
from plbench.metrics.statistics import Sample
from plbench.runs.record import Record
from plbench.runs.workspace import Workspace

PERSON = "ap_person"
NAMES = {"map_c": "mAP(C)", "map_o": "mAP(O)", PERSON: "Person-AP"} | {f"group_{n}": f"group {n}" for n in range(1, 6)}


def measure(context: Context, rows: Sequence[Row], num_seeds: int, workspace: Workspace) -> list[Point]:
    """Return a point for each row of each table, run or not, with the paper's figures among its facts."""
    made = {(row.case.panel, row.case.series): row for row in rows}
    points = []
    for table in tables_of(context):
        for place, paper in enumerate(table.rows):
            row = made.get((table.title, paper.label))
            theirs = dict(zip(table.metrics, paper.figures, strict=True))
            facts: dict[str, object] = {f"published_{name}": value for name, value in theirs.items()}
            if row is None:
                points.append(Point(paper.label, place, {}, table.title, facts={**facts, "reproduction": ""}))
                continue
            values = _values(row.records, table, workspace)
            asks_the_same = _is_of_the_paper(row.records[0], table)
            facts["reproduction"] = "; ".join(_agreement(values, theirs)) if asks_the_same else ""
            keys = tuple(record.key for record in row.records)
            seeds = tuple(record.spec.seed for record in row.records)
            points.append(Point(paper.label, place, values, table.title, keys, seeds, facts))
    return points


def _values(records: Sequence[Record], table: PaperTable, workspace: Workspace) -> dict[str, Sample]:
    """Return the table's metrics, as far as the dataset has them; Person-AP is the mAP(C) of the group `person`."""
    found = record_samples(records, workspace)
    if "person" in found:
        found[PERSON] = found["person"]
    return {name: found[name] for name in dict.fromkeys(("map_c", "map_o", *table.metrics)) if name in found}


def _is_of_the_paper(record: Record, table: PaperTable) -> bool:
    """Return whether a run asks what the table asks: the published data, recipe and regime."""
    spec = record.spec
    return spec.protocol.name.startswith(f"{table.board}/") and (spec.recipe, spec.regime) == ("paper", "finetune")


def _agreement(values: Mapping[str, Sample], theirs: Mapping[str, float]) -> list[str]:
    said = []
    for name in theirs.keys() & values.keys():
        figure = values[name].figure()
        inside = "inside" if figure.low <= theirs[name] <= figure.high else "outside"
        said.append(f"{NAMES[name]} {theirs[name]:.2f} is {inside} {figure.low:.2f} to {figure.high:.2f}")
    return sorted(said)


def markdown(findings: Findings) -> dict[str, str]:
    """Return each table as Markdown: run here, published, and whether the two agree."""
    return {
        f"{panel.lower().replace(' ', '-')}.md": _table([p for p in findings.points if p.panel == panel])
        for panel in findings.panels
    }


def _table(points: Sequence[Point]) -> str:
    facts = points[0].facts
    names = list(
        dict.fromkeys([*(n for p in points for n in p.values), *(n[10:] for n in facts if n[:10] == "published_")])
    )
    head = ["row", *(f"{NAMES[n]} here" for n in names), *(f"{NAMES[n]} published" for n in names), "reproduction"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for point in points:
        ours = [_with_half(point.values[n]) if n in point.values else "" for n in names]
        theirs = [f"{point.facts[f'published_{n}']:.2f}" if f"published_{n}" in point.facts else "" for n in names]
        lines.append(f"| {' | '.join([point.series, *ours, *theirs, str(point.facts['reproduction'])])} |")
    return "\n".join(lines) + "\n"


def _with_half(sample: Sample) -> str:
    figure = sample.figure()
    return f"{figure.mean:.2f} ±{figure.half:.2f}"
