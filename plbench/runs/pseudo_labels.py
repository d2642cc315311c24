"""Pseudo-labels: unknown labels of a training set that models are certain of, written to a table with the known ones.

The table has one row per label and can be used for training like any other.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from scipy import sparse

from plbench.data.images import ImageFiles, ImageSource
from plbench.data.labels import PartialLabels
from plbench.errors import DataError, PlbenchError
from plbench.files import write_atomically
from plbench.runs.protocol import ProtocolData
from plbench.runs.stored import read_run
from plbench.runs.train_scores import models_of, scores_by_run
from plbench.runs.trained import TrainedModel
from plbench.runs.workspace import Workspace, fingerprint, open_dataset

_KINDS = ("score", "top", "agreement")
_EXAMPLES = "`rule=score=0.9,absent=0.05`, `rule=top=0.1` or `rule=agreement`"
_ROWS = 4096  # images at a time
_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("image", "label", "value", "split", "source")] + [("score", pa.float32())]
)

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Rule:
    """The rule by which an unknown label gets a pseudo-label.

    Attributes:
        kind: "score": present if the mean score over the runs is at least `present`; "top": present if it is among the
            share `present` of highest mean scores of its class's unknown labels; "agreement": present if the score of
            every run is at least `present`.
        present: None, only for "agreement", uses each run's own thresholds.
        absent: absent if the mean score, or that of every run, is at most this; for "top", the share with the lowest
            scores. None for no absent pseudo-labels or, if `present` is None, for scores below the thresholds.
    """

    kind: Literal["score", "top", "agreement"]
    present: float | None
    absent: float | None = None

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Parse a rule such as "score=0.9,absent=0.05", "top=0.1" or "agreement".

        Raises:
            PlbenchError: if the rule is invalid.
        """
        values: dict[str, float | None] = {}
        for part in text.split(","):
            name, equals, number = part.strip().partition("=")
            if name in values or name not in (*_KINDS, "absent"):
                raise PlbenchError(
                    f"`rule={text}`: {name!r} is not a rule, or is given twice; give one such as {_EXAMPLES}"
                )
            values[name] = float(number) if re.fullmatch(r"\d*\.?\d+", number) else None
            if not (equals or name == "agreement") or (equals and not 0 <= (values[name] or 0.0) <= 1):
                raise PlbenchError(f"`rule={text}`: {name} needs a number from 0 to 1; give one such as {_EXAMPLES}")
            if equals and values[name] is None:
                raise PlbenchError(
                    f"`rule={text}`: {number!r} is not a number from 0 to 1; give one such as {_EXAMPLES}"
                )
        absent = values.pop("absent", None)
        if len(values) != 1:
            raise PlbenchError(f"`rule={text}` has {'no' if not values else 'more than one'} kind; give {_EXAMPLES}")
        ((kind, present),) = values.items()
        if absent is not None and present is None:
            raise PlbenchError(
                f"`rule={text}`: without a number, agreement uses the thresholds that each run chose; leave absent "
                "out, or give both, as in `rule=agreement=0.9,absent=0.05`"
            )
        overlap = absent is not None and present is not None
        if overlap and (absent + present > 1 if kind == "top" else absent >= present):  # type: ignore[operator]
            raise PlbenchError(f"`rule={text}` would call labels both present and absent; give a smaller absent")
        return cls(kind, present, absent)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """Known labels of a dataset, and pseudo-labels.

    Attributes:
        known: [N, C] of the train images, as used by the runs.
        added: [N, C] pseudo-labels at cells that are unknown in `known`.
        scores: [N, C] float32, the mean score of each added cell over the runs, stored where `added` is.
        test: [M, C] labels of the test images, copied unchanged; nothing else of test was read.
        class_names: [C] unique; ids if two classes share a name.
        folder: that holds all images. train_paths, test_paths: [N], [M] below it.
        method: of the first run.
    """

    known: PartialLabels
    added: PartialLabels
    scores: sparse.csr_array
    test: PartialLabels
    class_names: tuple[str, ...]
    folder: Path
    train_paths: Sequence[str]
    test_paths: Sequence[str]
    method: str


