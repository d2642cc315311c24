"""Figures 5 and 7, appendices C to E: estimates of the most frequent classes from partial labels."""

from __future__ import annotations

from collections.abc import Mapping

from plbench.experiments.shared.charts import ranked_bars
from plbench.experiments.shared.claims import line_above
from plbench.experiments.shared.estimates import COUNTS, PRIOR, SPEARMAN, measure, side_by_side
from plbench.experiments.shared.experiment import Case, Claim, Context, Experiment, Findings, Place

IGNORE, NEGATIVE = "trained with Ignore", "trained with Negative"
MISLEADING = ("fpc", "frequency-biased")  # annotation counts do not reflect class frequencies


def cases(context: Context) -> list[Case]:
    """Return a model of each mode under each mechanism."""
    more = context.pick(
        (), ("rpa=0.5", "frequency-biased=0.1"), ("fpc=100", "rpa=0.5", "rpa=0.9", "frequency-biased=0.1")
    )
    simulations = dict.fromkeys([context.simulation, *(more if context.is_complete else ())])
    return [
        Case(series, 0, method, panel=simulation if simulation != "none" else "as annotated", simulate=simulation)
        for simulation in simulations
        for series, method in ((IGNORE, "ce-ignore"), (NEGATIVE, "ce-negative"))
    ]  # fmt: skip


def _is_frequent(k: Place) -> bool:
    return isinstance(k, float) and k <= 20


def names(findings: Findings) -> Mapping[str, str]:
    """Return the top classes side by side, as a table."""
    return {f"top-{p}.md": side_by_side(findings, p) for p in findings.panels}


EXPERIMENT = Experiment(
    name="prior-estimation",
    title="Estimated against true frequencies of classes",
    shows="CSL, figures 5 and 7, appendices C to E",
    cases=cases,
    measure=measure,
    draw=ranked_bars(SPEARMAN, PRIOR, IGNORE),
    claims=tuple(
        Claim(f"{kind}: {words}", source, line_above(IGNORE, worse, SPEARMAN, kind, "k", _is_frequent))
        for kind in MISLEADING
        for worse, words, source in (
            (NEGATIVE, "models trained with Ignore rank the frequent classes better than with Negative", "CSL, fig. 7"),
            (COUNTS, "they rank them better than annotation counts do", "CSL, sec. 3.3"),
        )
    ),
    caption="Above: Spearman's correlation with the truth over the k most frequent classes (0 where an estimate is "
    "constant). Below: the classes with the highest estimates by Ignore; crosses: the truth.",
    write=names,
)
