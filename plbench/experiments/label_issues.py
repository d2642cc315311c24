"""Find known labels that held-out models contradict, and unknown ones that are worth annotating next.

Train is split into folds by a hash of the image id. For each fold and seed, an ordinary run is trained on the other
folds, so that finished runs are reused. The test split is not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from plbench.data.images import ImageSource
from plbench.data.lettering import drawable
from plbench.errors import PlbenchError, TrainingError
from plbench.metrics.calibration import Calibration, contradiction, entropy_bits
from plbench.metrics.cells import Cells
from plbench.progress import counted
from plbench.runs.inspect.sheets import BLACK, GREY, RED, Section, Tile, check_sheet_name, draw_sheet, fitted
from plbench.runs.plan.resolve import Request, resolve_setting
from plbench.runs.plan.resolved import ResolvedRun
from plbench.runs.record import Record, whole_file
from plbench.runs.schedule import run_here
from plbench.runs.train_scores import models_of, scores_by_run
from plbench.runs.workspace import Workspace

METHOD = "ce-ignore"
"""Default method, which learns only from known labels: unknown ones carry no information."""

FOLDS: int = 5
SEEDS: int = 3
TO_ANNOTATE: int = 1000
ON_SHEET: int = 24

_LINES = 4  # below an image on a sheet


@dataclass(frozen=True, eq=False)
class LabelIssues:
    """Assessment of the labels of train by held-out models.

    Attributes:
        issues: a row for each known label that is more likely wrong than right, the most likely error first: image,
            class_name, label ("present" or "absent"), p_present (probability of the class by all models), against
            (models that contradict the label), models.
        to_annotate: a row for each of the most uncertain unknown labels, in descending order of uncertainty: image,
            class_name, p_present, spread (standard deviation over the models), bits (entropy of p_present, at most 1).
        num_known, num_unknown: labels of train.
        not_checked: classes without a known positive or without a known negative, whose labels cannot be assessed.
        runs: keys of the runs, fold by fold.
    """

    issues: pd.DataFrame
    to_annotate: pd.DataFrame
    num_known: int
    num_unknown: int
    not_checked: tuple[str, ...]
    runs: tuple[str, ...]
    _images: ImageSource
    _issue_rows: npt.NDArray[np.int64]
    _unknown_rows: npt.NDArray[np.int64]

    def contact_sheet(self, path: str | Path, num_images: int = ON_SHEET) -> None:
        """Write a picture of the most contradicted labels and the most uncertain unknown ones.

        Args:
            path: of a .png, .jpg or .pdf file to write.
            num_images: maximum number of each kind.

        Raises:
            PlbenchError: if the path's suffix is unknown. DataError: if an image cannot be read.
            StoreError: if the file cannot be written.
        """
        check_sheet_name(Path(path))
        issues, unknown = self.issues.head(num_images), self.to_annotate.head(num_images)
        wrong, open_questions = [], []
        for row, issue in zip(self._issue_rows.tolist(), issues.itertuples(), strict=False):
            lines = [
                (fitted(drawable(str(issue.class_name))), BLACK),
                (f"labelled {issue.label}", RED),
                (f"{issue.p_present:.2f} present, {issue.against} of {issue.models} against", BLACK),
                (fitted(drawable(str(issue.image)), keeps_end=True), GREY),
            ]
            wrong.append(Tile(partial(self._images.load, row), lines))
        for row, cell in zip(self._unknown_rows.tolist(), unknown.itertuples(), strict=False):
            lines = [
                (fitted(drawable(str(cell.class_name)), "?"), BLACK),
                (f"{cell.p_present:.2f} present, spread {cell.spread:.2f}", BLACK),
                (fitted(drawable(str(cell.image)), keeps_end=True), GREY),
            ]
            open_questions.append(Tile(partial(self._images.load, row), lines))
        sections = [
            Section(wrong, f"Labels that held-out models contradict: {len(wrong)} of {len(self.issues):,}"),
            Section(open_questions, f"To annotate next: {len(open_questions)} of {self.num_unknown:,} unknown"),
        ]
        draw_sheet(sections, Path(path), _LINES)


def plan_folds(
    request: Request, workspace: Workspace, *, num_folds: int = FOLDS, num_seeds: int = SEEDS
) -> list[list[ResolvedRun]]:
    """Return the runs of each fold, with seeds 0, 1, …; nothing is trained yet.

    Args:
        request: dataset, model, plan, method and its parameters; without a method, `METHOD`. Without a simulation,
            labels are the dataset's own; with one, all runs have the same labels.
        workspace: where and how.
        num_folds: at least 2.
        num_seeds: at least 1.

    Raises:
        PlbenchError: if anything in the request does not exist or fit, or a fold cannot be scored.
    """
    if num_folds < 2:
        raise PlbenchError(
            f"`folds={num_folds}`: a model must not be trained on the labels that it judges; give at least 2, such as 5"
        )
    if num_seeds < 1:
        raise PlbenchError(f"`seeds={num_seeds}`: give at least one model, and 3 to see where they disagree")
    method = request.method or METHOD
    workspace.registry.method(method)  # report a mistyped method before data is rendered
    own: Mapping[str, Any] = {"simulate": "none"}
    if request.simulate is not None:
        own = {"simulation_seed": request.simulation_seed or 0}  # otherwise each seed would sample other labels
    setting = resolve_setting(replace(request, method=method, scores_test=False, **own), workspace)
    return [
        [
            setting.without_fold(number, num_folds).run(method, request.method_params, seed, workspace.registry)
            for seed in range(num_seeds)
        ]
        for number in range(1, num_folds + 1)
    ]


def find_issues(
    folds: Sequence[Sequence[ResolvedRun]], workspace: Workspace, *, num_to_annotate: int = TO_ANNOTATE
) -> LabelIssues:
    """Run what is missing, and rank the labels of train by the scores of held-out models.

    Args:
        folds: from `plan_folds`.
        workspace: where and how.
        num_to_annotate: maximum number of unknown labels to list.

    Raises:
        TrainingError: if a training fails. DataError: if an image cannot be read.
    """
    results = run_here([plan for plans in folds for plan in plans], workspace)
    for result in results:
        if isinstance(result, TrainingError):
            raise result
    keys = tuple(result.key for result in results if isinstance(result, Record))
    protocol_data, num_models = folds[0][0].protocol_data, len(folds[0])
    whole = protocol_data.train()
    labels, num_classes = whole.labels, whole.labels.num_classes
    known = [_known_cells(plans, workspace) for plans in folds]
    rows, class_index, positives = (np.concatenate([part[place] for part in known]) for place in range(3))
    scores = np.concatenate([part[3] for part in known], axis=1)
    with workspace.reporter.task(f"Calibrating scores of {num_classes:,} classes") as report:
        calibration = Calibration.fit(scores, class_index, positives, num_classes, report)
    by_model = contradiction(calibration.probabilities(scores, class_index), positives)  # [R, K]
    wrong = by_model.mean(axis=0)
    chosen = np.flatnonzero(wrong > 0.5)
    chosen = chosen[np.argsort(-wrong[chosen], kind="stable")]
    names = _unique_names(labels.class_ids, labels.class_names)
    issues = pd.DataFrame(
        {
            "image": [whole.images.ids[row] for row in rows[chosen].tolist()],
            "class_name": names[class_index[chosen]],
            "label": np.where(positives[chosen], "present", "absent"),
            "p_present": np.where(positives, 1 - wrong, wrong)[chosen],
            "against": (by_model[:, chosen] > 0.5).sum(axis=0),
            "models": num_models,
        }
    )
    unknown = _most_uncertain(folds, calibration, workspace, num_to_annotate)
    to_annotate = pd.DataFrame(
        {
            "image": [whole.images.ids[row] for row in unknown["row"].tolist()],
            "class_name": names[unknown["class_index"]],
            **{name: unknown[name] for name in ("p_present", "spread", "bits")},
        }
    )
    return LabelIssues(
        issues=issues,
        to_annotate=to_annotate,
        num_known=labels.num_known,
        num_unknown=labels.num_images * num_classes - labels.num_known,
        not_checked=tuple(names[np.isnan(calibration.slopes)].tolist()),
        runs=keys,
        _images=whole.images,
        _issue_rows=rows[chosen],
        _unknown_rows=unknown["row"],
    )


def describe_folds(folds: Sequence[Sequence[ResolvedRun]]) -> str:
    """Return a one-line description of the runs."""
    first = folds[0][0]
    images = counted(len(first.protocol_data.whole_train.rows), "train image")
    cut = f"{images} in {len(folds)} folds, {counted(len(folds[0]), 'seed')} each"
    return f"{first.spec.protocol.name}: {first.method.title}, {cut}"


def _unique_names(ids: Sequence[str], names: Sequence[str]) -> npt.NDArray[np.object_]:
    return np.array(names if len(set(names)) == len(names) else ids, object)


def _known_cells(plans: Sequence[ResolvedRun], workspace: Workspace) -> tuple[np.ndarray, ...]:
    """Return row in train [K], class [K], whether present [K], and scores [R, K] of a fold's known cells."""
    part = plans[0].protocol_data.held_out(plans[0].spec.train_part)
    found = []
    for plan in plans:
        folder = workspace.store.run_folder(plan.spec.key)
        record = plan.finished(workspace.store)
        assert record is not None
        found.append(Cells.load(whole_file(folder, record, "cells.npz")))
    first = found[0]
    return part.rows[first.rows], first.class_index, first.positives, np.stack([cells.scores for cells in found])