def pseudo_label(folders: Sequence[Path], rule: Rule, workspace: Workspace) -> PseudoLabels:
    """Compute pseudo-labels for the unknown labels of a training set.

    Args:
        folders: of finished runs on the same labels of the same images.
        rule: selects the pseudo-labels.
        workspace: locations and compute options, with the runs' dataset.

    Raises:
        PlbenchError: if the runs do not belong together, the data has changed, or a model cannot be loaded. DataError:
            if no label is unknown, or images are not files.
    """
    records = [read_run(folder) for folder in folders]
    first, keys = records[0].spec, [record.key for record in records]
    for number, record in enumerate(records):
        if record.key in keys[:number]:
            raise PlbenchError(f"run {record.key} is given twice; name each run once")
        if record.spec.protocol.dataset != first.protocol.dataset:
            raise PlbenchError(
                f"run {record.key} is of dataset {record.spec.protocol.dataset!r}, and run {keys[0]} of "
                f"{first.protocol.dataset!r}; give runs of one dataset"
            )
    if rule.kind == "agreement" and len(folders) < 2:
        raise PlbenchError("`rule=agreement` compares runs; give at least two, such as several seeds")
    dataset = open_dataset(first.protocol.dataset, workspace)
    here = fingerprint(dataset, workspace)
    data = [ProtocolData(dataset, r.spec.protocol, r.spec.skipped_images, r.spec.seed) for r in records]
    labels = data[0].train().labels
    for record, own in zip(records, data, strict=True):
        if record.spec.dataset_fingerprint != here:
            raise PlbenchError(
                f"the images or labels of dataset {dataset.name!r} are not those that run {record.key} was made with; "
                "give the options that the run had"
            )
        if own.train().labels.fingerprint() != labels.fingerprint() or own.skipped != data[0].skipped:
            raise PlbenchError(
                f"runs {keys[0]} and {record.key} have different known labels of the train images; where each seed "
                "samples its own labels, give runs of one seed, or make them with `simulation_seed=0`"
            )
    train, test = data[0].train(), data[0].whole(first.protocol.test_split)
    if labels.num_known == labels.num_images * labels.num_classes:
        raise DataError(f"every label of the train images of {dataset.name!r} is known; there is nothing to add")
    folder, (train_paths, test_paths) = _paths([train.images, test.images], dataset.name)
    models = models_of(folders, workspace)
    chooser = _chooser(rule, models, labels)
    with workspace.reporter.task(f"Scoring {labels.num_images:,} train images") as report:
        for rows, scores in scores_by_run(models, train, data[0], workspace):
            chooser.look(rows, scores, labels.rows(rows) == 0)
            report(int(rows[-1]) + 1, labels.num_images)
    at, class_index, values, means = chooser.chosen()
    added = PartialLabels.from_cells(
        at,
        class_index,
        values,
        num_rows=labels.num_images,
        class_ids=labels.class_ids,
        class_names=labels.class_names,
    )
    kept = sparse.csr_array((means, (at, class_index)), shape=(labels.num_images, labels.num_classes))
    names = models[0].class_names
    return PseudoLabels(labels, added, kept, test.labels, names, folder, train_paths, test_paths, first.method.name)


def _paths(sources: Sequence[ImageSource], dataset: str) -> tuple[Path, list[list[str]]]:
    """Return the common folder of all image files, and their paths below it."""
    for images in sources:
        if not isinstance(images, ImageFiles):
            raise DataError(
                f"the images of dataset {dataset!r} are packed in shards, and a table of labels names files; use the "
                "dataset as it was published, with `data_root=DIR`"
            )
    files = [images for images in sources if isinstance(images, ImageFiles)]
    folder = Path(os.path.commonpath([os.path.abspath(images.root) for images in files]))
    below = [os.path.relpath(os.path.abspath(images.root), folder) for images in files]
    paths = [
        list(images.paths) if start == "." else [f"{start}/{path}" for path in images.paths]
        for start, images in zip(below, files, strict=True)
    ]
    return (files[0].root if all(start == "." for start in below) else folder), paths


class _Chooser:
    """Selects cells batch by batch, for rules that decide each cell independently."""

    def __init__(self, choose: Callable[[Floats], tuple[np.ndarray, np.ndarray]]) -> None:
        """Start empty; `choose` maps scores [R, b, C] to masks of present and absent cells."""
        self._choose = choose
        self._parts: list[tuple[np.ndarray, ...]] = []

    def look(self, rows: npt.NDArray[np.int64], scores: Floats, unknown: npt.NDArray[np.bool_]) -> None:
        """Add a batch: row of each image [b], scores [R, b, C], and mask of unknown cells [b, C]."""
        mean = scores.mean(axis=0, dtype=np.float64)
        present, absent = self._choose(scores)
        for chosen, value in ((present & unknown, 1), (absent & unknown & ~present, -1)):
            at, class_index = np.nonzero(chosen)
            values = np.full(len(at), value, np.int8)
            self._parts.append((rows[at], class_index, values, mean[at, class_index].astype(np.float32)))

    def chosen(self) -> tuple[np.ndarray, ...]:
        """Return row, class, value (+1 or -1) and mean score of each cell."""
        return tuple(np.concatenate(column) for column in zip(*self._parts, strict=True))


