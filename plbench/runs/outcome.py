"""What came of a run: the figures, the files behind them, and the record that holds both."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plbench.errors import DataError
from plbench.metrics.cells import Cells
from plbench.randomness import derive_seed
from plbench.runs import environment, summary
from plbench.runs.active import Job
from plbench.runs.diagnostics import diagnose_prior, diagnose_training
from plbench.runs.plan.label_check import notes_on
from plbench.runs.plan.resolve import is_default
from plbench.runs.pretraining import describe_pretraining, overlap
from plbench.runs.record import (
    Cost,
    DataSummary,
    HiddenTruth,
    PriorDiagnostics,
    Record,
    SelectionReport,
    SplitMetrics,
    read_record,
    reference,
    whole_file,
)
from plbench.runs.registry import source_file
from plbench.runs.standard_cost import count_cost
from plbench.runs.store import CHECKPOINT
from plbench.runs.thresholds import Thresholds, thresholds_on
from plbench.training import hooks

FILES = ("spec.toml", "log.jsonl", "cells.npz", "per_class.csv", "replicates.csv", CHECKPOINT)


@dataclass(frozen=True)
class Scored:
    """What a trained model says.

    Attributes:
        cells: of the headline weights on the scored part. last_cells: of the last weights, where they are others.
        thresholds: of the headline weights, or why there are none, in a sentence.
        hidden_truth: what the labels that a simulation hid say about them.
        idle: what parts of the method did nothing.
    """

    cells: Cells
    last_cells: Cells | None
    thresholds: Thresholds | str
    hidden_truth: HiddenTruth | None
    idle: list[str]


def score(job: Job) -> Scored | None:
    """Score the trained model on its part, on the validation part, and on the hidden truth of train if there is one.

    Every process takes a share of the work; what comes of it is in the main one.
    """
    cells = job.cells(job.headline_weights)
    thresholds = _choose_thresholds(job, cells)
    last_cells = job.cells("raw") if job.headline_weights != "raw" else None
    truth = job.plan.protocol_data.hidden_truth(job.spec.train_part)
    hidden = None
    if truth is not None:
        model = job.state.averaged(job.headline_weights)
        with job.workspace.reporter.task("Comparing train with the hidden truth") as report:
            hidden = diagnose_training(model, job.method, job.train_inputs, truth, job.execution, report)
    idle = _idle_parts(job)
    return None if cells is None else Scored(cells, last_cells, thresholds, hidden, idle)


def _choose_thresholds(job: Job, cells: Cells | None) -> Thresholds | str:
    """Thresholds of the headline weights, in the main process; or a sentence on why there are none.

    They come from the cells of a model that did not train on the validation part where there is one: this one, or the
    one that chose the epoch. Else they come from this one, which did.
    """
    spec, labels = job.spec, job.spec.protocol.validation_labels
    held_out = job.only_selects or spec.selection == "validation"
    try:
        if job.only_selects:
            own = cells
        elif held_out:
            own = job.workspace.world.shared(lambda: _cells_that_chose(job))
        else:
            own = job.validation_cells(job.headline_weights)
        if own is None:
            return ""  # not the main process
        return thresholds_on(own, labels, held_out=held_out)
    except DataError:
        return (
            "no thresholds were chosen, so CF1 and OF1 are there at top 3 alone: no class of the validation part has "
            "both a known positive and a known negative"
        )


def _cells_that_chose(job: Job) -> Cells:
    """Cells of the run that chose this one's epoch."""
    assert job.plan.chooser is not None
    folder = job.workspace.store.run_folder(job.plan.chooser.spec.key)
    return Cells.load(whole_file(folder, read_record(folder), "cells.npz"))


def _idle_parts(job: Job) -> list[str]:
    """What parts of the method did nothing in any process."""
    first, *others = job.workspace.world.gather_objects(hooks.idle_of(job.method))
    return [sentence for sentence in first if all(sentence in other for other in others)]


def summarise(job: Job, scored: Scored, folder: Path) -> dict[str, SplitMetrics]:
    """Figures by name; writes the cells, the per-class table and the replicates that they come from."""
    name = "validation" if job.only_selects else "test"
    labels = job.scored_part.labels
    groups = job.plan.protocol_data.dataset.groups()
    annotations = np.add(*job.train_part.labels.counts())
    # seeded by protocol: any two runs of one protocol draw the same test images and pair up
    seed = derive_seed(0, "bootstrap", job.spec.protocol.sha256(), job.scored_part.split)
    with job.workspace.reporter.task("Intervals") as report:
        replicates = summary.draw_replicates(scored.cells, labels, groups, seed, report)
    scored.cells.save(folder / "cells.npz")
    thresholds = None if isinstance(scored.thresholds, str) else scored.thresholds
    summary.write_per_class(folder / "per_class.csv", scored.cells, labels, groups, annotations, thresholds)
    summary.write_replicates(folder / "replicates.csv", replicates)
    summaries = {name: summary.summarise(scored.cells, labels, groups, annotations, replicates, thresholds)}
    if scored.last_cells is not None:
        summaries[f"{name}_raw"] = summary.summarise(scored.last_cells, labels, groups, annotations, None)
    return summaries


