"""Tables in the terminal."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from plbench.cli.display.fitting import columns_that_fit
from plbench.cli.options import command, echo, typed
from plbench.cli.plain_console import PlainConsole
from plbench.progress import counted, duration
from plbench.runs.record import F1Figures, Record, SplitMetrics
from plbench.spec import UNRANKED_SELECTIONS

if TYPE_CHECKING:
    from plbench.comparison.compare import Setting
    from plbench.tuning.tune import Tuning

_PLAIN_WIDTH = 160  # if standard output is a file or a pipe
_COPIED = ("run", "name", "check", "finished")  # columns that are never wrapped
_MAX_CLASSES = 60  # maximum rows of a table of classes on a terminal
_WIDE = 128  # minimum characters per line for all columns of a table of runs


def output() -> PlainConsole:
    """Return the console for results: standard output, wide if not a terminal."""
    width = None if sys.stdout.isatty() else _PLAIN_WIDTH
    return PlainConsole(width=width, soft_wrap=False)


def new_table(*columns: str, right: Sequence[str] = ()) -> Table:
    """Return an empty table in plbench's style."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        justify: JustifyMethod = "right" if column in right else "left"
        table.add_column(column.replace("_", " "), justify=justify, overflow="fold", no_wrap=column in _COPIED)
    return table


def print_table(
    names: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = (), less: Sequence[str] = ()
) -> None:
    """Print a table within the terminal's width, and list the columns that do not fit.

    Args:
        names: of the columns. rows: their texts.
        right: columns of numbers. less: columns that are left out first.
    """
    cells = {name: [name.replace("_", " "), *(row[place] for row in rows)] for place, name in enumerate(names)}
    widths = columns_that_fit(cells, output().width, _COPIED, less)
    table = new_table(*widths, right=right)
    for column, width in zip(table.columns, widths.values(), strict=True):
        column.width = width
    for number in range(1, len(rows) + 1):
        table.add_row(*(Text(cells[name][number]) for name in widths))
    output().print(table)
    if left_out := [name for name in names if name not in widths]:
        print_lines(f"Columns left out because the terminal is narrow: {', '.join(left_out)}; --json shows all")


def percent(value: float | None) -> str:
    """Format with two decimals; a dash for None."""
    return "–" if value is None or math.isnan(value) else f"{value:.2f}"


def print_lines(*lines: str) -> None:
    """Print text, wrapped at the terminal's width."""
    console = output()
    for line in lines:
        console.print(Text(line))


def print_copied(what: str, *lines: str | None) -> None:
    """Print lines for copying, such as paths and commands, unwrapped, each after its description."""
    for line in lines:
        if line:
            echo(f"{what}: {line}")


def print_title(title: str) -> None:
    """Print a line in bold."""
    output().print(Text(title, style="bold"))


def print_result(record: Record, folder: Path, next_steps: Sequence[str]) -> None:
    """Print the result of a finished run."""
    name = "test" if "test" in record.metrics else "validation"
    metrics = record.metrics[name]
    assert record.cost is not None
    took = duration(record.cost.seconds["total"])
    print_title(f"{record.title} on {record.spec.protocol.name}, seed {record.spec.seed} ({took})")
    table = new_table("metric", "%", "95 % interval", "classes", right=("%", "classes"))
    own = {"mAP(C)": metrics.map_c, "mAP(O)": metrics.map_o}
    rows = [(title, estimate, metrics.num_classes_scored) for title, estimate in own.items()]
    rows += [(f"  {title}", group.map_c, group.num_classes_scored) for title, group in metrics.groups.items()]
    for title, figure, scored in rows:
        interval = f"{percent(figure.low)} to {percent(figure.high)}"
        table.add_row(title, percent(figure.value), interval, str(scored))
    output().print(table)
    print_lines(
        f"{metrics.num_classes_scored} of {metrics.num_classes} classes scored on {metrics.num_cells:,} known cells of "
        f"{metrics.num_images:,} {name} images"
    )
    if (raw := record.metrics.get(f"{name}_raw")) is not None:
        print_lines(
            f"Weights are averaged over the end of training; with the last weights alone: mAP(C) "
            f"{percent(raw.map_c.value)}, mAP(O) {percent(raw.map_o.value)}"
        )
    print_copied("Note", *record.warnings, *record.notes)
    print_copied("Record", str(folder / "record.json"))
    print_copied("Next", *next_steps)


def print_details(record: Record, folder: Path) -> None:
    """Print the output of `runs show`: the content of a record."""
    if record.status == "failed":
        print_lines(f"{record.title} on {record.spec.protocol.name}: failed: {record.error}")
    else:
        print_result(record, folder, [])
        print_lines(*_details(record))


