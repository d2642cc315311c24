"""Tuning and advice from Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import pandas as pd

from plbench.errors import PlbenchError
from plbench.experiments.mechanism import advice
from plbench.experiments.mechanism.advice import Advice, read_maps
from plbench.python.comparisons import Comparison
from plbench.python.settings import Settings, check_settings, request_of, workspace_of
from plbench.runs.plan.resolve import plan_run
from plbench.tuning import tune as tuning
from plbench.tuning.study import StudyRecord


@dataclass(frozen=True)
class Study:
    """A finished tuning study.

    Attributes:
        record: question, trials and choice, as in `study.json`.
        folder: of its files and plots.
        comparison: the starting values and the winning ones compared with fresh seeds; None with `search_only`.
    """

    record: StudyRecord
    folder: Path
    comparison: Comparison | None

    @property
    def best(self) -> dict[str, float]:
        """The chosen values, by name."""
        return dict(self.record.best.values)

    @property
    def trials(self) -> pd.DataFrame:
        """One row per trial: its state, mAP(C) on the validation part in percent, seconds, and values."""
        rows = [
            {"state": trial.state, "value": trial.value, "seconds": trial.seconds, **trial.values}
            for trial in self.record.trials
        ]
        return pd.DataFrame(rows).rename_axis("trial").astype({"value": "float64", "seconds": "float64"})


def tune(
    method: str,
    dataset: str,
    *,
    trials: int = 64,
    seeds: int = 3,
    params: Mapping[str, Any] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    study_seed: int = 0,
    storage: str | None = None,
    search_only: bool = False,
    **settings: Unpack[Settings],
) -> Study:
    """Tune a method on the validation part, then train its best and its starting values with fresh seeds.

    The study is the same as that of `plbench tune` with the same settings; an unfinished study is continued.

    Args:
        method: name of the method.
        dataset: name of the dataset; "table" for your own labels.
        trials: number of trials of the study, over all workers and calls.
        seeds: number of seeds of the final rows: 0, 1, …
        params: parameters of the method that are not searched, by name.
        ranges: search ranges (lowest, highest) by name, instead of those that the method declares.
        study_seed: seed of the sampler and the trials.
        storage: a journal file, or the URL of a database, that workers share.
        search_only: whether to leave out the final rows.
        settings: as in `plbench.run`.

    Raises:
        PlbenchError: if a name does not exist or settings do not fit together.
        TrainingError: if no trial or no final run could be trained.

    Examples:
        >>> import plbench
        >>> own = {"labels": "demo/labels-long.csv", "images": "demo/images", "negative_value": 0}
        >>> study = plbench.tune("ce-negative", "table", trials=2, seeds=1, **own)
        >>> len(study.trials), sorted(study.best)
        (2, ['lr', 'weight_decay'])
        >>> len(study.comparison.table)
        2
    """
    check_settings(settings, Settings)
    if trials < 1:
        raise PlbenchError(f"`trials={trials}`: a study needs at least one trial, such as `trials=64`")
    workspace = workspace_of(settings)
    request = request_of({**settings, "method": method, "dataset": dataset}, params)
    plan = plan_run(replace(request, scores_test=False), workspace)
    plan.protocol_data.validation()  # raises if it cannot be scored
    asked = tuning.Settings(
        num_trials=trials,
        seed=study_seed,
        storage=storage,
        ranges=dict(ranges or {}),
        fixed=frozenset(params or {}),
    )
    made = tuning.tune(plan, asked, workspace, num_seeds=seeds, search_only=search_only)
    comparison = Comparison(made.settings[0]) if made.settings else None
    return Study(made.study, made.folder, comparison)


def advise(
    dataset: str | None = None, *, seeds: int = 3, maps: Sequence[str | Path] = (), **settings: Unpack[Settings]
) -> Advice:
    """Advise which treatment of unknown labels suits your data, estimated from frozen features.

    Args:
        dataset: name of the dataset; None for your own labels, which `labels=` and `images=` give.
        seeds: number of models used for the estimates, with seeds 0, 1, …
        maps: files `map.json` of `plbench study which-mode`; default: those included in plbench.
        settings: as in `plbench.run`.

    Returns:
        The answer in words, the methods to try, and the estimates. If the estimates cannot decide, the answer says so.

    Raises:
        PlbenchError: if the data cannot be read, or contain no known label.

    Examples:
        >>> import plbench
        >>> own = {"labels": "demo/labels-long.csv", "images": "demo/images", "negative_value": 0}
        >>> advice = plbench.advise(seeds=1, **own)
        >>> advice.num_classes, len(advice.answer) > 0
        (6, True)
    """
    check_settings(settings, Settings)
    if seeds < 1:
        raise PlbenchError(f"`seeds={seeds}`: the estimate needs at least one model, and 3 to show how certain it is")
    if settings.get("embeddings") is not None:
        raise PlbenchError("`embeddings=`: advise uses no method that needs embeddings; leave it out")
    name = dataset or (advice.OWN_LABELS if settings.get("labels") is not None else None)
    if name is None:
        raise PlbenchError("a dataset is missing; give its name, or your own labels with `labels=` and `images=`")
    # the settings that the maps were made with, unless overridden
    given = {"recipe": "quick", "regime": "probe", **{key: v for key, v in settings.items() if v is not None}}
    request = request_of({**given, "method": "", "dataset": name})
    return advice.advise(request, workspace_of(settings), read_maps([Path(path) for path in maps]), num_seeds=seeds)
