"""Tables in the terminal."""

from __future__ import annotations

import math
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from plbench.progress import duration
from plbench.runs.pretraining import Pretraining
from plbench.runs.record import Cost, Estimate, F1Figures, Record, SplitMetrics, StandardCost

if TYPE_CHECKING:
    from plbench.comparison.compare import Row, Setting
    from plbench.metrics.statistics import Figure
    from plbench.tuning.tune import Tuning

_PLAIN_WIDTH = 160  # where standard output is a file or a pipe
_COPIED = ("run", "name", "check", "finished")  # columns that are never broken over lines
_MAX_CLASSES = 60  # rows of a table of classes on a terminal
_WIDE = 128  # columns of text from which a table of runs has all of its columns


def output() -> Console:
    """Return the console for results: standard output, wide where it is not a terminal."""
    width = None if sys.stdout.isatty() else _PLAIN_WIDTH
    return Console(width=width, highlight=False, soft_wrap=False)


def new_table(*columns: str, right: Sequence[str] = ()) -> Table:
    """Return an empty table in the one style that plbench has."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        justify: JustifyMethod = "right" if column in right else "left"
        table.add_column(column.replace("_", " "), justify=justify, overflow="fold", no_wrap=column in _COPIED)
    return table


def percent(value: float | None) -> str:
    """Return two decimals, or a dash where there is no value."""
    return "–" if value is None or math.isnan(value) else f"{value:.2f}"


def print_result(record: Record, folder: Path, next_steps: Sequence[str]) -> None:
    """Print what a finished run tells the person who started it."""
    console = output()
    name = "test" if "test" in record.metrics else "validation"
    metrics = record.metrics[name]
    assert record.cost is not None
    took = duration(record.cost.seconds["total"])
    title = f"{record.title} on {record.spec.protocol.name}, seed {record.spec.seed} ({took})"
    console.print(Text(title, style="bold"))
    console.print(_metrics_table(metrics))
    scored = f"{metrics.num_classes_scored} of {metrics.num_classes} classes scored"
    console.print(f"{scored} on {metrics.num_cells:,} known cells of {metrics.num_images:,} {name} images")
    if f"{name}_raw" in record.metrics:
        raw = record.metrics[f"{name}_raw"]
        console.print(
            f"Weights averaged over the end of training; last weights alone: mAP(C) {percent(raw.map_c.value)}, "
            f"mAP(O) {percent(raw.map_o.value)}"
        )
    for note in (*record.warnings, *record.notes):
        console.print(Text(f"Note: {note}"), soft_wrap=True)
    # paths and commands are there to be copied: one line each, however long
    console.print(Text(f"Record: {folder / 'record.json'}"), soft_wrap=True)
    for step in next_steps:
        console.print(Text(f"Next: {step}"), soft_wrap=True)


def _metrics_table(metrics: SplitMetrics) -> Table:
    table = new_table("metric", "%", "95 % interval", "classes", right=("%", "classes"))
    scored = str(metrics.num_classes_scored)
    table.add_row("mAP(C)", *_estimate(metrics.map_c), scored)
    table.add_row("mAP(O)", *_estimate(metrics.map_o), scored)
    for name, group in metrics.groups.items():
        table.add_row(f"  {name}", *_estimate(group.map_c), str(group.num_classes_scored))
    return table


def _estimate(estimate: Estimate) -> tuple[str, str]:
    return percent(estimate.value), f"{percent(estimate.low)} to {percent(estimate.high)}"


def print_details(record: Record, folder: Path) -> None:
    """Print `runs show`: all that a record says, for reading."""
    console = output()
    spec = record.spec
    if record.status == "failed":
        console.print(Text(f"{record.title} on {spec.protocol.name}: failed: {record.error}"))
        return
    print_result(record, folder, [])
    if record.selection is not None:
        chosen = record.selection
        console.print(f"Epoch {chosen.epoch} of {spec.plan.epochs}, {chosen.weights} weights, selection: {chosen.rule}")
    console.print(Text(_other_figures(next(iter(record.metrics.values())))))
    params = ", ".join(f"{name}={value}" for name, value in spec.method.params.items()) or "none"
    console.print(Text(f"Parameters: {params}"))
    plan = ", ".join(f"{name}={value}" for name, value in spec.plan.model_dump(exclude_none=True).items())
    console.print(Text(f"Plan: {spec.regime}, {plan}"))
    if record.pretraining is not None:
        console.print(Text(f"Pretraining: {_seen(record.pretraining)}"))
    if record.test_seen_in_pretraining is not None:
        console.print(Text(f"Test images: {record.test_seen_in_pretraining}"))
    if record.data is not None:
        data = record.data
        console.print(
            f"Train: {data.num_train:,} images, {data.train_positives:,} known positives, {data.train_negatives:,} "
            f"known negatives ({100 * data.train_density:.1f} % of all cells)"
        )
    if record.hidden_truth is not None:
        hidden = record.hidden_truth
        parts = [f"mAP(C) on hidden train labels {percent(hidden.map_c_unknown)}"]
        base = percent(hidden.base_rate)
        parts += [f"{name}: {percent(v)} % present (of all unknown: {base} %)" for name, v in hidden.precision.items()]
        console.print(Text("Hidden truth: " + "; ".join(parts)))
    for name, prior in record.priors.items():
        top = ", ".join(f"{title} {value:.2f}" for title, value in prior.top[:10])
        console.print(Text(f"Stage {name}: sum {prior.total:.2f}; highest: {top}"))
        if prior.spearman_by_depth:
            ranks = ", ".join(f"{k}: {v:.2f}" for k, v in prior.spearman_by_depth.items() if v is not None)
            console.print(Text(f"  Spearman against the truth over the top-k true classes: {ranks}"))
    if record.cost is not None:
        phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in record.cost.seconds.items())
        rate = f"{record.cost.images_per_second:,.0f} images/s in training"
        console.print(
            f"Cost: {phases}; {rate}; peak memory {record.cost.peak_memory_mb:,.0f} MB{_neighbours(record.cost)}"
        )
        if record.cost.standard is not None:
            console.print(f"Standard cost, alone and from nothing: {_standard_cost(record.cost.standard)}")
    env = record.environment
    commit = (env.get("git_commit") or "no git commit")[:12] + (", changed" if env.get("git_dirty") else "")
    console.print(f"Made by plbench {env.get('plbench')} ({commit}) on {env.get('device')}, {record.finished_at}")


def _neighbours(cost: Cost) -> str:
    """Return what shared the machine while a run was measured, if anything did."""
    if cost.shared_with:
        heads = "1 other head" if cost.shared_with == 1 else f"{cost.shared_with} other heads"
        return f"; not measured alone: {heads} trained in the same pass"
    if cost.measured_alone is False:
        return "; not measured alone: other processes of its sweep may have run beside it"
    return ""


def _standard_cost(cost: StandardCost) -> str:
    """Return counts of a run with all that it needs, in words."""
    trainings = "1 training" if cost.trainings == 1 else f"{cost.trainings} trainings"
    passes = f"{cost.image_passes:,} forward passes of an image through the backbone (forward and back are 3)"
    return f"{trainings}, {passes}, {cost.head:,} images through a head in training"


def _other_figures(metrics: SplitMetrics) -> str:
    quintiles = ", ".join(percent(group.map_c.value) for group in metrics.quintiles)
    parts = [
        f"mAP(C) by quintile of train annotations, fewest first: {quintiles}",
        f"pooled AP {percent(metrics.micro_ap)}",
    ]
    if metrics.auroc is not None:
        parts.append(f"AUROC {percent(metrics.auroc)}")
    if metrics.ece is not None:
        parts.append(f"ECE {percent(metrics.ece)}")
    if metrics.f1 is not None and metrics.thresholds is not None:
        labels = "complete labels (an oracle) of the " if metrics.thresholds.labels == "complete" else "the "
        own = "which the model that chose did not see" if metrics.thresholds.held_out else "which the run trained on"
        parts.append(f"{_f1(metrics.f1)} at thresholds chosen on {labels}validation part, {own}")
    if metrics.f1_top3 is not None:
        parts.append(f"{_f1(metrics.f1_top3)} with top 3")
    if metrics.ranking_loss is not None:
        parts.append(f"ranking loss {metrics.ranking_loss:.4f}")
    if metrics.precision_at_k:
        parts.append(", ".join(f"P@{k} {percent(value)}" for k, value in metrics.precision_at_k.items()))
    return "; ".join(parts)


def _seen(pretraining: Pretraining) -> str:
    known = "unknown" if pretraining.datasets is None else ", ".join(pretraining.datasets) or "none"
    return f"{known} ({pretraining.weights}; {pretraining.source})"


def _f1(figures: F1Figures) -> str:
    return f"CF1 {percent(figures.cf1)} and OF1 {percent(figures.of1)}"


def print_runs(records: Sequence[tuple[Path, Record]], folder: Path) -> None:
    """Print `runs list`, of the runs in a folder."""
    if not records:
        output().print(Text(f"There are no runs in {folder} yet; plbench run makes them."))
        return
    console = output()
    rows = [_run_row(record) for _, record in records]
    names = [name for name in rows[0] if console.width >= _WIDE or name not in ("regime", "backbone", "took")]
    print_rows(None, [{name: row[name] for name in names} for row in rows], ("seed", "mAP(C)", "mAP(O)", "took"))


def _run_row(record: Record) -> dict[str, Any]:
    spec, metrics = record.spec, record.metrics.get("test")
    status = "selects" if "validation" in record.metrics else record.status
    return {
        "run": record.key,
        "method": spec.method.name,
        "protocol": spec.protocol.name,
        "regime": spec.regime,
        "backbone": spec.model.backbone,
        "seed": spec.seed,
        "mAP(C)": percent(metrics.map_c.value) if metrics else status,
        "mAP(O)": percent(metrics.map_o.value) if metrics else None,
        "took": duration(record.cost.seconds["total"]) if record.cost else None,
        "finished": record.finished_at[:16].replace("T", " "),
    }


def print_settings(settings: Sequence[Setting]) -> None:
    """Print `runs compare`: one table a setting."""
    from plbench.comparison.verdict import share_words, with_half  # imports torch
    from plbench.metrics.statistics import format_p

    console = output()
    for setting in settings:
        groups = [name for name in setting.rows[0].figures if name not in ("map_c", "map_o")]
        names = ["method", "seeds", "mAP(C)", "mAP(O)", *groups, "to the best", "p", "best in", "classes"]
        console.print(Text(f"{setting.protocol}, {setting.regime}, {setting.model}", style="bold"))
        table = new_table(*names, right=names[1:])
        for row in setting.rows:
            figures = [with_half(row.figures[name]) for name in ("map_c", "map_o", *groups)]
            gap = "best" if row.difference is None else _with_ends(row.difference)
            p_value = "" if row.p_value is None else format_p(row.p_value)
            classes = f"{row.num_classes_scored} of {row.num_classes}"
            table.add_row(row.label, seeds_words(row), *figures, gap, p_value, share_words(row.share_best), classes)
        console.print(table)
        for row in setting.rows:
            if row.same:
                same = ", ".join(row.same)
                console.print(Text(f"{row.label} has the same scores, bit for bit, as {same}: one row"))
        if not math.isnan(setting.detectable):
            least = f"{setting.detectable:.1f} points"
            console.print(f"A difference of {least} from the best row would be found in 4 of 5 such tables")
        console.print()
    console.print(
        "Mean over seeds, ± half the 95 % interval over test images and seeds (both ends: --json). Differences are "
        "paired by test image and seed; p and their intervals hold for all pairs of a table together. Best in: chance "
        "that its mAP(C) is the highest with other test images and seeds."
    )


def seeds_words(row: Row) -> str:
    """Return how many trainings a row is a mean over.

    Examples:
        5, or "3 × 5" for 3 tuning studies with 5 seeds each.
    """
    return f"{row.studies} × {len(row.seeds)}" if row.studies > 1 else str(len(row.seeds))


def print_comparison(setting: Setting, answer: Sequence[str], others: Mapping[str, Sequence[str]]) -> None:
    """Print `compare`: the ranked table, the answer in words, then lines by what they are, such as "Next"."""
    print_settings([setting])
    console = output()
    console.print()
    console.print(Text("\n".join(answer)))
    console.print()
    for name, lines in others.items():
        for line in lines:  # paths and commands are there to be copied: one line each
            console.print(Text(f"{name}: {line}"), soft_wrap=True)


def _with_ends(figure: Figure) -> str:
    return "–" if math.isnan(figure.mean) else f"{figure.mean:+.2f} [{figure.low:+.2f}, {figure.high:+.2f}]"


def print_rows(title: str | None, rows: Sequence[dict[str, Any]], right: Sequence[str] = ()) -> None:
    """Print rows of equal keys as a table; None as a dash."""
    if not rows:
        return
    console = output()
    if title:
        console.print(Text(title, style="bold"))
    table = new_table(*rows[0], right=right)
    for row in rows:
        table.add_row(*(Text("–" if value is None else str(value)) for value in row.values()))
    console.print(table)


def print_datasets(rows: Sequence[dict[str, Any]]) -> None:
    """Print `data list`: what there is, and how to get what there is not."""
    print_rows(None, [{name: row[name] for name in ("name", "title", "state", "folder")} for row in rows])
    _print_ways("To get", [(row["name"], row["get"]) for row in rows])


def _print_ways(what: str, ways: Sequence[tuple[str, str | None]]) -> None:
    """Print one unbroken line for each thing that can be fixed."""
    console = output()
    for name, way in ways:
        if way:
            console.print(Text(f"{what} {name}: {way}"), soft_wrap=True)


def print_description(description: dict[str, Any]) -> None:
    """Print plain values by name: text as lines, lists of rows as tables, rows with more than text as paragraphs."""
    console = output()
    for name, value in description.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            console.print()
            if any(isinstance(entry, dict) for entry in value[0].values()):
                console.print(Text(name, style="bold"))
                console.print(Text("\n\n".join("\n".join(_paragraph(row)) for row in value)))
            else:
                print_rows(name, value)
        elif value not in (None, [], ""):
            console.print(Text(f"{name}: {', '.join(value) if isinstance(value, list) else value}"))


def print_stats(stats: dict[str, Any]) -> None:
    """Print `data stats`."""
    console = output()
    first = stats["splits"][0]
    rows = [{"": name.replace("_", " "), **{s["split"]: s[name] for s in stats["splits"]}} for name in first][1:]
    print_rows(f"{stats['dataset']} under {stats['protocol']}", rows, right=tuple(rows[0])[1:])
    for split, notes in stats["notes"].items():
        for note in notes:
            console.print(Text(f"{split}: {note}"), soft_wrap=True)
    console.print()
    classes = [{name: value for name, value in row.items() if name != "id"} for row in stats["classes"]]
    shown = classes if len(classes) <= _MAX_CLASSES else classes[: _MAX_CLASSES // 2]
    print_rows("classes, by known positives in train", shown, right=tuple(classes[0])[1:])
    if len(shown) < len(classes):
        console.print(Text(f"… {len(classes) - _MAX_CLASSES:,} classes more, which --json shows …"))
        print_rows(None, classes[-(_MAX_CLASSES // 2) :], right=tuple(classes[0])[1:])


def print_checks(name: str, checks: Sequence[dict[str, Any]]) -> None:
    """Print `data verify`."""
    marks = {True: "ok", False: "--", None: ""}
    rows = [{"": marks[c["well"]], "check": c["what"], "found": c["found"], "expected": c["expected"]} for c in checks]
    print_rows(name, rows)
    _print_ways("To fix", [(c["what"], c["fix"]) for c in checks if c["well"] is False])


def print_preparation(made: dict[str, Any]) -> None:
    """Print `data prepare`: what was packed, what was left out, and the command that uses it."""
    console = output()
    rows = [
        {**split, "bytes": f"{split['bytes']:,}", "unreadable": len(split["unreadable"])} for split in made["splits"]
    ]
    right = ("images", "bytes", "absent", "unreadable")
    print_rows(f"{made['dataset']}, prepared in {made['folder']}", rows, right=right)
    for split in made["splits"]:
        for item in split["unreadable"][:_MAX_CLASSES]:
            console.print(Text(f"left out of {split['split']}: {item['image']}: {item['why']}"), soft_wrap=True)
    words = ["plbench", "data", "stats", made["dataset"], "--data-root", made["folder"]]
    console.print(Text(f"used by --data-root, as in: {shlex.join(words)}"), soft_wrap=True)


def print_diagnosis(report: dict[str, Any]) -> None:
    """Print `doctor`."""
    console = output()
    env = report["environment"]
    packages = ", ".join(f"{name} {version or 'missing'}" for name, version in env["packages"].items())
    console.print(Text(f"plbench {env['plbench']}, Python {env['python']}, {env['system']}; {packages}"))
    console.print(Text(f"Device: {env['device']}, {env['cpu_cores']} CPU cores"))
    rows = [
        {"": "ok" if check["well"] else "--", "check": check["check"], "found": check["found"]}
        for check in report["checks"]
    ]
    print_rows(None, rows)
    _print_ways("To fix", [(check["check"], check["fix"]) for check in report["checks"]])


def _paragraph(row: dict[str, Any], indent: str = "") -> Iterator[str]:
    """Yield lines of nested values: short ones of one parent on one line, what is not set left out."""
    for name, value in row.items():
        if value is None:
            continue
        if not isinstance(value, dict):
            yield f"{indent}{name}: {value}"
        elif any(isinstance(entry, dict) or (isinstance(entry, str) and " " in entry) for entry in value.values()):
            yield f"{indent}{name}:"
            yield from _paragraph(value, indent + "  ")
        else:
            yield f"{indent}{name}: " + ", ".join(f"{k}={v}" for k, v in value.items() if v is not None)


def print_study(made: Tuning, notes: Sequence[str], next_steps: Sequence[str]) -> None:
    """Print `tune`: the winner beside the starting values, the final rows, notes on the labels, where files lie."""
    console, study = output(), made.study
    best, first, spec = study.best, study.trials[0], study.spec
    states = Counter(trial.state for trial in study.trials)
    counts = ", ".join(f"{states[state]} {state}" for state in ("complete", "pruned", "failed") if states[state])
    title = f"{spec.method.name} on {spec.protocol.name}, {spec.regime}: {len(study.trials)} trials ({counts})"
    console.print(Text(title, style="bold"))
    labels = "" if spec.protocol.validation_labels == "partial" else " (its complete labels: oracle selection)"
    rows: list[dict[str, Any]] = [
        {
            "value": name,
            "starting": f"{spec.start[name]:.4g}",
            "winner": f"{best.values[name]:.4g}",
            "searched": f"{found.low:.4g} to {found.high:.4g}{', log' if found.log else ''}",
        }
        for name, found in spec.space.items()
    ]
    rows.append({"value": "validation mAP(C)", "starting": percent(first.value), "winner": percent(best.value)})
    rows[-1]["searched"] = None
    print_rows(None, rows, right=("starting", "winner"))
    console.print(f"Chosen on the validation part of train{labels}; trial {study.winner + 1} won")
    console.print()
    if made.settings:
        print_settings(made.settings)
    for note in notes:
        console.print(Text(f"Note: {note}"), soft_wrap=True)
    console.print(Text(f"Study: {made.folder / 'study.json'}"), soft_wrap=True)
    pictures = [name for name in study.pictures if name.endswith(".png")]
    console.print(Text(f"Pictures in {made.folder}: {', '.join(pictures)}, and as SVG"), soft_wrap=True)
    for step in next_steps:
        console.print(Text(f"Next: {step}"), soft_wrap=True)
