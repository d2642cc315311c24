"""`plbench pseudo-label`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plbench.cli.options import Setting, command, emit, make_workspace, typed, with_options
from plbench.cli.predict import where_and_how

if TYPE_CHECKING:
    from plbench.runs.pseudo_labels import PseudoLabels

_MAX_CLASSES = 60
_MARKS = frozenset("|;,/+& ")  # in class names that may be mistaken for several


@with_options(where_and_how)
def pseudo_label(
    setting: Setting,
    keys: Annotated[
        list[str], typer.Argument(metavar="KEY...", help="Runs on the same labels, such as several seeds of a method.")
    ],
    out: Annotated[Path, typer.Option(help="File to write: .csv or .parquet; --labels of later commands.")],
    rule: Annotated[
        str,
        typer.Option(
            help="score=0.9,absent=0.05: by the mean score over the runs; top=0.1: the share of each class's unknown "
            "labels with the highest scores; agreement or agreement=0.9: each run by its own thresholds, or by 0.9."
        ),
    ] = "score=0.9",
) -> None:
    """Write a training set's labels, plus pseudo-labels for unknown labels about which the runs are certain."""
    from plbench.experiments.mechanism.advice import OWN_LABELS
    from plbench.files import try_folder
    from plbench.runs.pseudo_labels import Rule, check_labels_name, write_labels
    from plbench.runs.pseudo_labels import pseudo_label as label

    chosen = Rule.parse(rule)
    check_labels_name(out)
    try_folder(out.parent)
    workspace = make_workspace(setting)
    found = label([workspace.store.find(key) for key in keys], chosen, workspace)
    write_labels(out, found)
    rows = _counts(found)
    separator = ["label_separator=none"] if any(_MARKS & {*name} for name in found.class_names) else None
    own = typed(method=found.method, dataset=OWN_LABELS, labels=out, images=found.folder, data_option=separator)
    step = command("run", *own, runs=setting["runs"])
    totals = {name: sum(int(row[name]) for row in rows) for name in rows[0] if name != "class"}
    content = {"out": str(out), "images": str(found.folder), **totals, "classes": rows, "next": [step]}
    emit(content, setting["as_json"], lambda: _print(rows, totals, out, step))


def _counts(found: PseudoLabels) -> list[dict[str, int | str]]:
    """Return numbers of labels by class, those with the most pseudo-labels first."""
    columns = zip(found.class_names, *found.known.counts(), *found.added.counts(), strict=True)
    rows: list[dict[str, int | str]] = [
        {
            "class": name,
            "known present": int(present),
            "known absent": int(absent),
            "unknown": int(found.known.num_images - present - absent),
            "added present": int(more_present),
            "added absent": int(more_absent),
        }
        for name, present, absent, more_present, more_absent in columns
    ]
    return sorted(rows, key=lambda row: -int(row["added present"]) - int(row["added absent"]))


def _print(rows: list[dict[str, int | str]], totals: dict[str, int], out: Path, step: str) -> None:
    from plbench.cli.display.tables import print_copied, print_lines, print_rows

    shown = rows[:_MAX_CLASSES]
    print_rows(None, shown, tuple(shown[0])[1:])
    if len(shown) < len(rows):
        print_lines(f"… {len(rows) - len(shown):,} more classes, which --json shows")
    print_lines(
        f"Added {totals['added present']:,} labels present and {totals['added absent']:,} absent, of "
        f"{totals['unknown']:,} unknown ones, to {totals['known present'] + totals['known absent']:,} known ones: {out}"
    )
    print_lines(
        "Careful: the runs were trained on these images, so their scores are overconfident. Compare on test images to "
        "see whether the new labels help."
    )
    print_copied("Next", step)
