"""Whether what a record tells of its run adds up: data, selection, steps, cost, priors, hidden truth."""

from __future__ import annotations

import math

from plbench.board.entries import Entry
from plbench.runs.findings import Findings, shown
from plbench.runs.record import Cost, DataSummary, HiddenTruth, PriorDiagnostics, Record, SelectionReport, StandardCost
from plbench.training.clock import PHASES

_TINY = 1e-9  # relative: sums of floats in another order


def check_bookkeeping(entry: Entry, findings: Findings) -> None:
    """All that follows from the spec and from the rest of the record, without the figures on test."""
    record = entry.record
    names = {row.class_name for row in entry.per_class}
    data, selection, cost = record.data, record.selection, record.cost
    if data is None or selection is None or cost is None:
        missing = next(name for name in ("data", "selection", "cost") if getattr(record, name) is None)
        findings.refuse(missing, "missing", f"the {missing} of a run that is done")
        return
    _check_data(data, record, len(entry.per_class), findings)
    _check_selection(selection, record, data, findings)
    _check_cost(cost, selection.epoch, data.num_train, findings)
    if cost.standard is not None:
        _check_standard_cost(cost.standard, record, data, selection.epoch, findings)
    for name, prior in record.priors.items():
        _check_prior(f"priors.{name}", prior, names, len(entry.per_class), findings)
    simulated = record.spec.protocol.simulation != "none"
    words = "there, as a simulation hid it" if simulated else "null: no simulation hid anything"
    findings.require((record.hidden_truth is not None) == simulated, "hidden_truth", record.hidden_truth, words)
    if record.hidden_truth is not None:
        _check_hidden_truth(record.hidden_truth, data, len(entry.per_class), findings)
    findings.equal("error", record.error, None)


def _check_data(data: DataSummary, record: Record, num_classes: int, findings: Findings) -> None:
    findings.require(data.num_train > 0, "data.num_train", data.num_train, "at least 1")
    cells = max(data.num_train, 1) * num_classes
    findings.close("data.train_density", data.train_density, data.num_train_known / cells, _TINY)
    findings.require(data.num_train_known <= cells, "data.num_train_known", data.num_train_known, f"at most {cells}")
    signs = data.train_positives + data.train_negatives
    if signs != data.num_train_known:
        words = f"{data.num_train_known}, with {data.train_positives} positives and {data.train_negatives} negatives"
        findings.refuse("data.num_train_known", words, f"their sum, {signs}")
    learnt = num_classes - data.classes_without_train_positives
    well = 0 <= learnt <= data.train_positives and (learnt > 0 or not data.train_positives)
    absent = data.classes_without_train_positives
    words = f"as many of {num_classes} classes as {data.train_positives} positives leave without any"
    findings.require(well, "data.classes_without_train_positives", absent, words)
    findings.equal("data.num_validation", data.num_validation, 0)
    findings.equal("data.skipped_images", data.skipped_images, len(record.spec.skipped_images))
    if "test" in record.metrics:
        findings.equal("data.num_test", data.num_test, record.test.num_images)


def _check_selection(selection: SelectionReport, record: Record, data: DataSummary, findings: Findings) -> None:
    """Rule, labels, epoch and weights follow from the spec; steps from the epoch."""
    spec, plan = record.spec, record.spec.plan
    if "best-on-test" in (spec.selection, selection.rule) or selection.labels == "test":
        field = "spec.selection" if spec.selection == "best-on-test" else "selection"
        findings.refuse(field, "a choice on the test split", "one that the test split had no part in")
        return
    findings.equal("selection.rule", selection.rule, spec.selection)
    labels = "none" if spec.selection == "last" else spec.protocol.validation_labels
    findings.equal("selection.labels", selection.labels, labels)
    well = selection.epoch == plan.epochs if spec.selection == "last" else 1 <= selection.epoch <= plan.epochs
    words = f"{plan.epochs}, the last" if spec.selection == "last" else f"1 to {plan.epochs}"
    findings.require(well, "selection.epoch", selection.epoch, words)
    findings.require(not selection.curve, "selection.curve", selection.curve, "none: the run that chose has it")
    steps_per_epoch = math.ceil(data.num_train / plan.batch_size)
    averaged = plan.ema_decay > 0 and plan.ema_horizon * plan.epochs * steps_per_epoch > 1
    findings.equal("selection.weights", selection.weights, "ema" if averaged else "raw")
    findings.equal("metrics", sorted(record.metrics), ["test", "test_raw"] if averaged else ["test"])
    findings.equal("training.steps", record.training.get("steps"), float(selection.epoch * steps_per_epoch))


