"""Diagnostics of a run against the labels hidden by a simulation, computed only after training."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import torch
from torch import Tensor

from plbench.data.labels import PartialLabels
from plbench.losses.priors import spearman_by_depth, top_classes
from plbench.method import Batch, Method, Progress
from plbench.metrics import average_precision
from plbench.progress import ProgressReport
from plbench.runs.record import HiddenTruth, PriorDiagnostics
from plbench.training.execution import Execution, evaluation_mode, widened
from plbench.training.hooks import Guarded
from plbench.training.inputs import Inputs

TOP_CLASSES = 20


def diagnose_prior(prior: Tensor, names: tuple[str, ...], truth: PartialLabels | None) -> PriorDiagnostics:
    """Return the estimate's sum, its top classes, and its rank correlation with the true frequencies by depth."""
    estimate = prior.double().numpy()
    spearman = None
    if truth is not None:
        depths = sorted({*range(10, truth.num_classes, 10), truth.num_classes})
        values = spearman_by_depth(estimate, truth.counts()[0] / truth.num_images, depths)
        spearman = {str(k): None if math.isnan(v) else float(v) for k, v in zip(depths, values, strict=True)}
    top = [(name, float(value)) for name, value in top_classes(prior, names, k=min(TOP_CLASSES, len(names)))]
    return PriorDiagnostics(total=float(estimate.sum()), top=top, spearman_by_depth=spearman)


def diagnose_training(
    model: torch.nn.Module,
    method: Method,
    inputs: Inputs,
    truth: PartialLabels,
    execution: Execution,
    report: ProgressReport = lambda done, total: None,
) -> HiddenTruth:
    """Return mAP on hidden labels, and the precision of the method's assumptions about them."""
    guarded = Guarded(method)
    found = [(np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, bool))]  # class, score, truth of hidden cells
    marked: Counter[str] = Counter()
    present: Counter[str] = Counter()
    for index, images in inputs.ordered(256, execution.world):  # without augmentation
        rows = index.numpy()
        labels, true = inputs.labels.rows(rows), truth.rows(rows) > 0
        on_device = (torch.from_numpy(labels).to(execution.device), index.to(execution.device))
        with evaluation_mode(model), torch.inference_mode():
            batch = Batch(execution.inputs(images), *on_device)
            with execution.autocast():
                output = widened(guarded.forward(model, batch, Progress(0, 1, 0, 1)))
            scores = guarded.scores(output).float().cpu().numpy()
            masks = {name: mask.cpu().numpy() for name, mask in guarded.diagnostics(output, batch).items()}
        row, column = np.nonzero(labels == 0)
        found.append((column, scores[row, column], true[row, column]))
        for name, mask in masks.items():
            marked[name] += int(mask.sum())
            present[name] += int((mask & true).sum())
        report(int(rows[-1]) + 1, len(inputs))
    own = [np.concatenate(column) for column in zip(*found, strict=True)]
    parts = execution.world.gather_objects((own, marked, present))
    class_index, values, is_present = (np.concatenate(column) for column in zip(*(p[0] for p in parts), strict=True))
    for _, marked_there, present_there in parts[: execution.world.rank] + parts[execution.world.rank + 1 :]:
        marked.update(marked_there)
        present.update(present_there)
    ap = average_precision(class_index, values, is_present, truth.num_classes)
    defined = ap[~np.isnan(ap)]
    return HiddenTruth(
        map_c_unknown=100 * float(defined.mean()) if defined.size else None,
        base_rate=100 * float(is_present.mean()) if is_present.size else None,
        precision={name: 100 * present[name] / count if count else None for name, count in marked.items()},
        num_marked=dict(marked),
    )
