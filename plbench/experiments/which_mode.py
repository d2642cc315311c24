"""Beyond the paper: annotation mechanisms under which Ignore, Negative and Selective win."""

from __future__ import annotations

from itertools import product

from plbench.experiments.mechanism.phase_claims import gap_grows, never_far_behind, placed_within, wins_somewhere
from plbench.experiments.mechanism.phase_map import IGNORE, MODES, NEGATIVE, SELECTIVE, as_map, measure, phases
from plbench.experiments.shared.experiment import Case, Context, Experiment

PLAIN = {"gamma_pos": 0.0, "gamma_neg": 0.0, "gamma_unann": 0.0}  # the same loss for three treatments of unknown labels


def cases(context: Context) -> list[Case]:
    """Return each mode under each mechanism: share of known positives, bias to rare classes, negatives per positive."""
    keeps = context.pick((0.4,), (0.1, 0.4), (0.05, 0.1, 0.2, 0.4, 0.8))
    biases = context.pick((0.0, 1.0), (0.0, 1.0), (0.0, 0.5, 1.0, 1.5))
    negatives = context.pick((3.0,), (0.3, 3.0), (0.1, 0.3, 1.0, 3.0, 10.0))
    selective = {**PLAIN, "eta_top": max(1, context.num_classes // 10)}
    found = []
    for keep, bias, number in product(keeps, biases, negatives):
        simulation = f"frequency-biased={keep:g},bias={bias:g},negatives={number:g}"
        for mode, method, params in zip(MODES, METHODS, ({}, {}, selective), strict=True):
            found.append(Case(mode, keep, method, params, f"bias={bias:g},negatives={number:g}", simulation))
    return found


METHODS = ("ce-ignore", "ce-negative", "selective")
EXPERIMENT = Experiment(
    name="which-mode",
    title="Which treatment of unknown labels wins under which annotation mechanism",
    shows="not in the paper",
    cases=cases,
    measure=measure,
    draw=phases,
    claims=(
        *(wins_somewhere(mode) for mode in MODES),
        gap_grows("The more biased to rare classes, the better Negative is against Ignore", NEGATIVE, IGNORE, "bias"),
        gap_grows("The more verified negatives, the better Ignore is against Negative", IGNORE, NEGATIVE, "negatives"),
        never_far_behind(SELECTIVE, 1.0),
        *(placed_within(2.5, name, few_negatives=False) for name in ("share", "advantage")),
        *(placed_within(5.0, name, few_negatives=True) for name in ("share", "advantage")),
    ),
    caption="Cross-entropy with three treatments of unknown labels; Selective ignores the K likeliest of each image "
    "and the tenth of the classes with the highest estimated prior. Coloured: significantly better than both others, "
    "by the points of mAP(C) shown.",
    varies_simulation=True,
    write=as_map,
)
