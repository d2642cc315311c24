"""Sections of a run's page on how it was made: known labels, marked unknown labels, settings, cost, environment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from plbench.progress import counted, duration
from plbench.runs.page.reading import RunFiles
from plbench.runs.page.view import Row, percent
from plbench.runs.record import Cost, Record


def labels_in_training(record: Record, num_classes: int) -> list[tuple[str, str, str]]:
    """Return rows on the labels in training: description, number of (image, class) pairs, and their share."""
    data = record.data
    if data is None:
        return []
    total = data.num_train * num_classes
    numbers = {
        "verified present": data.train_positives,
        "verified absent": data.train_negatives,
        "unknown": num_unknown(record, num_classes),
    }
    return [(what, f"{number:,}", f"{100 * number / max(total, 1):.2f} %") for what, number in numbers.items()]


def num_unknown(record: Record, num_classes: int) -> int:
    """Return the number of unknown (image, class) pairs of the train part."""
    return 0 if record.data is None else record.data.num_train * num_classes - record.data.num_train_known


def marked(record: Record, num_classes: int) -> list[dict[str, str]]:
    """Return how the method treated unknown labels: size of each mask, its share of unknown labels, and its truth.

    It is only recorded if a simulation hid labels: for the trained model, on all of train.
    """
    data, hidden = record.data, record.hidden_truth
    if data is None or hidden is None:
        return []
    unknown = num_unknown(record, num_classes)
    return [
        {
            "name": name.replace("_", " "),
            "number": f"{number:,}",
            "share": f"{100 * number / max(unknown, 1):.2f} %",
            "present": f"{percent(hidden.precision.get(name))} %" if number else "–",
        }
        for name, number in hidden.num_marked.items()
    ]


def cost(found: Cost) -> Iterator[Row]:
    """Yield the cost of the run, by name."""
    parts = {name: seconds for name, seconds in found.seconds.items() if name != "total"}
    yield "Time", f"{duration(found.seconds.get('total', sum(parts.values())))}: " + _seconds(parts)
    if found.phases:
        yield "Training time by phase", _seconds(found.phases)
    company = ""
    if found.shared_with:
        company = f"; {counted(found.shared_with, 'other head')} trained in the same pass"
    elif found.measured_alone is False:
        company = "; other trainings may have shared the machine"
    yield "Training throughput", f"{found.images_per_second:,.0f} images a second{company}"
    yield "Peak memory", f"{found.peak_memory_mb:,.0f} MB"
    if (standard := found.standard) is not None:
        yield (
            "Standard cost",
            f"{counted(standard.trainings, 'training')}, {standard.image_passes:,} passes of an image through the "
            f"backbone (forward and backward count as 3), {standard.head:,} images that a head was trained on: the "
            "same on every machine, stages included",
        )


def _seconds(parts: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {seconds:,.1f} s" for name, seconds in parts.items())


def environment(record: Record) -> Iterator[Row]:
    """Yield the environment of the run, by name."""
    for name, value in record.environment.items():
        if isinstance(value, dict):
            value = ", ".join(f"{package} {version}" for package, version in value.items())
        elif isinstance(value, bool):
            value = "yes" if value else "no"
        if value is not None:
            yield name.replace("_", " "), str(value)


def settings(files: RunFiles) -> Iterator[Row]:
    """Yield the settings of the run, by name."""
    spec, record = files.spec, files.record
    yield "Method", f"{spec.method.name}, version {spec.method.version}"
    yield "Parameters", _listed(spec.method.params) or "none"
    yield "Model", _listed(spec.model.model_dump(mode="json", exclude_none=True, exclude={"weights_sha256"}))
    yield "Regime", f"{spec.regime}, recipe {spec.recipe}, {spec.precision}"
    yield "Plan", _listed(spec.plan.model_dump(mode="json", exclude_none=True))
    if record is not None and (chosen := record.selection) is not None:
        yield "Selection", f"{chosen.rule}: epoch {chosen.epoch}, {chosen.weights} weights"
    if record is not None and (tuning := record.tuning) is not None:
        values = ", ".join(f"{name} {value:.4g}" for name, value in tuning.chosen.items())
        before = f" ({percent(tuning.default_value)} with the starting values)" if tuning.default_value else ""
        yield (
            "Tuning",
            f"study {tuning.study}, {counted(tuning.num_trials, 'trial')} by {tuning.sampler}: {values}; validation "
            f"mAP(C) {percent(tuning.value)}{before}",
        )
    if record is not None and (seen := record.pretraining) is not None:
        known = "unknown" if seen.datasets is None else ", ".join(seen.datasets) or "none"
        yield "Pretraining", f"{known} ({seen.weights}; {seen.source})"
    if record is not None and record.test_seen_in_pretraining is not None:
        yield "Test images", record.test_seen_in_pretraining


def _listed(values: dict[str, Any]) -> str:
    def text(value: Any) -> str:
        return f"{value:g}" if isinstance(value, float) else str(value)

    return ", ".join(f"{name}={text(value)}" for name, value in values.items())
