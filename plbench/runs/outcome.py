"""The outcome of a run: figures, their files, and the record."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from plbench.data.embeddings import kept_embeddings, read_embeddings
from plbench.errors import DataError
from plbench.metrics import choose_thresholds
from plbench.metrics.cells import Cells
from plbench.randomness import derive_seed
from plbench.runs import environment, summary
from plbench.runs.active import ActiveRun
from plbench.runs.diagnostics import diagnose_prior, diagnose_training
from plbench.runs.plan.label_check import notes_on
from plbench.runs.plan.resolved import is_default
from plbench.runs.pretraining import describe_pretraining, overlap
from plbench.runs.record import (
    Cost,
    DataSummary,
    HiddenTruth,
    Record,
    SelectionReport,
    SplitMetrics,
    StandardCost,
    ThresholdReport,
    read_record,
    reference,
    whole_file,
)
from plbench.runs.registry import source_file
from plbench.runs.store import CELLS, CHECKPOINT, RECORD
from plbench.runs.summary import Thresholds
from plbench.runs.tables import GROUP_REPLICATES, PER_CLASS, REPLICATES
from plbench.runs.task_file import TASK
from plbench.training.hooks import Guarded

FILES = ("spec.toml", "log.jsonl", CELLS, PER_CLASS, REPLICATES, CHECKPOINT)
"""Files of every run, in addition to its record."""


@dataclass(frozen=True)
class Scored:
    """Evaluation results of a trained model.

    Attributes:
        cells: of the headline weights on the scored part. last_cells: of the last weights, if different.
        thresholds: of the headline weights, or a sentence on why there are none.
        hidden_truth: diagnostics against labels hidden by a simulation.
        idle: parts of the method without effect.
    """

    cells: Cells
    last_cells: Cells | None
    thresholds: Thresholds | str
    hidden_truth: HiddenTruth | None
    idle: list[str]


def score(active: ActiveRun) -> Scored | None:
    """Score the trained model on its part, on the validation part, and on hidden train labels if there are any.

    Work is shared by all processes; only the main one gets the result.
    """
    cells = active.cells(active.headline_weights)
    thresholds = _choose_thresholds(active, cells)
    last_cells = active.cells("raw") if active.headline_weights != "raw" else None
    truth = active.plan.protocol_data.hidden_truth(active.spec.train_part)
    hidden = None
    if truth is not None:
        model = active.state.averaged(active.headline_weights)
        with active.workspace.reporter.task("Comparing train with the hidden truth") as report:
            hidden = diagnose_training(model, active.method, active.train_inputs, truth, active.execution, report)
    # parts of the method without effect in all processes
    first, *others = active.workspace.world.gather_objects(Guarded(active.method).idle())
    idle = [sentence for sentence in first if all(sentence in other for other in others)]
    return None if cells is None else Scored(cells, last_cells, thresholds, hidden, idle)


def _choose_thresholds(active: ActiveRun, cells: Cells | None) -> Thresholds | str:
    """Return thresholds of the headline weights, in the main process; or a sentence on why there are none.

    They are chosen with a model that was not trained on the validation part, if there is one: this model, or the one
    that chose the epoch. Otherwise this model is used although it was.
    """
    world, store = active.workspace.world, active.workspace.store
    try:
        if active.only_selects:
            own = cells
        elif active.spec.selection == "validation":
            assert active.plan.chooser is not None
            folder = store.run_folder(active.plan.chooser.spec.key)
            own = world.shared(lambda: Cells.load(whole_file(folder, read_record(folder), CELLS)))
        else:
            own = active.validation_cells(active.headline_weights)
        if own is None:
            return ""  # not the main process
        values, pooled = choose_thresholds(own)
    except DataError:
        return (
            "no thresholds were chosen, so CF1 and OF1 are given for the top 3 only: no class of the validation part "
            "has both a known positive and a known negative"
        )
    report = ThresholdReport(
        part="validation",
        labels=active.spec.protocol.validation_labels,
        held_out=active.spec.train_part != "train" or active.spec.selection == "validation",
        num_images=own.num_images,
        num_pooled=own.num_classes - len(np.unique(own.class_index[own.positives])),
        pooled=pooled,
    )
    return Thresholds(values, report)


def summarise(active: ActiveRun, scored: Scored) -> dict[str, SplitMetrics]:
    """Return figures by name; write the underlying cells, per-class table and replicates."""
    name, folder = "validation" if active.only_selects else "test", active.folder
    labels = active.scored_part.labels
    groups = active.plan.protocol_data.dataset.groups()
    annotations = np.add(*active.train_part.labels.counts())
    # seeded by protocol: any two runs of one protocol sample the same test images and are paired
    seed = derive_seed(0, "bootstrap", active.spec.protocol.sha256(), active.scored_part.split)
    with active.workspace.reporter.task("Intervals") as report:
        replicates = summary.draw_replicates(scored.cells, labels, groups, seed, report)
    scored.cells.save(folder / CELLS)
    thresholds = None if isinstance(scored.thresholds, str) else scored.thresholds
    summary.write_per_class(folder / PER_CLASS, scored.cells, labels, groups, annotations, thresholds)
    summary.write_replicates(folder / REPLICATES, summary.headline(replicates))
    # a separate file, which stays with the run: only headline metrics are submitted to boards
    if groups:
        summary.write_replicates(folder / GROUP_REPLICATES, replicates.groups)
    summaries = {name: summary.summarise(scored.cells, labels, groups, annotations, replicates, thresholds)}
    if scored.last_cells is not None:
        summaries[f"{name}_raw"] = summary.summarise(scored.last_cells, labels, groups, annotations, None)
    return summaries


def record(
    active: ActiveRun,
    scored: Scored,
    metrics: dict[str, SplitMetrics],
    finished_at: str,
    phases: dict[str, float],
    shared_with: int,
) -> Record:
    """Return the record of a finished run, whose other files are already written.

    Args:
        metrics: from `summarise`.
        phases: training seconds by phase; {} if trained in a stack, where phases are of all heads.
        shared_with: number of other heads that trained in the same pass.
    """
    active.write_log()
    spec, method, protocol_data = active.spec, active.plan.method, active.plan.protocol_data
    protocol, workspace, state = protocol_data.protocol, active.workspace, active.state
    pretraining = describe_pretraining(spec.model, workspace.pretraining)
    labels, num_scored = active.train_part.labels, len(active.scored_part.rows)
    positives, negatives = labels.counts()
    truth = protocol_data.hidden_truth(spec.train_part)
    selected_by: Any = {"last": "none", "best-on-test": "test"}.get(spec.selection, spec.protocol.validation_labels)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    on_gpu = workspace.device.type == "cuda"
    names = [*FILES, *([GROUP_REPLICATES] if next(iter(metrics.values())).groups else [])]
    names += [TASK] if spec.embeddings is None else []
    return Record(
        key=spec.key,
        spec_sha256=spec.sha256(),
        spec=spec,
        protocol_sha256=spec.protocol.sha256(),
        status="done",
        finished_at=finished_at,
        title=method.title,
        paper=method.paper,
        source_file=source_file(method),
        configuration="tuned" if spec.tuned_by else "default" if is_default(active.plan) else "custom",
        tuning=active.plan.tuning,
        pretraining=pretraining,
        defaults_tuned_here=protocol.dataset in method.tuned_on or method.name in protocol.tuned_here,
        test_seen_in_pretraining=overlap(pretraining, protocol_data.dataset.collections),
        environment=environment.describe(workspace.device, workspace.decode),
        data=DataSummary(
            num_train=labels.num_images,
            num_train_known=labels.num_known,
            train_density=labels.density,
            train_positives=int(positives.sum()),
            train_negatives=int(negatives.sum()),
            num_test=0 if active.only_selects else num_scored,
            num_validation=num_scored if active.only_selects else 0,
            classes_without_train_positives=int((positives == 0).sum()),
            skipped_images=len(spec.skipped_images),
        ),
        metrics=metrics,
        selection=SelectionReport(
            rule=spec.selection,
            labels=selected_by,
            epoch=active.best.epoch or state.epoch,
            weights=active.headline_weights,
            curve=active.best.curve,
        ),
        priors={
            name: diagnose_prior(vector, labels.class_names, truth)
            for name, vector in active.artifacts.items()
            if vector.shape == (labels.num_classes,)
        },
        hidden_truth=scored.hidden_truth,
        cost=Cost(
            seconds={**active.seconds, "total": sum(active.seconds.values())},
            phases=phases,
            images_per_second=len(state.history) * len(active.train_inputs) / max(active.seconds["training"], 1e-9),
            peak_memory_mb=torch.cuda.max_memory_allocated() / 2**20 if on_gpu else kilobytes / 1024,
            measured_alone=shared_with == 0 and not workspace.shares_machine,
            shared_with=shared_with,
            standard=_standard_cost(active),
        ),
        training={"steps": float(state.step), **({"final_loss": state.history[-1]["loss"]} if state.history else {})},
        files={name: reference(active.folder / name) for name in names},
        warnings=_warnings(active, scored, next(iter(metrics.values()))),
        notes=[*notes_on(protocol_data), *_note_on_embeddings(active)],
    )


def _note_on_embeddings(active: ActiveRun) -> list[str]:
    """Return a note on the model of the embeddings that the method uses, if any."""
    if (sha256 := active.spec.embeddings) is None:
        return []
    model = read_embeddings(kept_embeddings(sha256, active.workspace.store.cache)).model or "an unnamed model"
    return [f"embeddings of images and class names: {model}, file of sha256 {sha256[:16]}"]


def _standard_cost(active: ActiveRun) -> StandardCost | None:
    """Return the cost of a run including its stages and the run that chose its epoch, from their records.

    None if one of these records is older than this cost.
    """
    spec, state = active.spec, active.state
    if not active.plan.method.learns:
        costs = [StandardCost(trainings=1)]  # no backbone passes and no head training
    elif spec.regime == "probe":
        splits = (spec.protocol.train_split, active.scored_part.split)
        extracted = {split: len(active.plan.protocol_data.whole(split).images) for split in splits}
        costs = [StandardCost(trainings=1, extracted=extracted, head=state.epoch * len(active.train_inputs))]
    else:
        # a point of the curve has its epoch and one value per weights; each stage adds one pass over train
        num_choices = sum(len(point) - 1 for point in active.best.curve)
        forward = len(active.scored_inputs) + num_choices * len(active.chosen_inputs) + state.images_viewed
        forward += len(active.plan.stages) * len(active.train_inputs)
        trained = state.images_trained
        costs = [StandardCost(trainings=1, forward=forward, trained=trained, head=trained)]
    for first in active.plan.prerequisites:
        folder = active.workspace.store.run_folder(first.spec.key)
        if (folder / RECORD).is_file():
            cost = read_record(folder).cost
            if cost is None or cost.standard is None:
                return None
            costs.append(cost.standard)
    of_splits = {split: number for cost in costs for split, number in cost.extracted.items()}
    return StandardCost(
        trainings=sum(cost.trainings for cost in costs),
        extracted=dict(sorted(of_splits.items())),  # counted once
        forward=sum(cost.forward for cost in costs),
        trained=sum(cost.trained for cost in costs),
        head=sum(cost.head for cost in costs),
    )


def _warnings(active: ActiveRun, scored: Scored, headline: SplitMetrics) -> list[str]:
    warnings = [*scored.idle, *([scored.thresholds] if isinstance(scored.thresholds, str) else [])]
    unscored = headline.num_classes - headline.num_classes_scored
    if unscored:
        warnings.append(
            f"{unscored} of {headline.num_classes} classes have no known positive or no known negative in the scored "
            "part and are not scored"
        )
    if active.spec.selection == "best-on-test":
        warnings.append("the epoch was selected on the test split: no board ranks this run")
    if active.spec.selection == "validation-no-retrain":
        protocol = active.plan.protocol_data
        warnings.append(
            f"selection=validation-no-retrain: the model that was best on the validation part is the one tested; it "
            f"was trained on {len(active.train_part.rows):,} of {len(protocol.whole_train.rows):,} train images, and "
            "no board ranks this run"
        )
    if active.spec.skipped_images:
        warnings.append(f"{len(active.spec.skipped_images)} unreadable images were left out")
    if active.spec.duplicates:
        warnings.append(
            f"test images that are byte-identical to train images: {active.spec.duplicates} (--allow-duplicates); the "
            "figures are partly of images that the model was trained on"
        )
    return warnings
