"""Test images that are also train images: byte-identical, regardless of ids, folders and splits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from plbench.data.dataset import Dataset, LabelledSplit
from plbench.data.digests import Sha256s
from plbench.data.images import ImageSource, hash_images
from plbench.errors import DataError
from plbench.runs.plan.image_check import MAX_DECODED
from plbench.runs.workspace import Workspace
from plbench.spec import Protocol

_SHOWN = 3  # maximum number of pairs in a message


@dataclass(frozen=True)
class Duplicates:
    """Test images that are also train images.

    Attributes:
        same_files: test images whose file is also a train image.
        pairs: the others, each with a byte-identical train image.
    """

    same_files: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        """Return the number of test images."""
        return len(self.same_files) + len(self.pairs)

    def __str__(self) -> str:
        """Return a sentence that names them, without a full stop."""
        said = []
        for found, one, many in (
            (self.same_files, "the same file as a train image", "the same files as train images"),
            (self.pairs, "byte-identical to a train image", "byte-identical to train images"),
        ):
            if found:
                are, what = ("s are", many) if len(found) > 1 else (" is", one)
                said.append(f"{len(found):,} test image{are} {what} ({listed(found)})")
        return " and ".join(said)


def listed(found: Sequence[str | tuple[str, str]]) -> str:
    """Return the first few images or pairs, as "a = b, c = d, ..."."""
    names = [one if isinstance(one, str) else " = ".join(one) for one in found[:_SHOWN]]
    return ", ".join([*names, "..."] if len(found) > _SHOWN else names)


def short_name(images: ImageSource, row: int) -> str:
    """Return an image's name for messages: its path below the root, or its id."""
    paths = getattr(images, "paths", None)
    return str(images.ids[row] if paths is None else paths[row])


_FOUND: WeakKeyDictionary[Dataset, dict[tuple[str, str, tuple[str, ...]], Duplicates | None]] = WeakKeyDictionary()


def find_duplicates(
    dataset: Dataset, train_split: str, test_split: str, skipped: tuple[str, ...] = ()
) -> Duplicates | None:
    """Compare the bytes of all images of two splits, once per open dataset. Labels are not considered.

    Args:
        skipped: images that are left out, as "split/id".

    Returns:
        None if the images have no stored hashes, and are too many to be read.
    """
    known = _FOUND.setdefault(dataset, {})
    key = (train_split, test_split, skipped)
    if key not in known:
        known[key] = _compare(dataset, train_split, test_split, skipped)
    return known[key]


def _compare(dataset: Dataset, train_split: str, test_split: str, skipped: tuple[str, ...]) -> Duplicates | None:
    train, test = (dataset.split(name).images for name in (train_split, test_split))
    ours, theirs = (_hashed(dataset, name, frozenset(skipped)) for name in (test_split, train_split))
    if ours is None or theirs is None:
        return None
    places = pc.index_in(_keys(ours), value_set=_keys(theirs), skip_nulls=True)
    rows = np.flatnonzero(places.is_valid().to_numpy(zero_copy_only=False))
    copied = pc.is_in(_keys(theirs), value_set=_keys(ours[rows])).to_numpy(zero_copy_only=False)
    files = {train.name(row) for row in np.flatnonzero(copied).tolist()}
    same = [row for row in rows.tolist() if test.name(row) in files]
    others = np.setdiff1d(rows, same).tolist()
    return Duplicates(
        tuple(short_name(test, row) for row in same),
        tuple((short_name(test, row), short_name(train, places[row].as_py())) for row in others),
    )


def check_apart(
    dataset: Dataset, protocol: Protocol, workspace: Workspace, skipped: tuple[str, ...], *, allow: bool
) -> int | None:
    """Return the number of test images that are also train images, if allowed; None if there are none.

    Raises:
        DataError: if there are any and `allow` is False.
    """
    if not dataset.needs_files:
        return None
    found = find_duplicates(dataset, protocol.train_split, protocol.test_split, skipped)
    if found is None:
        workspace.reporter.line(
            f"The images of {dataset.name!r} come without checksums (sha256s), and there are too many to compute them: "
            "it is not known whether test images are also train images"
        )
    if found and not allow:
        raise DataError(
            f"{found}, so scores would include images that were trained on; remove them from one of the two, or give "
            "`allow_duplicates=True` to run with them; the protocol is then custom/…"
        )
    return len(found) if found else None


def contradicting_copies(split: LabelledSplit, sha256s: Sha256s) -> list[tuple[str, str]]:
    """Return pairs of byte-identical images of one split, where the first has a class that the second lacks."""
    found = []
    for copies in _copies(sha256s):
        labels, names = split.labels.rows(copies), [short_name(split.images, int(row)) for row in copies]
        classes = np.flatnonzero((labels > 0).any(axis=0) & (labels < 0).any(axis=0))
        if classes.size:
            present, absent = (np.flatnonzero(labels[:, classes[0]] == sign)[0] for sign in (1, -1))
            found.append((names[present], names[absent]))
    return found


def copies_across(dataset: Dataset, split: str, part_of: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return pairs of byte-identical images of one split that are in different parts of it.

    Args:
        dataset: of the split.
        split: its name.
        part_of: number of an image's part by id; images without one are ignored.

    Returns:
        A pair of names for each content that is in several parts; empty if hashes are unknown, as in `find_duplicates`.
    """
    if not dataset.needs_files or (sha256s := _hashed(dataset, split, frozenset())) is None:
        return []
    images, found = dataset.split(split).images, []
    for copies in _copies(sha256s):
        first_of = {part_of[name]: row for row in copies[::-1].tolist() if (name := images.ids[row]) in part_of}
        if len(first_of) > 1:
            one, other, *_ = sorted(first_of.values())
            found.append((short_name(images, one), short_name(images, other)))
    return found


def _copies(sha256s: Sha256s) -> Iterator[np.ndarray]:
    """Yield the rows, in ascending order, of each content that occurs more than once."""
    groups = _keys(sha256s).dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False)
    order = np.argsort(groups, kind="stable")
    order = order[groups[order] >= 0]
    for copies in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        if len(copies) > 1:
            yield copies


def _hashed(dataset: Dataset, split: str, skipped: frozenset[str]) -> Sha256s | None:
    images, sha256s = dataset.split(split).images, dataset.image_sha256s(split)
    if sha256s is None and len(images) <= MAX_DECODED:
        sha256s = hash_images(images)
    if sha256s is None or not skipped:
        return sha256s
    stay = np.array([f"{split}/{image_id}" not in skipped for image_id in images.ids], np.uint8)
    return sha256s * stay[:, None]


def _keys(sha256s: Sha256s) -> pa.Array:
    """Return digests as Arrow binaries; null for missing images."""
    content = np.ascontiguousarray(sha256s)
    there = np.packbits(content.any(axis=1), bitorder="little")
    return pa.Array.from_buffers(pa.binary(32), len(content), [pa.py_buffer(there), pa.py_buffer(content)])
