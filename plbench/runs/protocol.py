"""A dataset under a protocol: training, validation and test part, and hidden labels."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import sparse

from plbench.data.dataset import Dataset
from plbench.data.digests import file_sha256
from plbench.data.embeddings import kept_embeddings, read_embeddings
from plbench.data.images import ImageSource
from plbench.data.label_file import read_label_file
from plbench.data.labels import PartialLabels
from plbench.data.published_masks import validation_of_cole
from plbench.data.simulation import LABEL_FILE, parse
from plbench.errors import DataError
from plbench.files import unwritable, write_atomically
from plbench.progress import Reporter
from plbench.randomness import derive_seed
from plbench.spec import UNRANKED_SELECTIONS, Protocol, Selection, TrainPart


@dataclass(frozen=True)
class Part:
    """Some rows of one split.

    Attributes:
        split: name of the split.
        rows: [n] row of each image in the whole split (`ProtocolData.whole`).
        images, labels: of these rows, in this order.
    """

    split: str
    rows: np.ndarray
    images: ImageSource
    labels: PartialLabels


class ProtocolData:
    """A dataset under a protocol, with the labels of one seed.

    Parts are opened on first use, so test is never opened unless it is used.

    Attributes:
        skipped: excluded images, as "split/id".
        seed: of the protocol's simulation.
    """

    def __init__(self, dataset: Dataset, protocol: Protocol, skipped_images: Sequence[str] = (), seed: int = 0) -> None:
        """Store the arguments; nothing is opened yet.

        Args:
            dataset: the dataset.
            protocol: the protocol.
            skipped_images: images to exclude, as "split/id".
            seed: of the run, used for the simulation if the protocol has no seed.
        """
        self.dataset, self.protocol = dataset, protocol
        self.skipped = frozenset(skipped_images)
        self.seed = protocol.label_seed(seed)
        self._splits: dict[str, Part] = {}
        self._prominences: dict[str, sparse.csr_array] = {}
        self._embedded: dict[tuple[str, str, bytes], dict[str, np.ndarray]] = {}
        self._folds: dict[str, tuple[Part, Part]] = {}
        self._siblings: dict[int, ProtocolData] = {self.seed: self}

    def at_seed(self, seed: int) -> ProtocolData:
        """Return the data of a run with this seed: the same open images, with its own simulated labels."""
        label_seed = self.protocol.label_seed(seed)
        if label_seed not in self._siblings:
            sibling = ProtocolData(self.dataset, self.protocol, tuple(self.skipped), seed)
            sibling._splits, sibling._siblings = self._splits, self._siblings
            sibling._prominences, sibling._embedded = self._prominences, self._embedded
            self._siblings[label_seed] = sibling
        return self._siblings[label_seed]

    def is_of(self, dataset: Dataset, protocol: Protocol, skipped_images: Sequence[str] = ()) -> bool:
        """Return whether this is the given dataset and protocol, with any seed."""
        return self.dataset is dataset and (self.protocol, self.skipped) == (protocol, frozenset(skipped_images))

    def whole(self, split: str) -> Part:
        """Return a split without skipped images, with the dataset's own labels.

        Raises:
            DataError: if it contains no images.
        """
        if split not in self._splits:
            found = self.dataset.split(split)
            if self.skipped:  # otherwise nothing is copied: labels of millions of images stay on disk
                found = found.subset(np.flatnonzero([f"{split}/{i}" not in self.skipped for i in found.images.ids]))
            if len(found.images) == 0:
                raise DataError(f"split {split!r} of {self.dataset.name!r} in {self.dataset.root} holds no image")
            self._splits[split] = Part(split, np.arange(len(found.images)), found.images, found.labels)
        return self._splits[split]

    @property
    def open_splits(self) -> tuple[str, ...]:
        """The splits opened so far, in order of first use."""
        return tuple(self._splits)

    @property
    def whole_train(self) -> Part:
        """The train split; its labels are complete if a simulation makes them partial."""
        return self.whole(self.protocol.train_split)

    @cached_property
    def partial_labels(self) -> PartialLabels:
        """The labels of the whole train split that training may see."""
        # a named stream: the raw seed might have been used to sample the labels
        seed = derive_seed(self.seed, "simulate")
        simulation = parse(self.protocol.simulation)
        if simulation.kind == LABEL_FILE:
            split = self.dataset.split(
                self.protocol.train_split
            )  # including skipped images, which have rows in the file
            path = kept_label_file(simulation.file, self.dataset)
            labels = read_label_file(path, split.images, split.labels, simulation.zero)
            return labels.subset(self._rows_not_skipped) if self.skipped else labels
        return simulation.apply(self.whole_train.labels, seed, self._published_rows, self._prominence_of_train())

    @property
    def _rows_not_skipped(self) -> np.ndarray:
        """The row in the dataset's own train split of each image that is not skipped."""
        split = self.protocol.train_split
        ids = self.dataset.split(split).images.ids
        return np.flatnonzero([f"{split}/{image_id}" not in self.skipped for image_id in ids])

    @cached_property
    def _published_rows(self) -> tuple[np.ndarray, int] | None:
        """Row of each train image in the order of published masks, and the number of rows; None without such masks."""
        simulation = parse(self.protocol.simulation)
        if not simulation.is_published:
            return None
        rows, num_rows = self.dataset.published_rows(self.protocol.train_split, simulation.kind)
        return rows[self._rows_not_skipped] if self.skipped else rows, num_rows

    def _prominence_of_train(self) -> sparse.csr_array | None:
        """Return the prominence of objects in train images, if the simulation needs it; otherwise None."""
        by = parse(self.protocol.simulation).objects
        if by is None or not self.whole_train.labels.is_complete:  # rejected by the simulation
            return None
        if by not in self._prominences:  # read once for all seeds
            self._prominences[by] = self.dataset.prominence(self.protocol.train_split, by)
        return self._prominences[by][self._rows_not_skipped] if self.skipped else self._prominences[by]

    @cached_property
    def expected_positives(self) -> float | None:
        """Mean number of positives per train image, to two decimals: as published, otherwise from complete labels.

        None if the dataset's own labels are partial. This is the only number about hidden labels that a method may
        know.
        """
        if self.dataset.expected_positives is not None:
            return self.dataset.expected_positives
        labels = self.whole_train.labels
        return round(int(labels.counts()[0].sum()) / labels.num_images, 2) if labels.is_complete else None

    def train(self, part: TrainPart = "train") -> Part:
        """Return the training images with partial labels: all of train, or without the held-out part.

        Raises:
            DataError: if there are none.
        """
        if part == "train":
            return replace(self.whole_train, labels=self.partial_labels)
        return self._fit_part if part == "fit" else self._fold(part)[0]

    @cached_property  # every trial of a study asks for it
    def _fit_part(self) -> Part:
        return self._of_train(~self._held_out, self.partial_labels)

    def held_out(self, part: TrainPart) -> Part:
        """Return the part on which a training on part of train is scored instead of test: validation, or a fold.

        Raises:
            DataError: as `validation`.
        """
        return self.validation() if part == "fit" else self._fold(part)[1]

    def _fold(self, part: TrainPart) -> tuple[Part, Part]:
        """Return train without a fold, and the fold, both with partial labels."""
        if part not in self._folds:
            number, count = map(int, part.removeprefix("without-fold-").split("-of-"))
            inside = np.floor(self._hashes("plbench-fold") * count).astype(np.int64) == number - 1
            if inside.all() or not inside.any():
                raise DataError(
                    f"{len(inside):,} train images of {self.dataset.name!r} leave fold {number} of {count}, or the "
                    "images outside it, empty; use more images or another number of folds"
                )
            without, fold = (self._of_train(kept, self.partial_labels) for kept in (~inside, inside))
            self._folds[part] = (
                without,
                self._scorable(fold, f"fold {number} of {count}", "; use fewer folds, or label more images"),
            )
        return self._folds[part]

    def validation(self) -> Part:
        """Return the held-out part of train, with the labels that the protocol uses for selection.

        Raises:
            DataError: if it is empty, no class can be scored, or complete labels are required but not available.
        """
        return self._validation

    @cached_property  # used by every run to choose thresholds
    def _validation(self) -> Part:
        labels = self.partial_labels
        if self.protocol.validation_labels == "complete":
            labels = self.whole_train.labels
            if not labels.is_complete:
                raise DataError(
                    f"protocol {self.protocol.name} validates on complete labels, which dataset "
                    f"{self.dataset.name!r} does not have; validate on its partial ones"
                )
        return self._scorable(self._of_train(self._held_out, labels), "validation part")

    def hidden_truth(self, part: TrainPart = "train") -> PartialLabels | None:
        """Return the complete labels of `train(part)` if a simulation hid some; only for diagnostics."""
        if self.protocol.simulation == "none":
            return None
        return self.whole_train.labels.subset(self.train(part).rows)

    def test(self) -> Part:
        """Return the test split.

        Raises:
            DataError: if it is empty, or no class of it can be scored.
        """
        return self._scorable(self.whole(self.protocol.test_split), f"split {self.protocol.test_split!r}")

    def embedded(self, embeddings: str, part: Part) -> dict[str, np.ndarray]:
        """Return a vision-language model's similarities for the images of a part; see `Embeddings.of_images`.

        Args:
            embeddings: sha256 of the file. part: of this data.

        Raises:
            DataError: if the file is missing, or lacks a class or an image.
        """
        key = (embeddings, part.split, part.rows.tobytes())
        if key not in self._embedded:  # read once for all seeds and methods
            assert self.dataset.cache is not None
            file = read_embeddings(kept_embeddings(embeddings, self.dataset.cache))
            self._embedded[key] = file.of_images(part.split, part.images.ids, part.labels, self.dataset.name)
        return self._embedded[key]

    def _scorable(self, part: Part, what: str, fix: str = "") -> Part:
        positives, negatives = part.labels.counts()
        if not np.any((positives > 0) & (negatives > 0)):
            raise DataError(
                f"no class in the {what} of {self.dataset.name!r} ({len(part.rows)} images) has both a known positive "
                f"and a known negative, so none can be scored; average precision needs both{fix}"
            )
        return part

    @cached_property
    def _held_out(self) -> np.ndarray:
        """Mask of validation images in train: by a hash of the image's or patient's id, or as published."""
        if parse(self.protocol.simulation).kind == "cole2021":
            assert self._published_rows is not None
            rows, num_rows = self._published_rows
            held_out: np.ndarray = validation_of_cole(num_rows)[rows]
            return held_out
        return self._hashes("plbench-validation") < self.protocol.validation_share

    def _hashes(self, purpose: str) -> npt.NDArray[np.float64]:
        """Return a reproducible number in [0, 1) for each train image, from its or its patient's id."""
        units = map(self.dataset.validation_unit, self.whole_train.images.ids)
        digests = (hashlib.sha256(f"{purpose}:{unit}".encode()).digest() for unit in units)
        return np.array([int.from_bytes(digest[:8], "big") / 2**64 for digest in digests], np.float64)

    def _of_train(self, kept: np.ndarray, labels: PartialLabels) -> Part:
        whole, rows = self.whole_train, np.flatnonzero(kept)
        if len(rows) == 0:
            raise DataError(
                f"{len(whole.rows)} train images of {self.dataset.name!r} leave a part empty with "
                f"validation_share = {self.protocol.validation_share}; use more images or another share"
            )
        return Part(whole.split, whole.rows[rows], whole.images.subset(rows), labels.subset(rows))


