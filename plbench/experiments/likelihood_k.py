"""Figure 9: number of likely unknown labels of an image to ignore, from none (Negative) to all (Ignore)."""

from __future__ import annotations

from plbench.experiments.shared.charts import lines
from plbench.experiments.shared.claims import above, every, peak_inside
from plbench.experiments.shared.execute import metrics_of_records
from plbench.experiments.shared.experiment import Case, Claim, Context, Experiment, Findings, Verdict

ALONE, TOGETHER = "likelihood alone", "likelihood and prior"
PRIOR_SHARE = 0.1  # share of the classes that are ignored because of the highest priors


def cases(context: Context) -> list[Case]:
    """Return k from 0 to C, with and without the classes of the highest prior."""
    most = context.num_classes
    steps = context.pick((0, 1, most), (0, 1, 3, 5, 10, most), (0, 1, 2, 3, 4, 5, 7, 10, 15, 20, 30, most))
    depth = max(1, round(PRIOR_SHARE * most))
    return [
        Case(name, float(k), "selective", {**params, "top_k": k})
        for name, params in ((ALONE, {"mode": "likelihood"}), (TOGETHER, {"mode": "both", "eta_top": depth}))
        for k in sorted({min(k, most) for k in steps})
    ]


def best_is_together(findings: Findings) -> Verdict:
    """Test whether the best point with the prior is above the best without it."""
    best = [max(findings.line(name), key=lambda p: p.values["map_c"].mean) for name in (TOGETHER, ALONE)]
    label = f"K = {best[0].x:g} with the prior minus K = {best[1].x:g} without"
    return every([above(findings, (TOGETHER, best[0].x), (ALONE, best[1].x), "map_c", label=label)])


beats_both_ends = peak_inside(
    ALONE, "map_c", lambda context: (0.0, float(context.num_classes)), lambda k, end: f"K = {k:g} minus K = {end:g}"
)
EXPERIMENT = Experiment(
    name="likelihood-k",
    title="How many likely unknown labels of an image to ignore",
    shows="CSL, figure 9",
    cases=cases,
    measure=metrics_of_records,
    draw=lines("map_c", "unknown labels of an image that are ignored, K", "mAP(C), %", scale="symlog"),
    claims=(
        Claim("Some K between 0 (Negative) and C (Ignore) is better than both", "CSL, fig. 9", beats_both_ends),
        Claim("Likelihood and prior together are best", "CSL, fig. 9", best_is_together),
    ),
    caption="P-ASL, Selective. Likelihood alone: K = 0 is P-ASL, Negative and K = C is P-ASL, Ignore with the same "
    "gammas. With the prior, the tenth of the classes with the highest estimate is ignored throughout.",
)
