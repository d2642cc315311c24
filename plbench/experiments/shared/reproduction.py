"""Rows of the paper's tables beside what was run here: figures, and whether theirs lies in our interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from plbench.experiments.shared.execute import record_samples
from plbench.experiments.shared.experiment import Context, Findings, Point, Row
from plbench.experiments.shared.paper_tables import tables_of
from plbench.metrics.statistics import Sample
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
            found = record_samples(row.records, workspace)
            if "person" in found:
                found[PERSON] = found["person"]  # Person-AP is the mAP(C) of that group
            names = dict.fromkeys(("map_c", "map_o", *table.metrics))
            values = {name: found[name] for name in names if name in found}
            spec = row.records[0].spec
            is_published_data = spec.protocol.name.startswith(f"{table.board}/")
            asks_the_same = is_published_data and (spec.recipe, spec.regime) == ("paper", "finetune")
            facts["reproduction"] = "; ".join(_agreement(values, theirs)) if asks_the_same else ""
            points.append(Point(paper.label, place, values, table.title, row.keys, row.seeds, facts))
    return points


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
        figures = {name: sample.figure() for name, sample in point.values.items()}
        ours = [f"{figures[n].mean:.2f} ±{figures[n].half:.2f}" if n in figures else "" for n in names]
        theirs = [f"{point.facts[f'published_{n}']:.2f}" if f"published_{n}" in point.facts else "" for n in names]
        lines.append(f"| {' | '.join([point.series, *ours, *theirs, str(point.facts['reproduction'])])} |")
    return "\n".join(lines) + "\n"