def _details(record: Record) -> Iterator[str]:
    spec = record.spec
    if (chosen := record.selection) is not None:
        yield f"Epoch {chosen.epoch} of {spec.plan.epochs}, {chosen.weights} weights, selection: {chosen.rule}"
    yield "; ".join(_other_figures(next(iter(record.metrics.values()))))
    yield "Parameters: " + (", ".join(f"{name}={value}" for name, value in spec.method.params.items()) or "none")
    plan = spec.plan.model_dump(exclude_none=True)
    yield ", ".join([f"Plan: {spec.regime}", *(f"{name}={value}" for name, value in plan.items())])
    if (seen := record.pretraining) is not None:
        known = "unknown" if seen.datasets is None else ", ".join(seen.datasets) or "none"
        yield f"Pretraining: {known} ({seen.weights}; {seen.source})"
    if record.test_seen_in_pretraining is not None:
        yield f"Test images: {record.test_seen_in_pretraining}"
    if (data := record.data) is not None:
        yield (
            f"Train: {data.num_train:,} images, {data.train_positives:,} known positives, {data.train_negatives:,} "
            f"known negatives ({100 * data.train_density:.1f} % of all cells)"
        )
    if (hidden := record.hidden_truth) is not None:
        parts = [f"Hidden truth: mAP(C) on hidden train labels {percent(hidden.map_c_unknown)}"]
        base = percent(hidden.base_rate)
        parts += [f"{name}: {percent(v)} % present (of all unknown: {base} %)" for name, v in hidden.precision.items()]
        yield "; ".join(parts)
    for name, prior in record.priors.items():
        top = ", ".join(f"{title} {value:.2f}" for title, value in prior.top[:10])
        yield f"Stage {name}: sum {prior.total:.2f}; highest: {top}"
        if prior.spearman_by_depth:
            ranks = ", ".join(f"{k}: {v:.2f}" for k, v in prior.spearman_by_depth.items() if v is not None)
            yield f"  Spearman against the truth over the top-k true classes: {ranks}"
    if (cost := record.cost) is not None:
        phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in cost.seconds.items())
        company = ""
        if cost.shared_with:
            company = f"; not measured alone: {counted(cost.shared_with, 'other head')} trained in the same pass"
        elif cost.measured_alone is False:
            company = "; not measured alone: other processes of its sweep may have run at the same time"
        yield (
            f"Cost: {phases}; {cost.images_per_second:,.0f} images/s in training; peak memory "
            f"{cost.peak_memory_mb:,.0f} MB{company}"
        )
        if (standard := cost.standard) is not None:
            yield (
                f"Standard cost (run alone, without a cache): {counted(standard.trainings, 'training')}, "
                f"{standard.image_passes:,} images passed through the backbone (forward and backward count as 3), "
                f"{standard.head:,} images that a head was trained on"
            )
    env = record.environment
    commit = (env.get("git_commit") or "no git commit")[:12] + (", changed" if env.get("git_dirty") else "")
    yield f"Created by plbench {env.get('plbench')} ({commit}) on {env.get('device')}, {record.finished_at}"


def _other_figures(metrics: SplitMetrics) -> Iterator[str]:
    quintiles = ", ".join(percent(group.map_c.value) for group in metrics.quintiles)
    yield f"mAP(C) by quintile of train annotations, fewest first: {quintiles}"
    yield f"pooled AP {percent(metrics.micro_ap)}"
    if metrics.auroc is not None:
        yield f"AUROC {percent(metrics.auroc)}"
    if metrics.ece is not None:
        yield f"ECE {percent(metrics.ece)}"
    if metrics.f1 is not None and metrics.thresholds is not None:
        labels = "complete labels (an oracle) of the " if metrics.thresholds.labels == "complete" else "the "
        own = "by a model that was not trained on it" if metrics.thresholds.held_out else "which the run was trained on"
        yield f"{_f1(metrics.f1)} at thresholds chosen on {labels}validation part, {own}"
    if metrics.f1_top3 is not None:
        yield f"{_f1(metrics.f1_top3)} for the top 3 of each image"
    if metrics.ranking_loss is not None:
        yield f"ranking loss {metrics.ranking_loss:.4f}"
    if metrics.precision_at_k:
        yield ", ".join(f"P@{k} {percent(value)}" for k, value in metrics.precision_at_k.items())


def _f1(figures: F1Figures) -> str:
    return f"CF1 {percent(figures.cf1)} and OF1 {percent(figures.of1)}"


def print_runs(records: Sequence[tuple[Path, Record]], folder: Path) -> None:
    """Print the output of `runs list`; on narrow terminals without some columns."""
    if not records:
        print_lines(f"There are no runs in {folder} yet; plbench run creates one.")
    rows = [_run_row(record) for _, record in records]
    left_out = () if output().width >= _WIDE else ("regime", "backbone", "took")
    rows = [{name: value for name, value in row.items() if name not in left_out} for row in rows]
    print_rows(None, rows, ("seed", "mAP(C)", "mAP(O)", "took"), ("finished", "mAP(O)", "seed", "protocol"))