def record(job: Job, scored: Scored, metrics: dict[str, SplitMetrics], folder: Path, finished_at: str) -> Record:
    """The record of a run that is done; its files are in the folder already, save the record itself."""
    job.write_log(folder)
    spec = job.spec
    pretraining = describe_pretraining(spec.model, job.workspace.pretraining)
    return Record(
        key=spec.key,
        spec_sha256=spec.sha256(),
        spec=spec,
        protocol_sha256=spec.protocol.sha256(),
        status="done",
        finished_at=finished_at,
        title=job.plan.method.title,
        paper=job.plan.method.paper,
        source_file=source_file(job.plan.method),
        configuration="tuned" if spec.tuned_by else "default" if is_default(job.plan) else "custom",
        tuning=job.plan.tuning,
        pretraining=pretraining,
        defaults_tuned_here=_is_tuned_here(job),
        test_seen_in_pretraining=overlap(pretraining, job.plan.protocol_data.dataset.collections),
        environment=environment.describe(job.workspace.device, job.workspace.decode),
        data=_data_summary(job),
        metrics=metrics,
        selection=_selection(job),
        priors=_priors(job),
        hidden_truth=scored.hidden_truth,
        cost=_cost(job),
        training={"final_loss": job.state.history[-1]["loss"], "steps": float(job.state.step)},
        files={name: reference(folder / name) for name in FILES},
        warnings=_warnings(job, scored, next(iter(metrics.values()))),
        notes=list(notes_on(job.plan.protocol_data)),
    )


def _is_tuned_here(job: Job) -> bool:
    method, protocol = job.plan.method, job.plan.protocol_data.protocol
    return protocol.dataset in method.tuned_on or method.name in protocol.tuned_here


def _data_summary(job: Job) -> DataSummary:
    labels, num_scored = job.train_part.labels, len(job.scored_part.rows)
    positives, negatives = labels.counts()
    return DataSummary(
        num_train=labels.num_images,
        num_train_known=labels.num_known,
        train_density=labels.density,
        train_positives=int(positives.sum()),
        train_negatives=int(negatives.sum()),
        num_test=0 if job.only_selects else num_scored,
        num_validation=num_scored if job.only_selects else 0,
        classes_without_train_positives=int((positives == 0).sum()),
        skipped_images=len(job.spec.skipped_images),
    )


def _selection(job: Job) -> SelectionReport:
    protocol = job.spec.protocol
    labels: Any = {"last": "none", "best-on-test": "test"}.get(job.spec.selection, protocol.validation_labels)
    return SelectionReport(
        rule=job.spec.selection,
        labels=labels,
        epoch=job.best.epoch or job.state.epoch,
        weights=job.headline_weights,
        curve=job.best.curve,
    )


def _priors(job: Job) -> dict[str, PriorDiagnostics]:
    labels = job.train_part.labels
    truth = job.plan.protocol_data.hidden_truth(job.spec.train_part)
    vectors = {n: vector for n, vector in job.artifacts.items() if vector.shape == (labels.num_classes,)}
    return {name: diagnose_prior(vector, labels.class_names, truth) for name, vector in vectors.items()}


def _cost(job: Job) -> Cost:
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    on_gpu = job.workspace.device.type == "cuda"
    return Cost(
        seconds={**job.seconds, "total": sum(job.seconds.values())},
        phases={} if job.trained_together else job.state.clock.seconds(),
        images_per_second=job.state.epoch * len(job.train_inputs) / max(job.seconds["training"], 1e-9),
        peak_memory_mb=torch.cuda.max_memory_allocated() / 2**20 if on_gpu else kilobytes / 1024,
        measured_alone=job.shared_with == 0 and not job.workspace.shares_machine,
        shared_with=job.shared_with,
        standard=count_cost(job),
    )


def _warnings(job: Job, scored: Scored, headline: SplitMetrics) -> list[str]:
    warnings = [*scored.idle, *([scored.thresholds] if isinstance(scored.thresholds, str) else [])]
    unscored = headline.num_classes - headline.num_classes_scored
    if unscored:
        warnings.append(
            f"{unscored} of {headline.num_classes} classes have no known positive or no known negative in the scored "
            "part and are not scored"
        )
    if job.spec.selection == "best-on-test":
        warnings.append("the epoch was selected on the test split: no board ranks this run")
    if job.spec.skipped_images:
        warnings.append(f"{len(job.spec.skipped_images)} unreadable images were left out")
    if job.spec.duplicates:
        warnings.append(
            f"test images that are byte for byte train images: {job.spec.duplicates} (--allow-duplicates); the "
            "figures are in part of images that the model was trained on"
        )
    return warnings
