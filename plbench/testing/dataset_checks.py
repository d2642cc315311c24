"""Checks of a dataset's splits, ids, labels, images and groups."""

from __future__ import annotations

import numpy as np

from plbench.data.dataset import Dataset, LabelledSplit
from plbench.runs.plan.duplicates import contradicting_copies, find_duplicates, listed
from plbench.runs.plan.near_duplicates import MAX_LOOKED_AT, find_near_duplicates
from plbench.runs.protocol import ProtocolData
from plbench.testing.dataset_words import DatasetSubject
from plbench.testing.findings import Mismatch, NotApplicable, Warned, check
from plbench.testing.loss_checks import drawn_from

_MAX_IMAGES = 16  # decoded per split


@check("splits", "images and labels in every split in use, of the same classes")
def check_splits(subject: DatasetSubject) -> None:
    """Check that every split used by a protocol exists, is not empty, and has the same classes."""
    dataset = subject.opened()
    classes = None
    for name in dataset.used_splits():
        split = dataset.split(name)
        if not isinstance(split, LabelledSplit):
            raise Mismatch(type(split).__name__, expected="split(name) to give a LabelledSplit")
        if len(split.images) == 0:
            raise Mismatch(f"none in {name!r}", expected="images in every split in use")
        found = (split.labels.class_ids, split.labels.class_names)
        if classes not in (None, found):
            raise Mismatch(f"others in {name!r}", expected="the same classes in the same order in every split")
        classes = found


@check("ids", "ids that are unique, and the same at every reading")
def check_ids(subject: DatasetSubject) -> None:
    """Check that ids of images and classes are unique strings, and stay the same when the files are read again."""
    first, second = subject.opened(), subject.opened()
    for name in first.used_splits():
        ids = list(first.split(name).images.ids)
        for row, image_id in enumerate(ids):
            if not isinstance(image_id, str) or not image_id:
                raise Mismatch(f"{image_id!r} in row {row} of {name!r}", expected="ids that are texts")
        if len(set(ids)) != len(ids):
            repeated = next(image_id for image_id in ids if ids.count(image_id) > 1)
            raise Mismatch(f"{repeated!r} more than once in {name!r}", expected="ids that are unique in a split")
        if ids != list(second.split(name).images.ids):
            raise Mismatch(f"others in {name!r}", expected="the same ids in the same order at a second reading")
        if first.split(name).labels.fingerprint() != second.split(name).labels.fingerprint():
            raise Mismatch(f"others in {name!r}", expected="the same labels at a second reading")


@check("train apart from test", "no test image among the train images")
def check_apart(subject: DatasetSubject) -> None:
    """Check that no test image is byte-identical to a train image, whatever its id and folder."""
    protocol, dataset = subject.kind.protocols[0], subject.opened()
    found = find_duplicates(dataset, protocol.train_split, protocol.test_split)
    if found is None:
        raise NotApplicable("the images do not give their checksums (sha256s), and are too many to be read for them")
    if found:
        raise Mismatch(str(found))
    sha256s = dataset.image_sha256s(protocol.train_split)
    contradicting = [] if sha256s is None else contradicting_copies(dataset.split(protocol.train_split), sha256s)
    if contradicting:
        said = f"{len(contradicting):,} groups of equal train images contradict each other"
        raise Warned(f"{said}: {listed(contradicting)}")


@check("near duplicates", "no test image that looks like a train image")
def check_near(subject: DatasetSubject) -> None:
    """Check for test images that look like train images, by a perceptual hash."""
    if not subject.kind.needs_files:
        raise NotApplicable("the dataset makes its own images")
    protocol, dataset = subject.kind.protocols[0], subject.opened()
    train, test = (dataset.split(name).images for name in (protocol.train_split, protocol.test_split))
    if len(train) + len(test) > MAX_LOOKED_AT:
        raise NotApplicable(f"{len(train) + len(test):,} images are too many to decode here")
    equal = find_duplicates(dataset, protocol.train_split, protocol.test_split)
    said = set() if equal is None else {*equal.same_files, *(test_name for test_name, _ in equal.pairs)}
    if found := [pair for pair in find_near_duplicates(train, test) if pair[0] not in said]:
        number = f"{len(found):,} test image{'s look' if len(found) > 1 else ' looks'}"
        raise Warned(f"{number} like a train image: {listed(found)}; if they show the same, move them to one part")


