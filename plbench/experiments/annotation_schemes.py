"""Figure 6: the best treatment of unknown labels depends on how annotators chose what to annotate."""

from __future__ import annotations

from plbench.experiments.shared.charts import lines
from plbench.experiments.shared.claims import gap_falls, line_above
from plbench.experiments.shared.execute import metrics_of_records
from plbench.experiments.shared.experiment import Case, Claim, Context, Experiment

METHODS = {(IGNORE := "CE, Ignore"): "ce-ignore", (NEGATIVE := "CE, Negative"): "ce-negative"}
FPC, RPA, BIASED = "Fixed per class (FPC)", "Random per annotation (RPA)", "Frequency-biased"
SINGLE, COMPLETE = "Single positive", "complete labels"


def cases(context: Context) -> list[Case]:
    """Return both treatments under each mechanism; without negatives, Ignore has nothing to learn from."""
    unit = 10 ** max(0, len(str(context.num_train)) - 4)  # N_s for 8,000 images; ten times as large for 80,000
    fpc = [unit * n for n in context.pick((3, 30), (30, 300, 1000), (10, 30, 100, 300, 1000, 3000))]
    rpa = context.pick((0.5,), (0.5, 0.9), (0.1, 0.3, 0.5, 0.7, 0.9, 0.95))
    biased = context.pick((0.3,), (0.05, 0.3), (0.02, 0.05, 0.1, 0.3, 0.6))
    return [
        *(
            Case(series, value, method, panel=panel, simulate=f"{kind}={value:g}")
            for panel, kind, values in ((FPC, "fpc", fpc), (RPA, "rpa", rpa), (BIASED, "frequency-biased", biased))
            for value in values
            for series, method in METHODS.items()
        ),
        Case(NEGATIVE, "one positive, no negatives", "ce-negative", panel=SINGLE, simulate="single-positive"),
        Case(COMPLETE, 0, "ce-negative", panel=COMPLETE, simulate="none"),
    ]


def _above(better: str, panel: str, x: str, source: str = "CSL, fig. 6") -> Claim:
    worse = NEGATIVE if better == IGNORE else IGNORE
    test = line_above(better, worse, "map_c", panel, x)
    return Claim(f"{panel}: {better} lies above {worse} at every {x}", source, test)


EXPERIMENT = Experiment(
    name="annotation-schemes",
    title="Ignore and Negative under four annotation schemes",
    shows="CSL, figure 6, and two further schemes",
    cases=cases,
    measure=metrics_of_records,
    draw=lines(
        "map_c",
        {FPC: "labels of each class, $N_s$", RPA: "share dropped, p", BIASED: "share of positives kept"},
        *("mAP(C), %", {FPC: "log", BIASED: "log"}, COMPLETE),
    ),
    claims=(
        *(_above(IGNORE, RPA, "p"), _above(NEGATIVE, FPC, "N_s"), _above(NEGATIVE, BIASED, "share", "ours: as FPC")),
        *(
            Claim(f"{panel}: the gap closes as more is kept", "CSL, fig. 6", gap_falls(*pair, "map_c", panel, rising=r))
            for panel, pair, r in ((RPA, (IGNORE, NEGATIVE), False), (FPC, (NEGATIVE, IGNORE), True))
        ),
    ),
    caption="Dashed: complete labels. Single positive has no verified negatives, so Ignore has nothing to learn from.",
    varies_simulation=True,
)
