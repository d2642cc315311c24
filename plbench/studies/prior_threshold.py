"""The threshold eta: above which estimated prior a class's unknown labels are ignored."""

from __future__ import annotations

from plbench.studies.charts import lines
from plbench.studies.claims import above, some
from plbench.studies.conduct import metrics_of_records
from plbench.studies.experiment import Case, Claim, Experiment, Findings, Ground, Verdict

ALONE, TOGETHER = "prior alone", "likelihood and prior"


def cases(ground: Ground) -> list[Case]:
    """From eta = 0, where every class is ignored, to 1, where none is."""
    steps = ground.pick(
        (0.0, 0.2, 1.0), (0.0, 0.05, 0.1, 0.2, 0.4, 1.0), (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 1.0)
    )
    return [
        Case(name, eta, "selective", {"mode": mode, "eta": eta})
        for name, mode in ((ALONE, "prior"), (TOGETHER, "both"))
        for eta in steps
    ]  # fmt: skip


def beats_both_ends(findings: Findings) -> Verdict:
    """Some eta between the ends is above both of them."""
    found = []
    for point in findings.line(ALONE)[1:-1]:
        ends = [above(findings, (ALONE, point.x), (ALONE, end), "map_c", label=f"eta = {point.x:g} minus eta = {end:g}")
                for end in (0.0, 1.0)]  # fmt: skip
        if all(ends):
            found.append(tuple(c for c in ends if c))
    return some(found)


EXPERIMENT = Experiment(
    name="prior-threshold",
    title="From which estimated prior on a class is ignored",
    shows="CSL, the threshold eta of eq. 8",
    cases=cases,
    measure=metrics_of_records,
    draw=lines("map_c", "threshold on the prior, $\\eta$", "mAP(C), %", scale="symlog"),
    claims=(
        Claim("By the prior alone, some eta between 0 (Ignore) and 1 (Negative) is better than both",
              "CSL, sec. 3.3, as a claim of ours", beats_both_ends),
    ),
    caption="P-ASL, Selective. Prior alone: eta = 0 ignores every unknown label (P-ASL, Ignore), eta = 1 none (P-ASL, "
    "Negative).",
)  # fmt: skip
