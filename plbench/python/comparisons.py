"""Comparisons of methods from Python: table, verdict in words, and plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import pandas as pd

from plbench.comparison.candidates import ALL, Skipped, choose_candidates
from plbench.comparison.compare import Setting
from plbench.comparison.folds import side_by_side
from plbench.comparison.picture import comparison_figure, draw_comparison
from plbench.comparison.plan import make_runs, plan_comparison
from plbench.comparison.verdict import verdict
from plbench.errors import PlbenchError
from plbench.python.figures import for_notebooks
from plbench.python.settings import Settings, check_settings, request_of, workspace_of
from plbench.spec import Selection

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Comparison:
    """A comparison of methods in one setting, best first.

    Attributes:
        setting: the rows with all figures and tests.
        left_out: methods that were left out, with reasons.
    """

    setting: Setting
    left_out: tuple[Skipped, ...] = ()

    @property
    def table(self) -> pd.DataFrame:
        """One row per method, best first, indexed by its label.

        Columns: method; number of seeds; rank (1 + the number of rows that are significantly better; missing where
        seeds are too few to say); each figure in percent with the ends of its 95 % interval over seeds and images
        ("map_c", "map_c_low", "map_c_high", …); the difference to the best row in points of mAP(C), its p-value over
        all pairs; and the chance that the row is the best.
        """
        rows = []
        for row in self.setting.rows:
            own: dict[str, Any] = {"method": row.method, "seeds": len(row.seeds), "rank": row.rank}
            for name, figure in row.figures.items():
                own |= {name: figure.mean, f"{name}_low": figure.low, f"{name}_high": figure.high}
            difference = None if row.difference is None else row.difference.mean
            own |= {"difference": difference, "p_value": row.p_value, "share_best": row.share_best}
            rows.append(own)
        index = pd.Index([row.label for row in self.setting.rows], name="row")
        numbers = {"rank": "Int64", "difference": "float64", "p_value": "float64"}
        return pd.DataFrame(rows, index=index).astype(numbers)

    @property
    def verdict(self) -> str:
        """Which method to use, and how certain that is, in words."""
        return " ".join(verdict(self.setting))

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw a dot with its interval for every row, in one panel per metric.

        Args:
            path: a .png, .svg or .pdf file to also write; None writes none.

        Returns:
            The figure, which a notebook shows.

        Raises:
            PlbenchError: if the file has another ending. StoreError: if it cannot be written.
        """
        if path is not None:
            draw_comparison(self.setting, "", Path(path))
        return for_notebooks(comparison_figure(self.setting))


def compare(
    dataset: str,
    *,
    methods: str | Sequence[str] = ALL,
    seeds: int = 5,
    folds: int | None = None,
    selection: Selection = "last",
    **settings: Unpack[Settings],
) -> Comparison:
    """Train methods on one dataset and compare them. Finished runs are read, not repeated.

    The runs are the same as those of `plbench compare` with the same settings.

    Args:
        dataset: name of the dataset; "table" for your own labels.
        methods: "all", a tag such as "paper", or names; "name:variant" for a variant, "name:*" for all of them.
        seeds: number of trainings per row, with seeds 0, 1, …; rows with 5 or more are ranked.
        folds: number of folds of train for cross-validation: each labelled image is scored by models that were not
            trained on its fold, instead of using test. For test parts of a few dozen images. Each row then has seeds x
            folds trainings.
        selection: how the reported epoch is chosen, as in `plbench.run`.
        settings: as in `plbench.run`.

    Raises:
        PlbenchError: if a name does not exist, settings do not fit together, or no training succeeded.
        DataError: if a fold cannot be scored.

    Examples:
        >>> import plbench
        >>> own = {"labels": "demo/labels-long.csv", "images": "demo/images", "negative_value": 0}
        >>> comparison = plbench.compare("table", methods=["ce-negative", "ce-ignore"], seeds=2, **own)
        >>> sorted(comparison.table["method"])
        ['ce-ignore', 'ce-negative']
        >>> "2 seeds are too few to rank methods" in comparison.verdict
        True
        >>> comparison.plot().axes[0].get_title()
        'mAP(C)'
    """
    check_settings(settings, Settings)
    workspace = workspace_of(settings)
    candidates, broken = choose_candidates([methods] if isinstance(methods, str) else methods, workspace.registry)
    request = request_of({**settings, "method": "", "dataset": dataset, "selection": selection})
    comparison = plan_comparison(request, candidates, seeds, workspace, skipped=broken, num_folds=folds)
    runs, failed = make_runs(comparison, workspace)
    if not runs:
        raise PlbenchError(f"no row is complete, so there is nothing to compare: {failed[0].who}: {failed[0].why}")
    return Comparison(side_by_side(comparison, runs, workspace), (*comparison.skipped, *failed))
