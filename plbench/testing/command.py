"""The checks as commands: with the time left, and one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from plbench.progress import Reporter
from plbench.runs.plan.resolved import validate_params
from plbench.runs.registry import Registry
from plbench.runs.workspace import Workspace, locate_dataset, open_dataset
from plbench.testing.dataset_words import DatasetSubject
from plbench.testing.datasets import CHECKS, dataset_findings, on_fixture
from plbench.testing.findings import Finding
from plbench.testing.methods import checks_of, method_findings, subjects
from plbench.testing.pair import shared_pair


def check_methods(
    names: Sequence[str], registry: Registry, params: Mapping[str, Any] | None, reporter: Reporter
) -> list[Finding]:
    """Return all findings on some methods.

    Raises:
        PlbenchError: if there is no such method, or it takes no such parameter.
    """
    torch.set_num_threads(1)  # small tensors are slower with more
    chosen = [subject for name in names for subject in subjects(name, registry, params)]
    for subject in chosen if params is not None else ():
        validate_params(subject.kind, subject.values)  # a mistyped name is no fault of the method
    shared_pair()  # starts while other checks run
    total = sum(len(checks_of(subject)) for subject in chosen)
    findings: list[Finding] = []
    with reporter.task(f"Checking {', '.join(names)}") as report:
        report(0, total)
        for number, subject in enumerate(chosen, 1):
            for finding in method_findings(subject):
                findings.append(finding)
                report(len(findings), total)
            report(sum(len(checks_of(done)) for done in chosen[:number]), total)
    return findings


def check_one_dataset(name: str, workspace: Workspace, *, fixture: bool) -> list[Finding]:
    """Return all findings on a dataset, on its files, or on its fixture.

    Raises:
        PlbenchError: if there is no such dataset, its files are missing, or it has no fixture.
    """
    kind = workspace.registry.dataset(name)
    if fixture:
        with on_fixture(kind, workspace.registry, workspace.data_options) as subject:
            return _findings(subject, workspace.reporter)
    open_dataset(name, workspace)  # says what is missing, and draws or indexes with a bar
    located = locate_dataset(name, workspace)
    subject = DatasetSubject(
        kind,
        located.root,
        located.options,
        workspace.registry,
        is_fixture=False,
        cache=workspace.store.cache,
        opens=type(located),
    )
    return _findings(subject, workspace.reporter)


def _findings(subject: DatasetSubject, reporter: Reporter) -> list[Finding]:
    findings: list[Finding] = []
    with reporter.task(f"Checking {subject.kind.title}") as report:
        for finding in dataset_findings(subject):
            findings.append(finding)
            report(len(findings), len(CHECKS))
    return findings
