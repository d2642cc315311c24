"""Results of an experiment: the figure, its data as CSV and JSON, its caption, and the decided claims."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plbench.experiments.shared.experiment import Experiment, Findings, Point
from plbench.experiments.shared.style import save, styled
from plbench.files import write_json, write_text
from plbench.files.escaping import csv_cell


def conclude(experiment: Experiment, findings: Findings, command: str, folder: Path) -> dict[str, Any]:
    """Decide the claims, draw, and write everything.

    Args:
        experiment: the experiment.
        findings: its points.
        command: to reproduce them, for the caption.
        folder: target; existing files with the same names are replaced.

    Returns:
        The content of NAME.json: plain values, NaN as None.

    Raises:
        StoreError: if they cannot be written.
    """
    context, caption = findings.context, _caption(experiment, findings)
    tested = [(claim, claim.test(findings)) for claim in experiment.claims]
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
    content = {
        "study": experiment.name,
        "title": experiment.title,
        "shows": experiment.shows,
        "dataset": context.dataset or None,
        "simulation": context.simulation if context.dataset else None,
        "setting": findings.setting or None,
        "scale": context.scale,
        "command": command,
        "caption": caption,
        "claims": [{"claim": c.words, "source": c.source, **asdict(v)} for c, v in tested if v is not None],
        "points": [_plain_point(point) for point in findings.points],
        "left_out": [asdict(entry) for entry in findings.left_out],
        "folder": str(folder),
        "files": [*drawn, *texts, f"{experiment.name}.json"],
    }
    write_json(folder / f"{experiment.name}.json", content)
    return content


def data_table(findings: Findings) -> str:
    """Return one CSV row per point and quantity: mean, interval, the value of each seed, and the keys of the runs."""
    facts = list(dict.fromkeys(name for point in findings.points for name in point.facts))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ("panel", "series", "x", "quantity", "mean", "low", "high", "by_seed", "seeds", "runs")
    writer.writerow(map(csv_cell, [*head, *facts]))
    for point in findings.points:
        place = [csv_cell(point.panel), csv_cell(point.series), csv_cell(point.x)]
        told = [csv_cell(point.facts.get(name, "")) for name in facts]
        runs = [" ".join(map(str, point.seeds)), " ".join(point.keys), *told]
        for name, sample in point.values.items():
            ends = ["" if math.isnan(value) else f"{value:.6g}" for value in asdict(sample.figure()).values()]
            writer.writerow([*place, name, *ends, " ".join(f"{value:.6g}" for value in sample.points), *runs])
        if not point.values:
            writer.writerow([*place, *[""] * 5, *runs])
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


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _caption(experiment: Experiment, findings: Findings) -> str:
    context = findings.context
    sentences = [f"{experiment.title} ({experiment.shows}).", experiment.caption]
    if context.dataset:
        under = "" if experiment.varies_simulation else f", simulation {context.simulation}"
        sentences.append(f"Dataset {context.dataset}{under}; {findings.setting}.")
    if numbers := sorted({len(point.seeds) for point in findings.points if point.seeds}):
        seeds = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
        number = "1 seed" if seeds == "1" else f"{seeds} seeds"
        sentences.append(f"Means over {number} with 95 % intervals over test images and seeds.")
    return " ".join(sentences)


def words(content: Mapping[str, Any]) -> list[str]:
    """Return the results of `conclude` in words: each claim and its verdict."""
    claims = content["claims"]
    pairs = [(f"{c['status'].upper()}: {c['claim']} ({c['source']}).", f"    {c['why']}") for c in claims]
    return [line for pair in pairs for line in pair]
