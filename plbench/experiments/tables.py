"""Tables 1 to 4: methods, backbones and groups, on the paper's datasets or on any other."""

from __future__ import annotations

from plbench.experiments.shared.charts import dots
from plbench.experiments.shared.claims import above_all
from plbench.experiments.shared.experiment import Case, Claim, Context, Experiment
from plbench.experiments.shared.paper_tables import NAMES, TABLES, markdown, measure, tables_of


def cases(context: Context) -> list[Case]:
    """Return the rows of the dataset's own tables, or of those that apply to any."""
    return [
        Case(row.label, place, row.method, row.params, panel=table.title, model=row.model)
        for table in tables_of(context)
        for place, row in enumerate(table.rows)
    ]


EXPERIMENT = Experiment(
    name="tables",
    title="The rows of the paper's tables",
    shows="CSL, tables 1 to 4",
    cases=cases,
    measure=measure,
    draw=dots(NAMES),
    claims=tuple(
        Claim(f"{table.title}: {table.leader} has the highest mAP(C)", f"CSL, table {table.number}",
              above_all(table.leader, "map_c", table.title))
        for table in TABLES
    ),
    caption="Hollow: the paper's figures, with its own dataset and training. The reproduction column compares the "
    "two where the same data, recipe and regime were run, and is empty elsewhere.",
    write=markdown,
)  # fmt: skip
