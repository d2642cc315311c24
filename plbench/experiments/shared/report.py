"""What an experiment leaves: the figure, its data as CSV and JSON, its caption, and what became of the claims."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plbench.experiments.shared.experiment import Claim, Experiment, Findings, Point, Verdict
from plbench.experiments.shared.style import save, styled
from plbench.files import write_json, write_text
from plbench.metrics.statistics import Figure


@dataclass(frozen=True)
class Result:
    """All that is printed and written.

    Attributes:
        verdicts: of each claim, in order. files: names in `folder`.
    """

    experiment: Experiment
    findings: Findings
    verdicts: tuple[tuple[Claim, Verdict], ...]
    caption: str
    command: str
    folder: Path
    files: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: NaN as None."""
        context = self.findings.context
        return {
            "study": self.experiment.name,
            "title": self.experiment.title,
            "shows": self.experiment.shows,
            "dataset": context.dataset or None,
            "simulation": context.simulation if context.dataset else None,
            "setting": self.findings.setting or None,
            "scale": context.scale,
            "command": self.command,
            "caption": self.caption,
            "claims": [{"claim": c.words, "source": c.source, **asdict(v)} for c, v in self.verdicts],
            "points": [_plain_point(point) for point in self.findings.points],
            "left_out": [asdict(entry) for entry in self.findings.left_out],
            "folder": str(self.folder),
            "files": list(self.files),
        }


def conclude(experiment: Experiment, findings: Findings, command: str, folder: Path) -> Result:
    """Decide the claims, draw, and write everything.

    Args:
        experiment: which.
        findings: its points.
        command: that makes them, for the caption.
        folder: where files go; what is there of the same names is replaced.

    Raises:
        StoreError: if they cannot be written.
    """
    tested = [(claim, claim.test(findings)) for claim in experiment.claims]
    verdicts = tuple((claim, verdict) for claim, verdict in tested if verdict is not None)
    caption = _caption(experiment, findings)
    with styled():
        figure = experiment.draw(findings)
    drawn = save(figure, folder, experiment.name)
    texts = {
        f"{experiment.name}.csv": data_table(findings),
        "caption.md": f"{caption}\n\n`{command}`\n",
        **experiment.write(findings),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    files = (*drawn, *texts, f"{experiment.name}.json")
    result = Result(experiment, findings, verdicts, caption, command, folder, files)
    write_json(folder / f"{experiment.name}.json", result.as_dict())
    return result


def data_table(findings: Findings) -> str:
    """Return one CSV row a point and quantity: mean, interval, the value of each seed, and the keys of the runs."""
    facts = list(dict.fromkeys(name for point in findings.points for name in point.facts))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ("panel", "series", "x", "quantity", "mean", "low", "high", "by_seed", "seeds", "runs")
    writer.writerow([*head, *facts])
    for point in findings.points:
        beside = [point.facts.get(name, "") for name in facts]
        figures: list[tuple[str, Figure | None]] = [(name, sample.figure()) for name, sample in point.values.items()]
        for name, figure in figures or [("", None)]:
            by_seed = "" if figure is None else " ".join(f"{value:.6g}" for value in point.values[name].points)
            ends = (math.nan,) * 3 if figure is None else (figure.mean, figure.low, figure.high)
            numbers = ["" if math.isnan(value) else f"{value:.6g}" for value in ends]
            names = [point.panel, point.series, point.x, name]
            writer.writerow([*names, *numbers, by_seed, " ".join(map(str, point.seeds)), " ".join(point.keys), *beside])
    return text.getvalue()


def _plain_point(point: Point) -> dict[str, Any]:
    return {
        "panel": point.panel,
        "series": point.series,
        "x": point.x,
        "values": {
            name: {
                **{end: _finite(value) for end, value in asdict(sample.figure()).items()},
                "by_seed": [_finite(float(value)) for value in sample.points],
            }
            for name, sample in point.values.items()
        },
        "seeds": list(point.seeds),
        "runs": list(point.keys),
        **({"facts": dict(point.facts)} if point.facts else {}),
    }


def _caption(experiment: Experiment, findings: Findings) -> str:
    context = findings.context
    numbers = sorted({len(point.seeds) for point in findings.points if point.seeds})
    seeds = "" if not numbers else f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    said = [experiment.title, f"({experiment.shows})." if experiment.shows else "."]
    sentences = [" ".join(said).replace(" .", "."), experiment.caption]
    if context.dataset:
        under = "" if experiment.varies_simulation else f", simulation {context.simulation}"
        sentences.append(f"Dataset {context.dataset}{under}; {findings.setting}.")
    if seeds:
        number = "1 seed" if seeds == "1" else f"{seeds} seeds"
        sentences.append(f"Means over {number} with 95 % intervals over test images and seeds.")
    return " ".join(sentences)


def _finite(value: float) -> float | None:
    return None if math.isnan(value) or math.isinf(value) else round(value, 6)


def words(result: Result) -> list[str]:
    """Return what a person reads: each claim with what became of it, and where the files are."""
    lines = []
    for claim, verdict in result.verdicts:
        lines.append(f"{verdict.status.upper()}: {claim.words} ({claim.source}).")
        lines.append(f"    {verdict.why}")
    return lines


def listing(experiments: Sequence[Experiment]) -> list[dict[str, str]]:
    """Return `plbench study list`."""
    return [{"study": e.name, "shows": e.shows, "title": e.title} for e in experiments]
