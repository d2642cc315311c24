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
from plbench.runs.workspace import Workspace, locate_dataset, open_dataset
from plbench.testing import dataset_checks as files
from plbench.testing import dataset_words as words
from plbench.testing.dataset_edits import check_follows
from plbench.testing.dataset_words import DatasetSubject
from plbench.testing.findings import Check, Finding, raise_failed

CHECKS: tuple[Check, ...] = (
    words.check_words,
    words.check_protocols,
    words.check_recipes,
    words.check_missing,
    files.check_splits,
    words.check_unknown_split,
    files.check_ids,
    files.check_apart,
    files.check_near,
    files.check_labels,
    files.check_images,
    files.check_groups,
    files.check_fingerprint,
    check_follows,
    files.check_generators,
)

Options = Mapping[str, Any] | Callable[[Path], Mapping[str, Any]]
"""Options of the dataset, or a function that returns them for a folder."""


@contextlib.contextmanager
def _on_fixture(kind: type[Dataset], registry: Registry, options: Options) -> Iterator[DatasetSubject]:
    """Open a dataset on its own fixture, a small imitation of its files, or on its synthetic images."""
    with tempfile.TemporaryDirectory(prefix="plbench-check-") as folder:
        root, cache = Path(folder) / "data", Path(folder) / "cache"
        if kind.needs_files:
            kind(root).make_fixture()
        given = options(root) if callable(options) else options
        yield DatasetSubject(kind, root, kind.Options(**given), registry, is_fixture=kind.needs_files, cache=cache)


def _findings(subject: DatasetSubject) -> Iterator[Finding]:
    """Yield findings one by one. If splits cannot be read, checks of the files are skipped."""
    for check in CHECKS:
        finding = check.finding(subject.kind.name, subject)
        yield finding
        if check is files.check_splits and finding.passed is False:
            return


def check_dataset(
    dataset: type[Dataset] | str,
    *,
    root: Path | None = None,
    options: Options = {},  # noqa: B006
    registry: Registry | None = None,
) -> None:
    """Run all checks on a dataset, for use in your own tests.

    Args:
        dataset: the class, or the name of an installed one.
        root: the folder of its files; if omitted, its fixture is written by `make_fixture`.
        options: its other options, by name; or a function that returns them for a folder.
        registry: registry of the methods for which its protocols suggest values; default: the installed ones.

    Raises:
        CheckFailed: an AssertionError with expected and observed behaviour for each failure.
        PlbenchError: if there are neither files nor a fixture.

    Examples:
        >>> check_dataset("coco")  # doctest: +SKIP
    """
    known = Registry.discover() if registry is None else registry
    kind = known.dataset(dataset) if isinstance(dataset, str) else dataset
    if root is None:
        with _on_fixture(kind, known, options) as subject:
            raise_failed(_findings(subject))
        return
    if not root.is_dir():
        raise PlbenchError(f"{root} is not a folder; give the folder of the files of {kind.name!r}")
    given = options(root) if callable(options) else options
    raise_failed(_findings(DatasetSubject(kind, root, kind.Options(**given), known, is_fixture=False)))


def check_one_dataset(name: str, workspace: Workspace, *, fixture: bool) -> list[Finding]:
    """Return all findings on a dataset's files or fixture, and report progress.

    Raises:
        PlbenchError: if there is no such dataset, its files are missing, or it has no fixture.
    """
    kind, registry, cache = workspace.registry.dataset(name), workspace.registry, workspace.store.cache
    with contextlib.ExitStack() as stack:
        if fixture:
            subject = stack.enter_context(_on_fixture(kind, registry, workspace.data_options))
        else:
            open_dataset(name, workspace)  # reports missing files, and renders or indexes with a progress bar
            there = locate_dataset(name, workspace)
            subject = DatasetSubject(kind, there.root, there.options, registry, False, cache, opens=type(there))
        report = stack.enter_context(workspace.reporter.task(f"Checking {kind.title}"))
        findings: list[Finding] = []
        for finding in _findings(subject):
            findings.append(finding)
            report(len(findings), len(CHECKS))
    return findings