def choose_protocol(
    dataset: Dataset, simulate: str | None, simulation_seed: int | None, *, selection: Selection = "last"
) -> Protocol:
    """Return the dataset's protocol with the requested simulation, or a custom one.

    Raises:
        PlbenchError: if the simulation cannot be read.
    """
    chosen = dataset.protocols[0]
    if simulate is not None:
        simulation = parse(simulate)
        if simulation.kind == LABEL_FILE:
            simulation = replace(simulation, file=keep_label_file(simulation.file, dataset))
        own = chosen.model_copy(update={"name": f"{dataset.name}-{simulation.slug}", **simulation.rules})
        known = {protocol.simulation: protocol for protocol in dataset.protocols}
        chosen = known.get(simulation.text) or custom(own)
    if simulation_seed not in (None, chosen.simulation_seed) and chosen.simulation != "none":
        chosen = custom(chosen.model_copy(update={"simulation_seed": simulation_seed}))
    return custom(chosen) if selection in UNRANKED_SELECTIONS else chosen


def keep_label_file(name: str, dataset: Dataset) -> str:
    """Store a label file in the dataset's cache by content, and return its name there.

    Args:
        name: path of the file, or a name returned by this function.
        dataset: with a cache.

    Raises:
        DataError: if there is no such file. StoreError: if the cache cannot be written.
    """
    if _KEPT.fullmatch(name):
        kept_label_file(name, dataset)
        return name
    try:
        content = Path(name).read_bytes()
    except OSError as error:
        raise DataError(f"the file of labels {name} cannot be read: {error.strerror}") from error
    assert dataset.cache is not None
    # by path and not only by content, so that a remembered command notices changes of the file
    kept = file_sha256(Path(name), dataset.cache) + Path(name).suffix.lower()
    target = dataset.cache / LABEL_FILE / kept
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, lambda file: file.write(content))
    except OSError as error:
        raise unwritable(target, error) from error
    return kept


