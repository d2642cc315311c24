"""`plbench data issues`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plbench.cli.options import Method, Param, Setting, echo, emit
from plbench.cli.setting import DryRun, with_setting, workspace_for
from plbench.errors import PlbenchError

if TYPE_CHECKING:
    from plbench.experiments.label_issues import LabelIssues

_SHOWN = 10  # rows per table
FOLDS, SEEDS, TO_ANNOTATE, ON_SHEET = 5, 3, 1000, 24


@with_setting
def issues(
    setting: Setting,
    name: Annotated[str, typer.Argument(help="Name of a dataset.")],
    method: Method = None,
    param: Param = None,
    folds: Annotated[
        int, typer.Option(help="Number of folds of train; each is judged by models that were not trained on it.")
    ] = FOLDS,
    seeds: Annotated[int, typer.Option(help="Number of models per fold, with seeds 0, 1, …")] = SEEDS,
    out: Annotated[Path | None, typer.Option(help="Write the contradicted labels: .csv, .parquet or .jsonl.")] = None,
    to_annotate: Annotated[
        Path | None, typer.Option(help="Write the most uncertain unknown labels: .csv, .parquet or .jsonl.")
    ] = None,
    number: Annotated[int, typer.Option(min=0, help="Number of unknown labels to list.")] = TO_ANNOTATE,
    contact_sheet: Annotated[
        Path | None, typer.Option(help="Draw the images at the top of both lists: .png, .jpg or .pdf.")
    ] = None,
    contact_sheet_images: Annotated[
        int | None, typer.Option(min=1, max=400, help=f"Images of each list on that sheet; default: {ON_SHEET}.")
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """List known labels that held-out models contradict, and unknown labels to annotate next."""
    from plbench.cli.request import request_from_options
    from plbench.experiments.label_issues import describe_folds, find_issues, plan_folds
    from plbench.files import try_folder
    from plbench.runs.estimate.estimate import estimate_runs
    from plbench.runs.inspect.sheets import check_sheet_name
    from plbench.runs.scores_file import check_name, write_frame

    for path, option in ((out, "out"), (to_annotate, "to_annotate")):
        if path is not None:
            check_name(path, option)
            try_folder(path.parent)
    if contact_sheet is not None:
        check_sheet_name(contact_sheet)
        try_folder(contact_sheet.parent)
    elif contact_sheet_images is not None:
        raise PlbenchError("--contact-sheet-images needs a contact sheet; add --contact-sheet FILE")
    workspace = workspace_for(setting)
    own = {"method": method or "", "dataset": name, "param": param}
    request = request_from_options({**setting, **own})
    planned = plan_folds(request, workspace, num_folds=folds, num_seeds=seeds)
    estimate = estimate_runs([plan for plans in planned for plan in plans], workspace)
    left = f"{len(estimate.missing)} of {estimate.num_trainings} trainings missing; {estimate.words}"
    line = f"{describe_folds(planned)}: {left if estimate.missing else 'all trainings are done already'}"
    workspace.reporter.line(line)
    if dry_run:
        content = {"num_trainings": estimate.num_trainings, "num_missing": len(estimate.missing), **estimate.totals()}
        emit({"text": line, **content}, setting["as_json"], lambda: echo(line))
        return
    found = find_issues(planned, workspace, num_to_annotate=number)
    if out is not None:
        write_frame(out, found.issues)
    if to_annotate is not None:
        write_frame(to_annotate, found.to_annotate)
    if contact_sheet is not None:
        with workspace.reporter.patience("Drawing the contact sheet"):
            found.contact_sheet(contact_sheet, contact_sheet_images or ON_SHEET)
    written = {
        "issues": None if out is None else str(out),
        "to_annotate": None if to_annotate is None else str(to_annotate),
        "contact_sheet": None if contact_sheet is None else str(contact_sheet),
    }
    content = {
        "known": found.num_known,
        "unknown": found.num_unknown,
        "contradicted": len(found.issues),
        "not_checked": found.not_checked,
        "issues": found.issues.to_dict("records"),
        "to_annotate": found.to_annotate.to_dict("records"),
        "runs": found.runs,
        "files": written,
    }
    emit(content, setting["as_json"], lambda: _print(found, written))


def _print(found: LabelIssues, written: dict[str, str | None]) -> None:
    from plbench.cli.display.tables import print_copied, print_lines, print_rows

    def rounded(rows: list[dict[Any, Any]]) -> list[dict[str, Any]]:
        return [
            {
                str(name).replace("class_name", "class"): f"{value:.3f}" if isinstance(value, float) else value
                for name, value in row.items()
            }
            for row in rows
        ]

    print_lines(
        f"{len(found.issues):,} of {found.num_known:,} known labels are more likely wrong than right, according to "
        "models that were not trained on them"
    )
    print_rows(None, rounded(found.issues.head(_SHOWN).to_dict("records")), ("p_present", "against", "models"))
    if len(found.to_annotate):
        print_lines("", f"Of {found.num_unknown:,} unknown labels, those that these models are least certain of")
        print_rows(None, rounded(found.to_annotate.head(_SHOWN).to_dict("records")), ("p_present", "spread", "bits"))
    if found.not_checked:
        names = ", ".join(found.not_checked[:6]) + (" …" if len(found.not_checked) > 6 else "")
        print_copied("Note", f"not checked, because they have no known positive or no known negative: {names}")
    print_copied("Contradicted labels", written["issues"])
    print_copied("Labels to annotate next", written["to_annotate"])
    print_copied("Contact sheet", written["contact_sheet"])
