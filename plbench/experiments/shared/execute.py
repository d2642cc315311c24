"""Execute an experiment: plan, run what is missing, and measure."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from plbench.comparison.candidates import Candidate, Skipped
from plbench.comparison.compare import model_words
from plbench.comparison.plan import Comparison, plan_comparison
from plbench.comparison.scores import RowScores, ScoredRun
from plbench.errors import DataError, PlbenchError, StoreError, TrainingError
from plbench.experiments.shared.experiment import Case, Context, Experiment, Findings, Point, Row, Scale
from plbench.method import Stage, TrainView
from plbench.metrics.statistics import Sample
from plbench.runs import run as runner
from plbench.runs import schedule
from plbench.runs.estimate.estimate import Estimate, estimate_runs
from plbench.runs.plan.resolve import Request
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.protocol import ProtocolData, choose_protocol
from plbench.runs.record import Record
from plbench.runs.stored import replicates_of
from plbench.runs.workspace import Workspace, open_dataset

Setting = tuple[Comparison, dict[str, Case]]
"""The runs of one dataset and model, and the cases by the names of their candidates."""


def execute(
    experiment: Experiment, request: Request | None, workspace: Workspace, *, scale: Scale, num_seeds: int
) -> Findings:
    """Run what is missing, and measure all runs.

    Args:
        experiment: the experiment.
        request: dataset, model and plan; None for an experiment without a dataset.
        workspace: where and how.
        scale: number of places in the figure.
        num_seeds: trainings of each case.

    Raises:
        PlbenchError: if the dataset is missing, or no run of the experiment fits it.
    """
    if request is None:
        context = Context("", "", "none", 0, 0, False, scale)
        return Findings(context, tuple(experiment.measure(context, (), num_seeds, workspace)))
    context = inspect_data(request, workspace, scale)
    settings, left_out = plan_all(experiment, request, context, num_seeds, workspace)
    workspace.reporter.line(_announcement(experiment, settings, workspace)[0])
    missing = [sum(plan.finished(workspace.store) is None for plan in setting.plans) for setting, _ in settings]
    count, rows = schedule.Count(sum(missing)), []
    for number, (comparison, cases) in enumerate(settings):
        if len(settings) > 1 and missing[number]:
            spec, so_far = comparison.setting.spec, f", {count.words()}" if count.made else ""
            what = f"{spec.protocol.simulation}, {spec.model.backbone}, {missing[number]} to make"
            workspace.reporter.line(f"Setting {number + 1} of {len(settings)}{so_far}: {what}")
        num_left_out, results = len(left_out), iter(schedule.run_here(comparison.plans, workspace))
        for candidate, plans in comparison.rows:
            case, made = cases[candidate.words], [next(results) for _ in plans]
            if error := next((result for result in made if isinstance(result, TrainingError)), None):
                left_out.append(Skipped(_words(case), str(error)))
            else:
                rows.append(Row(case, plans, tuple(result for result in made if isinstance(result, Record))))
        count.add(missing[number], len(left_out) - num_left_out)
    if not rows:
        raise PlbenchError(f"no run of study {experiment.name} was completed: {_listed(left_out)}")
    points = experiment.measure(context, rows, num_seeds, workspace)
    spec = rows[0].records[0].spec
    models = {model_words(row.records[0].spec) for row in rows}
    return Findings(context, tuple(points), tuple(left_out), f"{spec.regime}, {' / '.join(sorted(models))}")


def inspect_data(request: Request, workspace: Workspace, scale: Scale) -> Context:
    """Return the information that cases may depend on; the test split is not used."""
    dataset = open_dataset(request.dataset, workspace)
    protocol = choose_protocol(dataset, request.simulate, request.simulation_seed)
    labels = ProtocolData(dataset, protocol).whole_train.labels
    return Context(
        request.dataset,
        protocol.name.partition("/")[0] if not protocol.name.startswith("custom/") else request.dataset,
        protocol.simulation,
        labels.num_classes,
        labels.num_images,
        labels.is_complete,
        scale,
    )


def plan_all(
    experiment: Experiment, request: Request, context: Context, num_seeds: int, workspace: Workspace
) -> tuple[list[Setting], list[Skipped]]:
    """Return the cases by shared dataset and model, with a plan for each seed, and those that do not fit."""
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in experiment.cases(context):
        groups[json.dumps([case.simulate, dict(case.model)], sort_keys=True)].append(case)
    settings: list[Setting] = []
    left_out: list[Skipped] = []
    # random weights in the request also apply to a case's own backbone
    weights = {"weights": "random"} if request.model.get("weights") == "random" else {}
    for members in groups.values():
        # numbers as names of variants distinguish candidates of one method; labels come from the case
        candidates = [Candidate(case.method, str(number), case.params) for number, case in enumerate(members)]
        cases = {candidate.words: case for candidate, case in zip(candidates, members, strict=True)}
        model = {**request.model, **members[0].model, **weights}
        wanted = replace(request, simulate=members[0].simulate or request.simulate, model=model)
        try:
            comparison = plan_comparison(wanted, candidates, num_seeds, workspace)
        except (DataError, StoreError):
            raise
        except PlbenchError as error:
            left_out += [Skipped(_words(case), str(error)) for case in members]
            continue
        left_out += [Skipped(_words(cases[skipped.who]), skipped.why) for skipped in comparison.skipped]
        settings.append((comparison, cases))
    if not settings:
        raise PlbenchError(f"study {experiment.name} has nothing to run here: {_listed(left_out)}")
    return settings, left_out


def estimate(
    experiment: Experiment, request: Request | None, workspace: Workspace, scale: Scale, num_seeds: int
) -> tuple[str, dict[str, Any]]:
    """Return one line on what `execute` would run and its estimate, and the figures; nothing is trained.

    Raises:
        PlbenchError: as `execute`.
    """
    if request is None:
        return f"Study {experiment.name}: {num_seeds} planes, a few seconds each", {}
    settings, left_out = plan_all(experiment, request, inspect_data(request, workspace, scale), num_seeds, workspace)
    text, found = _announcement(experiment, settings, workspace)
    if left_out:
        text += f"; {len(left_out)} rows left out: {_listed(left_out)}"
    return text, found.totals()


def _announcement(experiment: Experiment, settings: Sequence[Setting], workspace: Workspace) -> tuple[str, Estimate]:
    """Return one line on the runs and their estimate, and the estimate."""
    found = estimate_runs([plan for comparison, _ in settings for plan in comparison.plans], workspace)
    text = f"Study {experiment.name}: {found.num_trainings} trainings"
    if not found.missing:
        return f"{text}, all done already", found
    return f"{text}, {found.num_trainings - len(found.missing)} of them done already; {found.words}", found


def metrics_of_records(context: Context, rows: Sequence[Row], num_seeds: int, workspace: Workspace) -> list[Point]:
    """Return a point for each row: every headline metric and group, with the replicates of its runs."""
    return [
        Point(row.case.series, row.case.x, record_samples(row.records, workspace), row.case.panel, row.keys, row.seeds)
        for row in rows
    ]


def reduced(plan: ResolvedRun, name: str, reduce: Callable[[TrainView], Tensor], workspace: Workspace) -> Tensor:
    """Return the result of a stage with this name, computed from a run's model and training part; it is cached."""
    stage = Stage(name, method=plan.spec.method.name, reduce=reduce)
    return runner.stage_artifact(replace(plan, stages={name: (stage, plan)}), name, workspace)


def record_samples(records: Sequence[Record], workspace: Workspace) -> dict[str, Sample]:
    """Return metrics by name over the seeds of one row, percent.

    Raises:
        StoreError: if the replicates of a run are missing or were changed.
    """
    folders = [workspace.store.run_folder(record.key) for record in records]
    runs = [ScoredRun(record, replicates_of(folder, record)) for folder, record in zip(folders, records, strict=True)]
    scores = RowScores("", runs)
    return {name: scores.sample(name) for name in scores.metrics}


def _words(case: Case) -> str:
    return " ".join(str(part) for part in (case.panel, case.series, case.x) if part != "")


def _listed(entries: Sequence[Skipped]) -> str:
    return "; ".join(dict.fromkeys(f"{entry.who}: {entry.why}" for entry in entries[:3]))