def _check_cost(cost: Cost, epochs: int, num_train: int, findings: Findings) -> None:
    phases = {name: seconds for name, seconds in cost.seconds.items() if name != "total"}
    for name, seconds in cost.seconds.items():
        findings.require(0 <= seconds < 1e10, f"cost.seconds.{name}", seconds, "seconds")
    findings.close(
        "cost.seconds.total", cost.seconds.get("total"), sum(phases.values()), _TINY * max(1.0, sum(phases.values()))
    )
    for name, seconds in cost.phases.items():
        findings.require(name in PHASES and 0 <= seconds < 1e10, f"cost.phases.{name}", seconds, "seconds of a phase")
    findings.require(cost.peak_memory_mb > 0, "cost.peak_memory_mb", cost.peak_memory_mb, "a positive number")
    # a run that went on from a checkpoint timed its last epochs only
    timed = cost.images_per_second * max(phases.get("training", 0.0), 1e-9) / max(num_train, 1)
    well = math.isfinite(timed) and abs(timed - round(timed)) <= _TINY * max(1.0, timed) and timed < epochs + 0.5
    words = f"images of whole epochs, up to {epochs}, by cost.seconds.training"
    findings.require(well, "cost.images_per_second", cost.images_per_second, words)
    well = not (cost.measured_alone and cost.shared_with)
    findings.require(well, "cost.shared_with", cost.shared_with, "0, of a run that was measured alone")


def _check_standard_cost(
    cost: StandardCost, record: Record, data: DataSummary, epochs: int, findings: Findings
) -> None:
    """Counts follow from the data and the plan, or are at least what the run itself took."""
    spec = record.spec
    least = 1 + len(spec.stages) + (spec.selection == "validation")
    findings.require(cost.trainings >= least, "cost.standard.trainings", cost.trainings, f"at least {least}")
    own = epochs * data.num_train
    if spec.regime == "probe":
        images = {spec.protocol.train_split: data.num_train, spec.protocol.test_split: data.num_test}
        findings.equal("cost.standard.extracted", cost.extracted, images)
        findings.equal("cost.standard.forward", cost.forward, 0)
        findings.equal("cost.standard.trained", cost.trained, 0)
    else:
        findings.equal("cost.standard.extracted", cost.extracted, {})
        findings.require(
            cost.forward >= data.num_test, "cost.standard.forward", cost.forward, f"{data.num_test} or more"
        )
        findings.equal("cost.standard.trained", cost.trained, cost.head)
    if spec.regime == "probe" and spec.selection == "last":  # stages train as long, on the same part
        findings.equal("cost.standard.head", cost.head, cost.trainings * own)
    else:
        findings.require(cost.head >= own, "cost.standard.head", cost.head, f"{own} or more")


def _check_prior(where: str, prior: PriorDiagnostics, names: set[str], num_classes: int, findings: Findings) -> None:
    """Probabilities of classes that there are, highest first, which `total` is the sum of."""
    values = [value for _, value in prior.top]
    for name, value in prior.top:
        findings.require(0 <= value <= 1, f"{where}.top", value, "between 0 and 1")
        findings.require(name in names, f"{where}.top", name, "a class of per_class.csv")
    findings.require(values == sorted(values, reverse=True), f"{where}.top", values, "falling values")
    rest = (num_classes - len(values)) * min(values, default=1.0)
    slack = 1e-6 * max(1.0, num_classes)
    well = rest >= 0 and sum(values) - slack <= prior.total <= sum(values) + rest + slack
    findings.require(well, f"{where}.total", prior.total, f"{sum(values):.6f}, or up to {max(rest, 0.0):.6f} more")
    for depth, correlation in (prior.spearman_by_depth or {}).items():
        known = depth.isascii() and depth.isdigit() and 0 < int(depth) <= num_classes
        findings.require(known, f"{where}.spearman_by_depth", depth, f"a number of classes, 1 to {num_classes}")
        well = correlation is None or -1 - _TINY <= correlation <= 1 + _TINY
        findings.require(well, f"{where}.spearman_by_depth.{depth}", correlation, "a correlation, -1 to 1")


def _check_hidden_truth(truth: HiddenTruth, data: DataSummary, num_classes: int, findings: Findings) -> None:
    """Shares are of whole cells: base rate of those hidden, precision of those marked."""
    hidden = data.num_train * num_classes - data.num_train_known
    _check_share("hidden_truth.base_rate", truth.base_rate, hidden, findings)
    findings.equal("hidden_truth.precision", sorted(truth.precision), sorted(truth.num_marked))
    for name, marked in truth.num_marked.items():
        cells = data.num_train * num_classes
        findings.require(marked <= cells, f"hidden_truth.num_marked.{name}", marked, f"at most {cells}, all of train")
        _check_share(f"hidden_truth.precision.{name}", truth.precision.get(name), marked, findings)


def _check_share(where: str, percent: float | None, whole: int, findings: Findings) -> None:
    """A percentage of `whole` things is that of some number of them."""
    if percent is None or whole <= 0:
        findings.require(percent is None and whole == 0, where, percent, f"a share of {whole} cells, null for none")
        return
    part = percent * whole / 100
    well = abs(part - round(part)) <= 1e-3 if whole < 10**11 else True  # beyond it floats do not tell
    findings.require(
        well, where, percent, f"that of a whole number of the {whole} cells, such as {_nearest(part, whole)}"
    )


def _nearest(part: float, whole: int) -> str:
    return shown(100 * round(part) / whole)
