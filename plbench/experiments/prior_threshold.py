"""The threshold eta on the estimated prior, above which unknown labels of a class are ignored."""

from __future__ import annotations

from typing import Any

from plbench.experiments.shared.charts import lines
from plbench.experiments.shared.claims import peak_inside
from plbench.experiments.shared.execute import metrics_of_records
from plbench.experiments.shared.experiment import Case, Claim, Context, Experiment

ALONE, TOGETHER = "prior alone", "likelihood and prior"


def cases(context: Context) -> list[Case]:
    """Return values of eta by the number of classes above them, since estimates are not calibrated.

    If there are none, no prior is used.
    """
    shares = context.pick((0.0, 0.2, 1.0), (0.0, 0.05, 0.1, 0.2, 0.4, 1.0), (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0))

    def params(name: str, share: float) -> dict[str, Any]:
        if share == 0:
            return {"mode": "likelihood", **({"top_k": 0} if name == ALONE else {})}
        mode = "prior" if name == ALONE else "both"
        return {"mode": mode, "eta_top": max(1, round(share * context.num_classes))}

    return [Case(name, share, "selective", params(name, share)) for name in (ALONE, TOGETHER) for share in shares]


beats_both_ends = peak_inside(
    ALONE, "map_c", lambda context: (0.0, 1.0), lambda share, end: f"{share:.0%} of classes minus {end:.0%}"
)
EXPERIMENT = Experiment(
    name="prior-threshold",
    title="From which estimated prior on a class is ignored",
    shows="CSL, the threshold eta of eq. 8",
    cases=cases,
    measure=metrics_of_records,
    draw=lines("map_c", "share of classes with a prior above $\\eta$", "mAP(C), %"),
    claims=(
        Claim(
            "By the prior alone, some eta between ignoring no class (Negative) and all (Ignore) is better than both",
            "ours, after CSL, eq. 8",
            beats_both_ends,
        ),
    ),
    caption="P-ASL, Selective. Prior alone: at 0 no class is ignored (P-ASL, Negative), at 1 every unknown label is "
    "(P-ASL, Ignore).",
)
