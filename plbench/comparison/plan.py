"""The runs of a comparison: planned, estimated and executed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from plbench.comparison.candidates import Candidate, Skipped
from plbench.errors import PlbenchError, TrainingError
from plbench.progress import counted
from plbench.runs import schedule
from plbench.runs.estimate.estimate import Estimate, estimate_runs
from plbench.runs.plan.duplicates import copies_across, listed
from plbench.runs.plan.label_check import check_learnable
from plbench.runs.plan.resolve import Request, ResolvedSetting, refuse_unused_embeddings, resolve_setting
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.protocol import granting
from plbench.runs.record import Record
from plbench.runs.workspace import Workspace

MOST_SEEDS = 10_000
"""Maximum number of seeds of a comparison or a sweep; larger ones are probably typos."""

FEW_STEPS = 100
"""Number of optimiser steps below which a training is reported as short: a linear head has not converged by then."""


@dataclass(frozen=True)
class Comparison:
    """The runs of each candidate, by seed, then by fold.

    Attributes:
        rows: each candidate with its plans; tuned candidates have a second row with the values of each study.
        setting: shared by all runs, except for the training part with folds.
        num_folds: number of folds of train, with one run per seed and fold; None if test is scored.
    """

    rows: tuple[tuple[Candidate, tuple[ResolvedRun, ...]], ...]
    skipped: tuple[Skipped, ...]
    setting: ResolvedSetting
    num_folds: int | None = None

    @property
    def plans(self) -> list[ResolvedRun]:
        """All runs, row by row."""
        return [plan for _, plans in self.rows for plan in plans]


def plan_comparison(
    request: Request,
    candidates: Sequence[Candidate],
    num_seeds: int,
    workspace: Workspace,
    *,
    skipped: Sequence[Skipped] = (),
    num_trials: int | None = None,
    num_folds: int | None = None,
) -> Comparison:
    """Plan the runs of all candidates with seeds 0, 1, …; nothing is trained yet.

    Args:
        request: dataset, model and plan; its method, parameters and seed are ignored.
        candidates: methods to compare. Those that do not fit the setting are left out, unless named explicitly.
        num_seeds: at least 1.
        workspace: where and how.
        skipped: candidates that were already left out.
        num_trials: trials per study if rows are tuned; the protocol of all rows must grant them.
        num_folds: number of folds of train, at least 2. Test is then not opened: each train image is scored by runs
            that were not trained on its fold.

    Raises:
        PlbenchError: if the setting does not exist, a named candidate does not fit it, or none does; or if folds are
            not compatible with the other settings. DataError: if a fold cannot be scored.
    """
    if num_seeds < 1:
        raise PlbenchError(f"`seeds={num_seeds}`: a comparison needs at least one seed, and 5 to be ranked")
    if num_seeds > MOST_SEEDS:
        raise PlbenchError(f"`seeds={num_seeds}`: a comparison has at most {MOST_SEEDS:,} seeds, and 5 to be ranked")
    if num_folds is not None:
        _refuse_beside_folds(num_folds, request, num_trials)
        request = replace(request, scores_test=False)
    setting = resolve_setting(request, workspace)
    if num_trials is not None:
        protocol = granting(setting.spec.protocol, num_trials, workspace.reporter)
        setting = replace(setting, spec=setting.spec.model_copy(update={"protocol": protocol}))
    parts = [setting] if num_folds is None else _without_each_fold(setting, num_folds, request)
    rows, absent = [], list(skipped)
    for candidate in candidates:
        try:
            plans = [
                part.run(candidate.method, candidate.params, seed, workspace.registry)
                for seed in range(num_seeds)
                for part in parts
            ]
        except PlbenchError as error:
            if candidate.named:
                raise
            absent.append(Skipped(candidate.words, str(error)))
            continue
        rows.append((candidate, tuple(plans)))
    if not rows:
        why = "; ".join(f"{entry.who}: {entry.why}" for entry in absent)
        raise PlbenchError(f"no method that `methods=` names can be used with {setting.spec.protocol.name} ({why})")
    comparison = Comparison(tuple(rows), tuple(absent), setting, num_folds)
    refuse_unused_embeddings(request, comparison.plans)
    return comparison


def _refuse_beside_folds(num_folds: int, request: Request, num_trials: int | None) -> None:
    """Reject settings that are not compatible with folds, before any image is read."""
    if num_folds < 2:
        raise PlbenchError(
            f"`folds={num_folds}`: an image must be scored by models that were not trained on it; give at least 2, "
            "such as 5"
        )
    if num_trials is not None:
        raise PlbenchError(
            f"`folds={num_folds}` with `tune={num_trials}`: a study chooses values on all of train, including the "
            "images of every fold; leave out one of the two"
        )
    if request.selection != "last":
        raise PlbenchError(
            f"`folds={num_folds}` with `selection={request.selection}`: the images that select the epoch must not be "
            "the ones that are scored; leave the selection out to use the last epoch"
        )
    if request.simulate not in (None, "none"):
        raise PlbenchError(
            f"`folds={num_folds}` with `simulate={request.simulate}`: folds are scored on the labels of train, some of "
            'which a simulation hides; give `simulate="none"`, or leave the folds out'
        )


def _without_each_fold(setting: ResolvedSetting, num_folds: int, request: Request) -> list[ResolvedSetting]:
    """Return the setting without fold 1, 2, …, after checking that each can be trained and scored.

    Raises:
        PlbenchError: if labels are hidden by a simulation, or folds share copies of images and this was not allowed.
            DataError: if a fold cannot be scored, or no label is known without it.
    """
    protocol, data = setting.spec.protocol, setting.protocol_data
    if protocol.simulation != "none":
        raise PlbenchError(
            f"`folds={num_folds}`: folds are scored on the labels of train, and the simulation of protocol "
            f'{protocol.name} hides some of them; give `simulate="none"`, or leave the folds out'
        )
    parts = [setting.without_fold(number, num_folds) for number in range(1, num_folds + 1)]
    fold_of: dict[str, int] = {}
    for number, part in enumerate(parts, 1):
        check_learnable(data, part.spec.train_part)
        fold_of |= dict.fromkeys(data.held_out(part.spec.train_part).images.ids, number)
    copies = copies_across(data.dataset, protocol.train_split, fold_of)
    if copies and not request.allow_duplicates:
        raise PlbenchError(
            f"{counted(len(copies), 'train image')} with copies in another of {num_folds} folds ({listed(copies)}) "
            "would be scored by models that were trained on the copy; keep one of each, or give `allow_duplicates=True`"
        )
    return parts


def estimate_comparison(comparison: Comparison, workspace: Workspace) -> tuple[str, Estimate]:
    """Return one line on the runs, and the estimated cost of all rows including prerequisites."""
    found = estimate_runs(comparison.plans, workspace)
    rows, seeds = len(comparison.rows), len(comparison.rows[0][1]) // (comparison.num_folds or 1)
    num_tuned = sum(plans[0].spec.tuned_by is not None for _, plans in comparison.rows)
    num_studies = max(len({plan.spec.tuned_by for plan in plans}) for _, plans in comparison.rows)
    tuned = f", {num_tuned} of them tuned by {counted(num_studies, 'study', 'studies')} each" if num_tuned else ""
    folds = f" in {comparison.num_folds} folds" if comparison.num_folds else ""
    num_done = found.num_trainings - len(found.missing)
    done = f"{num_done} of them done already; {found.words}" if found.missing else "all done already"
    of_each = f"{counted(rows, 'row')} with {counted(seeds, 'seed')} each"
    text = (
        f"{comparison.setting.spec.protocol.name}: {of_each}{folds}{tuned}, "
        f"{counted(found.num_trainings, 'training')}, {done}"
    )
    return text, found


def caution_on_steps(comparison: Comparison) -> str | None:
    """Return a warning if trainings are too short for meaningful ranks; otherwise None."""
    steps = [plan.num_steps for plan in comparison.plans if plan.method.learns]
    if not steps or min(steps) >= FEW_STEPS:
        return None
    shortest = comparison.plans[0].spec.plan
    return (
        f"Careful: a training has only {counted(min(steps), 'step')}; the models have hardly moved from their starting "
        f"points, and more steps may change the order: give more epochs than {shortest.epochs} with `epochs=N`, or a "
        f"smaller `batch_size=N` than {shortest.batch_size}."
    )


def make_runs(
    comparison: Comparison, workspace: Workspace, expected_seconds: float = 0.0
) -> tuple[list[tuple[Path, Record]], list[Skipped]]:
    """Execute all missing runs in one schedule.

    Args:
        comparison: the comparison.
        workspace: where and how.
        expected_seconds: of all missing runs, for the time estimate until the first has finished.

    Returns:
        Folder and record of each run of a complete row; and incomplete rows with the failed training.
    """
    results = iter(schedule.run_here(comparison.plans, workspace, expected_seconds))
    whole, failed = [], []
    for candidate, plans in comparison.rows:
        made = [next(results) for _ in plans]
        error = next((result for result in made if isinstance(result, TrainingError)), None)
        if error is not None:
            spec = plans[made.index(error)].spec
            tuned, which = (", tuned", f" of study {spec.tuned_by}") if spec.tuned_by else ("", "")
            which += f" {spec.train_part.replace('-', ' ')}" if comparison.num_folds else ""  # without fold 2 of 5
            failed.append(Skipped(f"{candidate.words}{tuned}", f"seed {spec.seed}{which} failed: {error}"))
            continue
        whole += [(workspace.store.run_folder(r.key), r) for r in made if isinstance(r, Record)]
    return whole, failed