class _TopChooser:
    """Keeps the highest and lowest mean scores among the unknown cells of each class; ties by order."""

    def __init__(self, quotas: Sequence[npt.NDArray[np.int64]]) -> None:
        """Start empty; `quotas` are the numbers of highest and of lowest scores, [C] each."""
        nothing = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
        self._quotas = quotas
        self._kept: list[list[tuple[np.ndarray, ...]]] = [[nothing], [nothing]]

    def look(self, rows: npt.NDArray[np.int64], scores: Floats, unknown: npt.NDArray[np.bool_]) -> None:
        """Add a batch, as in `_Chooser.look`."""
        mean = scores.mean(axis=0, dtype=np.float64).astype(np.float32)
        at, class_index = np.nonzero(unknown)
        for side, quota in enumerate(self._quotas):
            if quota.any():
                self._kept[side].append((rows[at], class_index, mean[at, class_index]))
                if sum(len(part[0]) for part in self._kept[side]) > 4 * quota.sum() + (1 << 20):
                    self._kept[side] = [self._best(side)]

    def _best(self, side: int) -> tuple[np.ndarray, ...]:
        rows, class_index, means = (np.concatenate(column) for column in zip(*self._kept[side], strict=True))
        order = np.lexsort((rows, -means if side == 0 else means, class_index))
        in_order = class_index[order]
        place = np.arange(len(order)) - np.searchsorted(in_order, in_order)
        best = order[place < self._quotas[side][in_order]]
        return rows[best], class_index[best], means[best]

    def chosen(self) -> tuple[np.ndarray, ...]:
        """Return row, class, value and mean score of each cell."""
        parts = []
        for side, value in enumerate((1, -1)):
            rows, class_index, means = self._best(side)
            parts.append((rows, class_index, np.full(len(rows), value, np.int8), means))
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def _chooser(rule: Rule, models: Sequence[TrainedModel], labels: PartialLabels) -> _Chooser | _TopChooser:
    present, absent = rule.present, -1.0 if rule.absent is None else rule.absent
    if rule.kind == "top":
        num_unknown = labels.num_images - np.add(*labels.counts())
        shares = (present or 0.0, rule.absent or 0.0)
        return _TopChooser([np.rint(share * num_unknown).astype(np.int64) for share in shares])
    if rule.kind == "score":
        assert present is not None

        def by_mean(scores: Floats) -> tuple[np.ndarray, np.ndarray]:
            mean = scores.mean(axis=0, dtype=np.float64)
            return np.greater_equal(mean, present), np.less_equal(mean, absent)

        return _Chooser(by_mean)
    if present is not None:
        return _Chooser(lambda scores: (np.all(scores >= present, axis=0), np.all(scores <= absent, axis=0)))
    own = np.stack([model.thresholds("`rule=agreement=0.9`") for model in models])[:, None, :]  # [R, 1, C]
    return _Chooser(lambda scores: (np.all(scores >= own, axis=0), np.all(scores < own, axis=0)))


def write_labels(path: Path, found: PseudoLabels) -> None:
    """Write known labels and pseudo-labels as a long table for training; test images keep their labels.

    Columns: image (below `found.folder`), label, value ("present" or "absent"; empty if a row only lists an image or
    class), split ("train" or "test"), source ("known" or "pseudo"), score (of pseudo-labels).

    Args:
        path: of a .csv or .parquet file; written atomically.
        found: from `pseudo_label`.

    Raises:
        PlbenchError: as `check_labels_name`. StoreError: if it cannot be written.
    """
    check_labels_name(path)

    def write(file: IO[bytes]) -> None:
        make = pa.csv.CSVWriter if path.suffix.lower() == ".csv" else pa.parquet.ParquetWriter
        with make(file, _SCHEMA) as writer:
            for table in _tables(found):
                writer.write_table(table)

    write_atomically(path, write)


def check_labels_name(path: Path) -> None:
    """Reject file suffixes that labels cannot be read from.

    Raises:
        PlbenchError: if it is.
    """
    endings = (".csv", ".parquet")
    if path.suffix.lower() not in endings:
        raise PlbenchError(f"`out={path}`: its name must end in {' or '.join(endings)}")


def _tables(found: PseudoLabels) -> Iterator[pa.Table]:
    """Yield the rows image by image, those of train first."""
    sides = ((found.known, found.train_paths, "train"), (found.test, found.test_paths, "test"))
    said = np.zeros(found.known.num_classes, bool)
    for labels in (found.known, found.added, found.test):
        said |= np.add(*labels.counts()) > 0
    for labels, paths, split in sides:
        for start in range(0, labels.num_images, _ROWS):
            rows = np.arange(start, min(start + _ROWS, labels.num_images))
            known = labels.rows(rows)
            added: np.ndarray = np.zeros_like(known)
            scores: np.ndarray = np.zeros(known.shape, np.float32)
            if split == "train":
                added, scores = found.added.rows(rows), found.scores[rows].toarray()
            values = known + added
            named = values != 0
            named[~named.any(axis=1), 0] = True  # list images without known labels, too
            if split == "train" and start == 0:
                named[0] |= ~said  # and classes
            at, class_index = np.nonzero(named)
            is_added, value = added[at, class_index] != 0, values[at, class_index]
            columns = {
                "image": [paths[row] for row in rows[at].tolist()],
                "label": [found.class_names[c] for c in class_index.tolist()],
                "value": np.array(["absent", None, "present"], object)[value + 1],
                "split": [split] * len(at),
                "source": np.array([None, "known", "pseudo"], object)[(value != 0) * (1 + is_added)],
                "score": pa.array(scores[at, class_index], pa.float32(), mask=~is_added),
            }
            yield pa.table({name: pa.array(column, _SCHEMA.field(name).type) for name, column in columns.items()})
