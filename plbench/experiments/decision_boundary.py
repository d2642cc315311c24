"""Figure 2: decision boundaries learned by Ignore, Negative and Selective in real trainings on a toy plane."""

from __future__ import annotations

from collections.abc import Sequence

from plbench.experiments.shared import plane
from plbench.experiments.shared.claims import line_above
from plbench.experiments.shared.experiment import Claim, Context, Experiment, Point, Row
from plbench.metrics.statistics import Sample
from plbench.runs.workspace import Workspace

FREQUENT, RARE = "a frequent class, seldom annotated", "a rare class, always annotated"
SELECTIVE = {"gamma_pos": 0.0, "gamma_neg": 0.0, "gamma_unann": 0.0, "top_k": 1, "eta_top": 1}
MODES = {"Ignore": ("ce-ignore", {}), "Negative": ("ce-negative", {}), "Selective": ("selective", SELECTIVE)}
BOTH = "mean overlap of both classes"


def measure(context: Context, rows: Sequence[Row], num_seeds: int, workspace: Workspace) -> list[Point]:
    """Train each mode on the points of each seed, and compare predicted with true regions."""
    with workspace.reporter.task("Learning on the plane") as report:
        learned = plane.learn_all(MODES, workspace.registry, num_seeds, report)
    truth, found = plane.true_classes(plane.grid()).numpy(), []
    for mode, fields in learned.items():
        shares = [[plane.overlap(p[:, c] > 0.5, truth[:, c]) for c in range(2)] for p in fields]
        means = Sample.of_seeds([sum(pair) / 2 for pair in shares])
        for column, panel in enumerate((FREQUENT, RARE)):
            values = {plane.OVERLAP: Sample.of_seeds([pair[column] for pair in shares]), BOTH: means}
            shown = column, fields[0][:, column], plane.make_plane(0)
            found.append(Point(mode, "", values, panel, seeds=tuple(range(num_seeds)), shown=shown))
    return found


def _above(better: str, worse: str, panel: str, metric: str = plane.OVERLAP) -> Claim:
    where = f"on {panel}" if metric == plane.OVERLAP else "over both classes"
    claim = f"{better} is closer to the truth than {worse} {where}"
    return Claim(claim, "CSL, fig. 2", line_above(better, worse, metric, panel, ""))


EXPERIMENT = Experiment(
    name="decision-boundary",
    title="Boundaries that each mode learns",
    shows="CSL, figure 2",
    cases=lambda context: (),
    measure=measure,
    draw=plane.draw_boundaries,
    claims=(
        _above("Selective", "Negative", FREQUENT),
        _above("Selective", "Ignore", RARE),
        *(_above("Selective", worse, RARE, BOTH) for worse in ("Ignore", "Negative")),
    ),
    caption="Small networks trained with cross-entropy on points of a plane. Percentages: overlap of the regions "
    "predicted and truly present; the plots show the first seed.",
    needs_dataset=False,
    seeds={"tiny": 1, "default": 10, "full": 50},
)
