"""Scores of images by a run's model, resumable batch by batch, and the resulting labels.

Unfinished scores are cached under the sha256 of everything they depend on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from plbench.data.digests import signature
from plbench.data.images import ImageFiles, find_unreadable
from plbench.errors import DataError, PlbenchError
from plbench.files import locked, unwritable
from plbench.loading.resumable_array import GrowingMatrix, open_checked, open_matrix
from plbench.metrics.cells import top_places
from plbench.runs.store import CHECKPOINT
from plbench.runs.trained import TrainedModel
from plbench.runs.workspace import Workspace
from plbench.training.evaluation import EVAL_BATCH_SIZE


@dataclass(frozen=True)
class Predictions:
    """Scores of the images that can be read.

    Attributes:
        images: [N] names.
        class_names: [C].
        scores: [N, C] float32 in [0, 1].
        unreadable: reasons, by name of each skipped image.
    """

    images: tuple[str, ...]
    class_names: tuple[str, ...]
    scores: np.ndarray
    unreadable: dict[str, str]

    def labels(self, thresholds: npt.ArrayLike | None = None, top_k: int | None = None) -> npt.NDArray[np.bool_]:
        """Return the predicted classes of each image, [N, C]: those that meet all given conditions.

        Args:
            thresholds: minimum score, one for all classes or [C].
            top_k: number of highest-scored classes of an image.
        """
        chosen = np.ones(self.scores.shape, np.bool_)
        if thresholds is not None:
            # float64 represents float32 exactly, so a threshold chosen among scores is reached by its own score
            chosen &= self.scores >= np.asarray(thresholds, np.float64)
        return chosen if top_k is None else chosen & top_places(self.scores, top_k)


@contextlib.contextmanager
def predictions(
    model: TrainedModel, images: ImageFiles, workspace: Workspace, *, skip_unreadable: bool = False
) -> Iterator[Predictions]:
    """Score images; the scores are memory-mapped in the cache until the scope is left without an error.

    If interrupted, finished scores are kept, and the same call continues from there.

    Args:
        model: from `load_model`.
        images: their ids are used as names.
        workspace: the one that the model was loaded with.
        skip_unreadable: whether to leave out images that cannot be read.

    Raises:
        DataError: if an image cannot be read and is not to be skipped. StoreError: if the cache cannot be written.
    """
    place = workspace.store.cache / "predictions" / f"{_identity(model, images, workspace)[:32]}.npy"
    with locked(place) as path:
        scores = open_checked(path, len(images))
        if scores is None:
            try:
                _fill(path, model, images, workspace, skip_unreadable=skip_unreadable)
            except OSError as error:
                raise unwritable(path, error) from error
            scores = open_matrix(path, len(images))
        assert scores is not None
        missing = np.flatnonzero(np.isnan(scores[:, 0]))
        unreadable = find_unreadable(images.subset(missing)) if len(missing) else {}
        if unreadable and not skip_unreadable:
            raise _refusal(unreadable)
        there = np.flatnonzero(~np.isnan(scores[:, 0]))
        found = scores if not len(missing) else scores[there]
        why = {images.ids[int(missing[row])]: reason for row, reason in unreadable.items()}
        yield Predictions(tuple(images.ids[row] for row in there.tolist()), model.class_names, found, why)
        path.unlink(missing_ok=True)


def _fill(path: Path, model: TrainedModel, images: ImageFiles, workspace: Workspace, *, skip_unreadable: bool) -> None:
    """Compute missing scores. Rows of unreadable images are NaN."""
    growing = GrowingMatrix(path, (len(images), len(model.class_names)), EVAL_BATCH_SIZE)
    broken: set[int] = set()
    with growing.opened(owner=True), workspace.reporter.task(f"Scoring {len(images):,} images") as report:
        report(growing.num_rows_done(), len(images))
        while todo := growing.batches_to_do(0, 1):
            rows = np.concatenate([growing.rows_of(batch) for batch in todo])
            left = images.subset(rows)
            source = _WithoutBroken(left.root, left.paths, left.ids, frozenset(images.paths[row] for row in broken))
            try:
                for batch, scores in zip(todo, model.scores(source, workspace), strict=True):
                    values = scores.numpy().copy()
                    values[[row - growing.rows_of(batch).start for row in broken & {*growing.rows_of(batch)}]] = np.nan
                    growing.write(batch, values)
                    growing.note()
                    report(growing.num_rows_done(), len(images))
            except DataError:
                newly = _first_unreadable(growing, images, broken)
                if not newly:
                    raise
                if not skip_unreadable:
                    raise _refusal(newly) from None
                broken |= newly.keys()
        growing.finish(owner=True)


def _first_unreadable(growing: GrowingMatrix, images: ImageFiles, known: set[int]) -> dict[int, str]:
    """Return reasons by row of the unreadable images in the first batch that has any."""
    for batch in growing.batches_to_do(0, 1):
        rows = [row for row in growing.rows_of(batch) if row not in known]
        found = find_unreadable(images.subset(np.array(rows, np.int64)))
        if found:
            return {rows[place]: why for place, why in found.items()}
    return {}


def _refusal(unreadable: dict[int, str]) -> DataError:
    first, *others = unreadable.values()
    more = f" and {len(others):,} more" if others else ""
    return DataError(f"{first}{more}; repair or remove it, or leave such images out: `skip_unreadable=True`")


@dataclass(frozen=True)
class _WithoutBroken(ImageFiles):
    """Images of which unreadable ones are replaced by black ones, to keep batches unchanged."""

    broken: frozenset[str] = frozenset()

    def load(self, row: int, min_side: int = 0) -> Image.Image:
        """Return the image, or a black one if unreadable."""
        return Image.new("RGB", (64, 64)) if self.paths[row] in self.broken else super().load(row, min_side)

    def subset(self, index: np.ndarray) -> _WithoutBroken:
        """Return the chosen rows, in the order given."""
        left = super().subset(index)
        return _WithoutBroken(left.root, left.paths, left.ids, self.broken)


def _identity(model: TrainedModel, images: ImageFiles, workspace: Workspace) -> str:
    """Return the hex sha256 of everything that scores depend on: model, image files in this order, and device."""
    digest = hashlib.sha256()
    weights = model.record.files[CHECKPOINT].sha256
    digest.update(json.dumps([model.record.key, weights, workspace.device.type, workspace.decode]).encode())
    for row, name in enumerate(images.ids):
        digest.update(name.encode(errors="surrogateescape") + b"\0")
        with contextlib.suppress(OSError, PlbenchError):  # reported when it is read
            digest.update(signature(images.path(row).stat()))
    return digest.hexdigest()