def _most_uncertain(
    folds: Sequence[Sequence[ResolvedRun]], calibration: Calibration, workspace: Workspace, number: int
) -> dict[str, np.ndarray]:
    """Return by column the unknown cells of train that are most uncertain to held-out models, in descending order."""
    kept = {name: np.empty(0, np.int64) for name in ("row", "class_index")}
    kept |= {name: np.empty(0, np.float64) for name in ("p_present", "spread", "bits")}
    protocol_data = folds[0][0].protocol_data
    whole = protocol_data.train()
    if number < 1 or whole.labels.num_known == whole.labels.num_images * whole.labels.num_classes:
        return kept
    total, done = len(whole.rows), 0
    with workspace.reporter.task("Looking at unknown labels") as report:
        for plans in folds:
            part = protocol_data.held_out(plans[0].spec.train_part)
            models = models_of([workspace.store.run_folder(plan.spec.key) for plan in plans], workspace)
            for rows, scores in scores_by_run(models, part, protocol_data, workspace):
                probabilities = calibration.probabilities(scores)  # [R, b, C]
                mean = probabilities.mean(axis=0)
                bits = entropy_bits(mean)
                # of millions of unknown cells, only those that may be selected
                least = kept["bits"][-1] if len(kept["bits"]) == number else -1.0
                at, class_index = np.nonzero((part.labels.rows(rows) == 0) & (bits > least))
                fresh = {
                    "row": part.rows[rows[at]],
                    "class_index": class_index,
                    "p_present": mean[at, class_index],
                    "spread": probabilities.std(axis=0)[at, class_index],
                    "bits": bits[at, class_index],
                }
                joined = {name: np.concatenate([kept[name], fresh[name]]) for name in kept}
                best = np.argsort(-joined["bits"], kind="stable")[:number]
                kept = {name: values[best] for name, values in joined.items()}
                done += len(rows)
                report(done, total)
    return kept
