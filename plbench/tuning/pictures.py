"""Plots of a study with Optuna: optimization history, importances, and a slice per parameter."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import optuna
from matplotlib.ticker import LogFormatterSciNotation, NullFormatter
from optuna.visualization import matplotlib as plotting

from plbench.data.lettering import drawable, dress
from plbench.files import write_atomically
from plbench.tuning.study import StudyRecord

_TARGET = "validation mAP(C), %"
_FORMATS = ("png", "svg")
_INCH = 3.2  # width of one slice


def draw_study(study: StudyRecord, folder: Path) -> tuple[str, ...]:
    """Write history, importances and slices as PNG and SVG, and return their names.

    Importances need two complete trials that differ in value.

    Raises:
        StoreError: if they cannot be written.
    """
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    told = _as_optuna(study)
    values = {trial.value for trial in study.trials if trial.value is not None}
    pictures: dict[str, Callable[[], Any]] = {
        "history": lambda: plotting.plot_optimization_history(told, target_name=_TARGET),
        "slices": lambda: plotting.plot_slice(told, target_name=_TARGET),
    }
    if len(values) > 1:  # PED-ANOVA is the only evaluator without scikit-learn
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        pictures["importances"] = lambda: plotting.plot_param_importances(
            told, evaluator=evaluator, target_name=_TARGET
        )
    title = f"{study.spec.method.name} on {study.spec.protocol.name}, {study.spec.regime}: study {study.key}"
    names: list[str] = []
    for name, draw in pictures.items():
        names += _draw(name, draw, title, folder)
    return tuple(names)


def _as_optuna(study: StudyRecord) -> optuna.Study:
    """Return the trials as an Optuna study, with the trained values, including those outside the space."""
    ranges: dict[str, optuna.distributions.BaseDistribution] = {}
    for name, found in study.spec.space.items():
        tried = [trial.values[name] for trial in study.trials]
        low, high = min(found.low, *tried), max(found.high, *tried)
        # a logarithmic axis requires positive values
        ranges[name] = optuna.distributions.FloatDistribution(low, high, log=found.log and low > 0)
    told = optuna.create_study(direction="maximize")
    for trial in (trial for trial in study.trials if trial.state != "failed"):
        state = optuna.trial.TrialState[trial.state.upper()]
        told.add_trial(
            optuna.trial.create_trial(state=state, value=trial.value, params=trial.values, distributions=ranges)
        )
    return told


def _draw(name: str, draw: Callable[[], Any], title: str, folder: Path) -> list[str]:
    names = [f"{name}.{kind}" for kind in _FORMATS]
    with plt.rc_context(), warnings.catch_warnings():  # Optuna sets a style for the whole process
        warnings.simplefilter("ignore")
        axes = draw()
        panels = list(axes.flat) if hasattr(axes, "flat") else [axes]
        figure = panels[0].figure
        if len(panels) > 1:
            figure.set_size_inches(_INCH * len(panels) + 1.0, 4.2)
        for panel in panels:
            panel.set_title("")
            panel.set_title("", loc="left")
            if panel.get_xscale() == "log":  # labels between powers of ten would overlap
                panel.xaxis.set_minor_formatter(NullFormatter())
                panel.xaxis.set_major_formatter(LogFormatterSciNotation())
                if len([t for t in panel.get_xticks() if panel.get_xlim()[0] <= t <= panel.get_xlim()[1]]) < 2:
                    panel.set_xticks(panel.get_xlim(), [f"{end:.1g}" for end in panel.get_xlim()])
                    for label, side in zip(panel.get_xticklabels(), ("left", "right"), strict=True):
                        label.set_horizontalalignment(side)
        figure.suptitle(drawable(title), fontsize=10)
        dress(figure)
        try:
            for file_name in names:
                written = file_name.rpartition(".")[2]
                options: dict[str, Any] = {"format": written, "metadata": {"Date": None} if written == "svg" else None}
                save = partial(figure.savefig, dpi=120, bbox_inches="tight", **options)
                write_atomically(folder / file_name, save)
        finally:
            plt.close(figure)
    return names
