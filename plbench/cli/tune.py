"""`plbench tune`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from plbench.cli.options import Dataset, Method, Param, Setting, command, echo, emit, parse_assignments, typed
from plbench.cli.setting import DryRun, estimating_what_is_missing, with_setting, workspace_for
from plbench.errors import PlbenchError

if TYPE_CHECKING:
    from plbench.runs.plan.resolved import ResolvedRun
    from plbench.runs.workspace import Workspace
    from plbench.tuning.tune import Settings, Tuning

_OF_PLAN = (
    *("epochs", "batch_size", "lr", "weight_decay", "schedule", "optimizer", "momentum", "nesterov", "clip_grad"),
    *("horizontal_flip", "random_resized_crop", "head_lr_multiplier"),
)


@with_setting
def tune(
    setting: Setting,
    method: Method = None,
    dataset: Dataset = None,
    trials: Annotated[int, typer.Option(help="Total number of trials of the study, over all workers and calls.")] = 64,
    seeds: Annotated[int, typer.Option(help="Number of seeds of the final rows.")] = 3,
    study_seed: Annotated[int, typer.Option(help="Seed of the sampler and of the trials.")] = 0,
    param: Param = None,
    ranges: Annotated[
        list[str] | None,
        typer.Option("--range", help="Search range of a parameter, such as eta=0.1:0.6; may be repeated."),
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="Storage that workers share: a journal file, or postgresql://user@host/database.")
    ] = None,
    study: Annotated[str | None, typer.Option(help="Name of the study in the storage.")] = None,
    then: Annotated[
        Literal["finetune", "probe"] | None, typer.Option(help="Also train the winner in this regime.")
    ] = None,
    search_only: Annotated[
        bool, typer.Option("--search-only", help="Stop after the search, without final rows.")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Tune a method on the validation part.

    Then train the best and the starting values with fresh seeds.
    """
    from plbench.cli.display import tables
    from plbench.cli.request import plan_from_options
    from plbench.runs.plan.label_check import notes_on
    from plbench.tuning.study import parse_ranges
    from plbench.tuning.tune import Settings
    from plbench.tuning.tune import tune as make

    if trials < 1:
        raise PlbenchError(f"--trials {trials}: a study needs at least one trial, such as --trials 64")
    given = {**setting, "method": method, "dataset": dataset, "param": param}
    params, workspace = parse_assignments(param), workspace_for(setting)
    settings = Settings(
        num_trials=trials,
        seed=study_seed,
        storage=storage,
        study=study,
        ranges=parse_ranges(ranges or ()),
        fixed=frozenset(params),
    )
    with estimating_what_is_missing(workspace, method or "", params, setting):
        plan = plan_from_options(given, workspace, scores_test=False)
    plan.protocol_data.validation()  # raises if it cannot be scored
    second = None if then is None else _second_plan(plan, given, then, workspace)
    if dry_run:
        from plbench.tuning.tune import estimate_study

        text, found = estimate_study(plan, trials, 0 if search_only else seeds, workspace, second)
        emit({"spec": plan.spec, "text": text, **found.totals()}, setting["as_json"], lambda: echo(text))
        return
    made = make(plan, settings, workspace, num_seeds=seeds, then=second, search_only=search_only)
    steps = _next_steps(plan, settings, made, {"param": param, "range": ranges}, workspace)
    notes = notes_on(plan.protocol_data)
    content = {
        "study": made.study,
        "folder": str(made.folder),
        "settings": [compared.as_dict() for compared in made.settings],
        "notes": notes,
    }
    emit(content, setting["as_json"], lambda: tables.print_study(made, notes, steps))


def _second_plan(plan: ResolvedRun, given: dict[str, Any], then: str, workspace: Workspace) -> ResolvedRun:
    """Return the run in the other regime: same data, model and parameters, with that regime's own plan."""
    from plbench.cli.request import plan_from_options

    if then == plan.spec.regime:
        raise PlbenchError(
            f"--then {then}: the study already uses that regime; give --regime probe, or leave out --then"
        )
    if then == "probe":
        raise PlbenchError(
            "--then probe: values found with a probe can be tried on whole networks, but not the other way round"
        )
    return plan_from_options({**given, **dict.fromkeys(_OF_PLAN), "regime": then}, workspace, scores_test=False)


def _next_steps(
    plan: ResolvedRun, settings: Settings, made: Tuning, searched: Setting, workspace: Workspace
) -> list[str]:
    """Return suggestions after a study, as commands that work as printed."""
    from plbench.cli.request import options_of

    runs = workspace.store.runs
    keys = [key for rows in made.study.rows for key in (*rows.default, *rows.tuned)]
    steps = [command("runs", "compare", *keys, runs=runs)] if keys else []
    more = 2 * len(made.study.trials)
    if settings.storage is not None and "@" in settings.storage and ":" in settings.storage.partition("://")[2]:
        # without `--storage`, whose URL may contain a password
        return [*steps, f"the same command with --trials {more} continues from here"]
    words = typed(
        method=plan.spec.method.name,
        dataset=plan.spec.protocol.dataset,
        trials=more,
        study_seed=settings.seed or None,
        **searched,
        storage=settings.storage or None,
        study=settings.study or None,
    )
    return [*steps, command("tune", *words, *options_of(plan, workspace), runs=runs)]
