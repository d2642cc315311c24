"""Figure 8: weaker focusing of verified negatives than of unknown labels, gamma- from gamma_u downwards."""

from __future__ import annotations

from plbench.experiments.shared.charts import lines
from plbench.experiments.shared.claims import above, every
from plbench.experiments.shared.execute import metrics_of_records
from plbench.experiments.shared.experiment import Case, Claim, Context, Experiment, Findings, Verdict

UNKNOWN = (7.0, 4.0)  # CSL's values for OpenImages and COCO


def series(gamma_unann: float) -> str:
    """Return the name of the line of one gamma_u."""
    return f"gamma_u = {gamma_unann:g}"


def cases(context: Context) -> list[Case]:
    """Return gamma- from gamma_u, where verified and unknown negatives have equal weight, down to 0."""
    steps = context.pick((7.0, 4.0, 2.0), (7.0, 4.0, 3.0, 2.0, 1.0, 0.0), (7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.0))
    return [
        Case(series(unknown), gamma, "pasl-negative", {"gamma_pos": 0.0, "gamma_neg": gamma, "gamma_unann": unknown})
        for unknown in UNKNOWN
        for gamma in steps
        if gamma <= unknown
    ]


def lower_is_better(unknown: float) -> Claim:
    """Return the claim that, for one gamma_u, mAP at gamma- = 2 is above that at gamma- = gamma_u."""

    def test(findings: Findings) -> Verdict:
        return every([above(findings, (series(unknown), 2.0), (series(unknown), unknown), "map_c")])

    source = "CSL, fig. 8" if unknown == UNKNOWN[0] else "as CSL, fig. 8, with its gamma for COCO"
    return Claim(f"With gamma_u = {unknown:g}, mAP rises as gamma- falls from {unknown:g} to 2", source, test)


EXPERIMENT = Experiment(
    name="focusing",
    title="Focusing verified negatives less than unknown labels",
    shows="CSL, figure 8",
    cases=cases,
    measure=metrics_of_records,
    draw=lines("map_c", "focusing of verified negatives, $\\gamma_-$", "mAP(C), %"),
    claims=(lower_is_better(7.0), lower_is_better(4.0)),
    caption="P-ASL, Negative. The right end of each line, gamma- = gamma_u, is the asymmetric loss without its shift.",
)
