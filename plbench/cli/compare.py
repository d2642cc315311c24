"""`plbench compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plbench.cli import completion
from plbench.cli.options import Dataset, NoRetrain, Selection, Setting, command, echo, emit, typed
from plbench.cli.setting import DryRun, estimating_what_is_missing, with_setting, workspace_for
from plbench.cli.wording import in_options
from plbench.errors import PlbenchError

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
            autocompletion=completion.candidate_names,
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds per row: 0, 1, …")] = ENOUGH_SEEDS,
    folds: Annotated[
        int | None,
        typer.Option(
            help="Split train into this many folds, and score each with models trained on the others, instead of "
            "scoring test; for few test images."
        ),
    ] = None,
    tune: Annotated[int | None, typer.Option(help="Also tune each method, with this number of trials.")] = None,
    studies: Annotated[
        int | None, typer.Option(help=f"With --tune: number of studies per tuned row; default: {USUAL_STUDIES}.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File of the plot: .png, .svg or .pdf; default: in RUNS/comparisons.")
    ] = None,
    selection: Selection = None,
    no_retrain: NoRetrain = None,
    dry_run: DryRun = False,
) -> None:
    """Compare methods on one dataset: which one should I use?

    Trains the missing runs and says how certain the answer is.
    """
    from plbench.cli.display.tables import print_comparison
    from plbench.cli.request import options_of, request_from_options
    from plbench.comparison.candidates import ALL, choose_candidates
    from plbench.comparison.folds import side_by_side
    from plbench.comparison.picture import draw_comparison
    from plbench.comparison.plan import caution_on_steps, estimate_comparison, make_runs, plan_comparison
    from plbench.comparison.verdict import verdict
    from plbench.files import try_folder
    from plbench.runs.inspect.statistics import picture_format
    from plbench.runs.plan.label_check import notes_on

    if tune is not None and tune < 1:
        raise PlbenchError(f"--tune {tune}: a study needs at least one trial; leave out --tune to tune nothing")
    if studies is not None and (tune is None or studies < 1):
        why = "studies need --tune, such as --tune 16" if tune is None else "a tuned row needs at least one"
        raise PlbenchError(f"--studies {studies}: {why}; leave it out for {USUAL_STUDIES}")
    num_studies = studies or USUAL_STUDIES
    if out is not None:
        picture_format(out)  # check before hours of work
        try_folder(out.parent)
    workspace, as_json, names = workspace_for(setting), setting["as_json"], methods or [ALL]
    own = {"method": "", "dataset": dataset, "selection": selection, "no_retrain": no_retrain}
    request = request_from_options({**setting, **own})
    candidates, broken = choose_candidates(names, workspace.registry)
    with estimating_what_is_missing(workspace, candidates[0].method, candidates[0].params, setting):
        comparison = plan_comparison(
            request, candidates, seeds, workspace, skipped=broken, num_trials=tune, num_folds=folds
        )
    for entry in comparison.skipped:
        workspace.reporter.line(f"Left out: {entry.who}: {entry.why}")
    text, found = estimate_comparison(comparison, workspace)
    line = text
    if tune is not None:
        from plbench.tuning.rows import describe_studies, with_tuned

        line += f"; {describe_studies(comparison, tune, num_studies)}"
    workspace.reporter.line(line)
    if (few := caution_on_steps(comparison)) is not None:
        workspace.reporter.line(few)
    if dry_run:
        counts = {"num_trainings": found.num_trainings, "num_missing": len(found.missing)}
        rows = [candidate.words for candidate, _ in comparison.rows]
        emit({"rows": rows, "text": text, **counts, **found.totals()}, as_json, lambda: echo(line))
        return
    if tune is not None:
        comparison = with_tuned(comparison, tune, num_studies, workspace)
        line, found = estimate_comparison(comparison, workspace)
        workspace.reporter.line(line)
    runs, failed = make_runs(comparison, workspace, found.seconds)
    if not runs:
        raise PlbenchError(f"no row is complete, so there is nothing to compare: {failed[0].who}: {failed[0].why}")
    result = side_by_side(comparison, runs, workspace)
    asked = typed(dataset=dataset) + options_of(comparison.setting, workspace)
    shared = asked + typed(methods=None if methods is None else ",".join(methods), folds=folds)
    tuned = typed(tune=tune, studies=studies)
    in_folds = "" if folds is None else f"-{folds}-folds"
    picture = out or workspace.store.runs / "comparisons" / f"{result.protocol.replace('/', '-')}{in_folds}.png"
    with workspace.reporter.patience("Drawing the picture"):
        draw_comparison(result, command("compare", *shared, *typed(seeds=seeds), *tuned), picture)
    # for commands suggested as next steps, which must work as printed
    where = {"runs": setting["runs"], "plugin": setting["plugin"]}
    steps = [command("runs", "show", result.rows[0].keys[0], runs=setting["runs"])]
    if result.has_few_seeds(result.rows[0]) and len(result.rows) > 1:
        steps.insert(0, command("compare", *shared, *typed(seeds=ENOUGH_SEEDS), *tuned, **where))
    elif folds is not None:  # models of folds were not trained on all of train
        best = next(one for one, plans in comparison.rows if plans[0].spec.key in result.rows[0].keys)
        param = [f"{name}={value}" for name, value in best.params.items()]
        steps.insert(0, command("run", *typed(method=best.method, param=param), *asked, **where))
    elif not tuned:
        steps.insert(0, command("compare", *shared, *typed(seeds=seeds, tune=SOME_TRIALS), **where))
    answer = [in_options(sentence) for sentence in (*verdict(result), *filter(None, [few]))]
    notes = notes_on(comparison.setting.protocol_data)
    absent = [in_options(f"{entry.who}: {entry.why}") for entry in (*comparison.skipped, *failed)]
    content = {
        **result.as_dict(),
        "tied": [row.label for row in result.tied],
        "answer": answer,
        "left_out": absent,
        "notes": notes,
        "picture": str(picture),
        "next": steps,
    }
    others = {"Left out": absent, "Note": notes, "Picture": [str(picture)], "Next": steps}
    emit(content, as_json, lambda: print_comparison(result, answer, others))
