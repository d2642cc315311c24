"""`plbench advise`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plbench.cli.options import Dataset, Setting, command, emit, typed
from plbench.cli.setting import with_setting, words_of, workspace_for
from plbench.errors import PlbenchError

if TYPE_CHECKING:
    from plbench.experiments.mechanism.advice import Advice


@with_setting
def advise(
    setting: Setting,
    dataset: Dataset = None,
    seeds: Annotated[int, typer.Option(help="Number of models used for the estimate, with seeds 0, 1, …")] = 3,
    maps: Annotated[
        list[Path] | None,
        typer.Option(
            "--map",
            help="A map.json of plbench study which-mode; may be repeated; default: plbench's own.",
        ),
    ] = None,
) -> None:
    """Advise which treatment of unknown labels suits your data.

    The advice is estimated from frozen features. Where the estimate cannot decide, it says so.
    """
    from plbench.cli.request import request_from_options
    from plbench.experiments.mechanism.advice import OWN_LABELS, read_maps
    from plbench.experiments.mechanism.advice import advise as ask

    if seeds < 1:
        raise PlbenchError(f"--seeds {seeds}: the estimate needs at least one model, and 3 to show how certain it is")
    if setting["embeddings"] is not None:
        raise PlbenchError("--embeddings: advise uses no method that needs embeddings; leave it out")
    name = dataset or (OWN_LABELS if setting["labels"] is not None else None)
    known = read_maps(maps or ())
    # settings of the maps, unless overridden
    usual = {"recipe": "quick", "regime": "probe"}
    given = {**setting, **{key: value for key, value in usual.items() if setting[key] is None}}
    request = request_from_options({**given, "method": "", "dataset": name})
    advice = ask(request, workspace_for(setting), known, num_seeds=seeds)
    methods = ",".join((*advice.methods, *advice.rivals))
    words = typed(dataset=request.dataset) + words_of(given) + typed(methods=methods)
    step = command("compare", *words, runs=setting["runs"])
    emit({**asdict(advice), "next": [step]}, setting["as_json"], lambda: _print(advice, step))


def _print(advice: Advice, step: str) -> None:
    from plbench.cli.display.tables import print_copied, print_lines, print_rows

    rows = [
        {"class": name, "known positives": known, "estimated positives": estimate}
        for name, known, estimate in advice.classes
    ]
    print_lines(
        f"{advice.num_images:,} images, {advice.num_classes:,} classes; {advice.positives:,} known positives, "
        f"{advice.negatives:,} verified negatives",
        "",
    )
    print_rows("highest estimates", rows, right=("known positives", "estimated positives"))
    print_lines(*advice.answer)
    against = f", against {', '.join(advice.rivals)}" if advice.rivals else ""
    print_copied("Note", *advice.notes)
    print_lines(f"To try: {', '.join(advice.methods)}{against}")
    print_copied("Next", step)
