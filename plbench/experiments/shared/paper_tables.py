"""Tables 1 to 4 of the paper: rows, how to run them, published figures in percent, and results here.

Ben-Baruch et al., CVPR 2022, arXiv 2110.10955. The boards quote the same figures; a test compares them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from plbench.experiments.shared.execute import record_samples
from plbench.experiments.shared.experiment import Context, Findings, Point, Row
from plbench.metrics.statistics import Sample
from plbench.runs.workspace import Workspace
from plbench.spec import RunSpec

PERSON = "ap_person"
NAMES = {"map_c": "mAP(C)", "map_o": "mAP(O)", PERSON: "Person-AP"} | {f"group_{n}": f"group {n}" for n in range(1, 6)}
MODES: dict[str, dict[str, Any]] = {mode: {"mode": mode} for mode in ("likelihood", "prior", "both")}
BOTH = "P-ASL, Selective (both)"


@dataclass(frozen=True)
class PaperRow:
    """One row: its name in the paper, how it is run here, and its published figures.

    Attributes:
        model: fields of the model that differ from the dataset's recipe.
    """

    label: str
    method: str
    figures: tuple[float, ...]
    params: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PaperTable:
    """One table.

    Attributes:
        board: the corresponding board. metrics: of each row's figures, in order.
        leader: the best row in the paper.
    """

    number: int
    board: str
    metrics: tuple[str, ...]
    leader: str
    rows: tuple[PaperRow, ...]

    @property
    def title(self) -> str:
        """Name of the panel."""
        return f"Table {self.number}"

    def reports(self, spec: RunSpec) -> bool:
        """Return whether a run matches the table: its data, or the authors' copy of them, with its recipe."""
        is_published_data = spec.protocol.name.partition("/")[0] in (self.board, f"{self.board}-csl")
        return is_published_data and (spec.recipe, spec.regime) == ("paper", "finetune")


TABLES = (
    PaperTable(
        1,
        "openimages-v6",
        ("map_c", "map_o"),
        BOTH,
        (
            PaperRow("CE, Ignore", "ce-ignore", (85.38, 93.15)),
            PaperRow("wCE, Ignore", "wce-ignore", (85.22, 93.05)),
            PaperRow("CE, Negative", "ce-negative", (85.35, 91.14)),
            PaperRow("SE(LS), Negative", "se-negative", (85.7, 91.2)),
            PaperRow("ASL, Negative", "asl-negative", (85.85, 91.29)),
            PaperRow("P-ASL, Negative", "pasl-negative", (86.28, 92.34)),
            PaperRow("P-ASL, Selective (likelihood)", "selective", (86.36, 93.25), MODES["likelihood"]),
            PaperRow("P-ASL, Selective (prior)", "selective", (86.46, 93.27), MODES["prior"]),
            PaperRow(BOTH, "selective", (86.72, 93.57), MODES["both"]),
        ),
    ),
    PaperTable(
        2,
        "openimages-v6",
        ("map_c", "map_o"),
        "TResNet-L",
        (
            PaperRow("OFA-595", "selective", (85.4, 92.87), model={"backbone": "ofa_595"}),
            PaperRow("ResNet-50", "selective", (86.15, 93.16), model={"backbone": "resnet50"}),
            PaperRow("TResNet-M", "selective", (86.72, 93.57), model={"backbone": "tresnet_m.miil_in21k"}),
            PaperRow("TResNet-L", "selective", (87.34, 93.77), model={"backbone": "tresnet_l.miil_in1k"}),
        ),
    ),
    PaperTable(
        3,
        "openimages-v3",
        ("group_1", "group_2", "group_3", "group_4", "group_5", "map_c"),
        "P-ASL, Selective",
        (
            PaperRow("Latent Noise (visual)", "latent-noise", (69.37, 70.41, 74.79, 79.2, 85.51, 75.86)),
            PaperRow("CNN-RNN", "cnn-rnn", (68.76, 69.7, 74.18, 78.52, 84.61, 75.16)),
            PaperRow("Curriculum Labeling", "curriculum", (70.37, 71.32, 76.23, 80.54, 86.81, 77.05)),
            PaperRow("IMCL", "imcl", (70.95, 72.59, 77.64, 81.83, 87.34, 78.07)),
            PaperRow("P-ASL, Selective", "selective", (73.19, 78.61, 85.11, 87.7, 90.61, 83.03)),
        ),
    ),
    PaperTable(
        4,
        "lvis",
        ("map_c", "map_o", "ap_person"),
        "P-ASL, Selective",
        (
            PaperRow("CE, Ignore", "ce-ignore", (74.49, 95.7, 99.81)),
            PaperRow("wCE, Ignore", "wce-ignore", (74.15, 95.2, 99.8)),
            PaperRow("CE, Negative", "ce-negative", (77.82, 96.66, 97.2)),
            PaperRow("SE, Negative", "se-negative", (77.81, 96.6, 97.28)),
            PaperRow("ASL, Negative", "asl-negative", (78.32, 96.77, 98.43)),
            PaperRow("P-ASL, Selective", "selective", (78.57, 96.8, 99.81)),
        ),
    ),
)


def tables_of(context: Context) -> tuple[PaperTable, ...]:
    """Return the tables of a dataset; for others the methods of table 1, at full scale tables 1 to 3.

    Table 4 only has rows of table 1. Methods in table 3 are not trained together, and backbones of table 2 must be
    downloaded, so both take more than minutes.
    """
    own = tuple(table for table in TABLES if context.dataset.startswith(table.board))
    return own or context.pick(TABLES[:1], TABLES[:1], TABLES[:3])


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
            is_theirs = table.reports(row.records[0].spec)
            facts["reproduction"] = "; ".join(_agreement(values, theirs)) if is_theirs else ""
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
    """Return each table as Markdown: results here, published figures, and whether they agree."""
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
