"""All checks of a dataset."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from plbench.data.dataset import Dataset
from plbench.errors import PlbenchError
from plbench.runs.registry import Registry
from plbench.testing.dataset_checks import APART, FINGERPRINT, GENERATORS, GROUPS, IDS, IMAGES, LABELS, NEAR, SPLITS
from plbench.testing.dataset_edits import FOLLOWS
from plbench.testing.dataset_words import MISSING, PROTOCOLS, RECIPES, UNKNOWN_SPLIT, WORDS, DatasetSubject
from plbench.testing.findings import Check, Finding, findings_of, raise_failed

OF_ITSELF: tuple[Check, ...] = (WORDS, PROTOCOLS, RECIPES, MISSING)
OF_FILES: tuple[Check, ...] = (
    SPLITS,
    UNKNOWN_SPLIT,
    IDS,
    APART,
    NEAR,
    LABELS,
    IMAGES,
    GROUPS,
    FINGERPRINT,
    FOLLOWS,
    GENERATORS,
)
CHECKS = OF_ITSELF + OF_FILES

Options = Mapping[str, Any] | Callable[[Path], Mapping[str, Any]]
"""Of the dataset, or what they are for a folder."""


@contextlib.contextmanager
def on_fixture(kind: type[Dataset], registry: Registry, options: Options = {}) -> Iterator[DatasetSubject]:  # noqa: B006
    """Open a dataset on the small imitation of its files that it makes itself, or that it draws.

    Raises:
        PlbenchError: if it makes none.
    """
    with tempfile.TemporaryDirectory(prefix="plbench-check-") as folder:
        root, cache = Path(folder) / "data", Path(folder) / "cache"
        if kind.needs_files:
            kind(root).make_fixture()
        given = options(root) if callable(options) else options
        yield DatasetSubject(kind, root, kind.Options(**given), registry, is_fixture=kind.needs_files, cache=cache)


def dataset_findings(subject: DatasetSubject) -> Iterator[Finding]:
    """Yield what checks find, one after another. Where the splits cannot be had, nothing more is asked of the files."""
    for check in CHECKS:
        finding = next(findings_of(subject.kind.name, [check], subject))
        yield finding
        if check is SPLITS and finding.passed is False:
            return


def check_dataset(
    dataset: type[Dataset] | str,
    *,
    root: Path | None = None,
    options: Options = {},  # noqa: B006
    registry: Registry | None = None,
) -> None:
    """Put a dataset through every check: for a test of one's own.

    Args:
        dataset: the class, or the name of an installed one.
        root: the folder of its files; without one, its own fixture is made, which `make_fixture` writes.
        options: what it is told beside its folder, by name; or a function that says so of a folder.
        registry: where the methods are found that its protocols suggest values for; by default what is installed.

    Raises:
        CheckFailed: an AssertionError that says of each failure what was expected and what was seen.
        PlbenchError: if there are neither files nor a fixture.

    Examples:
        >>> check_dataset("coco")  # doctest: +SKIP
    """
    known = Registry.discover() if registry is None else registry
    kind = known.dataset(dataset) if isinstance(dataset, str) else dataset
    if root is None:
        with on_fixture(kind, known, options) as subject:
            raise_failed(dataset_findings(subject))
        return
    if not root.is_dir():
        raise PlbenchError(f"{root} is no folder; give the folder of the files of {kind.name!r}")
    given = options(root) if callable(options) else options
    raise_failed(dataset_findings(DatasetSubject(kind, root, kind.Options(**given), known, is_fixture=False)))
