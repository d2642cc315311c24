"""The verdict of a comparison in words: which method to use, and how certain that is."""

from __future__ import annotations

import math
from collections.abc import Sequence

from plbench.comparison.compare import Row, Setting
from plbench.metrics.statistics import MIN_SEEDS, MIN_SEEDS_RANKED, SIGNIFICANT, Figure
from plbench.progress import counted

WIDE = 2.0
"""Half width of an interval, in percentage points, above which figures are called uncertain."""

_MAX_SCORED = 0.9  # share of scored classes above which unscored ones are not mentioned
_MIN_CLASSES = 5
_MAX_NAMED = 4
_UNLIKELY = 0.05  # probability of being best below which a tied row is not recommended


def verdict(setting: Setting) -> list[str]:
    """Return sentences: the best row, rows tied with it, how certain that is, and caveats."""
    return [*_which(setting), *_by_map_o(setting), *_cautions(setting)]


def share_words(share: float) -> str:
    """Format a share of resamples; only exact values are shown as 100 % or 0 %.

    Examples:
        >>> share_words(0.934), share_words(0.999), share_words(0.001), share_words(1.0)
        ('93 %', '>99 %', '<1 %', '100 %')
    """
    if math.isnan(share):
        return "–"
    if 0 < share < 0.005:
        return "<1 %"
    return ">99 %" if 0.995 <= share < 1 else f"{100 * share:.0f} %"


def _which(setting: Setting) -> list[str]:
    best, *others = setting.rows
    seeds = counted(len(best.seeds), "seed")
    where = "" if setting.folds is None else f" on {setting.images}"
    leads = f"{best.label} has the highest mAP(C), {with_half(best.figures['map_c'])} over {seeds}{where}"
    if not others:
        return [f"{leads}; it is the only row, so there is nothing to compare it with."]
    chance = share_words(best.share_best)
    first = f"{leads}. The chance that it would also be best with other {setting.other_images} and seeds is {chance}."
    if setting.has_few_seeds(*setting.rows):
        few = f"{seeds} {'is' if len(best.seeds) == 1 else 'are'} too few to rank methods"
        return [first, f"{few}: other seeds may give a different order; give `seeds=5`."]
    told = []
    if likely := [row for row in setting.tied if row.share_best >= _UNLIKELY]:
        told.append(f"It is statistically tied with {_named(likely)}: use whichever is easiest for you.")
    if unlikely := [row for row in setting.tied if row.share_best < _UNLIKELY]:
        are = "is" if len(unlikely) == 1 else "are"
        told.append(f"{_named(unlikely)} {are} not significantly worse, but unlikely to be best.")
    if worse := [row for row in others if row not in setting.tied]:
        which = "The other row is" if len(worse) == 1 else f"The other {len(worse)} rows are"
        # the row that is significantly better need not be the best one
        by_best = all(row.p_value is not None and row.p_value < SIGNIFICANT for row in worse)
        than = "" if by_best else " than it or another row"
        told.append(f"{which} significantly worse{than} (p < {SIGNIFICANT}, all pairs tested together).")
    if setting.tied and not math.isnan(setting.detectable):
        told.append(f"A difference of {setting.detectable:.1f} points would be detected in 4 of 5 such comparisons.")
    return [first, " ".join(told)]


def _named(rows: Sequence[Row]) -> str:
    named = [f"{row.label} ({share_words(row.share_best)})" for row in rows[:_MAX_NAMED]]
    if len(rows) > _MAX_NAMED:
        named.append(f"{len(rows) - _MAX_NAMED} more")
    return named[0] if len(named) == 1 else f"{'; '.join(named[:-1])} and {named[-1]}"


def _by_map_o(setting: Setting) -> list[str]:
    best = setting.rows[0].figures["map_o"]
    leader = max(setting.rows, key=lambda row: row.figures["map_o"].mean)
    value = leader.figures["map_o"]
    if not value.mean > best.mean:
        return []
    leads = f"In mAP(O), where frequent classes weigh more, {leader.label} leads"
    return [f"{leads}: {with_half(value)} against {with_half(best)}."]


def _cautions(setting: Setting) -> list[str]:
    best = setting.rows[0]
    scored, number, half = best.num_classes_scored, best.num_classes, best.figures["map_c"].half
    said = []
    fewest = min(len(row.seeds) for row in setting.rows)
    if MIN_SEEDS <= fewest < MIN_SEEDS_RANKED:
        said.append(
            f"Provisional: {fewest} seeds; leaderboards require {MIN_SEEDS_RANKED} to rank a row, so give "
            f"`seeds={MIN_SEEDS_RANKED}`."
        )
    if setting.folds is not None:
        said.append(
            "Careful: models of different folds share training images, so no estimate of their variance is unbiased "
            "(Bengio and Grandvalet, 2004); intervals and p are therefore widened by Nadeau and Bengio's factor "
            f"(2003). Scores of {setting.folds} models are pooled into one ranking, as in scikit-learn's "
            "cross_val_predict."
        )
    if scored < _MAX_SCORED * number:
        part = "test" if setting.folds is None else "train"
        said.append(
            f"Careful: only {scored} of {number} classes are scored; the others have no known positive or no known "
            f"negative in {part}, and this comparison says nothing about them."
        )
    elif scored < _MIN_CLASSES:
        said.append(f"Careful: mAP(C) is a mean over only {scored} classes; a single one can change the order.")
    if half >= WIDE:
        said.append(
            f"Careful: {setting.images} determine mAP(C) only to within ±{half:.1f} points; four times as many "
            "labelled images would halve that."
            + ("" if math.isnan(setting.chance) else f" Random scores would reach about {setting.chance:.1f} on them.")
        )
        if setting.foldable:
            said.append(
                f"`folds=5` would instead score all {setting.foldable:,} labelled train images, each by models that "
                "were not trained on it."
            )
    return said


def with_half(figure: Figure) -> str:
    """Format a mean with half its interval's width."""
    return "–" if math.isnan(figure.mean) else f"{figure.mean:.2f} ±{figure.half:.2f}"
