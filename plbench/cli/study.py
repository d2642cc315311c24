"""`plbench study`: the paper's experiments as commands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from plbench.cli import completion
from plbench.cli.options import Dataset, Listing, Setting, command, echo, emit, listed, typed
from plbench.cli.setting import DryRun, with_setting, words_of, workspace_for
from plbench.cli.wording import in_options
from plbench.errors import PlbenchError


@with_setting
def study(
    setting: Setting,
    name: Annotated[
        str,
        typer.Argument(
            help="Name of an experiment; list shows all of them.",
            show_default=False,
            autocompletion=completion.study_names,
        ),
    ],
    dataset: Dataset = None,
    scale: Annotated[
        Literal["tiny", "default", "full"],
        typer.Option(help="Size of the grid: tiny has few points, to try it out; full has more points and seeds."),
    ] = "default",
    seeds: Annotated[int | None, typer.Option(help="Number of seeds per point; default: depends on --scale.")] = None,
    dry_run: DryRun = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the figure; default: in RUNS/studies.")] = None,
) -> None:
    """Rerun an experiment of the paper.

    Trains the missing runs, draws the figure and says whether the finding held.
    """
    from plbench import experiments as studies

    as_json = setting["as_json"]
    if name == "list":
        from plbench.cli.display import tables

        def make() -> Listing:
            known = [studies.find(each) for each in studies.NAMES]
            return [{"study": e.name, "shows": e.shows, "title": e.title} for e in known], set()

        rows = listed("studies", {}, setting["runs"], make)
        emit(rows, as_json, lambda: tables.print_rows(None, rows))
        return
    experiment = studies.find(name)
    if seeds is not None and seeds < 1:
        raise PlbenchError(f"--seeds {seeds}: a study needs at least one seed, and 3 to decide anything")
    if experiment.varies_simulation and setting["simulate"] is not None:
        raise PlbenchError(
            f"--simulate {setting['simulate']}: study {name} is about how labels are hidden and varies that itself; "
            "leave --simulate out"
        )
    from plbench.cli.request import request_from_options
    from plbench.experiments.shared.execute import estimate, execute
    from plbench.experiments.shared.report import conclude
    from plbench.files import try_folder

    if setting["embeddings"] is not None:
        raise PlbenchError("--embeddings: no study uses a method that needs embeddings; leave it out")
    workspace = workspace_for(setting)
    number = seeds or experiment.seeds[scale]
    request = None
    if experiment.needs_dataset:
        request = request_from_options({**setting, "method": "", "dataset": dataset})
    elif dataset is not None:
        raise PlbenchError(f"--dataset {dataset}: study {name} generates its own points; leave it out")
    if dry_run:
        text, totals = estimate(experiment, request, workspace, scale, number)
        text = in_options(text)
        emit({"study": name, "text": text, **totals}, as_json, lambda: echo(text))
        return
    if out is not None:
        try_folder(out)  # check before minutes of work
    findings = execute(experiment, request, workspace, scale=scale, num_seeds=number)
    left_out = tuple(replace(entry, why=in_options(entry.why)) for entry in findings.left_out)
    findings = replace(findings, left_out=left_out)
    folder = out or workspace.store.runs / "studies" / f"{name}-{findings.context.dataset or 'plane'}"
    shown = None if scale == "default" else scale
    words = typed(dataset=dataset) + words_of(setting) + typed(scale=shown, seeds=seeds)
    with workspace.reporter.patience("Drawing the figure"):
        content = conclude(experiment, findings, command("study", name, *words), folder)
    emit(content, as_json, lambda: _print(content))


def _print(content: dict[str, Any]) -> None:
    """Print the claims with their verdicts, then paths."""
    from plbench.cli.display.tables import print_lines
    from plbench.experiments.shared.report import words

    print_lines(content["caption"], "", *words(content))
    left_out = {entry["why"]: entry["who"] for entry in content["left_out"]}
    for why, who in left_out.items():
        echo(f"Left out: {who}: {why}")
    echo(f"\nFigure and data in {content['folder']}: {', '.join(content['files'])}")
