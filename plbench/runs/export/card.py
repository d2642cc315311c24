"""The model card of an exported run, from its record: for readers, and for the Hub's front matter."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from tabulate import tabulate

from plbench.progress import counted
from plbench.runs.record import Record
from plbench.runs.trained import TrainedModel

_SPECIAL = str.maketrans({character: f"\\{character}" for character in "\\`*_{}[]<>#|~!"})
_SHOWN_CLASSES = 100
_TASK: dict[str, Any] = {"task_type": "image-classification", "task_name": "Multi-label image classification"}


def model_card(
    model: TrainedModel,
    about: Mapping[str, Any],
    files: Collection[str],
    *,
    repo: str | None = None,
    dataset: str | None = None,
    licence: str | None = None,
) -> str:
    """Return a README.md for the Hub, with its YAML front matter.

    Args:
        about: from `plbench.runs.export.network.description`.
        files: names of the files next to it.
        repo: "USER/NAME" on the Hub, if they are uploaded.
        dataset, licence: of the dataset, as text, if it is installed.
    """
    from huggingface_hub import ModelCardData

    record = model.record
    part, metrics = _headline(record)
    name = (repo or f"{record.spec.protocol.name}-{record.spec.method.name}").rpartition("/")[2]
    data = ModelCardData(
        library_name="timm" if "config.json" in files else "onnx" if "model.onnx" in files else None,
        pipeline_tag="image-classification",
        tags=["multi-label", "partial-labels", "plbench", record.spec.method.name],
        datasets=[record.spec.protocol.dataset],
        metrics=["mAP"],
        model_name=name,
        eval_results=list(_results(record)),
    )
    classes = [f"`{_without_ticks(title)}`" for title in about["class_names"][:_SHOWN_CLASSES]]
    left = len(about["class_names"]) - len(classes)
    parameters = ", ".join(f"{key} = {value}" for key, value in record.spec.method.params.items())
    text = _template().render(
        title=_plain(f"{record.title} on {record.spec.protocol.name}"),
        record=record,
        spec=record.spec,
        about=about,
        files=files,
        repo=repo,
        dataset=dataset or record.spec.protocol.dataset,
        licence=licence,
        held_out=metrics.thresholds is not None and metrics.thresholds.held_out,
        classes=", ".join(classes) + (f" and {left:,} more" if left else ""),
        parameters=_plain(parameters),
        part=part,
        metrics=metrics,
        figures=_table(record),
        notes=list(_notes(record)),
        plain=_plain,
        counted=counted,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{text.strip()}\n"


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("card.md")


def _headline(record: Record) -> tuple[str, Any]:
    return next(iter(record.metrics.items()))


def _results(record: Record) -> Iterator[Any]:
    """Yield the headline metrics in the format of the Hub's front matter, with their intervals."""
    from huggingface_hub import EvalResult

    part, metrics = _headline(record)
    protocol = record.spec.protocol
    for title, metric_type, estimate in (
        ("mAP(C)", "mean_average_precision", metrics.map_c),
        ("mAP(O)", "overall_average_precision", metrics.map_o),
    ):
        if estimate.value is None:
            continue
        interval = {} if estimate.low is None else {"interval": "95 %", "low": estimate.low, "high": estimate.high}
        yield EvalResult(
            **_TASK,
            dataset_type=protocol.dataset,
            dataset_name=protocol.name,
            dataset_split=part,
            metric_type=metric_type,
            metric_name=f"{title}, percent",
            metric_value=estimate.value,
            metric_args=interval or None,
        )


def _table(record: Record) -> str:
    """Return the record's figures with intervals as a Markdown table."""
    _, metrics = _headline(record)
    rows: list[tuple[str, float | None, Any]] = []
    for title, estimate in (("mAP(C)", metrics.map_c), ("mAP(O)", metrics.map_o)):
        rows.append((title, estimate.value, estimate))
    rows += [(f"mAP(C) of {_plain(name)}", group.map_c.value, group.map_c) for name, group in metrics.groups.items()]
    rows += [("AUROC", metrics.auroc, None), ("pooled AP", metrics.micro_ap, None)]
    for where, f1 in (("thresholds", metrics.f1), ("top 3", metrics.f1_top3)):
        if f1 is not None:
            rows += [(f"CF1, {where}", f1.cf1, None), (f"OF1, {where}", f1.of1, None)]
    rows.append(("expected calibration error", metrics.ece, None))
    shown = [
        (title, f"{value:.2f}", "" if own is None or own.low is None else f"{own.low:.2f} to {own.high:.2f}")
        for title, value, own in rows
        if value is not None
    ]
    return tabulate(shown, ("metric", "%", "95 % interval"), "pipe", disable_numparse=True)


def _notes(record: Record) -> Iterator[str]:
    """Yield notes that are required to interpret the figures."""
    selection = record.selection
    if selection is not None and selection.labels == "test":
        yield "The epoch was chosen by these very test figures, which are therefore too high"
    if record.test_seen_in_pretraining is not None:
        yield f"Test images: {record.test_seen_in_pretraining}"
    if record.spec.precision != "float32":
        yield f"The figures were computed in {record.spec.precision}; the exported model computes in float32"
    yield from record.warnings
    yield from record.notes


def _plain(text: str) -> str:
    """Return a text on one line, which Markdown shows unchanged."""
    return " ".join(text.split()).translate(_SPECIAL)


def _without_ticks(text: str) -> str:
    return " ".join(text.split()).replace("`", "'")
