"""Verify a dataset's files: counts, checksums, and optionally every image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from plbench.data.dataset import Dataset
from plbench.data.download.remote import compute_checksum, read_record
from plbench.data.images import find_unreadable
from plbench.data.pixels import ODDITIES
from plbench.data.shards.prepared import PreparedDataset
from plbench.data.shards.shards import verify
from plbench.files.checksums import write_checked_json
from plbench.runs.plan.duplicates import contradicting_copies, find_duplicates, listed
from plbench.runs.plan.image_check import note_of_unreadable
from plbench.runs.workspace import Workspace, fingerprint, locate_dataset, open_dataset

_NOT_RANKED = "runs with other numbers are custom/…, and no board ranks them"
_SHOWN = 20  # maximum number of listed problems of one kind


@dataclass(frozen=True)
class Check:
    """One check: what was found, what was expected, and how to fix it if they differ."""

    what: str
    found: str
    expected: str
    well: bool | None
    fix: str | None = None


def verify_dataset(name: str, workspace: Workspace, *, decode: bool) -> list[Check]:
    """Verify a dataset's files.

    Args:
        name: of the dataset.
        workspace: locations.
        decode: also decode every image; the result is cached for runs.

    Raises:
        DataError: if files are missing or malformed.
    """
    checks = list(_checksums(locate_dataset(name, workspace), workspace))
    dataset = open_dataset(name, workspace)
    splits = dataset.about.splits if isinstance(dataset, PreparedDataset) else dataset.used_splits()
    num_classes = dataset.split(dataset.used_splits()[0]).labels.num_classes
    checks.append(_count("number of classes", num_classes, dataset.official_num_classes))
    for split in splits:
        num_images = len(dataset.split(split).images)
        checks.append(_count(f"{split}: number of images", num_images, dataset.official_num_images.get(split)))
        if isinstance(dataset, PreparedDataset):
            with workspace.reporter.task(f"Verifying the {split} shards", bytes=not decode) as report:
                problems = verify(dataset.root / split, decode=decode, report=report)
            checks.append(_verdict(f"{split}: shards", problems, decode=decode))
        else:
            checks += _images(dataset, split, workspace, decode=decode)
        said = list(dataset.notes().get(split, ()))
        sha256s = dataset.image_sha256s(split)
        if sha256s is not None and (found := contradicting_copies(dataset.split(split), sha256s)):
            copies = f"{len(found):,} groups of byte-identical images have contradictory labels ({listed(found)})"
            said.insert(0, copies)
        checks += [Check(f"{split}: labels", sentence, "", None) for sentence in said]
    fingerprint(dataset, workspace)  # hashes files that are not cached, with a progress bar
    fix = "remove them from one of the two, or run with `allow_duplicates=True`"
    for train, test in dict.fromkeys((protocol.train_split, protocol.test_split) for protocol in dataset.protocols):
        pairs = find_duplicates(dataset, train, test)
        if pairs is not None:
            found_pairs = str(pairs) if pairs else "no image in both"
            checks.append(Check(f"{test} apart from {train}", found_pairs, "", not pairs, fix))
    return checks


def _checksums(dataset: Dataset, workspace: Workspace) -> Iterator[Check]:
    """Yield checks of the checksums of published files that are kept as downloaded."""
    for file in dataset.downloads:
        path = dataset.root / file.path
        record = read_record(file, dataset.root)
        expected = file.checksum or (record.checksum if record else None)
        if expected is not None and path.is_file():
            with workspace.reporter.patience(f"Computing the checksum of {path}"):
                found = compute_checksum(path, expected.partition(":")[0], lambda: None)
            fix = f"delete it and run plbench data download {dataset.name}"
            yield Check(f"checksum of {file.path}", found, expected, found == expected, fix)


def _count(what: str, found: int, official: int | None) -> Check:
    if official is None:
        return Check(what, f"{found:,}", "", None)
    return Check(what, f"{found:,}", f"{official:,}", found == official, _NOT_RANKED)


def _images(dataset: Dataset, split: str, workspace: Workspace, *, decode: bool) -> list[Check]:
    """Return a check of the image files, and notes on decoded ones that are displayed differently than stored."""
    images = dataset.split(split).images
    if not decode:
        absent = [f"{images.name(row)} is missing" for row in images.absent()]
        return [_verdict(f"{split}: image files", absent, decode=False)]
    oddities: Counter[str] = Counter()
    with note_of_unreadable(dataset, split, workspace) as note:
        with workspace.reporter.task(f"Decoding {len(images):,} {split} images") as report:
            problems = find_unreadable(images, report, oddities)
        write_checked_json(note, {"unreadable": sorted(images.ids[row] for row in problems)})
    said = [f"{count:,} of {len(images):,} {ODDITIES[name]}" for name, count in sorted(oddities.items())]
    notes = [Check(f"{split}: pixels", sentence, "", None) for sentence in said]
    return [_verdict(f"{split}: image files", list(problems.values()), decode=True), *notes]


def _verdict(what: str, problems: list[str], *, decode: bool) -> Check:
    if not problems:
        return Check(what, "all decode" if decode else "all there", "", True)
    more = f"; and {len(problems) - _SHOWN:,} more" if len(problems) > _SHOWN else ""
    fix = "fetch or prepare them again, or run with `skip_unreadable=True`"
    return Check(what, "; ".join(problems[:_SHOWN]) + more, "all readable", False, fix)
