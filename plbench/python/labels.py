"""Python API: known labels that are probably wrong, and unknown ones to annotate next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

from plbench.experiments.label_issues import (
    FOLDS,
    SEEDS,
    TO_ANNOTATE,
    LabelIssues,
    describe_folds,
    find_issues,
    plan_folds,
)
from plbench.python.settings import Settings, check_settings, request_of, workspace_of

__all__ = ["LabelIssues", "label_issues"]


def label_issues(
    dataset: str,
    *,
    method: str | None = None,
    params: Mapping[str, Any] | None = None,
    folds: int = FOLDS,
    seeds: int = SEEDS,
    to_annotate: int = TO_ANNOTATE,
    **settings: Unpack[Settings],
) -> LabelIssues:
    """List known labels of the training set that held-out models contradict.

    Train is cut into folds; the models of each fold are trained on the other folds. They are ordinary runs, and
    finished ones are not repeated. `plbench data issues` does the same with the same settings.

    Args:
        dataset: name of the dataset; "table" for your own labels.
        method: training method of the models; None for one that uses only known labels.
        params: of the method, by name.
        folds: at least 2.
        seeds: number of models per fold, with seeds 0, 1, …
        to_annotate: unknown labels to list, at most.
        settings: as in `plbench.run`. Without `simulate=`, the labels are the dataset's own.

    Returns:
        Data frames `issues` and `to_annotate`, and a method that draws both.

    Raises:
        PlbenchError: if a name does not exist, settings do not fit together, or a fold cannot be scored.
        TrainingError: if a training fails.

    Examples:
        >>> import plbench
        >>> own = {"labels": "demo/labels-long.csv", "images": "demo/images", "negative_value": 0}
        >>> found = plbench.label_issues("table", folds=2, seeds=2, **own)
        >>> list(found.issues.columns)
        ['image', 'class_name', 'label', 'p_present', 'against', 'models']
        >>> bool((found.issues["against"] <= 2).all()), len(found.runs)
        (True, 4)
        >>> len(found.to_annotate) == found.num_unknown < 6 * 60
        True
        >>> found.contact_sheet("demo/issues.png", 6)
    """
    check_settings(settings, Settings)
    workspace = workspace_of(settings)
    request = request_of({**settings, "method": method or "", "dataset": dataset}, params)
    planned = plan_folds(request, workspace, num_folds=folds, num_seeds=seeds)
    workspace.reporter.line(describe_folds(planned))
    return find_issues(planned, workspace, num_to_annotate=to_annotate)
