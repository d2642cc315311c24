"""Appendix B: weights that decrease with the prior, instead of a threshold on it."""

from __future__ import annotations

from plbench.experiments.shared.charts import lines
from plbench.experiments.shared.claims import above, some
from plbench.experiments.shared.execute import metrics_of_records
from plbench.experiments.shared.experiment import Case, Claim, Context, Experiment, Findings, Verdict

SOFT = "soft prior, K of the protocol"
BARE = "soft prior, K = 0"


def cases(context: Context) -> list[Case]:
    """Return alpha from 0, where no class is weighted, upwards; with and without ignoring the most likely labels."""
    steps = context.pick((0.0, 5.0), (0.0, 1.0, 3.0, 10.0), (0.0, 0.5, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 20.0, 50.0))
    return [
        Case(name, alpha, "selective", {"mode": "soft-prior", "alpha": alpha, **params})
        for name, params in ((SOFT, {}), (BARE, {"top_k": 0}))
        for alpha in steps
    ]  # fmt: skip


def beats(name: str, words: str) -> Claim:
    """Test whether some alpha above 0 is better than 0."""

    def test(findings: Findings) -> Verdict:
        return some(
            [
                [above(findings, (name, point.x), (name, 0.0), "map_c", label=f"alpha = {point.x:g} minus alpha = 0")]
                for point in findings.line(name)[1:]
            ]
        )

    return Claim(words, "our claim, after CSL, appendix B", test)


EXPERIMENT = Experiment(
    name="soft-prior",
    title="Weights that fall with the prior of a class",
    shows="CSL, appendix B",
    cases=cases,
    measure=metrics_of_records,
    draw=lines("map_c", "decay of the weight with the prior, $\\alpha$", "mAP(C), %", scale="symlog"),
    claims=(
        beats(SOFT, "Combined with the likelihood, a soft prior helps at some alpha"),
        beats(BARE, "Alone, a soft prior helps at some alpha"),
    ),
    caption="P-ASL, Selective; unknown labels have weight exp(-alpha prior). At alpha = 0: likelihood alone, and "
    "P-ASL, Negative where K = 0.",
)
