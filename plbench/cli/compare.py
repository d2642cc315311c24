"""`plbench compare`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plbench.cli.options import RUNS, Dataset, Selection, emit
from plbench.cli.setting import DryRun, Setting, estimating_without_weights, with_setting, workspace_for
from plbench.cli.wording import in_options
from plbench.errors import PlbenchError

if TYPE_CHECKING:
    from plbench.comparison.compare import Setting as Result
    from plbench.runs.plan.resolve import ResolvedSetting
    from plbench.runs.workspace import Workspace

ENOUGH_SEEDS = 5
SOME_TRIALS = 16
USUAL_STUDIES = 3


@with_setting
def compare(
    setting: Setting,
    dataset: Dataset = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--methods",
            "-m",
            help="all (default), a tag such as paper, or methods, as in selective,ce-ignore; NAME:VARIANT for a "
            "variant, NAME:* for all of them.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="Trainings of each row, with seeds 0, 1, …")] = ENOUGH_SEEDS,
    tune: Annotated[int | None, typer.Option("--tune", help="Also tune each method with N trials.")] = None,
    studies: Annotated[
        int | None,
        typer.Option("--studies", help=f"With --tune: studies of each tuned row; default: {USUAL_STUDIES}."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Picture: .png, .svg or .pdf; default: below RUNS/comparisons.")
    ] = None,
    selection: Selection = None,
    dry_run: DryRun = False,
) -> None:
    """Train all methods on one dataset: which one should I use, and how sure is that?"""
    from plbench.cli.request import request_from_options
    from plbench.comparison.candidates import ALL, choose_candidates
    from plbench.comparison.compare import compare as side_by_side
    from plbench.comparison.picture import draw_comparison
    from plbench.comparison.plan import estimate_comparison, make_runs, plan_comparison
    from plbench.files import try_folder
    from plbench.runs.inspect.statistics import picture_format
    from plbench.runs.plan.label_check import notes_on

    if tune is not None and tune < 1:
        raise PlbenchError(f"--tune {tune}: a study needs at least one trial; without --tune, none is made")
    if studies is not None and (tune is None or studies < 1):
        why = "there are none without --tune, such as --tune 16" if tune is None else "a tuned row needs at least one"
        raise PlbenchError(f"--studies {studies}: {why}; leave it out for {USUAL_STUDIES}")
    num_studies = studies or USUAL_STUDIES
    if out is not None:
        picture_format(out)  # before hours of work, not after
        try_folder(out.parent)
    workspace, as_json, names = workspace_for(setting), setting["as_json"], methods or [ALL]
    request = request_from_options({**setting, "method": "", "dataset": dataset, "selection": selection})
    candidates, broken = choose_candidates(names, workspace.registry)
    with estimating_without_weights(workspace, candidates[0].method, candidates[0].params):
        comparison = plan_comparison(request, candidates, seeds, workspace, skipped=broken, num_trials=tune)
    for entry in comparison.skipped:
        workspace.reporter.line(f"Left out: {entry.who}: {entry.why}")
    estimate = estimate_comparison(comparison, workspace)
    first = ""
    if tune is not None:
        from plbench.tuning.rows import describe_studies, with_tuned

        first = f"; {describe_studies(comparison, tune, num_studies)}"
    workspace.reporter.line(estimate.text + first)
    if dry_run:
        content = {"rows": [candidate.words for candidate, _ in comparison.rows], **estimate.as_dict()}
        emit(content, as_json, lambda: typer.echo(estimate.text + first))
        return
    if tune is not None:
        comparison = with_tuned(comparison, tune, num_studies, workspace)
        workspace.reporter.line(estimate_comparison(comparison, workspace).text)
    runs, failed = make_runs(comparison, workspace)
    if not runs:
        raise PlbenchError(f"no row is whole, so there is nothing to compare: {failed[0].who}: {failed[0].why}")
    absent = [in_options(f"{entry.who}: {entry.why}") for entry in (*comparison.skipped, *failed)]
    (result,) = side_by_side(runs, workspace.registry)
    words = _words(comparison.setting, methods, seeds, workspace)
    tuned = [] if tune is None else ["--tune", str(tune)]
    tuned += [] if studies is None else ["--studies", str(studies)]
    picture = out or workspace.store.runs / "comparisons" / f"{result.protocol.replace('/', '-')}.png"
    with workspace.reporter.patience("Drawing the picture"):
        draw_comparison(result, shlex.join([*words, *tuned]), picture)
    notes = notes_on(comparison.setting.protocol_data)
    _tell(result, absent, notes, picture, _next_steps(result, words, tuned, setting), as_json)


def _tell(
    result: Result,
    absent: Sequence[str],
    notes: Sequence[str],
    picture: Path,
    steps: Sequence[str],
    as_json: bool,
) -> None:
    """Print the rows, the answer in words, who is absent and why, notes on the labels, and what to do next."""
    from plbench.cli.display import tables
    from plbench.comparison.verdict import verdict

    answer = [in_options(sentence) for sentence in verdict(result)]
    content = {
        **result.as_dict(),
        "tied": [row.label for row in result.tied],
        "answer": answer,
        "left_out": absent,
        "notes": notes,
        "picture": str(picture),
        "next": steps,
    }
    lines: dict[str, Sequence[str]] = {"Left out": absent, "Note": notes, "Picture": [str(picture)], "Next": steps}
    emit(content, as_json, lambda: tables.print_comparison(result, answer, lines))


def _words(shared: ResolvedSetting, methods: Sequence[str] | None, seeds: int, workspace: Workspace) -> list[str]:
    """Return the command that asks for a comparison, but for where its files lie."""
    from plbench.cli.request import options_of

    words = ["plbench", "compare", "--dataset", shared.spec.protocol.dataset, *options_of(shared, workspace)]
    words += [] if methods is None else ["--methods", ",".join(methods)]
    return [*words, "--seeds", str(seeds)]


def _next_steps(result: Result, words: list[str], tuned: list[str], setting: Setting) -> list[str]:
    """Return what a person might do after a comparison, as commands that work as they stand."""
    runs = [] if setting["runs"] == RUNS else ["--runs", str(setting["runs"])]
    where = [*(word for path in setting["plugin"] or () for word in ("--plugin", str(path))), *runs]
    best, steps = result.rows[0], []
    if result.has_few_seeds(best) and len(result.rows) > 1:
        steps.append([*words[:-1], str(ENOUGH_SEEDS), *tuned, *where])
    elif not tuned:
        steps.append([*words, "--tune", str(SOME_TRIALS), *where])
    steps.append(["plbench", "runs", "show", best.keys[0], *runs])
    return [shlex.join(step) for step in steps]