def _run_row(record: Record) -> dict[str, Any]:
    spec, metrics = record.spec, record.metrics.get("test")
    status = "selects" if "validation" in record.metrics else record.status
    marked = f" (selection={spec.selection})" if spec.selection in UNRANKED_SELECTIONS else ""
    return {
        "run": record.key,
        "method": spec.method.name + marked,
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
    """Print the output of `runs compare`: one table per setting."""
    from plbench.comparison.verdict import share_words, with_half  # imports torch
    from plbench.metrics.statistics import format_p

    for setting in settings:
        print_title(f"{setting.protocol}, {setting.regime}, {setting.model}")
        if setting.folds is not None:
            print_lines(f"{setting.images}, each scored by models that were not trained on it")
        groups = [name for name in setting.rows[0].figures if name not in ("map_c", "map_o")]
        names = ["method", "seeds", "mAP(C)", "mAP(O)", *groups, "to the best", "p", "best in", "classes"]
        rows = []
        for row in setting.rows:
            # "3 × 5" for 3 tuning studies with 5 seeds each
            seeds = f"{row.studies} × {len(row.seeds)}" if row.studies > 1 else str(len(row.seeds))
            figures = [with_half(row.figures[name]) for name in ("map_c", "map_o", *groups)]
            gap, p_value = "best", "" if row.p_value is None else format_p(row.p_value)
            if (to_best := row.difference) is not None:
                ends = f"{to_best.mean:+.2f} [{to_best.low:+.2f}, {to_best.high:+.2f}]"
                gap = "–" if math.isnan(to_best.mean) else ends
            classes = f"{row.num_classes_scored} of {row.num_classes}"
            rows.append([row.label, seeds, *figures, gap, p_value, share_words(row.share_best), classes])
        print_table(names, rows, names[1:], ["classes", *groups, "seeds", "mAP(O)", "best in", "p"])
        for row in setting.rows:
            if row.same:
                print_lines(f"{row.label} has scores bit-identical to those of {', '.join(row.same)}: one row")
        if not math.isnan(setting.detectable):
            least = f"{setting.detectable:.1f} points"
            print_lines(f"A difference of {least} from the best row would be detected in 4 of 5 such tables")
        print_lines("")
    images = settings[0].other_images
    print_lines(
        f"Mean over seeds ± half the 95 % interval over {images} and seeds (--json has both ends). Differences are "
        "paired by image and seed; their intervals and p are adjusted for all pairs of a table. Best in: chance that "
        f"the row would have the highest mAP(C) with other {images} and seeds."
    )


def print_comparison(setting: Setting, answer: Sequence[str], others: Mapping[str, Sequence[str]]) -> None:
    """Print the output of `compare`: the ranked table, the answer in words, then lines by topic, such as "Next"."""
    print_settings([setting])
    print_lines("", "\n".join(answer), "")
    for what, lines in others.items():
        print_copied(what, *lines)


def print_rows(
    title: str | None, rows: Sequence[Mapping[str, Any]], right: Sequence[str] = (), less: Sequence[str] = ()
) -> None:
    """Print rows with equal keys as a table, with None as a dash; other arguments as in `print_table`."""
    if not rows:
        return
    if title:
        print_title(title)
    print_table(list(rows[0]), [["–" if v is None else str(v) for v in row.values()] for row in rows], right, less)


def print_datasets(rows: Sequence[dict[str, Any]]) -> None:
    """Print the output of `data list`: available datasets, and how to get the others."""
    print_rows(None, [{name: row[name] for name in ("name", "title", "state", "folder")} for row in rows])
    for row in rows:
        print_copied(f"To get {row['name']}", row["get"])


def print_description(description: dict[str, Any]) -> None:
    """Print plain values by name: text as lines, lists of rows as tables, nested rows as paragraphs."""
    for name, value in description.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            print_lines("")
            if any(isinstance(entry, dict) for entry in value[0].values()):
                print_title(name)
                print_lines("\n\n".join("\n".join(_paragraph(row)) for row in value))
            else:
                print_rows(name, value)
        elif value not in (None, [], ""):
            print_lines(f"{name}: {', '.join(value) if isinstance(value, list) else value}")


def print_stats(stats: dict[str, Any]) -> None:
    """Print the output of `data stats`."""
    first = stats["splits"][0]
    rows = [{"": name.replace("_", " "), **{s["split"]: s[name] for s in stats["splits"]}} for name in first][1:]
    print_rows(f"{stats['dataset']} under {stats['protocol']}", rows, right=tuple(rows[0])[1:])
    for split, notes in stats["notes"].items():
        print_copied(split, *notes)
    classes = [{name: value for name, value in row.items() if name != "id"} for row in stats["classes"]]
    shown = classes if len(classes) <= _MAX_CLASSES else classes[: _MAX_CLASSES // 2]
    print_lines("")
    print_rows("classes, by known positives in train", shown, right=tuple(classes[0])[1:])
    if len(shown) < len(classes):
        print_lines(f"… {len(classes) - _MAX_CLASSES:,} more classes, which --json shows …")
        print_rows(None, classes[-(_MAX_CLASSES // 2) :], right=tuple(classes[0])[1:])


def print_checks(name: str, checks: Sequence[dict[str, Any]]) -> None:
    """Print the output of `data verify`."""
    marks = {True: "ok", False: "--", None: ""}
    rows = [{"": marks[c["well"]], "check": c["what"], "found": c["found"], "expected": c["expected"]} for c in checks]
    print_rows(name, rows)
    for check in checks:
        if check["well"] is False:
            print_copied(f"To fix {check['what']}", check["fix"])


def print_preparation(made: dict[str, Any]) -> None:
    """Print the output of `data prepare`: what was packed or left out, and the command that uses it."""
    rows = [
        {**split, "bytes": f"{split['bytes']:,}", "unreadable": len(split["unreadable"])} for split in made["splits"]
    ]
    right = ("images", "bytes", "absent", "unreadable")
    print_rows(f"{made['dataset']}, prepared in {made['folder']}", rows, right=right)
    for split in made["splits"]:
        for item in split["unreadable"][:_MAX_CLASSES]:
            echo(f"left out of {split['split']}: {item['image']}: {item['why']}")
    step = command("data", "stats", made["dataset"], *typed(data_root=made["folder"]))
    echo(f"to use it, give --data-root, as in: {step}")


def print_diagnosis(report: dict[str, Any]) -> None:
    """Print the output of `doctor`."""
    env, checks = report["environment"], report["checks"]
    packages = ", ".join(f"{name} {version or 'missing'}" for name, version in env["packages"].items())
    print_lines(
        f"plbench {env['plbench']}, Python {env['python']}, {env['system']}; {packages}",
        f"Device: {env['device']}, {env['cpu_cores']} CPU cores",
    )
    marks = {True: "ok", False: "--"}
    print_rows(None, [{"": marks[c["well"]], "check": c["check"], "found": c["found"]} for c in checks])
    for check in checks:
        print_copied(f"To fix {check['check']}", check["fix"])
    if plugins := report["plugins"]:
        print_lines("", "Third-party plugins, which run with your permissions when used (--no-plugins disables them):")
    for one in plugins:
        print_copied(f"{one['plugin']}{'' if one['used'] else ' (left out)'}", one["from"])


def _paragraph(row: dict[str, Any], indent: str = "") -> Iterator[str]:
    """Yield lines of nested values: short siblings on one line, without unset ones."""
    for name, value in row.items():
        if value in (None, []):
            continue
        if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
            yield f"{indent}{name}:"
            yield from (f"{indent}  {entry}" for entry in value)
        elif not isinstance(value, dict):
            yield f"{indent}{name}: {value}"
        elif any(isinstance(entry, dict) or (isinstance(entry, str) and " " in entry) for entry in value.values()):
            yield f"{indent}{name}:"
            yield from _paragraph(value, indent + "  ")
        else:
            yield f"{indent}{name}: " + ", ".join(f"{k}={v}" for k, v in value.items() if v is not None)


def print_study(made: Tuning, notes: Sequence[str], next_steps: Sequence[str]) -> None:
    """Print the output of `tune`: the best next to the starting values, final rows, notes on the labels, and paths."""
    study = made.study
    best, first, spec = study.best, study.trials[0], study.spec
    states = Counter(trial.state for trial in study.trials)
    counts = ", ".join(f"{states[state]} {state}" for state in ("complete", "pruned", "failed") if states[state])
    title = f"{spec.method.name} on {spec.protocol.name}, {spec.regime}: {len(study.trials)} trials ({counts})"
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
    scores = {"starting": percent(first.value), "winner": percent(best.value)}
    rows.append({"value": "validation mAP(C)", **scores, "searched": None})
    print_rows(title, rows, right=("starting", "winner"))
    print_lines(f"Chosen on the validation part of train{labels}; trial {study.winner + 1} was the best", "")
    if made.settings:
        print_settings(made.settings)
    print_copied("Note", *notes)
    print_copied("Study", str(made.folder / "study.json"))
    pictures = ", ".join(name for name in study.pictures if name.endswith(".png"))
    print_copied(f"Pictures in {made.folder}", f"{pictures}, also as SVG")
    print_copied("Next", *next_steps)