@check("labels", "labels of +1 and -1, with something to learn and to score")
def check_labels(subject: DatasetSubject) -> None:
    """Check label values, and that there are labels to learn and to score."""
    dataset = subject.opened()
    for protocol in subject.kind.protocols:
        protocol_data = ProtocolData(dataset, protocol)
        labels = protocol_data.train().labels
        if not set(np.unique(labels.matrix.data)) <= {-1, 1}:
            raise Mismatch(
                f"{sorted(set(labels.matrix.data.tolist()))}", expected="labels of +1 and -1 (0 is not stored)"
            )
        if labels.counts()[0].sum() == 0:
            raise Mismatch(f"none under {protocol.name}", expected="known positives in train")
        protocol_data.test()  # raises if it cannot be scored
    for name in dataset.used_splits():
        labels = dataset.split(name).labels
        if len(labels.class_ids) != len(set(labels.class_ids)) or not all(labels.class_ids):
            raise Mismatch(f"{labels.class_ids} in {name!r}", expected="class ids that are unique and not empty")


@check("images", "every image there; those that were tried decode")
def check_images(subject: DatasetSubject) -> None:
    """Check a sample of images of each split: in RGB, and no smaller than requested."""
    dataset = subject.opened()
    for name in dataset.used_splits():
        images = dataset.split(name).images
        if absent := images.absent():
            raise Mismatch(
                f"{len(absent)} of {name!r} are not, such as {images.name(absent[0])}", expected="every image there"
            )
        for row in np.unique(np.linspace(0, len(images) - 1, _MAX_IMAGES).astype(int)).tolist():
            image = images.load(row)
            if image.mode != "RGB" or min(image.size) < 1:
                raise Mismatch(f"{image.mode} of {image.size} from {images.name(row)}", expected="images in RGB")
            smaller = images.load(row, min_side=8)
            if min(smaller.size) < min(8, *image.size):
                raise Mismatch(f"{smaller.size} from {images.name(row)}", expected="no side below min_side = 8")
        order = np.array([len(images) - 1, 0])
        chosen = images.subset(order)
        same_ids = list(chosen.ids) == [images.ids[row] for row in order]
        if not same_ids or chosen.load(1).tobytes() != images.load(0).tobytes():
            raise Mismatch(f"others of {name!r}", expected="subset(index) to give the chosen rows in the order given")


@check("groups", "groups that name classes")
def check_groups(subject: DatasetSubject) -> None:
    """Check groups of class ids."""
    dataset = subject.opened()
    class_ids = set(dataset.split(dataset.used_splits()[0]).labels.class_ids)
    groups = dataset.groups()
    if not groups:
        raise NotApplicable("the dataset has no groups")
    for group, members in groups.items():
        strange = [member for member in members if member not in class_ids]
        if strange or not members or len(set(members)) != len(members):
            seen = f"{strange[0]!r} in {group!r}" if strange else f"{list(members)} in {group!r}"
            raise Mismatch(seen, expected="groups of class ids that exist, each once")


@check("fingerprint is stable", "the same fingerprint of the same files")
def check_fingerprint(subject: DatasetSubject) -> None:
    """Check that the fingerprint of the same files is equal across instances and does not depend on earlier reads."""
    fresh, used = subject.opened(), subject.opened()
    _read_some(used)
    first, second = fresh.fingerprint(), used.fingerprint()
    if first != second or first != fresh.fingerprint():
        raise Mismatch(f"{first[:16]}… and {second[:16]}…", expected="the same fingerprint of the same files")
    if len(first) != 64 or set(first) - set("0123456789abcdef"):
        raise Mismatch(repr(first), expected="a sha256 in 64 hexadecimal digits")


@check("global randomness untouched", "the caller's generators as they were")
def check_generators(subject: DatasetSubject) -> None:
    """Check that reading leaves global random generators unchanged."""
    if (drawn := drawn_from(lambda: _read_some(subject.opened()))) is not None:
        raise Mismatch(f"reading drew from the global generator of {drawn}")


def _read_some(dataset: Dataset) -> None:
    for name in dataset.used_splits():
        split = dataset.split(name)
        split.labels.rows([0])
        split.images.load(0)
    dataset.groups()