_KEPT = re.compile(r"[0-9a-f]{64}\.[a-z]+")


def kept_label_file(name: str, dataset: Dataset) -> Path:
    """Return the path of a file stored by `keep_label_file`.

    Raises:
        DataError: if it is missing, or its content has changed.
    """
    assert dataset.cache is not None
    path = dataset.cache / LABEL_FILE / name
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != name.partition(".")[0]:
        state = "was changed" if path.is_file() else "is not here"
        raise DataError(f"the file of labels {path} {state}; give it again with `simulate='{LABEL_FILE}=FILE'`")
    return path


def custom(protocol: Protocol) -> Protocol:
    """Return the protocol under a custom name, which is not ranked on any board."""
    if protocol.name.startswith("custom/"):
        return protocol
    return protocol.model_copy(update={"name": f"custom/{protocol.name.partition('/')[0]}"})


def is_official(dataset: Dataset, protocol: Protocol) -> bool:
    """Return whether the splits are the published ones, by their numbers of images and classes.

    For a dataset without published numbers, subsets and imitations cannot be detected.
    """
    images, classes = dataset.official_num_images, dataset.official_num_classes
    if not images and classes is None:
        return not dataset.needs_files
    train, test = (dataset.split(name) for name in (protocol.train_split, protocol.test_split))
    return classes in (None, train.labels.num_classes) and all(  # test labels must not be opened before the end
        images.get(name, len(split.images)) == len(split.images)
        for name, split in ((protocol.train_split, train), (protocol.test_split, test))
    )


def granting(protocol: Protocol, num_trials: int, reporter: Reporter) -> Protocol:
    """Return a protocol that grants this number of trials per study: the given one, or a custom one if it grants fewer.

    The reporter receives a message if the protocol becomes a custom one.
    """
    if num_trials <= protocol.budget:
        return protocol
    reporter.line(
        f"{num_trials} trials are more than the {protocol.budget} that protocol {protocol.name} grants every method: "
        f"the rows are under {custom(protocol).name}, which no board ranks"
    )
    return custom(protocol).model_copy(update={"max_trials": num_trials})
